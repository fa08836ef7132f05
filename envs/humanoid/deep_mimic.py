"""DeepMimic: a humanoid in the Bullet simulator that imitates a motion clip.

After X. B. Peng, P. Abbeel, S. Levine and M. van de Panne, "DeepMimic: Example-Guided Deep Reinforcement Learning of
Physics-Based Character Skills" (2018), with the character and the clips that the package pybullet brings, its gains,
limits, state and reward. Nothing else of that package is needed: not its `pybullet_envs`, which asks for the old gym.

The y axis points up; lengths are in metres, times in seconds, angles in radians. A quaternion is (x, y, z, w), in
observations (w, x, y, z) with w >= 0.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import tempfile
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from ..._verify import verify_options
from .motion import (
    BALL_STARTS,
    CONTROL_RATE,
    JOINT_STARTS,
    JOINTS,
    SPHERICAL,
    HumanoidMotion,
    HumanoidPose,
    bullet_data,
)
from .quaternions import from_axis_angle, inverse, product, rotation_vector

__all__ = ["ACTION_HIGH", "ACTION_LOW", "CONTROL_RATE", "Camera", "DeepMimicEnv"]

_SIMULATION_RATE = 240
_LINKS = 15
_JOINT_LINKS = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13)  # 0, 8 and 14 (root and wrists) are fixed to their parents
_FEET = (5, 11)
_END_EFFECTORS = (5, 8, 11, 14)

# Of each joint: stiffness (N m/rad), of which the damping (N m s/rad) is a tenth, and greatest torque (N m).
_STIFFNESS = (1000.0, 100.0, 500.0, 500.0, 400.0, 400.0, 300.0, 500.0, 500.0, 400.0, 400.0, 300.0)
_TORQUE = (200.0, 50.0, 200.0, 150.0, 90.0, 100.0, 60.0, 200.0, 150.0, 90.0, 100.0, 60.0)

# Of each joint how much it counts in the errors of pose and velocity; as published, down to the last digits.
_ROOT_WEIGHT = 0.20833
_JOINT_WEIGHTS = np.array(
    [0.10416, 0.0625, 0.10416, 0.0625, 0.041666666666666671, 0.0625, 0.0416, 0.10416, 0.0625, 0.0416, 0.0625, 0.0416]
)
# Of each term of the reward: its weight, and how fast it falls with the error.
_REWARD = {"pose": (0.5, 2.0), "velocity": (0.05, 0.1), "end_effectors": (0.15, 40.0), "root": (0.2, 5.0)}

# Bounds of the angle of each joint, those of the controller that pybullet's policies were trained with.
_ANGLES = {
    "chest": (-4.8, 4.8),
    "neck": (-4.0, 4.0),
    "right_hip": (-7.78, 8.78),
    "right_knee": (-7.85, 4.71),
    "right_ankle": (-6.28, 6.28),
    "right_shoulder": (-12.56, 12.56),
    "right_elbow": (-4.71, 7.85),
    "left_hip": (-7.78, 8.78),
    "left_knee": (-7.85, 4.71),
    "left_ankle": (-6.28, 6.28),
    "left_shoulder": (-8.46, 10.1),
    "left_elbow": (-4.71, 7.85),
}


def _bounds(side: int) -> np.ndarray:
    numbers: list[float] = []
    for name, spherical in zip(JOINTS, SPHERICAL, strict=True):
        numbers += [_ANGLES[name][side], *([(-1.0, 1.0)[side]] * 3 * spherical)]
    return np.array(numbers, np.float32)


ACTION_LOW, ACTION_HIGH = _bounds(0), _bounds(1)


class Camera(NamedTuple):
    """From where a picture is taken; it follows the root.

    Attributes:
        distance: from the root (m).
        yaw: about the vertical (degrees); 0 looks along -z, at the right side of someone who walks along +x.
        pitch: above the horizon (degrees).
    """

    distance: float
    yaw: float
    pitch: float


class DeepMimicEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Imitate a motion clip with a simulated body: 15 links, 12 joints, actions 30 times a second.

    Observation, `[197]` float32: the phase in the clip, in [0, 1); the root's height; then of each of the 15 links the
    centre's position against the root (3) and its rotation (4); then of each link its velocity (3) and angular velocity
    (3). All vectors are seen in the direction that the root faces (turned about the vertical), so that neither place
    nor direction in the world can be seen.

    Action, `[36]` float32: where each joint is to go, for 1/30 s: of the 8 spherical joints an angle and an axis of any
    length (4 numbers; an axis of length 0 is no rotation), of the 4 revolute ones an angle. (The 34 of some papers is
    the character's number of degrees of freedom.) The bounds, `ACTION_LOW` and `ACTION_HIGH`, are those of the
    controller that pybullet's policies were trained with; what lies outside is clipped to them. Torques are those of
    stable proportional-derivative control (J. Tan, K. Liu and G. Turk, "Stable Proportional-Derivative Controllers",
    2011), computed by Bullet 240 times a second.

    Reward, in (0, 1]: how close the body is to the clip after the step,

        (0.5 exp(-2 e_pose) + 0.05 exp(-0.1 e_vel) + 0.15 exp(-40 e_end) + 0.2 exp(-5 e_root)) / 0.9,

    the weights of the published code. e_pose: the weighted sum over the root and the joints of squared angles between
    the body's rotation and the clip's; e_vel: the same of angular velocities; e_end: mean squared distance of ankles
    and wrists (m^2); e_root: squared distance of the roots + 0.1 squared angle + 0.01 squared difference of velocities
    + 0.001 of angular velocities. pybullet's own code departs from that in two places: it takes the clip's joints to be
    at rest in e_vel, and for the root's angle the longer way round where the quaternion has changed its sign, as after
    a somersault.

    An episode is terminated when a link that must not touches the ground (all but the feet for most clips; those of the
    clip's own arguments file; none for roll and getup), in any of the 8 simulation steps. It is truncated after
    `max_seconds`, and when a clip that does not loop is over.

    `info`: ``phase`` (0..1); ``cycle``, how many whole repetitions of the clip lie behind; ``cycles``, how much of it
    was played since the reset, in repetitions; ``fallen``; ``assisted``; and after a step ``reward_terms`` (each
    exp(...) above by name), ``tracking_error``, the root-mean-square of the 13 angles (rad) between body and clip, of
    the root in the world and of the 12 joints each against its parent, all counting alike; and ``root_error``, the
    distance of the roots (m).

    `reset(options={"phase": 0.3, "speed": 1.05})` begins at a phase (0 <= phase < 1) and plays the clip so many times
    as fast as recorded. The same seed and actions give the same bits, whatever was done before.

    Args:
        motion: a clip: the name of a shipped one (`shipped_motions`), a file, or a `HumanoidMotion`.
        init: at which phase an episode begins where the options name none: `"start"` at 0, `"random"` anywhere.
        max_seconds: after how long an episode is truncated.
        assisted: whether the root is held: put where the clip has it after each simulation step, with its velocities,
            so that a body that only follows the clip with its joints cannot fall over. This is no control of a
            humanoid, and every info and data set made so says that it is assisted.
        fall_links: numbers (0 to 14) of the links that must not touch the ground; None for the clip's own, and for
            none at all where the root is held.
        render_mode: None or `"rgb_array"`.
        width, height: of the pictures.
        camera: where from.

    Raises:
        ModuleNotFoundError: if pybullet is not installed.
        ValueError: if there is no such motion or it is bad (see `HumanoidMotion`), or another argument makes no sense.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_RATE}

    def __init__(
        self,
        motion: str | os.PathLike[str] | HumanoidMotion = "spinkick",
        *,
        init: str = "start",
        max_seconds: float = 20.0,
        assisted: bool = False,
        fall_links: tuple[int, ...] | None = None,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        camera: Camera | tuple[float, float, float] = (2.7, 30.0, 12.0),
    ) -> None:
        bullet_data()  # what is missing is said first
        if init not in ("start", "random"):
            raise ValueError(f"init must be 'start' or 'random', got {init!r}")
        if not (math.isfinite(max_seconds) and max_seconds * CONTROL_RATE >= 1):
            raise ValueError(f"max_seconds must be at least 1/{CONTROL_RATE}, got {max_seconds}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        if min(width, height) < 1:
            raise ValueError(f"pictures must have at least one pixel, got width {width} and height {height}")
        if fall_links is not None and not all(0 <= link < _LINKS for link in fall_links):
            raise ValueError(f"fall_links must be numbers in 0..{_LINKS - 1}, got {fall_links}")
        self.motion = motion if isinstance(motion, HumanoidMotion) else HumanoidMotion.load(motion)
        self.init, self.max_seconds, self.assisted, self.render_mode = init, max_seconds, assisted, render_mode
        self.width, self.height, self.camera = width, height, Camera(*camera)
        if fall_links is None:
            fall_links = () if assisted else _fall_links(self.motion.name)
        self.fall_links = tuple(fall_links)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2 + 13 * _LINKS,), np.float32)
        self.action_space = spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float32)
        self._steps, self._ended, self._begun = 0, True, False
        self._time = self._start = 0.0
        self._speed = 1.0
        self._bullet = _bullet()
        self._world, self._shadow = (_connect(self._bullet) for _ in range(2))
        self._closed = weakref.finalize(self, _disconnect, self._bullet, (self._world, self._shadow))
        # The clip's own body is in a world of its own, where it is only ever put somewhere: it neither disturbs nor is
        # seen.
        self._double = _humanoid(self._bullet, self._shadow, fixed=True)
        self._body = self._ground = -1  # made anew by each reset

    # ------------------------------------------------------------------ episodes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the body where the clip has it at the start, with its velocities; see the class for the options.

        Raises:
            ValueError: if an option is unknown or makes no sense.
            RuntimeError: if the environment is closed.
        """
        super().reset(seed=seed)
        given = verify_options(options, "phase", "speed")
        phase, speed = given.get("phase"), given.get("speed", 1.0)
        if phase is not None and not 0 <= phase < 1:
            raise ValueError(f"phase must be in 0 <= phase < 1, got {phase}")
        if not (math.isfinite(speed) and speed > 0):
            raise ValueError(f"speed must be positive, got {speed}")
        if not self._closed.alive:
            raise RuntimeError("the environment is closed")
        if phase is None:
            phase = 0.0 if self.init == "start" else float(self.np_random.random())
        # Bullet keeps contacts, and what its solver starts from, from one step to the next; only a new world has none.
        self._bullet.resetSimulation(physicsClientId=self._world)
        self._ground = _ground(self._bullet, self._world)
        self._body = _humanoid(self._bullet, self._world, fixed=False)
        if self.render_mode is not None:
            _dress(self._bullet, self._world, self._body)
        self._time = self._start = float(phase) * self.motion.seconds
        self._speed, self._steps, self._ended, self._begun = float(speed), 0, False, True
        self._put(self._world, self._body, self._clip())
        return self._state().astype(np.float32), self._info(False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Follow the targets of an action for 1/30 s.

        Args:
            action: `[36]`.

        Raises:
            ValueError: if it has another shape or a number in it is NaN or infinite.
            RuntimeError: before the first reset, after the end of an episode, or once closed.
        """
        if not self._closed.alive:
            raise RuntimeError("the environment is closed")
        if self._ended:
            raise RuntimeError("the episode has ended: call reset" if self._begun else "call reset before step")
        targets = self._targets(action)
        fallen = False
        for _ in range(_SIMULATION_RATE // CONTROL_RATE):
            self._time += self._speed / _SIMULATION_RATE
            self._apply(targets)
            self._bullet.stepSimulation(physicsClientId=self._world)
            if self.assisted:
                self._hold(self._world, self._body, self._clip())
            fallen = fallen or self._touches()
        self._steps += 1
        clip = self._clip()
        reward, measured = self._compare(clip)
        over = not self.motion.loops and self._time >= self.motion.seconds
        truncated = not fallen and (over or self._steps >= round(self.max_seconds * CONTROL_RATE))
        self._ended = fallen or truncated
        return self._state().astype(np.float32), reward, fallen, truncated, self._info(fallen) | measured

    def close(self) -> None:
        """Disconnect from the simulator; an environment that is no longer used is closed by itself."""
        self._closed()

    def _info(self, fallen: bool) -> dict[str, Any]:
        played = self._time / self.motion.seconds
        return {
            "phase": self._phase(),
            "cycle": math.floor(played) if self.motion.loops else 0,
            "cycles": (self._time - self._start) / self.motion.seconds,
            "fallen": fallen,
            "assisted": self.assisted,
        }

    def _phase(self) -> float:
        played = self._time / self.motion.seconds
        return math.fmod(played, 1.0) if self.motion.loops else min(played, 1.0)

    # ------------------------------------------------------------------ the body

    def _clip(self) -> HumanoidPose:
        """Where the clip has the body now, its velocities at the speed at which it is played."""
        pose = self.motion.at(self._time)
        if self._speed == 1.0:
            return pose
        return pose._replace(
            velocity=self._speed * pose.velocity,
            angular_velocity=self._speed * pose.angular_velocity,
            joint_velocities=[self._speed * velocity for velocity in pose.joint_velocities],
        )

    def _hold(self, client: int, body: int, pose: HumanoidPose) -> None:
        """Put the root where a pose has it."""
        self._bullet.resetBasePositionAndOrientation(body, pose.position, pose.rotation, physicsClientId=client)
        self._bullet.resetBaseVelocity(body, pose.velocity, pose.angular_velocity, physicsClientId=client)

    def _put(self, client: int, body: int, pose: HumanoidPose) -> None:
        """Put root and joints where a pose has them."""
        self._hold(client, body, pose)
        joints, velocities = ([value.tolist() for value in part] for part in (pose.joints, pose.joint_velocities))
        self._bullet.resetJointStatesMultiDof(body, _JOINT_LINKS, joints, velocities, physicsClientId=client)

    def _targets(self, action: np.ndarray) -> list[list[float]]:
        """The rotation or angle that an action names for each joint.

        Raises:
            ValueError: see `step`.
        """
        numbers = np.asarray(action)
        if numbers.shape != ACTION_LOW.shape or numbers.dtype.kind not in "fiu":
            raise ValueError(f"an action must be {len(ACTION_LOW)} numbers, got shape {list(numbers.shape)}")
        if not np.isfinite(numbers).all():
            raise ValueError(f"action number {int((~np.isfinite(numbers)).argmax())} is NaN or infinite")
        # In the precision of the space, so that a recorded action is the one that was executed, to the last bit.
        numbers = numbers.astype(np.float32).clip(ACTION_LOW, ACTION_HIGH).astype(np.float64)
        axes = numbers[BALL_STARTS[:, None] + [1, 2, 3]]
        rotations = iter(from_axis_angle(axes, numbers[BALL_STARTS]).tolist())
        return [
            next(rotations) if spherical else [float(numbers[start])]
            for start, spherical in zip(JOINT_STARTS, SPHERICAL, strict=True)
        ]

    def _apply(self, targets: list[list[float]]) -> None:
        """Ask Bullet for the torques of stable proportional-derivative control towards the targets, for one step."""
        self._bullet.setJointMotorControlMultiDofArray(
            self._body,
            _JOINT_LINKS,
            self._bullet.STABLE_PD_CONTROL,
            targetPositions=targets,
            targetVelocities=_STILL,
            forces=_TORQUES,
            positionGains=_STIFFNESS,
            velocityGains=_DAMPING,
            physicsClientId=self._world,
        )

    def _touches(self) -> bool:
        """Whether a link that must not touches the ground."""
        contacts = self._bullet.getContactPoints(bodyA=self._body, bodyB=self._ground, physicsClientId=self._world)
        return any(contact[3] in self.fall_links for contact in contacts)

    def _state(self) -> np.ndarray:
        """The observation in float64."""
        bullet, body, client = self._bullet, self._body, self._world
        position, rotation = bullet.getBasePositionAndOrientation(body, physicsClientId=client)
        links = bullet.getLinkStates(
            body, range(_LINKS), computeLinkVelocity=True, computeForwardKinematics=True, physicsClientId=client
        )
        places, rotations, velocities, spins = (np.array([link[part] for link in links]) for part in (0, 1, 6, 7))
        x, y, z, w = rotation
        facing = math.atan2(-2 * (x * z - w * y), 1 - 2 * (y * y + z * z))  # of the root's x axis, about the vertical
        back = np.array([0.0, math.sin(-facing / 2), 0.0, math.cos(-facing / 2)])
        cos, sin = math.cos(facing), math.sin(facing)
        turn = np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
        seen = product(back, rotations)[:, [3, 0, 1, 2]]
        seen = np.where(seen[:, :1] < 0, -seen, seen)
        poses = np.concatenate([(places - position) @ turn.T, seen], 1)
        motions = np.concatenate([velocities @ turn.T, spins @ turn.T], 1)
        return np.concatenate([[self._phase(), position[1]], poses.ravel(), motions.ravel()])

    def _compare(self, clip: HumanoidPose) -> tuple[float, dict[str, Any]]:
        """The reward, and what else `info` says of how far the body is from the clip."""
        bullet, client = self._bullet, self._world
        self._put(self._shadow, self._double, clip)
        position, rotation = map(np.array, bullet.getBasePositionAndOrientation(self._body, physicsClientId=client))
        velocity, spin = map(np.array, bullet.getBaseVelocity(self._body, physicsClientId=client))
        joints = bullet.getJointStatesMultiDof(self._body, _JOINT_LINKS, physicsClientId=client)
        turned = np.array([joint[0] for joint, ball in zip(joints, SPHERICAL, strict=True) if ball])
        wanted = np.array([joint for joint, ball in zip(clip.joints, SPHERICAL, strict=True) if ball])
        balls = iter((rotation_vector(product(wanted, inverse(turned))) ** 2).sum(1))
        angles = np.array(
            [
                next(balls) if ball else (joint[0][0] - own[0]) ** 2
                for joint, own, ball in zip(joints, clip.joints, SPHERICAL, strict=True)
            ]
        )
        speeds = np.array(
            [((joint[1] - own) ** 2).sum() for joint, own in zip(joints, clip.joint_velocities, strict=True)]
        )
        root_angle = float((rotation_vector(product(clip.rotation, inverse(rotation))) ** 2).sum())
        root_spin = float(((spin - clip.angular_velocity) ** 2).sum())
        root_distance = float(((position - clip.position) ** 2).sum())
        # Without forward kinematics, Bullet says where the links were before the last simulation step.
        ends = [
            np.array([link[0] for link in bullet.getLinkStates(body, _END_EFFECTORS, False, True, world)])
            for body, world in ((self._body, client), (self._double, self._shadow))
        ]
        errors = {
            "pose": _ROOT_WEIGHT * root_angle + float(_JOINT_WEIGHTS @ angles),
            "velocity": _ROOT_WEIGHT * root_spin + float(_JOINT_WEIGHTS @ speeds),
            "end_effectors": float(((ends[0] - ends[1]) ** 2).sum(1).mean()),
            "root": root_distance
            + 0.1 * root_angle
            + 0.01 * float(((velocity - clip.velocity) ** 2).sum())
            + 0.001 * root_spin,
        }
        terms = {name: math.exp(-scale * errors[name]) for name, (_, scale) in _REWARD.items()}
        weights = {name: weight for name, (weight, _) in _REWARD.items()}
        return sum(weights[name] * terms[name] for name in terms) / sum(weights.values()), {
            "reward_terms": terms,
            "tracking_error": math.sqrt((root_angle + float(angles.sum())) / (1 + len(angles))),
            "root_error": math.sqrt(root_distance),
        }

    # ------------------------------------------------------------------ pictures

    def render(self) -> Any:
        """The body from the camera, `[height, width, 3]` uint8, by Bullet's software renderer; None without a mode."""
        if self.render_mode is None:
            return None
        if not self._closed.alive:
            raise RuntimeError("the environment is closed")
        if not self._begun:
            raise RuntimeError("call reset before render")
        bullet = self._bullet
        root, _ = bullet.getBasePositionAndOrientation(self._body, physicsClientId=self._world)
        distance, yaw, pitch = self.camera.distance, math.radians(self.camera.yaw), math.radians(self.camera.pitch)
        away = np.array([math.cos(pitch) * math.sin(yaw), math.sin(pitch), math.cos(pitch) * math.cos(yaw)])
        # At a fixed height, so that a jump is seen as one.
        target = np.array([root[0], 0.8, root[2]])
        _, _, pixels, _, _ = bullet.getCameraImage(
            self.width,
            self.height,
            bullet.computeViewMatrix((target + distance * away).tolist(), target.tolist(), [0.0, 1.0, 0.0]),
            bullet.computeProjectionMatrixFOV(50.0, self.width / self.height, 0.1, 50.0),
            lightDirection=[2.0, 6.0, 4.0],
            renderer=bullet.ER_TINY_RENDERER,
            physicsClientId=self._world,
        )
        return np.ascontiguousarray(np.reshape(pixels, (self.height, self.width, 4))[..., :3], dtype=np.uint8)


_STILL = [[0.0] * (3 if spherical else 1) for spherical in SPHERICAL]
_TORQUES = [[torque] * (3 if spherical else 1) for torque, spherical in zip(_TORQUE, SPHERICAL, strict=True)]
_DAMPING = tuple(stiffness / 10 for stiffness in _STIFFNESS)
_TRUNK, _RIGHT, _LEFT = (0.35, 0.35, 0.4), (0.84, 0.37, 0.12), (0.15, 0.55, 0.35)


# ---------------------------------------------------------------------- Bullet


def _bullet() -> Any:
    """The module pybullet, imported when it is needed: it says hello on the standard output."""
    return importlib.import_module("pybullet")


def _connect(bullet: Any) -> int:
    client = int(bullet.connect(bullet.DIRECT))
    if client < 0:
        raise RuntimeError("Bullet has no more room for a simulation: close environments that are no longer used")
    return client


def _disconnect(bullet: Any, clients: tuple[int, ...]) -> None:
    for client in clients:
        bullet.disconnect(physicsClientId=client)


def _upright(bullet: Any) -> Any:
    """The rotation of Bullet's ground, whose normal is z, to y."""
    return bullet.getQuaternionFromEuler([-math.pi / 2, 0.0, 0.0])


def _ground(bullet: Any, client: int) -> int:
    """The plane y = 0, gravity, and how the world is simulated."""
    bullet.setGravity(0.0, -9.8, 0.0, physicsClientId=client)
    bullet.setPhysicsEngineParameter(
        numSolverIterations=10, numSubSteps=1, fixedTimeStep=1 / _SIMULATION_RATE, physicsClientId=client
    )
    file = str(bullet_data() / "plane_implicit.urdf")
    ground = bullet.loadURDF(file, [0, 0, 0], _upright(bullet), useMaximalCoordinates=True, physicsClientId=client)
    bullet.changeDynamics(ground, -1, lateralFriction=0.9, physicsClientId=client)
    return int(ground)


def _dress(bullet: Any, client: int, body: int) -> None:
    """Colours, the right side's another than the left's, and a chequered floor that is seen and not felt."""
    for link in range(-1, _LINKS):
        colour = _RIGHT if 3 <= link <= 8 else _LEFT if link >= 9 else _TRUNK
        bullet.changeVisualShape(body, link, rgbaColor=[*colour, 1.0], physicsClientId=client)
    shape = bullet.createVisualShape(
        bullet.GEOM_MESH, fileName=str(bullet_data() / "plane.obj"), rgbaColor=[1, 1, 1, 1], physicsClientId=client
    )
    bullet.createMultiBody(
        baseMass=0, baseVisualShapeIndex=shape, baseOrientation=_upright(bullet), physicsClientId=client
    )


def _humanoid(bullet: Any, client: int, fixed: bool) -> int:
    """The character, its motors off; `fixed` for one that is only put somewhere."""
    flags = bullet.URDF_MAINTAIN_LINK_ORDER
    if not fixed:
        flags |= bullet.URDF_USE_SELF_COLLISION | bullet.URDF_USE_SELF_COLLISION_EXCLUDE_ALL_PARENTS
    # The file leaves out axes that spherical joints do not need, and Bullet prints a warning for each of them.
    text = (bullet_data() / "humanoid" / "humanoid.urdf").read_text()
    text = re.sub(r'(<joint name="\w+" type="spherical" >)', r'\1<axis xyz="1 0 0"/>', text)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "humanoid.urdf"
        file.write_text(text)
        body = bullet.loadURDF(
            str(file), [0, 0.9, 0], globalScaling=0.25, useFixedBase=fixed, flags=flags, physicsClientId=client
        )
    for link in range(-1, _LINKS):
        bullet.changeDynamics(body, link, lateralFriction=0.9, physicsClientId=client)
    bullet.changeDynamics(body, -1, linearDamping=0, angularDamping=0, physicsClientId=client)
    for link, spherical in zip(_JOINT_LINKS, SPHERICAL, strict=True):
        if spherical:
            bullet.setJointMotorControlMultiDof(
                body,
                link,
                bullet.POSITION_CONTROL,
                targetPosition=[0, 0, 0, 1],
                targetVelocity=[0, 0, 0],
                positionGain=0,
                velocityGain=1,
                force=[0, 0, 0],
                physicsClientId=client,
            )
        else:
            bullet.setJointMotorControl2(
                body, link, bullet.POSITION_CONTROL, targetPosition=0, positionGain=0, force=0, physicsClientId=client
            )
    return int(body)


def _fall_links(motion: str) -> tuple[int, ...]:
    """The links that must not touch the ground: those of the motion's arguments file, else all but the feet."""
    file = bullet_data() / "args" / f"run_humanoid3d_{motion}_args.txt"
    text = file.read_text() if file.is_file() else ""
    if "--enable_char_contact_fall false" in text:
        return ()
    if found := re.search(r"--fall_contact_bodies([ \d]+)", text):
        return tuple(int(number) for number in found[1].split())
    return tuple(link for link in range(_LINKS) if link not in _FEET)
