"""The cross maze, and a point in it."""

from __future__ import annotations

import math
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pyrocontrol.envs.point_maze import GOALS, WALLS, PointMaze, PointMove, motion_reward

EAST, NORTH, SOUTH = (1.0, 0.0), (0.0, 1.0), (0.0, -1.0)


def push(env: PointMove, direction: Any, steps: int) -> tuple[Any, ...]:
    """Push in one direction until the episode ends."""
    outcome: tuple[Any, ...] = ()
    for _ in range(steps):
        outcome = env.step(np.array(direction, np.float32))
        if outcome[2]:
            break
    return outcome


def is_free(x: float, y: float, body: float = 0.0) -> bool:
    """Whether a place is in one of the two corridors, whatever the list of walls says."""
    along = -2 + body <= x <= 14 - body and abs(y) <= 2 - body
    across = 4 + body <= x <= 8 - body and abs(y) <= 8 - body
    return along or across


@pytest.mark.filterwarnings("ignore:.*Box observation space")
@pytest.mark.parametrize("name", ["PointMaze", "PointMove"])
def test_gymnasium_accepts_it(name: str) -> None:
    env = gymnasium.make(f"pyrocontrol/{name}-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.spec is not None and env.spec.max_episode_steps == 300


def test_the_walls_are_around_corridors_four_wide_that_meet_at_the_junction() -> None:
    assert len(WALLS) == 12
    for x in np.arange(-2.9, 15, 0.2):
        for y in np.arange(-8.9, 9, 0.2):
            walls = [abs(x - a) < w and abs(y - b) < h for a, b, w, h in WALLS]
            # Within the outline of the walls, a place is in a corridor or in one wall; beyond it in neither.
            within = abs(y) < 3 or 3 < x < 9
            assert sum(walls) == (within and not is_free(x, y)), (x, y)
    assert GOALS == ((6, -6), (6, 6), (12, 0))
    assert all(is_free(x + dx, y + dy) for x, y in GOALS for dx in (-1.9, 1.9) for dy in (-1.9, 1.9))


def test_a_push_moves_the_point_as_the_class_says() -> None:
    env = PointMove()
    observation, info = env.reset(seed=0)
    place, velocity = info["position"], np.zeros(2)
    assert abs(place).max() <= 0.1 and not observation[2:].any()
    turn = np.pi / 4
    for action, expected in (
        ([2.0, 0.0], [1.0, 0.0]),  # clipped
        ([-0.5, 0.5], [-0.5 * np.sqrt(0.5), 0.5 * np.sqrt(0.5)]),
        ([0.8, -0.4], [0.8 * np.cos(turn / 2), -0.8 * np.sin(turn / 2)]),
        ([-0.2, -0.6], [-0.6 * np.sin(turn / 3), -0.6 * np.cos(turn / 3)]),
        ([0.0, 0.0], [0.0, 0.0]),
    ):
        observation, reward, *_, info = env.step(np.array(action))
        force = np.array(expected)
        velocity = 0.8 * velocity + 0.8 * force
        place = place + 0.05 * velocity
        np.testing.assert_allclose(info["position"], place, atol=1e-12)
        np.testing.assert_allclose(observation, [*place, *velocity], atol=1e-6)
        assert reward == pytest.approx(np.linalg.norm(velocity) + 0.05 - 0.005 * force @ force)
        assert info["motion_reward"] == reward


def test_no_direction_is_faster_than_another() -> None:
    speeds = []
    for direction in (EAST, NORTH, (1.0, 1.0), (-1.0, 1.0), (1.0, -0.5)):
        env = PointMove()
        env.reset(seed=0)
        observation, *_ = push(env, direction, 60)
        speeds.append(math.hypot(*observation[2:]))
    np.testing.assert_allclose(speeds, 4.0, rtol=1e-4)


def test_no_direction_is_likelier_than_another() -> None:
    """Uniform actions are uniform pushes in the disc; shortening them to it would favour the diagonals."""
    env = PointMove(positions=False)
    pushes, actions = [], np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    for action in actions:
        env.reset(seed=0)
        pushes.append(env.step(action)[0] / 0.8)

    def spread(points: np.ndarray) -> float:
        """How many more of the fastest tenth go along the diagonals than along the axes."""
        fast = points[np.hypot(*points.T) > np.sqrt(0.9)]
        eighth = np.round(np.arctan2(fast[:, 1], fast[:, 0]) / (np.pi / 4)).astype(int) % 2
        return float(eighth.mean()) - 0.5

    found = np.array(pushes)
    assert abs(np.mean(np.hypot(*found.T) < np.sqrt(0.5)) - 0.5) < 0.03 and np.hypot(*found.T).max() <= 1
    shortened = actions / np.maximum(1, np.hypot(*actions.T))[:, None]
    assert abs(spread(found)) < 0.08 < 0.3 < spread(shortened)


def test_motion_reward_has_the_terms_of_the_paper() -> None:
    assert motion_reward(2.0, 3.0, 5.0) == pytest.approx(2 + 0.05 - 0.005 * 3 - 0.0005 * 5)


@pytest.mark.parametrize(("goal", "turn"), [(0, SOUTH), (1, NORTH), (2, EAST)])
def test_a_goal_is_worth_1000_and_ends_the_episode(goal: int, turn: tuple[float, float]) -> None:
    env = PointMaze(goal)
    env.reset(seed=0)
    *_, reward, terminated, truncated, info = push(env, EAST, 30)
    assert reward == 0 and not terminated and not info["is_success"] and 4 < info["position"][0] < 8
    assert info["distance"] == pytest.approx(math.dist(info["position"], GOALS[goal]))
    *_, reward, terminated, truncated, info = push(env, turn, 100)
    assert reward == 1000 and terminated and not truncated
    assert info["is_success"] and 1.7 < info["distance"] < 2
    with pytest.raises(RuntimeError, match="the episode is over"):
        env.step(np.zeros(2, np.float32))


def test_walls_stop_the_point_and_it_slides_along_them() -> None:
    env = PointMaze(goal=0)
    env.reset(seed=0)
    observation, *_ = push(env, NORTH, 40)
    assert observation[1] == pytest.approx(1.6) and observation[3] == 0
    observation, *_ = push(env, (1.0, 0.5), 12)
    assert 1 < observation[0] < 3 and observation[2] > 3 and observation[1] == pytest.approx(1.6)
    # Past the corner it is free to go on, to the end of the arm.
    observation, *_ = push(env, (1.0, 1.0), 100)
    np.testing.assert_allclose(observation, [7.6, 7.6, 0, 0], atol=1e-6)


def test_the_point_never_enters_a_wall() -> None:
    env = PointMaze(goal=0)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(40):
        env.reset(seed=int(rng.integers(1000)))
        for _ in range(25):
            *_, terminated, _, info = push(env, rng.normal(size=2) * 2, 12)
            seen.append(info["position"])
            assert is_free(*info["position"], body=0.4 - 1e-6), info
            if terminated:
                break
    reach = np.array(seen)
    assert reach[:, 0].max() > 10 and reach[:, 1].max() > 7  # it was in both arms that lead to no goal


def test_motion_is_added_where_one_asks_for_it() -> None:
    env = PointMaze(motion=0.5)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array(EAST))
    assert reward == pytest.approx(0.5 * info["motion_reward"]) and reward > 0.2


