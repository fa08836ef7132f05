"""The ant in the cross maze and on an open floor."""

from __future__ import annotations

import math
import os
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pyrocontrol.envs.ant_maze import AntMaze, AntMove, maze_xml
from pyrocontrol.envs.point_maze import GOALS, WALLS

pytest.importorskip("mujoco")

STILL = np.zeros(8, np.float32)


def put(env: AntMove, x: float, y: float, z: float = 0.6) -> None:
    """Put the ant somewhere, at rest, its legs on the floor."""
    ant = env.simulator
    positions = ant.init_qpos.copy()
    positions[:3] = x, y, z
    positions[8::2] = [1.0, -1.0, -1.0, 1.0]
    ant.set_state(positions, np.zeros(14))


@pytest.mark.filterwarnings("ignore:.*Box observation space")
@pytest.mark.parametrize("name", ["AntMaze", "AntMove"])
def test_gymnasium_accepts_it(name: str) -> None:
    env = gymnasium.make(f"pyrocontrol/{name}-v0")
    check_env(env.unwrapped, skip_render_check=True)
    assert env.spec is not None and env.spec.max_episode_steps == 1000
    assert env.observation_space.shape == (29,) and env.action_space.shape == (8,)


def test_the_walls_are_those_of_the_point() -> None:
    env = AntMaze()
    boxes = []
    for number in range(12):
        geom = env.model.geom(f"wall_{number}")
        boxes.append((*geom.pos[:2], *geom.size[:2]))
        assert geom.pos[2] == geom.size[2] == 0.5
    np.testing.assert_allclose(boxes, WALLS)
    mark = env.model.site("goal")
    np.testing.assert_allclose([*mark.pos[:2], mark.size[0]], [6, -6, 2])


