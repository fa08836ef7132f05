"""Intervals, boundaries, text and picture of a call trace, against a small one worked out by hand."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, teacher
from pyrocontrol.models import Boundary, CallTrace, Interval, ProcedureTree, plot_call_stack, plot_posterior

TREE = ProcedureTree.parse("""\
actions: step, lift(height: real[2])
main -> find, lift
find(side: onehot[2]) -> look, step returns (place: real[1])
look -> step
""")
MAIN, FIND, LOOK, STEP, LIFT, NULL = range(6)
#  main: find(0 1): look: step; step; lift; find(1 0): step
CALLS = [
    [FIND, 0.0, 1.0],
    [LOOK, 0.0, 0.0],
    [STEP, 0.0, 0.0],
    [NULL, 0.0, 0.0],
    [STEP, 0.0, 0.0],
    [NULL, 0.5, 0.0],
    [LIFT, 2.0, -0.25],
    [FIND, 1.0, 0.0],
    [STEP, 0.0, 0.0],
    [NULL, 0.0, 0.0],
    [NULL, 0.0, 0.0],
]


@pytest.fixture
def trace() -> CallTrace:
    padded = [*CALLS, [FIND, 9.0, 9.0], [-1.0, 0.0, 0.0]]  # what stands after the end is not read
    return CallTrace.batch(TREE, torch.tensor([padded]))[0]


def test_steps_and_actions(trace: CallTrace) -> None:
    assert len(trace.steps) == len(CALLS)
    assert trace.steps[0] == (FIND, (0.0, 1.0)) and trace.steps[-1] == (NULL, (0.0, 0.0))
    assert trace.actions == [0, 0, 1, 0]


def test_intervals(trace: CallTrace) -> None:
    assert trace.intervals() == [
        Interval("main", 0, 0, 4),
        Interval("find", 1, 0, 2),
        Interval("look", 2, 0, 1),
        Interval("find", 1, 3, 4),
    ]


def test_boundaries(trace: CallTrace) -> None:
    assert trace.boundaries() == {
        Boundary(0, "call", "find"): 1,
        Boundary(2, "return", "find"): 1,
        Boundary(0, "call", "look"): 1,
        Boundary(1, "return", "look"): 1,
        Boundary(3, "call", "find"): 1,
        Boundary(4, "return", "find"): 1,
    }
    twice = CallTrace(TREE, [(FIND, ()), (LOOK, ()), (NULL, ()), (LOOK, ()), (NULL, ())])
    assert twice.boundaries()[Boundary(0, "call", "look")] == 2


def test_a_trace_that_was_cut_off_is_open_to_its_last_step() -> None:
    cut = CallTrace.batch(TREE, torch.tensor([CALLS[:5]]))[0]
    assert cut.intervals() == [
        Interval("main", 0, 0, 2),
        Interval("find", 1, 0, 2),
        Interval("look", 2, 0, 1),
    ]
    assert cut.actions == [0, 0]


def test_tree_text(trace: CallTrace) -> None:
    assert str(trace) == trace.tree_text()
    assert trace.tree_text().splitlines() == [
        "main",
        "  find(0, 1)",
        "    look",
        "      step",
        "    step",
        "  lift(2, -0.25)",
        "  find(1, 0)",
        "    step",
    ]
    assert trace.tree_text(max_lines=3).splitlines() == ["main", "  find(0, 1)", "    look", "... and 5 lines more"]
    assert trace.tree_text(max_lines=8) == trace.tree_text()


@pytest.mark.parametrize("move", [False, True])
def test_the_teachers_trace(move: bool) -> None:
    episode = teacher([1, 0], move=move)
    assert episode.calls is not None
    tree = ProcedureTree.parse(BUBBLE_SORT_MOVE_TREE if move else BUBBLE_SORT_TREE)
    trace = CallTrace.batch(tree, torch.from_numpy(episode.calls).unsqueeze(0))[0]
    assert trace.actions == episode.actions.tolist()
    count = len(trace.actions)
    assert trace.intervals()[0] == Interval("bubblesort", 0, 0, count)
    assert [i.procedure for i in trace.intervals() if i.depth == 1] == ["bubble", "resetptr"]
    assert sum(trace.boundaries().values()) == 2 * (len(trace.intervals()) - 1)


def test_plot(trace: CallTrace) -> None:
    figure, axes = plt.subplots()
    plot_call_stack(axes, trace, title="mine")
    assert axes.get_title(loc="left") == "mine"
    assert len(axes.collections) == len(trace.intervals())
    assert axes.get_xlim() == (0, 4) and axes.get_ylim() == (0, 3)
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["main", "find", "look"]
    figure.canvas.draw()
    _, bare = plt.subplots()
    plot_call_stack(bare, CallTrace(TREE, []), legend=False)  # nothing done yet
    assert bare.get_legend() is None
    plt.close("all")


def test_on_stack(trace: CallTrace) -> None:
    assert trace.on_stack().int().tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]


def test_plot_of_a_posterior(trace: CallTrace) -> None:
    """A row a procedure in its colour in the stack, as full as it is probable, at the same time as below."""
    _, (top, bottom) = plt.subplots(2, 1, sharex=True)
    marginals = trace.on_stack() * torch.tensor([1.0, 0.5, 0.25])
    plot_posterior(top, TREE, marginals, title="posterior")
    plot_call_stack(bottom, trace)
    (image,) = top.images
    drawn = np.asarray(image.get_array())
    assert np.allclose(drawn[..., 3], marginals.T)
    assert image.get_extent() == [0, 4, 0, 3] and top.get_xlim() == bottom.get_xlim()
    colours = [patch.get_facecolor()[:3] for patch in bottom.get_legend().get_patches()]
    assert np.allclose(drawn[:, 0, :3], colours)
    assert [label.get_text() for label in top.get_yticklabels()] == ["main", "find", "look"]
    for wrong, message in (
        (marginals[:, :2], r"must be \[T, 3\], a column a procedure, got \[4, 2\]"),
        (2 * marginals, "must be probabilities"),
        (marginals * torch.nan, "must be probabilities"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_posterior(top, TREE, wrong)
    plt.close("all")
