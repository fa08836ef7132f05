"""The T-maze: what can be seen, what the moves do, its teacher, the renders."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pyrocontrol.envs import TMazeEnv, TMazeTeacher

NAME = "pyrocontrol/TMaze-v0"
FORWARD, LEFT, RIGHT, BACK = (np.int64(action) for action in range(4))


def run(env: TMazeEnv, signal: str, actions: list[Any]) -> tuple[list[list[float]], list[float], list[bool], dict]:
    """Observations (the first included), rewards, ends, and the last info."""
    observation, info = env.reset(options={"signal": signal})
    observations, rewards, ends = [observation.tolist()], [], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation.tolist()), rewards.append(reward), ends.append(terminated or truncated)
    return observations, rewards, ends, info


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_gymnasium_accepts_the_environment(render_mode: str | None) -> None:
    check_env(gymnasium.make(NAME, render_mode=render_mode).unwrapped)


def test_the_signal_is_seen_at_the_first_step_only_and_the_corridor_tells_nothing() -> None:
    env = TMazeEnv(length=6)
    left, _, _, _ = run(env, "left", [FORWARD] * 6)
    right, _, _, _ = run(env, "right", [FORWARD] * 6)
    assert left[0] == [1, 0, 1, 0] and right[0] == [0, 1, 1, 0]
    assert left[1:] == right[1:] == [[0, 0, 1, 0]] * 5 + [[0, 0, 0, 1]]
    again, *_ = run(env, "left", [LEFT, BACK, FORWARD, BACK])
    assert again[1:] == [[0, 0, 1, 0]] * 4  # not even at the place where it was


@pytest.mark.parametrize("signal", ["left", "right"])
@pytest.mark.parametrize("turn", ["left", "right"])
def test_only_the_turn_of_the_signal_is_rewarded(signal: str, turn: str) -> None:
    actions = [FORWARD] * 3 + [LEFT if turn == "left" else RIGHT]
    observations, rewards, ends, info = run(TMazeEnv(length=3), signal, actions)
    assert rewards == [0, 0, 0, float(signal == turn)] and ends == [False] * 3 + [True]
    assert info == {"is_success": signal == turn, "position": 3, "signal": signal}
    assert observations[-1] == [0, 0, 0, 0]


def test_wrong_moves_bump() -> None:
    env = TMazeEnv(length=2)
    env.reset(seed=0)
    moves = [(LEFT, 0), (RIGHT, 0), (BACK, 0), (FORWARD, 1), (LEFT, 1), (BACK, 0), (FORWARD, 1), (FORWARD, 2)]
    for action, position in [*moves, (FORWARD, 2), (BACK, 1), (FORWARD, 2)]:
        _, reward, terminated, _, info = env.step(action)
        assert info["position"] == position and reward == 0 and not terminated


def test_an_episode_is_truncated() -> None:
    _, rewards, ends, info = run(TMazeEnv(length=2), "left", [BACK] * 12)
    assert ends == [False] * 11 + [True] and not any(rewards) and not info["is_success"]
    env = TMazeEnv(length=2, max_steps=3)
    env.reset(options={"signal": "left"})
    ends = [env.step(action)[2:4] for action in (FORWARD, FORWARD, LEFT)]
    assert ends == [(False, False), (False, False), (True, False)]  # the turn at the last step counts


def test_seeds_determine_the_signals() -> None:
    def signals(seed: int) -> list[str]:
        env = gymnasium.make(NAME)
        return [env.reset(seed=seed if first else None)[1]["signal"] for first in [True] + [False] * 199]

    assert signals(3) == signals(3) != signals(4)
    assert 70 < signals(3).count("left") < 130


@pytest.mark.parametrize("length", [1, 10, 57])
def test_the_teacher_always_succeeds(length: int) -> None:
    env = gymnasium.make(NAME, length=length)
    teacher = TMazeTeacher()
    state = None
    for episode in range(20):
        observation, _ = env.reset(seed=episode)
        taken, done = [], False
        while not done:
            action, state = teacher.predict(observation, state, episode_start=not taken)
            observation, reward, terminated, truncated, info = env.step(action)
            taken.append(action)
            done = terminated or truncated
        assert reward == 1 and info["is_success"] and len(taken) == length + 1


def test_the_teacher_takes_batches_and_forgets_where_an_episode_starts() -> None:
    teacher = TMazeTeacher()
    corridor, junction = [0, 0, 1, 0], [0, 0, 0, 1]
    action, state = teacher.predict(np.array([[1, 0, 1, 0], [0, 1, 1, 0], corridor], np.float32))
    assert action.tolist() == [0, 0, 0] and state.tolist() == [0, 1, -1]
    starts = np.array([False, False, True])
    action, state = teacher.predict(np.array([junction, junction, [0, 1, 1, 0]]), state, starts)
    assert action.tolist() == [1, 2, 0] and state.tolist() == [0, 1, 1]
    _, state = teacher.predict(np.array([junction, corridor, junction]), state, np.array([False, True, False]))
    assert state.tolist() == [0, -1, 1]
    with pytest.raises(ValueError, match="without having seen the signal"):
        teacher.predict(np.array(junction), None)
    with pytest.raises(ValueError, match=r"shape \[4\]"):
        teacher.predict(np.zeros(5))


def test_bad_use_is_refused() -> None:
    env = TMazeEnv()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(FORWARD)
    with pytest.raises(ValueError, match="'left' or 'right'"):
        env.reset(options={"signal": "up"})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not in"):
        env.step(np.int64(4))
    with pytest.raises(ValueError, match="length"):
        TMazeEnv(length=0)
    with pytest.raises(ValueError, match="max_steps"):
        TMazeEnv(max_steps=0)
    with pytest.raises(ValueError, match="render_mode"):
        TMazeEnv(render_mode="human")


def test_ansi_render() -> None:
    env = TMazeEnv(length=4, render_mode="ansi")
    env.reset(options={"signal": "left"})
    assert env.render() == "          *\nleft  @....\n          .\n"
    for action in (FORWARD, FORWARD, FORWARD, FORWARD, RIGHT):
        env.step(action)
    assert env.render() == "          *\n      .....\n          @\n"


def test_rgb_render() -> None:
    env = TMazeEnv(length=4, render_mode="rgb_array")
    env.reset(options={"signal": "right"})
    pictures = [env.render()]
    for action in (FORWARD, FORWARD, FORWARD, FORWARD, RIGHT):
        env.step(action)
        pictures.append(env.render())
    assert all(picture.dtype == np.uint8 and picture.shape == pictures[0].shape for picture in pictures)
    walker = [np.argwhere((picture == (214, 94, 30)).all(-1)).mean(0) for picture in pictures]
    assert np.allclose(np.diff(walker, axis=0), [[0, 40]] * 4 + [[40, 0]])  # one cell a step
    signal = [(picture == (44, 92, 142)).all(-1).sum() for picture in pictures]
    assert signal[0] > 100 and not any(signal[1:])
