"""Options classes have defaults for tests; the settings have the real ones. They must not drift apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from typeless_grpc.access.registry import RegistryOptions
from typeless_grpc.app import access, background, models, root, streams
from typeless_grpc.config import Settings
from typeless_grpc.stores.database import Database

SETTINGS = Settings()
OPTIONS = [
    access.token_options(SETTINGS),
    RegistryOptions(max_keys=SETTINGS.max_api_keys, refresh_s=SETTINGS.key_refresh_s),
    background.job_store_options(SETTINGS),
    background.upload_options(SETTINGS),
    background.worker_options(SETTINGS),
    background.worker_options(SETTINGS).retries,
    models.pool_options(SETTINGS),
    models.recognizer_options(SETTINGS),
    root.admission_options(SETTINGS),
    streams.session_limits(SETTINGS),
    streams.stream_options(SETTINGS),
]
# Not taken from a setting of its own: a deadline of the first segment's temperature, or what a caller chooses.
FREE = {"temperatures", "interim_interval_s"}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: type(options).__name__)
def test_a_default_that_a_setting_has_is_the_same_in_the_options(options: Any):
    for field in dataclasses.fields(options):
        if field.default is not dataclasses.MISSING and field.name not in FREE:
            assert getattr(options, field.name) == field.default, field.name


def test_sqlite_is_polled_more_often_than_a_database_over_the_network(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    assert background.dbos_options(SETTINGS, database).poll_s == 0.05
    database.close()
