"""The measurements of the interceptors and of observing still run; what they find is not for a test to judge."""

from __future__ import annotations

import pytest

from benchmarks import chain, observing


async def test_the_benchmark_of_the_chain_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chain, "ROUND", 5)
    monkeypatch.setattr(chain.logs, "configure", lambda *_: None)
    await chain.main(5, "")
    assert "ms a call" in capsys.readouterr().out.splitlines()[-1]


def test_the_benchmark_of_observing_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(observing.logs, "configure", lambda *_: None)
    observing.main(1)
    assert "a scrape" in capsys.readouterr().out.splitlines()[-1]
