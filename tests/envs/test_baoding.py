"""Baoding balls: Gymnasium's contract, where the targets are, what the simulator foresees, and the planner."""

import copy
import importlib.util
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env

from painter import Painter
from pyrocontrol.envs import Baoding, MPPITeacher
from pyrocontrol.envs.planning.mujoco_rollouts import Rollouts

mujoco = pytest.importorskip("mujoco")
if importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("the hand of gymnasium-robotics is not there", allow_module_level=True)


@pytest.mark.filterwarnings("ignore:.*Box observation space")
def test_gymnasium_accepts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mujoco.Renderer", Painter)
    for observations in ("vectors", "pixels"):
        check_env(Baoding(observations), skip_render_check=True)


def test_targets_go_around_and_distances_are_those_in_the_palm() -> None:
    env = Baoding()
    first, info = env.reset(seed=0)
    radii, centre = np.array([0.02, 0.036]), np.array([0.005, 0.08])
    assert info["distance"] < 0.015 and not info["is_success"]
    for _ in range(30):
        observation, reward, terminated, _, info = env.step(np.zeros(20))
        balls, targets = observation[48:60].reshape(2, 2, 3)[:, 0, [0, 2]], observation[60:].reshape(2, 2)
        assert np.linalg.norm((targets - centre) / radii, axis=1) == pytest.approx(1, abs=1e-5)
        distances = np.linalg.norm(balls - targets, axis=1)
        assert reward == pytest.approx(-5 * distances.sum(), abs=1e-5) and not terminated
        assert info["distance"] == pytest.approx(distances.mean(), abs=1e-6)
        palm = env.data.body("robot0:palm")
        place = palm.xmat.reshape(3, 3).T @ (env.data.body("ball_1").xpos - palm.xpos)
        assert observation[54:57] == pytest.approx(place, abs=1e-6)
    # Half a period later each target is where the other one was.
    assert targets[::-1] == pytest.approx(first[60:].reshape(2, 2), abs=1e-6)
    assert abs(info["turned"]) < 0.2  # the hand was at rest, and so were the balls


def test_a_dropped_ball_ends_the_episode() -> None:
    env = Baoding()
    env.reset(seed=0)
    env.data.joint("ball_0").qpos[:3] += [0.3, 0, 0]
    for _ in range(5):
        _, reward, terminated, truncated, info = env.step(np.zeros(20))
        if terminated:
            break
    assert terminated and not truncated and reward < -500 and not info["is_success"]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(20))


def test_simulated_states_and_their_rewards_are_those_of_step() -> None:
    env = Baoding()
    env.reset(seed=0)
    env.step(np.full(20, 0.1))
    sequences = np.random.default_rng(0).uniform(-1, 1, (2, 6, 20)).astype(np.float32).astype(np.float64)
    sequences[1] = -1  # the hand opens
    found = Rollouts(env, env.rewards, samples=2, horizon=6).trajectories(sequences)
    rewards, ended = env.rewards(found)
    for sample in range(2):
        twin = copy.deepcopy(env)
        for step in range(6):
            _, reward, terminated, *_ = twin.step(sequences[sample, step])
            assert np.array_equal(twin.data.qpos, found.positions[sample, step + 1])
            assert rewards[sample, step] == pytest.approx(reward, abs=1e-9) and ended[sample, step] == terminated
            if terminated:
                break
    assert ended[1].any() and not ended[0, 0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_alike(copied: Any) -> None:
    env = Baoding()
    env.reset(seed=0)
    twin = copied(env)
    for _ in range(3):
        assert np.array_equal(env.step(np.full(20, 0.2))[0], twin.step(np.full(20, 0.2))[0])
    assert np.array_equal(env.reset()[0], twin.reset()[0])


def test_the_planner_turns_the_balls() -> None:
    env = Baoding()
    observation, _ = env.reset(seed=0)
    expert, state = MPPITeacher(env, samples=16), None
    for _ in range(10):
        action, state = expert.predict(observation, state)
        observation, _, terminated, _, info = env.step(action)
        assert not terminated
    assert info["turned"] > 0.5 and info["distance"] < 0.02  # at rest: 0.0 and 0.026


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'vectors' or 'pixels'"):
        Baoding("states")
    env = Baoding()
    env.reset(seed=0)
    for action in (np.zeros(3), np.full(20, np.nan)):
        with pytest.raises(ValueError, match="an action must"):
            env.step(action)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'pyrocontrol-ppl\[robotics\]'"):
        Baoding()