def test_it_is_gymnasiums_ant() -> None:
    """On the open floor the ant does what Ant-v5 does, to the bit."""
    ours, theirs = AntMove(), gymnasium.make("Ant-v5", exclude_current_positions_from_observation=False).unwrapped
    found, expected = ours.reset(seed=4)[0], theirs.reset(seed=4)[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_array_equal(found, expected[:29])
        action = rng.uniform(-1, 1, 8).astype(np.float32)
        found, reward, terminated, _, _ = ours.step(action)
        expected, _, fallen, _, info = theirs.step(action)
        assert terminated == fallen
        forces = np.clip(theirs.data.cfrc_ext, -1, 1)
        speed = math.hypot(info["x_velocity"], info["y_velocity"])
        terms = 0.005 * (action.astype(float) ** 2).sum() + 0.0005 * (forces**2).sum()
        assert reward == pytest.approx(speed + 0.05 - terms, abs=1e-9)


def test_what_is_observed_can_be_chosen() -> None:
    full = AntMove(contacts=True)
    hidden = AntMove(positions=False)
    seen, rest = full.reset(seed=0)[0], hidden.reset(seed=0)[0]
    assert full.observation_space.shape == seen.shape == (107,)
    np.testing.assert_array_equal(seen[2:29], rest)
    for _ in range(10):
        seen = full.step(STILL)[0]
    assert 0 < abs(seen[29:]).max() <= 1
    assert AntMaze(contacts=True).reset(seed=0)[0].shape == (107,)


@pytest.mark.parametrize("goal", [0, 1, 2])
def test_a_goal_is_worth_1000_and_ends_the_episode(goal: int) -> None:
    env = AntMaze(goal)
    _, info = env.reset(seed=0)
    start = np.hypot(*(np.array(GOALS[goal]) - info["position"]))
    assert info["distance"] == pytest.approx(start) and not info["is_success"]
    x, y = GOALS[goal]
    towards = np.array([6 - x, -y]) / 6  # the junction
    put(env, *(GOALS[goal] + 2.3 * towards))
    _, reward, terminated, _, info = env.step(STILL)
    assert reward == 0 and not terminated and 2 < info["distance"] < 2.5
    put(env, *(GOALS[goal] + 1.7 * towards))
    _, reward, terminated, truncated, info = env.step(STILL)
    assert reward == 1000 and terminated and not truncated and info["is_success"]
    with pytest.raises(RuntimeError, match="call reset before step"):
        env.step(STILL)


@pytest.mark.parametrize(
    ("height", "stands"), [(0.19, False), (0.21, True), (0.99, True), (1.01, False), (np.nan, False)]
)
def test_the_episode_ends_where_the_ant_does_not_stand(
    height: float, stands: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = AntMaze()
    env.reset(seed=0)
    # The floor would lift it at once.
    monkeypatch.setattr(env.simulator, "do_simulation", lambda torques, frames: None)
    env.data.qpos[2] = height
    _, reward, terminated, truncated, info = env.step(STILL)
    assert terminated != stands and not truncated and reward == 0 and not info["is_success"]


@pytest.mark.parametrize("angle", [0.0, 0.45, 0.55, 1.0, 1.4, 1.6], ids=lambda angle: f"{angle}pi")
def test_an_ant_on_its_back_may_be_the_end(angle: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for upright in (False, True):
        env = AntMove(upright=upright)
        env.reset(seed=0)
        monkeypatch.setattr(env.simulator, "do_simulation", lambda torques, frames: None)
        half = math.pi * angle / 2
        env.data.qpos[3:7] = math.cos(half), math.sin(half) * 0.6, math.sin(half) * 0.8, 0.0
        _, _, terminated, truncated, _ = env.step(STILL)
        assert terminated == (upright and math.cos(math.pi * angle) < 0) and not truncated


def test_walls_stop_the_ant() -> None:
    ends = []
    for make in (AntMaze, AntMove):
        env = make()
        env.reset(seed=0)
        put(env, 0, 0)
        env.data.qvel[1] = 8.0
        for _ in range(12):
            _, _, terminated, _, info = env.step(STILL)
            if terminated:
                break
        ends.append(info["position"][1])
    maze, floor = ends
    assert maze < 1.8 and floor > 2.1


def test_motion_is_added_where_one_asks_for_it() -> None:
    env = AntMaze(motion=0.5)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.ones(8, np.float32))
    assert reward == pytest.approx(0.5 * info["motion_reward"]) and reward != 0


def test_the_same_seed_gives_the_same_episode() -> None:
    env = AntMaze()
    tracks = []
    for _ in range(2):
        env.reset(seed=3)
        rng = np.random.default_rng(0)
        tracks.append([env.step(rng.uniform(-1, 1, 8))[0] for _ in range(12)])
    np.testing.assert_array_equal(*tracks)


@pytest.mark.skipif("MUJOCO_GL" not in os.environ, reason="MUJOCO_GL does not say how to draw")
@pytest.mark.parametrize("camera", ["above", "follow"])
def test_the_picture_shows_maze_and_ant(camera: str) -> None:
    env = AntMaze(goal=1, render_mode="rgb_array", camera=camera, width=120, height=90)
    with pytest.raises(RuntimeError, match="call reset before render"):
        env.render()
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (90, 120, 3) and before.dtype == np.uint8 and before.std() > 20
    put(env, 6, 0)
    assert (env.render() != before).any()
    env.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AntMaze(3), "goal must be 0 to 2, got 3"),
        (lambda: AntMaze(motion=math.inf), "motion must be finite, got inf"),
        (lambda: AntMaze(camera="track"), "camera must be one of 'above', 'follow', got 'track'"),
        (lambda: AntMove(camera="above"), "camera must be one of 'track', got 'above'"),
        (lambda: AntMove(render_mode="human"), "render_mode must be None or 'rgb_array', got 'human'"),
        (lambda: maze_xml("<mujoco><worldbody/></mujoco>", 0), "the model has no worldbody, no asset or no torso"),
    ],
    ids=["goal", "motion", "maze-camera", "floor-camera", "render-mode", "model"],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("action", "message"),
    [(np.zeros(7), "an action must have shape [8], got shape [7]"), (np.full(8, np.nan), "an action must be finite")],
    ids=["shape", "nan"],
)
def test_wrong_actions_are_refused(action: np.ndarray, message: str) -> None:
    env = AntMove()
    with pytest.raises(RuntimeError, match="call reset before step"):
        env.step(STILL)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=re.escape(message)):
        env.step(action)
