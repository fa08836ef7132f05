"""Pictures of skills: what is drawn where, and that every picture is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from plots import (
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
from pyrocontrol.envs import PointSkillsEnv, PointTeacher
from pyrocontrol.envs.point_skills import demonstrations


def humanoid(steps: int = 9) -> np.ndarray:
    states = np.random.default_rng(0).normal(size=(steps, 197)) * 0.3
    states[:, 1] = 0.9
    return states


def point() -> np.ndarray:
    return demonstrations(["toy"], 1).observations[0].numpy()


def picture(path: Path) -> np.ndarray:
    """The colours ``[H, W, 3]`` of a file, whatever its meta-data."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


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
    wide, high = (4.2, 1.6) if states.shape[1] == 197 else (2.1, 2.6)

    def bodies(last: np.ndarray) -> np.ndarray:
        plot_bodies(tmp_path / "new" / "bodies.png", {"0.0": states, "0.5": states, "1.0": last})
        return picture(tmp_path / "new" / "bodies.png")

    def column(last: np.ndarray) -> np.ndarray:
        plot_bodies(tmp_path / "column.png", {"demonstrated": states, "generated": last}, columns=False)
        return picture(tmp_path / "column.png")

    def links(last: np.ndarray) -> np.ndarray:
        plot_links(tmp_path / "links.png", states, last)
        return picture(tmp_path / "links.png")

    for draw, size in ((bodies, (high, 3 * wide)), (column, (2 * high, wide)), (links, (5, 10))):
        drawn = draw(states)
        assert drawn.shape[:2] == tuple(int(130 * inches + 1e-9) for inches in size)
        assert not np.array_equal(draw(states[:5]), drawn)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "column.png", "links.png"}
    frames = state_frames(states[:3], size=(120, 160))
    assert len(frames) == 3 and all(frame.shape == (120, 160, 3) and frame.dtype == np.uint8 for frame in frames)
    assert not np.array_equal(frames[0], frames[2])


def test_a_point_is_where_its_environment_draws_it() -> None:
    env, teacher, states = PointSkillsEnv("toy", render_mode="rgb_array"), PointTeacher("toy"), []
    observation, _ = env.reset()
    for _ in range(12):
        observation, *_ = env.step(teacher.predict(observation)[0])
        states.append(observation)
    drawn, rendered = state_frames(np.array(states))[-1], env.render()
    assert drawn.shape == rendered.shape
    places = [
        np.argwhere((np.abs(image.astype(int) - colour) < 8).all(-1)).mean(0)
        for image, colour in ((drawn, (255, 127, 14)), (rendered, (214, 94, 30)))
    ]
    np.testing.assert_allclose(*places, atol=1.5)


def test_maps_and_curves_are_written(tmp_path: Path) -> None:
    def embeddings(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        skills = {name: rng.normal(size=(4, 6)) for name in ("kick", "spin")}
        both = rng.normal(size=(3, 6))
        plot_embeddings(tmp_path / "map.png", skills, composite=both, sum_of_parts=np.ones(6), name="both")
        return picture(tmp_path / "map.png")

    def curves(last: float) -> np.ndarray:
        nats = {"held out": [(1, -1.0), (2, 0.5)]}
        pairs = {"mse": {"sum": [(1, 2.0), (2, last)], "own": [(1, 1.0)]}, "nats": nats}
        plot_curves(tmp_path / "curves.png", pairs, {"mse": {"mean state": 3.0}})
        return picture(tmp_path / "curves.png")

    for draw, size in ((embeddings, (585, 715)), (curves, (455, 1092))):
        drawn = draw(1)
        assert drawn.shape[:2] == size and not np.array_equal(draw(2), drawn)


def test_a_picture_that_fails_leaves_the_one_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "links.png"
    plot_links(path, point(), point())
    before = path.read_bytes()

    def fail(self: Figure, file: Path, **_: Any) -> None:
        Path(file).write_bytes(before[:100])
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="the disk is full"):
        plot_links(path, point(), point()[:5])
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["links.png"]


def test_films_side_by_side_wait_for_the_longest() -> None:
    one, other = ([np.full((2, 3, 3), shade, np.uint8) for shade in shades] for shades in ((1, 2, 3), (7, 8)))
    film = side_by_side(one, other)
    assert [frame[0, [0, 3], 0].tolist() for frame in film] == [[1, 7], [2, 8], [3, 8]]
    assert film[0].shape == (2, 6, 3)


def test_films_have_titles() -> None:
    panels = [[np.full((10, width, 3), 7, np.uint8)] * length for width, length in ((80, 2), (120, 1))]
    film = side_by_side(*panels, titles=["teacher", "policy"])
    assert [frame.shape for frame in film] == [(34, 200, 3)] * 2 and all((frame[24:] == 7).all() for frame in film)
    bar = film[0][:24]
    np.testing.assert_array_equal(film[1][:24], bar)
    assert (bar[:, :80] < 128).any() and (bar[:, 80:] < 128).any()  # letters
    other = side_by_side(*panels, titles=["teacher", "sum"])[0][:24]
    np.testing.assert_array_equal(other[:, :80], bar[:, :80])
    assert not np.array_equal(other[:, 80:], bar[:, 80:])
    with pytest.raises(ValueError, match="each of 2 panels needs a title, got 1"):
        side_by_side(*panels, titles=["teacher"])


def test_other_states_are_refused(tmp_path: Path) -> None:
    for use in (
        lambda: state_frames(np.zeros((2, 7))),
        lambda: plot_bodies(tmp_path / "a.png", {"a": np.zeros((2, 7))}),
        lambda: plot_links(tmp_path / "a.png", np.zeros((2, 7)), np.zeros((2, 7))),
    ):
        with pytest.raises(ValueError, match="numbers are drawn, got 7"):
            use()
    assert not list(tmp_path.iterdir())
