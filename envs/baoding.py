"""Baoding balls: a Shadow hand turns two balls around each other in its palm.

After A. Nagabandi, K. Konolige, S. Levine and V. Kumar, "Deep Dynamics Models for Learning Dexterous Manipulation"
(2019), whose own environment is for an interface of MuJoCo that is no longer kept up. The hand is that of the package
gymnasium-robotics, read from its files; the balls are added to it. Other than there, the balls are smaller (0.022 m),
the ellipse lies 25 mm nearer to the fingers, where this hand holds them, and distances are in the palm's plane.

Shapes: K trajectories, H frames.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

from .._verify import verify_least, verify_options
from .mujoco_camera import MujocoCamera
from .planning.mujoco_rewards import Trajectories
from .planning.mujoco_rollouts import load_mujoco

__all__ = ["Baoding"]

STEPS = 100  # of an episode
PERIOD = 60  # steps in which the targets go around once
SIZE = 64  # of observed pictures, in pixels
DROPPED = 0.06  # height of a ball's centre (m)
TURNED = 2 * math.pi  # how far the balls must have gone around each other
_RADIUS, _MASS = 0.022, 0.043  # of a ball (m, kg)
_CENTRE, _RADII = np.array([0.005, 0.08]), np.array([0.02, 0.036])  # of the ellipse of the targets (m)
_STARTS = np.array([0.75 * math.pi, -0.25 * math.pi])  # angles of the targets
_HEIGHT = 0.065  # above the palm's plane, of the balls where an episode begins (m)
_JITTER = 0.02  # standard deviation of the angles where it begins (rad)
_PICTURE, _SHOWN = "pixels", "proprioception"

# Where the hand is at rest (rad): a bowl. Joints that are not named are at 0.
_REST = {"WRJ0": -0.15, "LFJ4": 0.3, "THJ4": 0.5, "THJ3": 0.5, "THJ1": -0.2, "THJ0": -0.9}
_REST |= {f"{finger}FJ{joint}": angle for finger in "FMRL" for joint, angle in ((2, 0.5), (1, 0.6), (0, 0.6))}

Observation = np.ndarray | dict[str, np.ndarray]
Result = tuple[Observation, float, bool, bool, dict[str, Any]]


class Baoding(gymnasium.Env[Any, np.ndarray]):
    """Turn two balls around each other without dropping one: 20 position servos, ten actions a second.

    Two targets go around an ellipse in the palm, once in 60 steps; each ball is to be at its own. Reward:

        ``-5 (d1 + d2) - 500 dropped``,

    the distances of the balls from their targets in the plane of the palm (m). An episode is terminated where a ball's
    centre is lower than 0.06 m, and truncated after 100 steps.

    Observation of `"vectors"`, ``[64]`` float32: the angles of the 24 joints (rad) and their velocities, and of each
    ball its position in the palm's frame (m), its velocity there (m/s) and its target (m, in the palm's plane). Of
    `"pixels"`, a Dict: `pixels`, ``[64, 64, 3]`` uint8, from above the palm, and `proprioception`, ``[52]`` float32:
    angles and velocities of the joints, and the targets, which are not drawn.

    Action, ``[20]`` float32 in (-1, 1): where the servos are to go. 0 is the hand at rest, a bowl in which the balls
    lie; 1 and -1 are as far from there as the farther end of the joint's range.

    `info`: ``turned``, how far the balls have gone around each other since the reset (rad, the way of the targets);
    ``distance``, the mean of d1 and d2; ``is_success``: no ball was dropped and ``turned`` is at least a whole turn.

    Args:
        observations: `"vectors"` or `"pixels"`.
        render_mode: `"rgb_array"` for pictures, or None.
        render_size: H = W of these pictures.

    Attributes:
        planning: see `Plannable`, as for ``model``, ``data``, ``frame_skip``, ``dt`` and ``action_repeat``.

    Raises:
        ValueError: if there is no such kind of observation or render mode.
        gymnasium.error.DependencyNotInstalled: without gymnasium-robotics, and for pictures without OpenGL, saying
            what to install.
        ImportError: without MuJoCo, saying what to install.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_repeat = 1

    def __init__(self, observations: str = "vectors", render_mode: str | None = None, render_size: int = 256) -> None:
        if observations not in ("vectors", "pixels"):
            raise ValueError(f"observations must be 'vectors' or 'pixels', got {observations!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        verify_least(1, render_size=render_size)
        self.observations, self.render_mode, self.render_size = observations, render_mode, render_size
        self.model = _model()
        self.data = load_mujoco().MjData(self.model)
        self.dt = 0.1
        self.frame_skip = round(self.dt / self.model.opt.timestep)
        self.planning = dict(_PLANNING)
        self._camera = MujocoCamera("above")
        self._step, self._turned, self._dropped = STEPS, 0.0, False
        vector = spaces.Box(-np.inf, np.inf, (64 if observations == "vectors" else 52,), np.float32)
        picture = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.observation_space: spaces.Space[Any] = (
            vector if observations == "vectors" else spaces.Dict({_PICTURE: picture, _SHOWN: vector})
        )
        self.action_space: spaces.Space[np.ndarray] = spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)
        for pictured in [SIZE] * (observations == "pixels") + [render_size] * (render_mode is not None):
            self._camera.ready(self.model, pictured)  # what is missing is said at once

    def rewards(self, trajectories: Trajectories) -> tuple[np.ndarray, np.ndarray]:
        """Rewards `[K, H]` of simulated frames, and which of them end the episode."""
        times = self._step + 1 + np.arange(trajectories.sensors.shape[1])
        distances, dropped = _judge(trajectories.sensors, _targets(times))
        return -5 * distances.sum(-1) - 500 * dropped, dropped

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin with the hand at rest, and the balls where they lie then, near their targets."""
        verify_options(options)
        super().reset(seed=seed)
        mujoco = load_mujoco()
        mujoco.mj_resetData(self.model, self.data)
        for name, angle in _REST.items():
            self.data.joint(f"robot0:{name}").qpos = angle
        mujoco.mj_forward(self.model, self.data)
        palm = self.data.body("robot0:palm")
        angles = _STARTS + _JITTER * self.np_random.standard_normal(2)
        for ball, (x, z) in enumerate(_CENTRE + _RADII * np.stack([np.cos(angles), np.sin(angles)], -1)):
            place = palm.xpos + palm.xmat.reshape(3, 3) @ np.array([x, -_HEIGHT, z])
            self.data.joint(f"ball_{ball}").qpos[:3] = place
        mujoco.mj_step(self.model, self.data, 5 * self.frame_skip)  # until they lie
        mujoco.mj_step1(self.model, self.data)
        self._step, self._turned, self._dropped = 0, 0.0, False
        self._angle = self._heading()
        return self._get_obs(), self._info()

    def step(self, action: Any) -> Result:
        """Move the servos for 0.1 s; see the class for the reward."""
        if self._step >= STEPS or self._dropped:
            raise RuntimeError("call reset before step: no episode has begun, or it is over")
        if np.shape(action) != (self.model.nu,):
            raise ValueError(f"an action must have shape [{self.model.nu}], got shape {[*np.shape(action)]}")
        self.data.ctrl[:] = np.clip(np.asarray(action, np.float64), -1, 1)
        if not np.isfinite(self.data.ctrl).all():
            raise ValueError(f"an action must be finite, got {action!r}")
        mujoco = load_mujoco()
        mujoco.mj_step(self.model, self.data, self.frame_skip)
        mujoco.mj_step1(self.model, self.data)  # sensors and bodies of the state that was reached
        self._step += 1
        heading = self._heading()
        self._turned += (heading - self._angle + math.pi) % (2 * math.pi) - math.pi
        self._angle = heading
        distances, dropped = _judge(self.data.sensordata, _targets(self._step))
        self._dropped = bool(dropped)
        reward = float(-5 * distances.sum() - 500 * dropped)
        return self._get_obs(), reward, self._dropped, self._step >= STEPS and not self._dropped, self._info()

    def _heading(self) -> float:
        """The direction from the second ball to the first in the palm's plane, where its ellipse is a circle (rad)."""
        first, second = _sensed(self.data.sensordata)[:, 0]
        across, along = (first - second)[[0, 2]] / _RADII
        return math.atan2(along, across)

    def _info(self) -> dict[str, Any]:
        distances, _ = _judge(self.data.sensordata, _targets(self._step))
        return {"turned": self._turned, "distance": float(distances.mean()), "is_success": self.succeeded}

    @property
    def succeeded(self) -> bool:
        """Whether the balls have gone around each other, and neither was dropped."""
        return not self._dropped and self._turned >= TURNED

    def _get_obs(self) -> Observation:
        hand, targets = slice(0, 24), _targets(self._step).ravel()
        parts = [self.data.qpos[hand], self.data.qvel[hand], targets]
        if self.observations == "vectors":
            parts.insert(2, _sensed(self.data.sensordata)[..., :2, :].ravel())
        vector = np.concatenate(parts).astype(np.float32)
        if self.observations == "vectors":
            return vector
        return {_PICTURE: self._camera.picture(self.model, self.data, SIZE), _SHOWN: vector}

    def render(self) -> Any:
        """A picture `[render_size, render_size, 3]` uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        return self._camera.picture(self.model, self.data, self.render_size)

    def close(self) -> None:
        """Free what was used for rendering."""
        self._camera.close()


def _targets(step: Any) -> np.ndarray:
    """Where the balls are to be after a step `[...]`, in the palm's plane, `[..., 2, 2]` (m)."""
    angles = _STARTS + 2 * math.pi / PERIOD * np.asarray(step)[..., None]
    return _CENTRE + _RADII * np.stack([np.cos(angles), np.sin(angles)], -1)


