"""What a log line says, and what it never says; in a process of its own, since logging is set up once for all."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from typeless_grpc.telemetry.context import CallThreads, request_id

# A call that fails in a way nobody foresaw, with a key and audio in its variables.
FAILING_CALL = """
import sys
from typeless_grpc.telemetry import logs
from typeless_grpc.telemetry.context import request_id

logs.configure("info", sys.argv[1])
log = logs.get_logger("typeless_grpc.somewhere")

def handler(key, audio):
    raise ZeroDivisionError("what went wrong")

token = request_id.set("web-7")
try:
    handler("tl_" + "s" * 43, b"spoken " + b"text")
except ZeroDivisionError:
    log.exception("unforeseen error")
"""


@pytest.fixture(params=["text", "json"])
def lines(request: pytest.FixtureRequest) -> str:
    command = [sys.executable, "-c", FAILING_CALL, request.param]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr


def test_an_error_is_logged_with_its_traceback_and_its_call(lines: str):
    assert "ZeroDivisionError: what went wrong" in lines
    assert "in handler" in lines
    assert "web-7" in lines


def test_the_variables_of_a_traceback_are_not_logged(lines: str):
    assert "ssss" not in lines
    assert "spoken text" not in lines


def test_json_is_one_line_for_each_event():
    command = [sys.executable, "-c", FAILING_CALL, "json"]
    stderr = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr
    (line,) = stderr.splitlines()
    written = json.loads(line)
    assert (written["event"], written["level"], written["request_id"]) == ("unforeseen error", "error", "web-7")


def test_threads_that_work_for_a_call_know_which():
    with CallThreads(1) as threads:
        token = request_id.set("web-7")
        first = threads.submit(request_id.get)
        request_id.reset(token)
        second = threads.submit(request_id.get)
        assert (first.result(), second.result()) == ("web-7", "")


DISCONNECTION = """
import logging
from typeless_grpc.telemetry import logs

logs.configure("info", "json")
grpc_core = logging.getLogger("grpc._cython.cygrpc")
grpc_core.error("ExecuteBatchError raised in core by servicer method [%s]", "/a.Service/Method")
grpc_core.error("Invalid encoding on %s", b"a-mistyped-key\\xff")
grpc_core.error("Unexpected [%s] raised by servicer method [%s]" % ("UnicodeDecodeError", "/a.Service/Method"))
grpc_core.error("another error")
"""


def test_faults_of_clients_do_not_fill_the_log():
    ran = subprocess.run([sys.executable, "-c", DISCONNECTION], capture_output=True, text=True, check=True, timeout=60)
    assert [json.loads(line)["event"] for line in ran.stderr.splitlines()] == ["another error"]
