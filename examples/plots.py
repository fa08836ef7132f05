"""Pictures of skills: bodies over time, embeddings on a map, learning curves.

States are drawn as what they are of: a point of `PointSkillsEnv` (phase, x, y, velocities) as its path, the humanoid
of 197 numbers as a stick figure of its 15 links, whose positions are relative to the root, y upwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyrocontrol._files import replacing
from pyrocontrol.envs.point_skills import ARENA, MARGIN, SIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "HUMANOID_BONES",
    "link_positions",
    "plot_bodies",
    "plot_curves",
    "plot_embeddings",
    "plot_links",
    "principal_axes",
    "side_by_side",
    "state_frames",
]

POINT_SIZE, HUMANOID_SIZE = 5, 197
HUMANOID_SIZES = (HUMANOID_SIZE, 182)  # with quaternions, and with rotation vectors

#: Links of the humanoid, in the order of its state, and which of them are joined.
HUMANOID_LINKS = (
    *("root", "chest", "neck", "right hip", "right knee", "right ankle", "right shoulder", "right elbow"),
    *("right wrist", "left hip", "left knee", "left ankle", "left shoulder", "left elbow", "left wrist"),
)
HUMANOID_BONES = (
    *((0, 1), (1, 2), (0, 3), (3, 4), (4, 5), (1, 6), (6, 7)),
    *((7, 8), (0, 9), (9, 10), (10, 11), (1, 12), (12, 13), (13, 14)),
)
_LINKS = len(HUMANOID_LINKS)
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
_SHOWN = ((-0.8, 1.6), (-0.9, 1.5))  # of the arena of a point, in x and y
_POSES = 7  # of a humanoid's motion in one picture
_STRIDE = 1.1  # metres between them
_DPI, _BAR = 100, 24  # of films: pixels an inch, and the height of a bar of titles in pixels


def link_positions(states: np.ndarray) -> np.ndarray:
    """Return where the links of the humanoid are: forward, up and to the side of the ground below the root, metres.

    Args:
        states: ``[..., 197]``: the phase, the height of the root, then of each link its position relative to the root
            (3) and its orientation (4), and velocities; or ``[..., 182]`` with orientations of 3 numbers.

    Returns:
        ``[..., 15, 3]``.

    Raises:
        ValueError: if the states have another width.
    """
    states = np.asarray(states)
    if states.shape[-1] not in HUMANOID_SIZES:
        raise ValueError(f"a humanoid's state has {HUMANOID_SIZE} numbers, got {states.shape[-1]}")
    wide = 7 if states.shape[-1] == HUMANOID_SIZE else 6
    links = states[..., 2 : 2 + wide * _LINKS].reshape(*states.shape[:-1], _LINKS, wide)[..., :3].copy()
    links[..., 1] += states[..., 1, None]
    return links


def principal_axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean ``[D]`` of points ``[N, D]``, their first two principal axes ``[D, 2]``, and what these explain.

    The share of the variance ``[2]`` is 0 where the points do not vary; an axis that does not exist (D = 1) is 0.
    """
    mean = points.mean(0)
    _, sizes, axes = np.linalg.svd(points - mean, full_matrices=False)
    found = np.zeros((points.shape[1], 2))
    found[:, : len(axes[:2])] = axes[:2].T
    share = np.zeros(2)
    if (total := np.square(sizes).sum()) > 0:
        share[: len(sizes[:2])] = np.square(sizes[:2]) / total
    return mean, found, share


def plot_embeddings(
    path: str | os.PathLike[str],
    skills: Mapping[str, np.ndarray],
    *,
    composite: np.ndarray,
    sum_of_parts: np.ndarray,
    name: str,
) -> None:
    """Draw mean embeddings on their first two principal axes.

    Args:
        path: the picture.
        skills: of each skill the embeddings of its demonstrations, ``[N, D]``.
        composite: those of the composite's demonstrations, encoded, ``[N, D]``.
        sum_of_parts: the sum of the skills' mean embeddings, ``[D]``.
        name: of the composite.
    """
    mean, axes, share = principal_axes(np.concatenate([*skills.values(), composite, sum_of_parts[None]]))
    figure = _figure(5.5, 4.5)
    panel = figure.subplots()
    for (skill, points), colour in zip(skills.items(), _COLOURS * len(skills), strict=False):
        panel.plot(*((points - mean) @ axes).T, ".", color=colour, label=skill)
        panel.plot(*((points.mean(0) - mean) @ axes), "o", color=colour, markersize=9, markeredgecolor="black")
    panel.plot(*((composite - mean) @ axes).T, "^", color="tab:red", label=f"{name}, encoded")
    panel.plot(*((sum_of_parts - mean) @ axes), "*", color="black", markersize=14, label="sum of " + " + ".join(skills))
    panel.plot(*(-mean @ axes), "+", color="gray", markersize=10, label="0")
    panel.set(xlabel=f"first principal axis ({share[0]:.0%})", ylabel=f"second principal axis ({share[1]:.0%})")
    panel.legend(fontsize=8)
    _save(figure, path)


