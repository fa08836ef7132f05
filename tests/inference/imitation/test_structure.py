"""Exact matches and boundary F1 against counts made by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from pyrocontrol.envs import Demonstrations
from pyrocontrol.inference import boundary_f1, exact_match
from pyrocontrol.models import CallTrace, ProcedureTree, Traces


class Fixed:
    """A policy that has made up its mind."""

    def __init__(self, actions: list[list[int]], arguments: Tensor | None = None) -> None:
        self.actions, self.arguments = torch.tensor(actions), arguments

    def greedy_actions(self, traces: Traces) -> Tensor:
        return self.actions

    def greedy_arguments(self, traces: Traces) -> Tensor:
        assert self.arguments is not None
        return self.arguments


def data(arguments: Tensor | None = None) -> Demonstrations:
    """Two actions and null = 2; traces of one, two and three actions."""
    return Demonstrations(
        torch.zeros(3, 4, 1),
        torch.tensor([[0, 2, 2, 2], [0, 1, 2, 2], [1, 1, 0, 2]]),
        torch.tensor([2, 3, 4]),
        2,
        arguments=arguments,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ([[0, 2, 2, 2], [0, 1, 2, 2], [1, 1, 0, 2]], 1.0),
        ([[0, 2, 1, 0], [0, 1, 2, 1], [1, 1, 0, 2]], 1.0),  # after the end nothing counts
        ([[0, 1, 2, 2], [0, 1, 2, 2], [1, 1, 0, 2]], 2 / 3),  # did not stop
        ([[0, 2, 2, 2], [0, 2, 2, 2], [1, 1, 0, 2]], 2 / 3),  # stopped too early
        ([[0, 2, 2, 2], [1, 1, 2, 2], [1, 0, 0, 2]], 1 / 3),
        ([[1, 2, 2, 2], [1, 1, 2, 2], [1, 1, 0, 0]], 0.0),
    ],
)
def test_exact_match(actions: list[list[int]], expected: float) -> None:
    assert exact_match(Fixed(actions), data()) == pytest.approx(expected)


def test_arguments_have_to_match_too() -> None:
    arguments = torch.zeros(3, 4, 2)
    arguments[:, 0, 1] = 1.0
    traces = data(arguments)
    actions = traces.actions.tolist()
    assert exact_match(Fixed(actions, arguments), traces) == 1.0
    other = arguments.clone()
    other[2, 0] = torch.tensor([1.0, 0.0])
    other[0, 3] = 7.0  # after the end
    assert exact_match(Fixed(actions, other), traces) == pytest.approx(2 / 3)


class Known:
    def __init__(self, **boundaries: int) -> None:
        self.counts = Counter(boundaries)

    def boundaries(self) -> Counter[str]:
        return self.counts


def test_boundary_f1_by_hand() -> None:
    found = [Known(a=2, b=1), Known(c=1)]
    true = [Known(a=1, b=1, d=2), Known(c=3)]
    # hits 1 + 1 + 1 of 4 claimed and 7 wanted
    assert boundary_f1(found, true) == {
        "boundary_precision": 3 / 4,
        "boundary_recall": 3 / 7,
        "boundary_f1": pytest.approx(6 / 11),
    }
    assert boundary_f1(true, true) == {"boundary_precision": 1, "boundary_recall": 1, "boundary_f1": 1}
    nothing = boundary_f1([Known()], [Known(a=1)])
    assert nothing == {"boundary_precision": 0, "boundary_recall": 0, "boundary_f1": 0}
    # traces are compared with their own, not with each other's
    assert boundary_f1([Known(a=1), Known(b=1)], [Known(b=1), Known(a=1)])["boundary_f1"] == 0
    with pytest.raises(ValueError, match="shorter"):
        boundary_f1(found, true[:1])


def test_boundary_f1_of_call_traces() -> None:
    tree = ProcedureTree.parse("actions: a\nmain -> one, two, a\none -> a\ntwo -> a")
    main, one, two, a, null = range(5)
    true = CallTrace(tree, [(k, ()) for k in (one, a, null, two, a, null, null)])
    late = CallTrace(tree, [(k, ()) for k in (one, a, a, null, null)])
    # of one's call at 0 and return at 2, the call is right; of the four true boundaries one is found
    assert boundary_f1([late], [true]) == {
        "boundary_precision": 1 / 2,
        "boundary_recall": 1 / 4,
        "boundary_f1": pytest.approx(1 / 3),
    }
