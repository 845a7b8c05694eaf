from __future__ import annotations

import pytest

from typeless_grpc.app.tracing import NO_TRACERS, open_tracing, requested_by
from typeless_grpc.errors import InvalidInput

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, None),
        (ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:1"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": ""}, None),
        ({"OTEL_TRACES_EXPORTER": "none"} | ENDPOINT, None),
        ({"OTEL_SDK_DISABLED": "TRUE"} | ENDPOINT, None),
        ({"OTEL_SDK_DISABLED": "false"} | ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_which_variables_turn_traces_on(environ: dict[str, str], variable: str | None):
    assert requested_by(environ) == variable


async def test_traces_are_off_by_default():
    async with open_tracing({}) as tracers:
        assert tracers == NO_TRACERS


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({"OTEL_TRACES_EXPORTER": "no-such-exporter"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"} | ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "x"} | ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_TRACES_EXPORTER"),
    ],
)
async def test_a_variable_that_cannot_be_used_is_an_error_that_names_it(
    environ: dict[str, str], variable: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in environ.items():  # the SDK reads them itself
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput) as caught:
        async with open_tracing(environ):
            pass
    assert [problem.field for problem in caught.value.violations] == [variable]


async def test_every_exporter_of_the_extra_can_be_named():
    environ = {"OTEL_TRACES_EXPORTER": "otlp,otlp_proto_http", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    async with open_tracing(environ) as tracers:
        assert tracers.interceptors
