"""A picture of demonstrations: how long and how good, what was done and what was seen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gymnasium import spaces

from ...models.spaces import observation_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .demonstrations import Demonstrations

__all__ = ["plot_demonstrations"]

_MOST = 20  # components drawn one by one; of more, the legend and the ticks could not be read
_ENDS = (("terminated", "tab:blue"), ("truncated", "tab:orange"), ("neither", "tab:gray"))


def plot_demonstrations(demonstrations: Demonstrations, path: str | os.PathLike[str]) -> None:
    """Draw returns and lengths per episode, a histogram of the actions and the ranges of the observations.

    Args:
        demonstrations: any.
        path: the picture, of the format that its ending says; its folder is made if missing.
    """
    from matplotlib.figure import Figure  # without pyplot, which would keep the figure and choose a backend

    figure = Figure(figsize=(10, 6), layout="constrained")
    (returns, lengths), (actions, observations) = figure.subplots(2, 2)
    terminated, truncated = demonstrations.terminated.cpu().numpy(), demonstrations.truncated.cpu().numpy()
    end = np.where(terminated, 0, np.where(truncated, 1, 2))
    counts = demonstrations.lengths.cpu().numpy() - 1
    if demonstrations.returns is None:
        _note(returns, "no rewards")
    else:
        _draw_by_end(returns, demonstrations.returns.cpu().numpy(), end)
    returns.set(title="return", xlabel="episode")
    _draw_by_end(lengths, counts, end)
    lengths.set(title="actions of an episode", xlabel="episode", ylim=(0, None))
    lengths.legend(fontsize=8)
    _draw_actions(actions, demonstrations)
    _draw_observations(observations, demonstrations)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_by_end(axes: Axes, values: np.ndarray, end: np.ndarray) -> None:
    """A dot an episode, its colour saying how it ended."""
    for number, (name, colour) in enumerate(_ENDS):
        rows = np.flatnonzero(end == number)
        if len(rows):
            axes.plot(rows, values[rows], ".", color=colour, label=name)


def _draw_actions(axes: Axes, demonstrations: Demonstrations) -> None:
    space = demonstrations.action_space
    taken = demonstrations.actions[demonstrations.acted].cpu().numpy()
    axes.set(title=f"actions ({type(space).__name__})", ylabel="share")
    if isinstance(space, spaces.Discrete):
        axes.bar(np.arange(int(space.n)) + int(space.start), np.bincount(taken, minlength=int(space.n)) / len(taken))
        axes.set_xlabel("action")
        return
    for component in range(min(taken.shape[1], _MOST)):
        values = taken[:, component]
        if isinstance(space, spaces.MultiDiscrete):
            count, start = int(space.nvec[component]), int(space.start[component])
            edges = np.arange(count + 1) + start - 0.5
            values = values + start
        else:
            low, high = float(values.min()), float(values.max())
            edges = np.linspace(low, high if high > low else low + 1, 41)
        heights = np.histogram(values, edges)[0] / len(values)
        axes.stairs(heights, edges, label=f"component {component}")
    axes.set_xlabel("value")
    axes.legend(fontsize=8, ncols=2)


def _draw_observations(axes: Axes, demonstrations: Demonstrations) -> None:
    """The middle and the whole range of every number."""
    seen = demonstrations.observations[demonstrations.mask].cpu().numpy()
    axes.set(title="observations: range, 5% to 95%, median", xlabel="number")
    width = seen.shape[1]
    if width == 0:
        _note(axes, "no numbers")
        return
    # A sample is enough for a picture, and all that a quantile of millions of rows needs.
    rows = seen[:: max(1, len(seen) // 100_000)]
    low, middle, high = np.quantile(rows, (0.05, 0.5, 0.95), axis=0)
    place = np.arange(width)
    axes.vlines(place, seen.min(0), seen.max(0), color="tab:gray", linewidth=1)
    axes.vlines(place, low, high, color="tab:blue", linewidth=4 if width <= _MOST else 1.5)
    axes.plot(place, middle, "_", color="black")
    parts = observation_parts(demonstrations.observation_space)
    if 1 < len(parts) <= _MOST:
        middles = [(part.start + part.stop - 1) / 2 for part in parts.values()]
        axes.set_xticks(middles, list(parts), rotation=20, fontsize=8)
        axes.set_xlabel("")


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="gray")
