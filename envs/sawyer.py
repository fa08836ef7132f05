"""A Sawyer arm puts a peg into a hole in the side of a box, and the scripted expert that shows how.

The task is Meta-World's `peg-insert-side-v3`, with the hole observed and peg and box placed anew in every episode.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

from .._verify import verify_least, verify_options
from .mujoco_camera import MujocoCamera

__all__ = ["SawyerPeg", "sawyer_peg_expert"]

STEPS = 200  # of an episode; the expert needs 75 to 190 of them
_NAME = "peg-insert-side-v3-goal-observable"

Result = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class SawyerPeg(gymnasium.Env[np.ndarray, np.ndarray]):
    """Take a peg and put it into the hole in the side of a box, 80 actions a second.

    Observation, ``[39]`` float32: 18 numbers of now (the hand's position, how far the gripper is open, the peg's
    position and quaternion, 7 zeros), the same 18 of a step ago, and where the peg's head is to go. Action, ``[4]``
    float32 in (-1, 1): the hand's motion in 1 cm, and the gripper's effort. Reward: Meta-World's, between 0 and 10. An
    episode is truncated after 200 steps and never terminated.

    `info`: ``is_success``, whether the peg's head is less than 7 cm from its place now, and what Meta-World says.

    Args:
        render_mode: `"rgb_array"` for pictures, or None.
        render_size: H = W of these pictures.

    Raises:
        ValueError: if there is no such render mode.
        gymnasium.error.DependencyNotInstalled: without Meta-World, and for pictures without OpenGL, saying what to
            install.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(self, render_mode: str | None = None, render_size: int = 256) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        verify_least(1, render_size=render_size)
        self.render_mode, self.render_size = render_mode, render_size
        try:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        except ModuleNotFoundError as error:
            raise DependencyNotInstalled("Sawyer needs Meta-World: pip install 'pyrocontrol-ppl[metaworld]'") from error
        made: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[_NAME]
        self.simulator: Any = made(seed=0)
        # Peg and box are placed by this environment's random numbers.
        self.simulator._freeze_rand_vec, self.simulator.seeded_rand_vec = False, True
        self.observation_space: spaces.Space[np.ndarray] = spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space: spaces.Space[np.ndarray] = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.succeeded = False
        self._step = STEPS
        self._camera = MujocoCamera("corner2")
        if render_mode is not None:
            self._camera.ready(self.simulator.model, render_size)  # what is missing is said at once

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with the hand above the table, and peg and box somewhere on it."""
        verify_options(options)
        super().reset(seed=seed)
        self.simulator.np_random = self.np_random
        observation, _ = self.simulator.reset()
        self._step, self.succeeded = 0, False
        return observation.astype(np.float32), {"is_success": False}

    def step(self, action: Any) -> Result:
        """Move the hand."""
        if self._step >= STEPS:
            raise RuntimeError("call reset before step: no episode has begun, or it is over")
        if np.shape(action) != (4,):
            raise ValueError(f"an action must have shape [4], got shape {[*np.shape(action)]}")
        moved = np.clip(np.asarray(action, np.float32), -1, 1)
        if not np.isfinite(moved).all():
            raise ValueError(f"an action must be finite, got {action!r}")
        observation, reward, _, _, info = self.simulator.step(moved)
        self._step, self.succeeded = self._step + 1, bool(info["success"])
        info = info | {"is_success": self.succeeded}
        return observation.astype(np.float32), float(reward), False, self._step >= STEPS, info

    def render(self) -> Any:
        """A picture `[render_size, render_size, 3]` uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        return self._camera.picture(self.simulator.model, self.simulator.data, self.render_size)

    def close(self) -> None:
        """Free what was used for rendering."""
        self._camera.close()


def sawyer_peg_expert(observation: np.ndarray) -> np.ndarray:
    """What Meta-World's scripted policy does, clipped, ``[4]`` float32; nine times in ten it succeeds.

    Args:
        observation: of `SawyerPeg`, ``[39]``.
    """
    from metaworld.policies import SawyerPegInsertionSideV3Policy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it asks for more than the bounds
        action = SawyerPegInsertionSideV3Policy().get_action(np.asarray(observation, np.float64))
    return np.clip(action, -1, 1).astype(np.float32)
