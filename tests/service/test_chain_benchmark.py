"""The measurement of the interceptors' cost still runs; how much it finds is not for a test to judge."""

from __future__ import annotations

import pytest

from benchmarks import chain


async def test_the_benchmark_of_the_chain_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chain, "ROUND", 5)
    monkeypatch.setattr(chain.logs, "configure", lambda *_: None)
    await chain.main(5, "")
    assert "ms a call" in capsys.readouterr().out.splitlines()[-1]
