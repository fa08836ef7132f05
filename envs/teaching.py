"""Teachers of programs: what they see, do and call while they run their program, as demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from ..models.programs.procedure_tree import ProcedureTree
from .data.demonstrations import Demonstrations, Episode
from .machine import Machine

__all__ = ["STREAMS", "CallRecorder", "RunningProcedure", "taught"]

STREAMS = {"train": 0, "validation": 1, "test": 2}

_parsed = lru_cache(ProcedureTree.parse)


class RunningProcedure:
    """A procedure that a teacher runs: what it has to hand back when it returns."""

    def __init__(self, index: int) -> None:
        self.index, self.steps = index, 0
        self.value: Sequence[float] | np.ndarray = ()

    def returns(self, value: Sequence[float] | np.ndarray) -> None:
        """Return this value, the numbers of all fields, at the end of the block."""
        self.value = value


class CallRecorder:
    """Writes down what a teacher sees, does and calls while it runs its program on a machine.

    A teacher is written as its program is: `with run.call("bubble"): run.act("ptr2right")`. Leaving the block is the
    return from the procedure; `episode` returns from the root. A procedure with a return value hands it back by
    `with run.call("look") as look: ...; look.returns([0, 1])`.

    Args:
        tree: the teacher's procedures, in text form.
        machine: what it controls.

    Raises:
        ValueError: from its methods, naming the procedure or action, for what the running procedure does not call or is
            of the other kind, for an argument or return value that its fields cannot hold, and for a return before
            anything was done.
    """

    def __init__(self, tree: str, machine: Machine) -> None:
        self.tree, self.machine = _parsed(tree), machine
        self.observations = [machine.observe()]
        self.actions: list[int] = []
        self.arguments: list[np.ndarray] = []
        self.calls: list[np.ndarray] = []
        self._slots: list[int] = []  # that the calls fill
        self._empty: dict[int, np.ndarray] = {}  # rows without numbers, by slot
        self._stack = [RunningProcedure(0)]

    @contextmanager
    def call(self, procedure: str, argument: Sequence[float] | np.ndarray = ()) -> Iterator[RunningProcedure]:
        """Run a procedure."""
        if (index := self._index(procedure)) >= len(self.tree.procedures):
            raise ValueError(f"{procedure!r} is an action: act({procedure!r})")
        self._record(index, argument)
        self._stack.append(running := RunningProcedure(index))
        yield running
        self._return(running)

    def act(self, action: str, argument: Sequence[float] | np.ndarray = (), *, primitive: int | None = None) -> None:
        """Take an action.

        Args:
            action: its name in the tree.
            argument: of the action.
            primitive: the machine's number for both; by default the action's own.
        """
        number = (index := self._index(action)) - len(self.tree.procedures)
        if number < 0:
            raise ValueError(f"{action!r} is a procedure: with call({action!r})")
        self._record(index, argument)
        self.machine.apply(number if primitive is None else primitive)
        self.actions.append(number)
        self.arguments.append(self.calls[-1][1 : 1 + self.tree.action_arg_size])
        self.observations.append(self.machine.observe())

    def episode(
        self, task: Sequence[float] | np.ndarray | None = None, returns: Sequence[float] | np.ndarray = ()
    ) -> Episode:
        """Return from the root, and return what was recorded.

        Args:
            task: the root's argument.
            returns: the root's return value.
        """
        argument, root = self._row(0, () if task is None else task), self._stack[0]
        root.returns(returns)
        self._return(root)
        filled = np.stack([argument, *self.calls])[:, 1:]
        if fault := self.tree.fault(torch.tensor([0, *self._slots]), torch.from_numpy(filled)):
            raise ValueError(fault[1])
        return Episode(
            observations=np.stack(self.observations),
            actions=np.array(self.actions),
            task=None if task is None else np.array(task, dtype=np.float32),
            arguments=np.stack(self.arguments),
            calls=np.stack(self.calls),
        )

    def _index(self, name: str) -> int:
        """The number of a choice that the running procedure has."""
        running, index = self.tree.procedures[self._stack[-1].index], self.tree.index(name)
        if name not in running.calls:
            raise ValueError(f"{running.name!r} does not call {name!r}")
        return index

    def _record(self, slot: int, values: Sequence[float] | np.ndarray) -> None:
        self.calls.append(self._row(slot, values))
        self._slots.append(slot)
        self._stack[-1].steps += 1

    def _return(self, running: RunningProcedure) -> None:
        name = self.tree.procedures[running.index].name
        if running is not self._stack[-1]:
            raise ValueError(f"{self.tree.procedures[self._stack[-1].index].name!r} has not returned to {name!r} yet")
        if not running.steps:
            raise ValueError(f"{name!r} returns before it has done anything")
        self._record(self.tree.null + running.index, running.value)
        self._stack.pop()

    def _row(self, slot: int, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """A step of the call trace that fills a slot of the tree."""
        if not len(values) and slot in self._empty:
            return self._empty[slot]
        tree, given = self.tree, np.asarray(values, dtype=np.float32)
        name = tree.choices[slot] if slot < tree.null else tree.procedures[slot - tree.null].name
        width, what = sum(field.size for field in tree.slots[slot]), "argument" if slot < tree.null else "return value"
        if given.shape != (width,):
            raise ValueError(f"the {what} of {name!r} is {width} numbers, got {given.tolist()}")
        row = np.zeros(1 + tree.arg_size, dtype=np.float32)
        row[0], row[1 : 1 + width] = min(slot, tree.null), given
        if not width:
            self._empty[slot] = row
        return row


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
