"""Gymnasium's Reacher as a goal task: reach with the fingertip wherever one is told to.

`pyrocontrol/ReacherGoal-v0` is `Reacher-v5` seen as a goal environment: the observation says nothing of a target, the
goal is a position of the fingertip in the plane (metres, from the shoulder), and achieved and desired goals stand
beside the observation, as in Gymnasium-Robotics.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .._verify import verify_options

__all__ = ["GoalReacher"]


class GoalReacher(gymnasium.Wrapper):
    """Reach a goal with the fingertip of a planar arm with two joints, in 50 steps of 20 ms.

    Observation: ``observation`` `[6]`, the cosines and sines of both joint angles and both angular velocities (rad/s);
    ``achieved_goal`` and ``desired_goal`` `[2]`, where the fingertip is and where it is to be (m). Action: the torques
    at both joints, `[2]` in [-1, 1] (N m). Reward: -distance (m) - action^2. ``info["distance"]`` is the distance
    after the step, ``info["is_success"]`` whether it is at most ``tolerance``.

    Args:
        tolerance: greatest distance of a success (m); the arm reaches 0.21.
        render_mode: as in Reacher.

    Raises:
        gymnasium.error.DependencyNotInstalled: without MuJoCo.
    """

    def __init__(self, tolerance: float = 0.02, render_mode: str | None = None) -> None:
        super().__init__(gymnasium.make("Reacher-v5", render_mode=render_mode).unwrapped)
        self.tolerance = tolerance
        vector: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(-np.inf, np.inf, (size,), np.float64) for name, size in _PARTS.items()
        }
        self.observation_space = spaces.Dict(vector)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin at the stretched arm, the goal somewhere within 0.2 m; ``options={"goal": [2]}`` names one."""
        goal = verify_options(options, "goal").get("goal")
        observation, info = self.env.reset(seed=seed)
        if goal is not None:
            simulator: Any = self.env.unwrapped
            position, velocity = simulator.data.qpos.copy(), simulator.data.qvel.copy()
            position[-2:] = np.asarray(goal, np.float64)
            simulator.set_state(position, velocity)
            observation = simulator._get_obs()
        return _split(observation), info

    def step(self, action: NDArray[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply the torques for one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        found = _split(observation)
        distance = float(np.linalg.norm(found["achieved_goal"] - found["desired_goal"]))
        info |= {"distance": distance, "is_success": distance <= self.tolerance}
        return found, float(reward), terminated, truncated, info


_PARTS = {"observation": 6, "achieved_goal": 2, "desired_goal": 2}


def _split(observation: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Reacher's observation (cos, sin, target, velocities, fingertip - target) as that of a goal task."""
    target = observation[4:6]
    return {
        "observation": np.concatenate([observation[:4], observation[6:8]]),
        "achieved_goal": observation[8:10] + target,
        "desired_goal": target.copy(),
    }
