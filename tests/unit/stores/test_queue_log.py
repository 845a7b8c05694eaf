from __future__ import annotations

import logging

import pytest
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSWorkflowCancelledError

from typeless_grpc.stores.database import Database
from typeless_grpc.stores.dbos.queue import prepare


def test_callers_that_cancel_their_jobs_do_not_fill_the_log(database: Database, caplog: pytest.LogCaptureFixture):
    prepare(database)
    logger = logging.getLogger("dbos")
    for error in (DBOSAwaitedWorkflowCancelledError("id"), DBOSWorkflowCancelledError("id"), ValueError("a bug")):
        logger.error("Exception encountered in background workflow:", exc_info=error)
    logger.error("another error")
    errors = [(record.exc_info[1] if record.exc_info else None) for record in caplog.records]
    assert [type(error) for error in errors] == [ValueError, type(None)]
