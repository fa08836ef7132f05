"""Pictures of skills: what is drawn where, and that every picture is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyrocontrol.envs.point_skills import demonstrations
from pyrocontrol.envs.skill_plots import (
    HUMANOID_BONES,
    link_positions,
    plot_bodies,
    plot_curves,
    plot_embeddings,
    plot_links,
    principal_axes,
    side_by_side,
    state_frames,
)


def humanoid(steps: int = 9) -> np.ndarray:
    states = np.random.default_rng(0).normal(size=(steps, 197)) * 0.3
    states[:, 1] = 0.9
    return states


def point() -> np.ndarray:
    return demonstrations(["toy"], 1).observations[0].numpy()


def test_links_stand_over_the_ground_below_the_root() -> None:
    state = np.zeros(197)
    state[1] = 0.8
    state[2 + 7 * 5 : 2 + 7 * 5 + 3] = [0.1, -0.75, 0.2]  # the right ankle
    state[2 + 7 * 5 + 3 : 2 + 7 * 6] = 9.0  # its orientation is not a place
    links = link_positions(state)
    assert links.shape == (15, 3)
    assert np.allclose(links[5], [0.1, 0.05, 0.2]) and np.allclose(links[[0, 14]], [0, 0.8, 0])
    assert link_positions(humanoid()).shape == (9, 15, 3)
    with pytest.raises(ValueError, match="197 numbers, got 5"):
        link_positions(point())


def test_the_bones_are_a_tree_of_all_links() -> None:
    assert sorted(end for _, end in HUMANOID_BONES) == list(range(1, 15))
    assert all(start < end for start, end in HUMANOID_BONES)


def test_principal_axes_of_known_points() -> None:
    rng = np.random.default_rng(1)
    axis = np.array([0.6, 0.8, 0.0])
    points = rng.normal(size=(50, 1)) * 3 * axis + rng.normal(size=(50, 1)) * np.array([0, 0, 0.5]) + 7
    mean, axes, share = principal_axes(points)
    assert np.allclose(mean, points.mean(0))
    assert abs(axes[:, 0] @ axis) == pytest.approx(1, abs=1e-3) and abs(axes[2, 1]) == pytest.approx(1, abs=1e-3)
    assert share.sum() == pytest.approx(1) and share[0] > 0.9
    for few in (np.ones((1, 4)), np.arange(3.0)[:, None]):  # one point, one dimension
        mean, axes, share = principal_axes(few)
        assert np.isfinite(axes).all() and axes.shape == (few.shape[1], 2) and 0 <= share.sum() <= 1


@pytest.mark.parametrize("states", [point(), humanoid()], ids=["point", "humanoid"])
def test_pictures_are_written(states: np.ndarray, tmp_path: Path) -> None:
    plot_bodies(tmp_path / "new" / "bodies.png", {"0.0": states, "0.5": states, "1.0": states})
    plot_bodies(tmp_path / "column.png", {"demonstrated": states, "generated": states[:5]}, columns=False)
    plot_links(tmp_path / "links.png", states, states[:5])
    for name in ("new/bodies.png", "column.png", "links.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    frames = state_frames(states[:3], size=(120, 160), title="now")
    assert len(frames) == 3 and all(frame.shape == (120, 160, 3) and frame.dtype == np.uint8 for frame in frames)
    assert not np.array_equal(frames[0], frames[2])


def test_maps_and_curves_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    skills = {name: rng.normal(size=(4, 6)) for name in ("kick", "spin")}
    plot_embeddings(
        tmp_path / "map.png", skills, composite=rng.normal(size=(3, 6)), sum_of_parts=np.ones(6), name="both"
    )
    curves = {"mse": {"sum": [(1, 2.0), (2, 1.0)], "own": [(1, 1.0)]}, "nats": {"held out": [(1, -1.0), (2, 0.5)]}}
    plot_curves(tmp_path / "curves.png", curves, {"mse": {"mean state": 3.0}})
    for name in ("map.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_films_side_by_side_wait_for_the_longest() -> None:
    one, other = ([np.full((2, 3, 3), shade, np.uint8) for shade in shades] for shades in ((1, 2, 3), (7, 8)))
    film = side_by_side(one, other)
    assert [frame[0, [0, 3], 0].tolist() for frame in film] == [[1, 7], [2, 8], [3, 8]]
    assert film[0].shape == (2, 6, 3)


def test_other_states_are_refused(tmp_path: Path) -> None:
    for use in (
        lambda: state_frames(np.zeros((2, 7))),
        lambda: plot_bodies(tmp_path / "a.png", {"a": np.zeros((2, 7))}),
        lambda: plot_links(tmp_path / "a.png", np.zeros((2, 7)), np.zeros((2, 7))),
    ):
        with pytest.raises(ValueError, match="numbers are drawn, got 7"):
            use()
    assert not list(tmp_path.iterdir())
