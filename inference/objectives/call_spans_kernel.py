"""The tables of the span recursion, filled in C where that can be compiled, else by the same sums in NumPy.

Both take the log-probabilities of one trace's choices, and give its log-probability, the posterior's expected number of
every choice, and call traces drawn from the posterior or the likeliest one. See :mod:`call_spans`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Several
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._native import library

__all__ = ["NEVER", "KernelUnit", "spans"]

NEVER = -1e30  # stands for log 0, so that no difference is NaN
_SOURCE = Path(__file__).with_name("call_spans.c")

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class KernelUnit(NamedTuple):
    """A unit along one trace of N actions; arrays are contiguous.

    Attributes:
        frames: how many frames there are that have taken a step.
        returns: how many values it may return.
        counts: whether frames know their counter.
        acts: whether frame 1 follows the unit's own action.
        callee: ``[calls]``, the number of the unit that each call goes to.
        into: ``[calls]``, the first of the frames that follow it.
        high, taus, row: ``[N + 1]``, see `_Layout`.
        which: ``[rows]``, the row of `weight` that holds each row's choices.
        weight: ``[asked + 1, columns]``; the last is of what cannot be.
    """

    frames: int
    returns: int
    counts: bool
    acts: bool
    callee: Whole
    into: Whole
    high: Whole
    taus: Whole
    row: Whole
    which: Whole
    weight: Floats


class _Unit(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("frames", "returns", "counts", "calls", "acts", "columns")),
        *((name, ctypes.c_void_p) for name in ("callee", "into", "high", "taus", "row", "which", "weight", "count")),
    ]


def spans(
    n: int,
    units: Several[KernelUnit],
    depth: int,
    most: int,
    *,
    counts: bool = False,
    likeliest: bool = False,
    draws: int = 0,
    seed: int = 0,
) -> tuple[float, list[Floats] | None, list[Whole]]:
    """Sum over all call stacks along one trace.

    Args:
        n: how many actions the trace has.
        units: callees first, the root last.
        depth: frames of the deepest stack.
        most: steps of the longest call trace.
        counts: return the posterior's expected numbers of choices too.
        likeliest: take maxima in place of sums, and draw the likeliest call trace.
        draws: how many call traces to draw.
        seed: of these.

    Returns:
        log p(x) in nats (of the likeliest call trace, if that is asked), the expected numbers for every unit
        ``[asked + 1, columns]``, and the call traces ``[I, 3]``: kind (0 an action, 1 a call, 2 a return), unit or
        value returned, time.

    Raises:
        MemoryError: if the tables do not fit.
    """
    found = [np.zeros_like(unit.weight) for unit in units] if counts else None
    native = library(_SOURCE, "pyrocontrol_spans")
    if native is None:
        from .call_spans_numpy import Tables

        tables = Tables(n, [unit._replace(weight=unit.weight[unit.which]) for unit in units], likeliest)
        if found is not None:
            every = [np.zeros((len(unit.which), unit.weight.shape[1])) for unit in units]
            tables.count(every)
            for total, unit, one in zip(found, units, every, strict=True):
                np.add.at(total, unit.which, one)
        random = None if likeliest else np.random.default_rng(seed)
        return tables.log_prob, found, [tables.draw(random) for _ in range(draws)]
    given = (_Unit * len(units))(
        *(
            _Unit(
                unit.frames,
                unit.returns,
                unit.counts,
                len(unit.callee),
                unit.acts,
                unit.weight.shape[1],
                unit.callee.ctypes.data,
                unit.into.ctypes.data,
                unit.high.ctypes.data,
                unit.taus.ctypes.data,
                unit.row.ctypes.data,
                unit.which.ctypes.data,
                unit.weight.ctypes.data,
                None if found is None else found[i].ctypes.data,
            )
            for i, unit in enumerate(units)
        )
    )
    log_prob = ctypes.c_double()
    steps, lengths = np.zeros((draws, most, 3), np.int64), np.zeros(draws, np.int64)
    function = native.pyrocontrol_spans
    function.restype = ctypes.c_int64
    status = function(
        ctypes.c_int64(n),
        ctypes.c_int64(len(units)),
        given,
        ctypes.c_int64(depth),
        ctypes.c_int32(likeliest),
        ctypes.byref(log_prob),
        ctypes.c_int64(draws),
        ctypes.c_uint64(seed),
        ctypes.c_int64(most),
        ctypes.c_void_p(steps.ctypes.data),
        ctypes.c_void_p(lengths.ctypes.data),
    )
    if status == 1:
        raise MemoryError(f"the tables of a trace of {n} actions do not fit into memory")
    if status:
        raise ValueError("no call trace could be drawn: the networks gave NaN")
    return log_prob.value, found, [one[:length] for one, length in zip(steps, lengths, strict=True)]