def plot_curves(
    path: str | os.PathLike[str],
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    lines: Mapping[str, Mapping[str, float]] | None = None,
    *,
    along: str = "update",
    log: bool = True,
) -> None:
    """Draw learning curves, a panel a metric.

    Args:
        path: the picture.
        curves: metric -> label -> (step, value) pairs.
        lines: metric -> label -> a value to compare with.
        along: what a step is.
        log: whether a metric whose values are all positive has a logarithmic axis.
    """
    figure = _figure(4.2 * len(curves), 3.5)
    for panel, (metric, kinds) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        compared = (lines or {}).get(metric, {})
        values = [value for pairs in kinds.values() for _, value in pairs] + list(compared.values())
        for (label, pairs), colour in zip(kinds.items(), _COLOURS * len(kinds), strict=False):
            panel.plot(*zip(*pairs, strict=True), ".-" if len(pairs) < 50 else "-", color=colour, label=label)
        for label, value in compared.items():
            panel.axhline(value, color="gray", linestyle="--", linewidth=1, label=label)
        scale = "log" if log and values and min(values) > 0 else "linear"
        panel.set(xlabel=along, ylabel=metric, yscale=scale)
        panel.legend(fontsize=8)
    _save(figure, path)


def plot_bodies(path: str | os.PathLike[str], trajectories: Mapping[str, np.ndarray], *, columns: bool = True) -> None:
    """Draw trajectories side by side, or one below the other: a point as its path, the humanoid as a row of figures.

    Args:
        path: the picture.
        trajectories: title -> states ``[T, S]``.
        columns: side by side.

    Raises:
        ValueError: if the states are neither those of a point nor those of the humanoid.
    """
    trajectories = {title: np.asarray(states) for title, states in trajectories.items()}
    count, humanoid = len(trajectories), _is_humanoid(next(iter(trajectories.values())))
    wide, high = (4.2, 1.3) if humanoid else (2.1, 2.3)
    figure = _figure(wide * (count if columns else 1), (high + 0.3) * (1 if columns else count))
    shape = (1, count) if columns else (count, 1)
    for panel, (title, states) in zip(figure.subplots(*shape, squeeze=False).flat, trajectories.items(), strict=True):
        if humanoid:
            moments = np.linspace(0, len(states) - 1, _POSES).round().astype(int)
            for place, moment in enumerate(moments):
                _draw_figure(panel, states[moment], place * _STRIDE)
            panel.set(xlim=(-_STRIDE, _POSES * _STRIDE), ylim=(-0.1, 2.1), aspect="equal")
        else:
            _draw_path(panel, states)
        panel.set_title(title, fontsize=8)
        panel.set(xticks=[], yticks=[])
    _save(figure, path)


