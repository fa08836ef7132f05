"""How well a learnt program imitates, and whether its structure is the teacher's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from ...models.programs.traces import Traces

__all__ = ["GreedyPolicy", "Structured", "boundary_f1", "exact_match"]


class GreedyPolicy(Protocol):
    """Whatever predicts the likeliest actions along given traces."""

    def greedy_actions(self, traces: Traces) -> Tensor:
        """Return the actions ``[B, T]``, each given the trace's own observations up to it."""
        ...

    def greedy_arguments(self, traces: Traces) -> Tensor:
        """Return the arguments ``[B, T, V]`` of these actions."""
        ...


class Structured(Protocol):
    """A trace with known procedure boundaries."""

    def boundaries(self) -> Counter[Any]:
        """Return its boundaries, with their multiplicity."""
        ...


def exact_match(policy: GreedyPolicy, traces: Traces, *, atol: float = 1e-6) -> float:
    """Return the fraction of traces in which every greedy action, the final null included, is the trace's own.

    Where actions take arguments, these have to agree as well, up to ``atol``.
    """
    agree = policy.greedy_actions(traces) == traces.actions
    if traces.arguments.shape[-1]:
        agree = agree & ((policy.greedy_arguments(traces) - traces.arguments).abs() <= atol).all(-1)
    step = traces.actions.new_ones(traces.actions.shape).cumsum(1) - 1
    agree = agree | (step >= traces.lengths.unsqueeze(1))
    return float(agree.all(1).float().mean())


def boundary_f1(found: Iterable[Structured], true: Iterable[Structured]) -> dict[str, float]:
    """Return precision, recall and F1 of procedure boundaries, over all traces together.

    A boundary is a call or a return of a named procedure at an environment step (with multiplicity).
    """
    hits = claimed = wanted = 0
    for one, other in zip(found, true, strict=True):
        mine, theirs = one.boundaries(), other.boundaries()
        hits += sum((mine & theirs).values())
        claimed += sum(mine.values())
        wanted += sum(theirs.values())
    precision, recall = hits / max(claimed, 1), hits / max(wanted, 1)
    return {
        "boundary_precision": precision,
        "boundary_recall": recall,
        "boundary_f1": 2 * hits / max(claimed + wanted, 1),
    }
