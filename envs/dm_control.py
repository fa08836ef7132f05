"""Tasks of the DeepMind Control Suite, from vectors and from pixels.

The tasks are those of the package dm-control, which Shimmy makes Gymnasium environments of. `MPPITeacher` plans them;
`experts` makes demonstrations.

Shapes: K trajectories, H frames, A actuators, O observation numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

from .._verify import verify_least, verify_options
from .mujoco_camera import NO_RENDERER, MujocoCamera
from .planning.mujoco_rewards import Trajectories, body_position

__all__ = ["FRAMES", "TASKS", "DMControl"]

FRAMES = 1000  # of an episode
SIZE = 64  # of observed pictures, in pixels

Result = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class Task(NamedTuple):
    """A task of the suite.

    Attributes:
        name: what the suite calls it: domain and task.
        rewards: of frames `[K, H]`, given MuJoCo's model; those of the suite's `get_reward`.
        planning: what suits it, by the names of the settings of `MPPITeacher`.
    """

    name: tuple[str, str]
    rewards: Callable[[Any, Trajectories], np.ndarray]
    planning: dict[str, Any]


def _tolerance(*arguments: Any, **options: Any) -> np.ndarray:
    from dm_control.utils.rewards import tolerance

    found: np.ndarray = tolerance(*arguments, **options)
    return found


def _cheetah_run(model: Any, t: Trajectories) -> np.ndarray:
    speed = t.sensors[..., 0]
    return _tolerance(speed, bounds=(10, math.inf), margin=10, value_at_margin=0, sigmoid="linear")


def _walker_walk(model: Any, t: Trajectories) -> np.ndarray:
    height, tilt, speed = t.positions[:, 1:, 0] + model.body("torso").pos[2], t.positions[:, 1:, 2], t.sensors[..., 0]
    standing = _tolerance(height, bounds=(1.2, math.inf), margin=0.6)
    moving = _tolerance(speed, bounds=(1, math.inf), margin=0.5, value_at_margin=0.5, sigmoid="linear")
    return (3 * standing + (1 + np.cos(tilt)) / 2) / 4 * (5 * moving + 1) / 6


def _cartpole_swingup(model: Any, t: Trajectories) -> np.ndarray:
    place, angle = np.moveaxis(t.positions[:, 1:], -1, 0)
    upright = (np.cos(angle) + 1) / 2
    centered = (1 + _tolerance(place, margin=2)) / 2
    small_control = (4 + _tolerance(t.controls[..., 0], margin=1, value_at_margin=0, sigmoid="quadratic")) / 5
    small_velocity = (1 + _tolerance(t.velocities[:, 1:, 1], margin=5)) / 2
    return upright * small_control * small_velocity * centered


def _reacher_distance(model: Any, t: Trajectories) -> np.ndarray:
    gap = body_position(model, t.positions[:, 1:], "finger") - model.geom("target").pos
    return np.linalg.norm(gap[..., :2], axis=-1)


def _reacher_easy(model: Any, t: Trajectories) -> np.ndarray:
    return _tolerance(_reacher_distance(model, t), (0, model.geom("target").size[0] + model.geom("finger").size[0]))


def _nearer(env: Any, t: Trajectories) -> np.ndarray:
    return -_reacher_distance(env.model, t)


TASKS = {
    "cheetah-run": Task(
        ("cheetah", "run"),
        _cheetah_run,
        {"horizon": 24, "samples": 64, "temperature": 0.1, "noise": (0.1, 0.5), "iterations": 4, "smoothing": 0.2},
    ),
    "walker-walk": Task(
        ("walker", "walk"),
        _walker_walk,
        {"horizon": 20, "samples": 64, "temperature": 0.3, "noise": (0.1, 1.0), "smoothing": 0.3, "substeps": 4},
    ),
    "cartpole-swingup": Task(
        ("cartpole", "swingup"),
        _cartpole_swingup,
        {"horizon": 70, "samples": 48, "temperature": 0.1, "noise": (0.02, 1.0), "correlation": 0.9, "smoothing": 0.2},
    ),
    # The reward is 0 but at the target.
    "reacher-easy": Task(
        ("reacher", "easy"),
        _reacher_easy,
        {"horizon": 20, "samples": 64, "temperature": 0.1, "noise": (0.02, 0.5), "smoothing": 0.2, "guidance": _nearer},
    ),
}


class DMControl(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task of the DeepMind Control Suite.

    Observation: of `"vectors"` `[O]` float32, all that the suite shows, in its order (for walker-walk: the
    orientations of the bodies, 14, the height of the torso, the velocities, 9); of `"pixels"` `[64, 64, 3]` uint8, by
    the suite's first camera. Action: `[A]` float32 in (-1, 1). Reward: the sum over the frames of a step, each between
    0 and 1. An episode has 1000 frames and is truncated then; it is never terminated. The same seed and actions give
    the same episode.

    `pyrocontrol/CheetahRun-v0`, `pyrocontrol/WalkerWalk-v0`, `pyrocontrol/CartpoleSwingup-v0` and
    `pyrocontrol/ReacherEasy-v0` are the registered names.

    Args:
        task: one of `TASKS`.
        observations: `"vectors"` or `"pixels"`.
        action_repeat: frames of a step.
        render_mode: `"rgb_array"` for pictures, or None.
        render_size: H = W of these pictures.

    Attributes:
        planning: see `Plannable`, as for ``model``, ``data``, ``frame_skip`` and ``dt``.

    Raises:
        ValueError: if there is no such task or kind of observation, or a number makes no sense.
        gymnasium.error.DependencyNotInstalled: without dm-control or Shimmy, and for pictures without OpenGL, saying
            what to install.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        task: str,
        observations: str = "vectors",
        action_repeat: int = 2,
        render_mode: str | None = None,
        render_size: int = 256,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(map(repr, TASKS))}, got {task!r}")
        if observations not in ("vectors", "pixels"):
            raise ValueError(f"observations must be 'vectors' or 'pixels', got {observations!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        verify_least(1, action_repeat=action_repeat, render_size=render_size)
        self.task, self.observations, self.action_repeat = task, observations, action_repeat
        self.render_mode, self.render_size = render_mode, render_size
        self.planning = TASKS[task].planning
        self.suite = _suite(*TASKS[task].name)
        self.frame_skip, self.dt = self.suite._n_sub_steps, self.suite.dt
        self._camera = MujocoCamera(0)
        self._frames = FRAMES
        size = sum(math.prod(space.shape) for space in self.suite.observation_space.values())
        self.observation_space: spaces.Space[np.ndarray] = (
            spaces.Box(-np.inf, np.inf, (size,), np.float32)
            if observations == "vectors"
            else spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        )
        self._actuators = self.suite.action_space.shape[0]
        self.action_space: spaces.Space[np.ndarray] = spaces.Box(-1.0, 1.0, (self._actuators,), np.float32)
        for pictured in [SIZE] * (observations == "pixels") + [render_size] * (render_mode is not None):
            self._camera.ready(self.model, pictured)  # what is missing is said at once

    @property
    def model(self) -> Any:
        """MuJoCo's model."""
        return self.suite.physics.model.ptr

    @property
    def data(self) -> Any:
        """MuJoCo's data."""
        return self.suite.physics.data.ptr

    def rewards(self, trajectories: Trajectories) -> tuple[np.ndarray, np.ndarray]:
        """Rewards `[K, H]` of simulated frames, and that none of them ends the episode."""
        found = TASKS[self.task].rewards(self.model, trajectories)
        return found, np.zeros(found.shape, bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin where the suite does."""
        verify_options(options)
        super().reset(seed=seed)
        self._seen, _ = self.suite.reset(seed=int(self.np_random.integers(2**32)))
        self._frames = 0
        return self._get_obs(), {}

    def step(self, action: Any) -> Result:
        """Apply an action for `action_repeat` frames."""
        if self._frames >= FRAMES:
            raise RuntimeError("call reset before step: no episode has begun, or it is over")
        if np.shape(action) != (self._actuators,):
            raise ValueError(f"an action must have shape [{self._actuators}], got shape {[*np.shape(action)]}")
        control = np.clip(np.asarray(action, np.float64), -1, 1)
        if not np.isfinite(control).all():
            raise ValueError(f"an action must be finite, got {action!r}")
        total = 0.0
        for _ in range(min(self.action_repeat, FRAMES - self._frames)):
            self._seen, reward, *_ = self.suite.step(control)
            self._frames, total = self._frames + 1, total + float(reward)
        return self._get_obs(), total, False, self._frames >= FRAMES, {}

    def _get_obs(self) -> np.ndarray:
        if self.observations == "pixels":
            return self._camera.picture(self.model, self.data, SIZE)
        return np.concatenate([np.ravel(part) for part in self._seen.values()]).astype(np.float32)

    def render(self) -> Any:
        """A picture `[render_size, render_size, 3]` uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        return self._camera.picture(self.model, self.data, self.render_size)

    def close(self) -> None:
        """Free what was used for rendering."""
        self._camera.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"warmstart": self.data.qacc_warmstart.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        warmstart = state.pop("warmstart")
        self.__dict__.update(state)
        self.data.qacc_warmstart[:] = warmstart  # which dm-control changes as it copies, and later states with it


def _suite(domain: str, task: str) -> Any:
    """A task of the suite without its time limit, as a Gymnasium environment of Shimmy's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing display
            from dm_control import suite
            from shimmy import DmControlCompatibilityV0
    except ModuleNotFoundError as error:
        raise DependencyNotInstalled(
            "DM Control needs dm-control and Shimmy: pip install 'pyrocontrol-ppl[dm-control]'"
        ) from error
    except Exception as error:  # what MUJOCO_GL asks for is loaded by the import
        raise DependencyNotInstalled(NO_RENDERER) from error
    return DmControlCompatibilityV0(suite.load(domain, task, task_kwargs={"time_limit": math.inf}))
