"""Teachers of programs: what they see, do and call while they run their program, as demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from ..models.programs.procedure_tree import ProcedureTree
from .data.demonstrations import Demonstrations, Episode
from .machine import Machine

__all__ = ["STREAMS", "CallRecorder", "taught"]

STREAMS = {"train": 0, "validation": 1, "test": 2}

_parsed = lru_cache(ProcedureTree.parse)


class CallRecorder:
    """Writes down what a teacher sees, does and calls while it runs its program on a machine.

    A teacher is written as its program is: `with run.call("bubble"): run.act("ptr2right")`. Leaving the block is the
    return from the procedure; `episode` returns from the root.

    Args:
        tree: the teacher's procedures, in text form.
        machine: what it controls.
    """

    def __init__(self, tree: str, machine: Machine) -> None:
        self.tree, self.machine = _parsed(tree), machine
        self.observations = [machine.observe()]
        self.actions: list[int] = []
        self.arguments: list[np.ndarray] = []
        self.calls: list[np.ndarray] = []

    @contextmanager
    def call(self, procedure: str, argument: Sequence[float] | np.ndarray = ()) -> Iterator[None]:
        """Run a procedure."""
        self._record(self.tree.index(procedure), argument)
        yield
        self._record(self.tree.null)

    def act(self, action: str, argument: Sequence[float] | np.ndarray = (), *, primitive: int | None = None) -> None:
        """Take an action.

        Args:
            action: its name in the tree.
            argument: of the action.
            primitive: the machine's number for both; by default the action's own.
        """
        number = self.tree.index(action) - len(self.tree.procedures)
        self._record(self.tree.index(action), argument)
        self.machine.apply(number if primitive is None else primitive)
        self.actions.append(number)
        self.arguments.append(self.calls[-1][1 : 1 + self.tree.action_arg_size])
        self.observations.append(self.machine.observe())

    def episode(self, task: Sequence[float] | None = None) -> Episode:
        """Return from the root, and return what was recorded; `task` is the root's argument."""
        self._record(self.tree.null)
        return Episode(
            observations=np.stack(self.observations),
            actions=np.array(self.actions),
            task=None if task is None else np.array(task, dtype=np.float32),
            arguments=np.stack(self.arguments),
            calls=np.stack(self.calls),
        )

    def _record(self, choice: int, argument: Sequence[float] | np.ndarray = ()) -> None:
        row = np.zeros(1 + self.tree.arg_size, dtype=np.float32)
        row[0] = choice
        row[1 : 1 + len(argument)] = argument
        self.calls.append(row)


def taught(
    demonstrate: Callable[[np.random.Generator], Episode],
    num_actions: int,
    count: int,
    seed: int,
    stream: str,
    annotate: bool,
) -> Demonstrations:
    """Draw instances of a task and let its teacher demonstrate them.

    Instances are drawn one after the other, so the first 40 of 160 are the 40 that `count=40` gives. The random
    streams train, validation and test of one seed never overlap.

    Args:
        demonstrate: draws an instance and demonstrates it.
        num_actions: how many actions there are, the null not counted.
        count: number of demonstrations.
        seed: seed of the draw.
        stream: `"train"`, `"validation"` or `"test"`.
        annotate: keep the true call traces.

    Raises:
        ValueError: if the count or the stream make no sense.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {sorted(STREAMS)}, got {stream!r}")
    generator = np.random.default_rng(np.random.SeedSequence([seed, STREAMS[stream]]))
    episodes = [demonstrate(generator) for _ in range(count)]
    if not annotate:
        episodes = [episode._replace(calls=None) for episode in episodes]
    return Demonstrations.from_episodes(episodes, num_actions)
