"""Traces one after the other, without padding: what a file of demonstrations holds.

Shapes: B traces of A_b actions each, O observation numbers, A action numbers, U task numbers, V numbers of an action's
argument, I_b program steps of a trace, W numbers of a program step's argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FlatTraces", "TraceError", "concatenate", "pad"]


class TraceError(ValueError):
    """Something wrong with one trace; the message begins with where.

    Attributes:
        trace: which trace.
        step: which of its steps.
        what: what is wrong.
        unit: what is counted, ``"step"`` of the environment or ``"call"`` of a program.
    """

    def __init__(self, trace: int, step: int, what: str, unit: str = "step") -> None:
        super().__init__(f"trace {trace}, {unit} {step}: {what}")
        self.trace, self.step, self.what, self.unit = trace, step, what, unit


@dataclass(frozen=True, eq=False)
class FlatTraces:
    """Traces one after the other. The names are those of the arrays in a file.

    Attributes:
        counts: `[B]` integers, actions of each trace.
        observations: `[sum(A_b + 1), O]` floats.
        actions: `[sum(A_b)]` integers, `[sum(A_b), A]` integers or floats: stored actions, without the null.
        terminated: `[B]` bool.
        truncated: `[B]` bool.
        task: `[B, U]` floats.
        arguments: `[sum(A_b), V]` floats.
        call_counts: `[B]` integers, program steps of each trace, 0 where it is not annotated.
        calls: `[sum(I_b), 1 + W]` floats; `[0, 0]` where no trace is annotated.
        rewards: `[sum(A_b)]` floats, or None.
    """

    counts: np.ndarray
    observations: np.ndarray
    actions: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    task: np.ndarray
    arguments: np.ndarray
    call_counts: np.ndarray
    calls: np.ndarray
    rewards: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that there are, by name."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FlatTraces:
        """The traces of a file's arrays, checked to belong together; what they say is checked later.

        Raises:
            KeyError: if an array is missing.
            ValueError: if shapes or types disagree.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        flat = cls(**{name: arrays[name] for name in names if name != "rewards" or name in arrays})
        flat.check()
        return flat

    def check(self) -> None:
        """Check that the arrays belong together.

        Raises:
            ValueError: naming the array.
        """
        dimensions = {"observations": 2, "task": 2, "arguments": 2, "calls": 2, "rewards": 1}
        arrays = self.arrays()
        for name, value in arrays.items():
            if name == "actions":
                fits = value.dtype.kind in "iu" and value.ndim in (1, 2) or value.dtype.kind == "f" and value.ndim == 2
            elif name in dimensions:
                fits = value.dtype.kind == "f" and value.ndim == dimensions[name]
            else:
                fits = value.dtype.kind in ("b" if name in ("terminated", "truncated") else "iu") and value.ndim == 1
            if not fits:
                raise ValueError(f"{name} has shape {value.shape} and type {value.dtype}")
        if len(self) == 0:
            raise ValueError("no demonstrations: the data set is empty")
        for name in ("call_counts", "terminated", "truncated", "task"):
            if len(arrays[name]) != len(self):
                raise ValueError(f"{name} has {len(arrays[name])} rows for {len(self)} traces")
        if min(self.counts.min(), self.call_counts.min()) < 0:
            raise ValueError("a trace has a negative number of steps")
        totals = {name: ("counts", int(self.counts.sum())) for name in ("actions", "arguments", "rewards")}
        totals["observations"] = ("counts, one more each,", int(self.counts.sum()) + len(self))
        totals["calls"] = ("call_counts", int(self.call_counts.sum()))
        for name, (counts, total) in totals.items():
            if name in arrays and len(arrays[name]) != total:
                raise ValueError(f"{name} has {len(arrays[name])} rows, {counts} add up to {total}")


def concatenate(parts: Sequence[FlatTraces]) -> FlatTraces:
    """The traces of several as one.

    Raises:
        ValueError: if widths differ, or only some have rewards.
    """
    joined: dict[str, np.ndarray] = {}
    for name in {name: None for part in parts for name in part.arrays()}:
        arrays = [part.arrays().get(name) for part in parts]
        if name == "calls" and any(len(array) for array in arrays if array is not None):
            arrays = [array for array in arrays if array is not None and len(array)]  # none are [0, 0]
        there = [array for array in arrays if array is not None]
        if len(there) < len(arrays):
            raise ValueError(f"only some of the demonstrations have {name}")
        widths = {array.shape[1:]: None for array in there}
        if len(widths) > 1:
            raise ValueError(f"demonstrations of different widths of {name}: {', '.join(str(w[0]) for w in widths)}")
        joined[name] = np.concatenate(there)
    return FlatTraces(**joined)


def pad(flat: np.ndarray, counts: np.ndarray, fill: float = 0, extra: int = 0) -> np.ndarray:
    """Spread rows `[sum(counts), ...]` over `[B, max(counts) + extra, ...]`."""
    padded = np.full((len(counts), int(counts.max()) + extra, *flat.shape[1:]), fill, dtype=flat.dtype)
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded[row, column] = flat
    return padded