def _sensed(sensors: np.ndarray) -> np.ndarray:
    """Of each ball its position and its velocity in the palm's frame, and its position, `[..., 2, 3, 3]`."""
    return sensors[..., -18:].reshape(*sensors.shape[:-1], 2, 3, 3)


def _judge(sensors: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The balls' distances from targets `[..., 2]` (m), and whether one of them was dropped `[...]`."""
    balls = _sensed(sensors)
    distances = np.linalg.norm(balls[..., 0, [0, 2]] - targets, axis=-1)
    return distances, np.any(balls[..., 2, 2] < DROPPED, axis=-1)


def _lightly(env: Any, t: Trajectories) -> np.ndarray:
    """A drop that costs 2 and not 500, beside which no other difference would count; the steps after it cost more."""
    return 498.0 * env.rewards(t)[1]


_PLANNING: dict[str, Any] = {
    "horizon": 6,
    "samples": 64,
    "temperature": 0.2,
    "noise": (0.05, 0.5),
    "correlation": 0.6,
    "iterations": 2,
    "smoothing": 0.2,
    "end_cost": 2.0,
    "guidance": _lightly,
    "substeps": 20,
}


def _model() -> Any:
    """The hand of gymnasium-robotics, its servos centred at the rest, with two balls in the place of its egg."""
    mujoco = load_mujoco()
    found = importlib.util.find_spec("gymnasium_robotics")
    if found is None or found.origin is None:
        raise DependencyNotInstalled(
            "Baoding needs the hand of gymnasium-robotics: pip install 'pyrocontrol-ppl[robotics]'"
        )
    spec = mujoco.MjSpec.from_file(str(Path(found.origin).parent / "envs/assets/hand/manipulate_egg.xml"))
    for body in ("object", "target"):
        spec.detach_body(spec.body(body))
    spec.worldbody.add_camera(name="above", pos=[1.0, 0.87, 0.45], fovy=40)
    sensor, body = mujoco.mjtSensor, mujoco.mjtObj.mjOBJ_XBODY
    for ball, colour in enumerate(([1.0, 0.8, 0.31, 1.0], [0.84, 0.3, 0.33, 1.0])):
        made = spec.worldbody.add_body(name=f"ball_{ball}")
        made.add_freejoint(name=f"ball_{ball}")
        made.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[_RADIUS, 0, 0], mass=_MASS, condim=4, rgba=colour)
        seen = dict(objtype=body, objname=f"ball_{ball}")
        palm = dict(reftype=body, refname="robot0:palm")
        spec.add_sensor(type=sensor.mjSENS_FRAMEPOS, **seen, **palm)
        spec.add_sensor(type=sensor.mjSENS_FRAMELINVEL, **seen, **palm)
        spec.add_sensor(type=sensor.mjSENS_FRAMEPOS, **seen)
    model = spec.compile()
    for servo in range(model.nu):
        low, high = model.actuator_ctrlrange[servo]
        rest = _REST.get(model.joint(model.actuator_trnid[servo, 0]).name.removeprefix("robot0:"), 0.0)
        # The force is gain (rest + reach u - q).
        gain = model.actuator_gainprm[servo, 0]
        model.actuator_biasprm[servo, 0] = gain * rest
        model.actuator_gainprm[servo, 0] = gain * max(high - rest, rest - low)
    model.actuator_ctrlrange[:] = (-1, 1)
    return model
