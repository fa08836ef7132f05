"""Call traces: what a control program did, as steps, as a tree, and as a picture."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .procedure_tree import ProcedureTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["Boundary", "CallTrace", "Interval", "plot_call_stack", "plot_posterior"]


class Boundary(NamedTuple):
    """A call of a procedure, or a return from one, at an environment step."""

    time: int
    event: str
    procedure: str


class Interval(NamedTuple):
    """A procedure on the stack at some depth (the root at 0), from environment step ``start`` up to ``end``."""

    procedure: str
    depth: int
    start: int
    end: int


class CallTrace:
    """The steps of one run of a program.

    Args:
        tree: the call graph.
        steps: ``(choice, argument)`` of every PHP step, up to the root's return (or less, if it was cut off).
    """

    def __init__(self, tree: ProcedureTree, steps: list[tuple[int, tuple[float, ...]]]):
        self.tree = tree
        self.steps = steps

    @classmethod
    def batch(cls, tree: ProcedureTree, calls: Tensor) -> list[CallTrace]:
        """Read call traces out of a batch ``[B, I, 1 + W]``, each cut where its root returns."""
        traces = []
        for rows in calls.tolist():
            depth, steps = 1, []
            for choice, *argument in rows:
                steps.append((int(choice), tuple(argument)))
                depth += (choice < len(tree.procedures)) - (choice == tree.null)
                if depth == 0:
                    break
            traces.append(cls(tree, steps))
        return traces

    @property
    def actions(self) -> list[int]:
        """The actions' numbers, in order."""
        first = len(self.tree.procedures)
        return [choice - first for choice, _ in self.steps if first <= choice < self.tree.null]

    def intervals(self) -> list[Interval]:
        """When each procedure was on the stack, callers first."""
        time, stack = 0, list[int]()
        found: list[Interval] = []

        def enter(procedure: int) -> None:
            stack.append(len(found))
            found.append(Interval(self.tree.choices[procedure], len(stack) - 1, time, time))

        enter(0)
        for choice, _ in self.steps:
            if choice == self.tree.null:
                if stack:
                    last = stack.pop()
                    found[last] = found[last]._replace(end=time)
            elif choice < len(self.tree.procedures):
                enter(choice)
            else:
                time += 1
        for last in stack:
            found[last] = found[last]._replace(end=time)
        return found

    def on_stack(self) -> Tensor:
        """Which procedures are on the stack when each action is taken, bool ``[A, H]``."""
        found = torch.zeros(len(self.actions), len(self.tree.procedures), dtype=torch.bool)
        for interval in self.intervals():
            found[interval.start : interval.end, self.tree.index(interval.procedure)] = True
        return found

    def boundaries(self) -> Counter[Boundary]:
        """Calls and returns with the environment step at which they happen; the root's own are left out."""
        found: Counter[Boundary] = Counter()
        for interval in self.intervals()[1:]:
            found[Boundary(interval.start, "call", interval.procedure)] += 1
            found[Boundary(interval.end, "return", interval.procedure)] += 1
        return found

    def tree_text(self, max_lines: int | None = None) -> str:
        """Return the call tree, a line a call or action, indented by depth."""
        lines, depth = [self.tree.root.name], 1
        for choice, argument in self.steps:
            if choice == self.tree.null:
                depth -= 1
                continue
            fields = self.tree.slots[choice]
            text = self.tree.choices[choice]
            if fields:
                values = argument[: sum(field.size for field in fields)]
                text += "(" + ", ".join(f"{value:g}" for value in values) + ")"
            lines.append("  " * depth + text)
            depth += choice < len(self.tree.procedures)
        if max_lines is not None and len(lines) > max_lines:
            rest = len(lines) - max_lines
            lines = [*lines[:max_lines], f"... and {rest} lines more"]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.tree_text()

    def __repr__(self) -> str:
        return f"CallTrace({len(self.steps)} steps, {len(self.actions)} actions)"


def plot_call_stack(axes: Axes, trace: CallTrace, *, title: str | None = None, legend: bool = True) -> None:
    """Draw a call stack over time: a bar a procedure, the root at the bottom, a new bar where it is called."""
    import matplotlib

    colours = _colours(trace.tree)
    for name, depth, start, end in trace.intervals():
        axes.broken_barh(
            [(start, max(end - start, 0.15))],
            (depth, 0.9),
            facecolors=colours[name],
            edgecolors="white",
            linewidth=0.8,
        )
    axes.set_ylim(0, trace.tree.depth)
    axes.set_yticks([level + 0.45 for level in range(trace.tree.depth)], [str(d) for d in range(trace.tree.depth)])
    axes.set_ylabel("depth")
    axes.set_xlim(0, max(len(trace.actions), 1))
    axes.locator_params(axis="x", integer=True)
    if title:
        axes.set_title(title, loc="left", fontsize=10)
    if legend:
        handles = [matplotlib.patches.Patch(color=colour, label=name) for name, colour in colours.items()]
        columns = min(len(handles), 7)
        axes.legend(handles=handles, ncols=columns, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25))


def plot_posterior(axes: Axes, tree: ProcedureTree, marginals: ArrayLike, *, title: str | None = None) -> None:
    """Draw how probable every procedure is over time: a row a procedure, the root at the bottom.

    A row has the procedure's colour in `plot_call_stack`, the fuller the more probable. Above the teacher's stack in
    axes that share x, the two can be compared:

        figure, (top, bottom) = plt.subplots(2, 1, sharex=True)
        plot_posterior(top, tree, marginals)
        plot_call_stack(bottom, teacher)

    Args:
        axes: to draw in.
        tree: the call graph.
        marginals: ``[T, H]``, the probability that each procedure is on the stack when action t is taken, such as the
            mean of :meth:`CallTrace.on_stack` over samples of a guide.
        title: of the picture.

    Raises:
        ValueError: for another shape, or what is not a probability.
    """
    import numpy as np

    shares = np.asarray(marginals, dtype=float)
    colours = _colours(tree)
    if shares.ndim != 2 or shares.shape[1] != len(colours) or not len(shares):
        raise ValueError(f"marginals must be [T, {len(colours)}], a column a procedure, got {list(shares.shape)}")
    if not ((shares > -1e-6) & (shares < 1 + 1e-6)).all():
        raise ValueError("marginals must be probabilities, from 0 to 1")
    image = np.empty((len(colours), len(shares), 4))
    image[..., :3] = np.array([*colours.values()])[:, None]
    image[..., 3] = shares.T.clip(0, 1)
    axes.imshow(image, origin="lower", extent=(0, len(shares), 0, len(colours)), aspect="auto", interpolation="nearest")
    axes.locator_params(axis="x", integer=True)
    axes.set_yticks([row + 0.5 for row in range(len(colours))], [*colours], fontsize=8)
    if title:
        axes.set_title(title, loc="left", fontsize=10)


def _colours(tree: ProcedureTree) -> dict[str, tuple[float, float, float]]:
    """Return a colour for every procedure."""
    import matplotlib

    count = len(tree.procedures)
    palette = matplotlib.colormaps["tab10" if count <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return {procedure.name: palette[h % len(palette)] for h, procedure in enumerate(tree.procedures)}