def plot_links(path: str | os.PathLike[str], demonstration: np.ndarray, generated: np.ndarray) -> None:
    """Draw the height of the root and of some links over time, demonstrated and generated.

    Args:
        path: the picture.
        demonstration: states ``[T, S]``.
        generated: states ``[T', S]``. Of a point, its position and velocity are drawn.
    """
    chosen: tuple[str, ...]
    if _is_humanoid(demonstration):
        chosen = ("root", "neck", "right ankle", "left ankle", "right wrist", "left wrist")
        indices = [HUMANOID_LINKS.index(name) for name in chosen]
        shown = [link_positions(states)[:, indices, 1] for states in (demonstration, generated)]
        unit = "height of the {} (m)"
    else:
        chosen, unit = ("x", "y", "velocity of x", "velocity of y"), "{}"
        shown = [np.asarray(states)[:, 1:] for states in (demonstration, generated)]
    figure = _figure(10, 5)
    for number, (name, panel) in enumerate(zip(chosen, figure.subplots(2, len(chosen) // 2).flat, strict=True)):
        for values, label, style in zip(shown, ("demonstrated", "generated"), ("-", "--"), strict=True):
            panel.plot(values[:, number], style, label=label)
        panel.set(ylabel=unit.format(name), xlabel="step")
    figure.axes[0].legend(fontsize=8)
    _save(figure, path)


def state_frames(states: np.ndarray, *, size: tuple[int, int] = (340, 340)) -> list[np.ndarray]:
    """Return a picture of each state of a trajectory ``[T, S]``, ``[H, W, 3]`` uint8: what a video is made of.

    Args:
        states: of a point or of the humanoid. A point is drawn in its whole arena, to the scale of the pictures of
            `PointSkillsEnv` where they have the same size.
        size: height and width, pixels.

    Raises:
        ValueError: if the states are neither those of a point nor those of the humanoid.
    """
    states = np.asarray(states)
    humanoid = _is_humanoid(states)
    frames = []
    for moment in range(len(states)):
        figure = _figure(size[1] / _DPI, size[0] / _DPI, "constrained" if humanoid else None)
        if humanoid:
            panel = figure.subplots()
            _draw_figure(panel, states[moment], 0.0)
            panel.set(xlim=(-1.1, 1.1), ylim=(-0.1, 2.1), aspect="equal")
        else:
            edge = MARGIN / (SIDE + 2 * MARGIN)
            panel = figure.add_axes((edge, edge, 1 - 2 * edge, 1 - 2 * edge))
            _draw_path(panel, states[: moment + 1])
            panel.set(xlim=(-ARENA, ARENA), ylim=(-ARENA, ARENA))
        panel.set(xticks=[], yticks=[])
        frames.append(_pixels(figure))
    return frames


def side_by_side(*panels: Sequence[np.ndarray], titles: Sequence[str] = ()) -> list[np.ndarray]:
    """Return films of the same height side by side; one that is over shows its last picture.

    Args:
        panels: of each its pictures, ``[H, W, 3]`` uint8, at least one.
        titles: of each what stands above it, in a bar of 24 pixels; none for no bar.

    Raises:
        ValueError: if there are titles, but not one for each panel.
    """
    if titles and len(titles) != len(panels):
        raise ValueError(f"each of {len(panels)} panels needs a title, got {len(titles)}")
    length = max(map(len, panels))
    film = [np.concatenate([panel[min(time, len(panel) - 1)] for panel in panels], 1) for time in range(length)]
    if not titles:
        return film
    bars = []
    for panel, title in zip(panels, titles, strict=True):
        figure = _figure(panel[0].shape[1] / _DPI, _BAR / _DPI, None)
        figure.text(0.5, 0.5, title, ha="center", va="center", fontsize=8)
        bars.append(_pixels(figure))
    bar = np.concatenate(bars, 1)
    return [np.concatenate([bar, frame]) for frame in film]


def _is_humanoid(states: Any) -> bool:
    width = np.shape(states)[-1]
    if width not in (POINT_SIZE, *HUMANOID_SIZES):
        raise ValueError(f"states of {POINT_SIZE} (point) or {HUMANOID_SIZE} (humanoid) numbers are drawn, got {width}")
    return width in HUMANOID_SIZES


def _draw_path(panel: Axes, states: np.ndarray) -> None:
    """The path of a point, from above, and where it is at the end."""
    panel.plot(states[:, 1], states[:, 2], "-", color="tab:blue", linewidth=1)
    panel.plot(*states[-1, 1:3], "o", color="tab:orange")
    panel.plot(0, 0, "+", color="gray")
    panel.set(xlim=_SHOWN[0], ylim=_SHOWN[1], aspect="equal")


def _draw_figure(panel: Axes, state: np.ndarray, place: float) -> None:
    """A stick figure seen from the side, facing right, ``place`` metres along the ground."""
    links = link_positions(state)
    for start, end in HUMANOID_BONES:
        side = HUMANOID_LINKS[end].split()[0]
        colour = {"right": "tab:orange", "left": "tab:blue"}.get(side, "black")
        panel.plot(links[[start, end], 0] + place, links[[start, end], 1], "-", color=colour, linewidth=1.5)
    panel.plot(links[2, 0] + place, links[2, 1] + 0.1, "o", color="black", markersize=4)
    panel.axhline(0, color="gray", linewidth=0.5)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure without pyplot, which would keep it and choose a backend."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def _pixels(figure: Figure) -> np.ndarray:
    """``[H, W, 3]`` uint8, `_DPI` pixels an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture; the file appears whole or not at all."""
    path = Path(path)
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=130, format=path.suffix[1:] or "png")
