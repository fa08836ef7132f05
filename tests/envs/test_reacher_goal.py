"""Reacher as a goal task."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import pyrocontrol.envs  # noqa: F401  (registers the task)

pytest.importorskip("mujoco")


@pytest.mark.filterwarnings("ignore:.*Box observation space")
def test_gymnasium_accepts_it() -> None:
    env = gymnasium.make("pyrocontrol/ReacherGoal-v0")
    check_env(env.unwrapped, skip_render_check=True)
    assert env.spec is not None and env.spec.max_episode_steps == 50


def test_the_goal_is_where_the_fingertip_is_to_be() -> None:
    env = gymnasium.make("pyrocontrol/ReacherGoal-v0", tolerance=0.03)
    observation, _ = env.reset(seed=0, options={"goal": [0.1, -0.05]})
    np.testing.assert_allclose(observation["desired_goal"], [0.1, -0.05])
    for _ in range(50):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample() * 0)
        distance = float(np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"]))
        assert info["distance"] == pytest.approx(distance)
        assert info["is_success"] == (distance <= 0.03)
        assert float(reward) == pytest.approx(-distance, abs=1e-6)
    assert truncated and not terminated
    # Told to go where it is, it is there.
    observation, _ = env.reset(seed=1)
    observation, _ = env.reset(seed=1, options={"goal": observation["achieved_goal"]})
    np.testing.assert_allclose(observation["achieved_goal"], observation["desired_goal"], atol=1e-9)


def test_the_fingertip_is_where_the_angles_put_it() -> None:
    env = gymnasium.make("pyrocontrol/ReacherGoal-v0")
    env.action_space.seed(0)
    observation, _ = env.reset(seed=3)
    for _ in range(20):
        observation, *_ = env.step(env.action_space.sample())
    cos1, cos2, sin1, sin2 = observation["observation"][:4]
    elbow = 0.1 * np.array([cos1, sin1])
    tip = elbow + 0.11 * np.array([cos1 * cos2 - sin1 * sin2, sin1 * cos2 + cos1 * sin2])
    np.testing.assert_allclose(observation["achieved_goal"], tip, atol=1e-4)
