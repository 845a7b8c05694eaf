"""What all state machines share: how many examples they run, and the count of what was run."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

from tests.states.seeded import SeededEventLoop

T = TypeVar("T")

STEPS = 30  # of one example, at most


class CountedMachine(RuleBasedStateMachine):
    """A state machine whose examples and steps are counted. Its coroutines run on an event loop of its own.

    An example that fails shows its steps, and the seed of the loop among them.
    """

    n_examples: ClassVar[int] = 0
    n_steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        CountedMachine.n_examples += 1
        self.loop = SeededEventLoop(0)

    @invariant()
    def step_is_counted(self) -> None:
        CountedMachine.n_steps += 1

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.loop.close()


def factor() -> int:
    """How many times as much as in CI is tried: once, or more in the profile "hardening" and with a larger SCALE."""
    of_profile = settings.default.max_examples // 100  # 100 is Hypothesis's own default
    return max(1, round(of_profile * float(os.environ.get("SCALE", "1"))))


def check(machine: Callable[[], RuleBasedStateMachine], n_examples: int, n_steps: int = STEPS) -> None:
    """Run a state machine. n_examples: in the ordinary profile; the profile "hardening" runs many times as many.

    SHRINK=1 looks for the shortest sequence that fails, which takes minutes.
    """
    phases = [Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if os.environ.get("SHRINK") else [])]
    wanted = settings(max_examples=n_examples * factor(), stateful_step_count=n_steps, phases=phases)
    run_state_machine_as_test(machine, settings=wanted)


def finds(machine: Callable[[], RuleBasedStateMachine], n_examples: int, n_steps: int = STEPS) -> None:
    """Check that a machine finds the fault that is planted in it.

    n_examples: of its ordinary run, which has new examples each time. Here the first ones are simple, and each change
    of a test changes them all, so up to ten times as many are tried.
    """
    wanted = settings(
        max_examples=10 * n_examples,
        stateful_step_count=n_steps,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=wanted)
