"""The arithmetic of docs/scaling.md."""

from __future__ import annotations

import pytest

from benchmarks import capacity
from benchmarks.capacity import Costs, most, need
from tests.harness import REPOSITORY


def test_the_table_in_the_docs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]):
    capacity.main(["--cores", "64", "--streams", "1000"])
    assert capsys.readouterr().out in (REPOSITORY / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("streams", [True, False], ids=["streams", "calls"])
def test_the_most_of_some_cores_needs_these_cores(streams: bool):
    found = most(Costs(), 64, streams=streams)
    assert 63 < found.cores <= 64
    more = need(Costs(), found.streams + streams, found.calls + (not streams))
    assert more.cores > 64


def test_a_gpu_replaces_the_cores_of_engines_and_leaves_the_fronts():
    on_cores, on_gpus = need(Costs(), 1000, 0), need(Costs(gpu_streams=200), 1000, 0)
    assert (on_cores.gpus, on_gpus.gpus) == (0, 5)
    assert on_gpus.engine_cores == 0
    assert on_gpus.fronts == on_cores.fronts


def test_one_front_suffices_until_its_event_loop_is_full():
    costs = Costs(front_cpu_ms=6, front_loop_ms=6, front_load=0.6)
    assert [need(costs, n, 0).fronts for n in (1, 100, 101)] == [1, 1, 2]