def test_the_same_seed_gives_the_same_episode() -> None:
    tracks = []
    for _ in range(2):
        env = PointMaze()
        env.reset(seed=3)
        rng = np.random.default_rng(0)
        tracks.append([env.step(rng.uniform(-1, 1, 2))[0] for _ in range(50)])
    np.testing.assert_array_equal(*tracks)


def test_undirected_noise_does_not_find_a_goal() -> None:
    """What makes the task one for a hierarchy: 300 independent pushes do not lead far."""
    env = PointMaze(goal=2)
    rng = np.random.default_rng(0)
    closest = math.inf
    for episode in range(30):
        env.reset(seed=episode)
        for action in rng.uniform(-1, 1, (300, 2)):
            closest = min(closest, env.step(action)[-1]["distance"])
    assert closest > 3.5


def test_positions_can_be_hidden() -> None:
    env = PointMove(positions=False)
    assert env.observation_space.shape == (2,)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (2,) and env.step(np.array(EAST))[0][0] == pytest.approx(0.8)


def test_the_picture_shows_walls_goal_point_and_track() -> None:
    env = PointMaze(goal=1, render_mode="rgb_array")
    env.reset(seed=0)
    push(env, EAST, 30)
    picture = env.render()
    assert picture.shape == (432, 432, 3) and picture.dtype == np.uint8

    def at(x: float, y: float) -> list[int]:
        return picture[round(24 * (9 - y)), round(24 * (x + 3))].tolist()

    wall, goal, point = at(3.5, 5), at(6.3, 6.3), at(*env._track[-1])
    assert len({tuple(colour) for colour in (wall, goal, point, at(1.1, 1.1), at(*env._track[10]))}) == 5
    assert wall == at(-2.5, 0) and at(6.3, -6.3) != goal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PointMaze(3), "goal must be 0 to 2, got 3"),
        (lambda: PointMaze(-1), "goal must be 0 to 2, got -1"),
        (lambda: PointMaze(motion=math.nan), "motion must be finite, got nan"),
        (lambda: PointMove(render_mode="human"), "render_mode must be None or 'rgb_array', got 'human'"),
    ],
    ids=["goal", "negative-goal", "motion", "render-mode"],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), "an action must have shape [2]"),
        (np.array([np.nan, 0]), "an action must be finite"),
        (np.array([0, np.inf]), "an action must be finite"),
    ],
    ids=["shape", "nan", "infinite"],
)
def test_wrong_actions_are_refused(action: np.ndarray, message: str) -> None:
    env = PointMove()
    with pytest.raises(RuntimeError, match="call reset before step"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=re.escape(message)):
        env.step(action)
