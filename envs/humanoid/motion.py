"""Motion clips of the humanoid: reading, interpolation, repetition, velocities.

A clip is a text file of JSON, the format of X. B. Peng, P. Abbeel, S. Levine and M. van de Panne, "DeepMimic:
Example-Guided Deep Reinforcement Learning of Physics-Based Character Skills" (2018), that pybullet brings 15 of. Each
of its frames holds 44 numbers: how long it lasts (s), the root's position (m) and rotation, and the rotation of each
joint, a quaternion (w, x, y, z) of the spherical and an angle (rad) of the revolute ones. The y axis points up.

Shapes: F frames, 12 joints of which 8 are spherical and 4 revolute.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..._limits import json_of
from .quaternions import from_axis_angle, inverse, product, rotation_vector, slerp

__all__ = [
    "BALL_STARTS",
    "CONTROL_RATE",
    "HINGE_STARTS",
    "JOINTS",
    "JOINT_STARTS",
    "SPHERICAL",
    "STAND",
    "HumanoidMotion",
    "HumanoidPose",
    "bullet_data",
    "busiest_phase",
    "followed",
    "joint_vectors",
    "pose_of",
    "shipped_motions",
]

# The joints that move, in the order of the frames and of the actions, and which of them are spherical.
JOINTS = (
    "chest",
    "neck",
    "right_hip",
    "right_knee",
    "right_ankle",
    "right_shoulder",
    "right_elbow",
    "left_hip",
    "left_knee",
    "left_ankle",
    "left_shoulder",
    "left_elbow",
)
SPHERICAL = tuple(not name.endswith(("knee", "elbow")) for name in JOINTS)

# Where the numbers of each joint begin in an action, and those of the spherical and of the revolute ones. In a frame,
# `_ROOT` numbers of the duration and the root come first.
JOINT_STARTS = np.cumsum([0, *(4 if spherical else 1 for spherical in SPHERICAL)])[:-1]
BALL_STARTS = JOINT_STARTS[list(SPHERICAL)]
HINGE_STARTS = JOINT_STARTS[[not spherical for spherical in SPHERICAL]]

CONTROL_RATE = 30  # actions a second
#: The clip of doing nothing: upright, all joints straight.
STAND = "stand"

_WIDTH, _ROOT = 44, 8
_STANDING = 0.9  # height of the root, soles on the ground (m)
_WINDOW = 45  # steps of a sum of clips, as many as of a demonstration
_LONGEST = 60  # seconds of a frame: playback takes memory by the second
_QUATERNIONS = np.array([4, *(_ROOT + BALL_STARTS)])[:, None] + [1, 2, 3, 0]  # [9, 4], the root's first
_ANGLES = _ROOT + HINGE_STARTS  # [4]


class HumanoidPose(NamedTuple):
    """Where the body is at one time, and how fast.

    Attributes:
        position: `[3]` of the root (m).
        rotation: `[4]` of the root.
        joints: of each joint its rotation `[4]` against the link that it hangs from, or its angle `[1]` (rad).
        velocity: `[3]` of the root (m/s).
        angular_velocity: `[3]` of the root (rad/s), in the world's frame.
        joint_velocities: of each joint `[3]`, in the joint's own frame, or `[1]` (rad/s).
    """

    position: np.ndarray
    rotation: np.ndarray
    joints: list[np.ndarray]
    velocity: np.ndarray
    angular_velocity: np.ndarray
    joint_velocities: list[np.ndarray]


class HumanoidMotion:
    """A motion clip.

    Between two frames positions and angles go straight and rotations along the shorter way, all at a constant velocity,
    which is the finite difference of the two frames. Quaternions are brought to length 1 first (in some shipped clips
    their lengths are between 0.6 and 1.4). A clip that loops goes on from where its last frame is: the root's
    path of one repetition is added to the next. One that does not loop stays in its last frame.

    Args:
        frames: `[F, 44]`, see the file; the duration of the last frame is not used.
        loops: whether the clip repeats.
        name: what errors call it.

    Attributes:
        name, loops: as given.
        seconds: how long the clip is.
        path: `[3]`, by how much the root moves in one repetition (m).

    Raises:
        ValueError: naming the frame, if it has another width or holds something else than numbers, a number in it is
            NaN or infinite, it does not last or longer than a minute, or a quaternion in it has a length below 0.1; or
            if there are not two frames.
    """

    def __init__(self, frames: np.ndarray | list[list[float]], loops: bool = True, name: str = "the motion") -> None:
        table = _table(frames, name)
        self.name, self.loops = name, loops
        self._summed: np.ndarray | None = None  # what `vectors` are of a sum
        durations = table[:-1, 0]
        # Multiples rather than sums where all frames last equally long: the rounding errors do not add up.
        self._duration = float(durations[0]) if (durations == durations[0]).all() else None
        self._times = np.arange(len(table)) * durations[0]
        if self._duration is None:
            self._times = np.concatenate([[0.0], np.cumsum(durations)])
        self.seconds = float(self._times[-1])
        self._positions, self._angles = table[:, 1:4], table[:, _ANGLES]
        self._rotations = table[:, _QUATERNIONS]  # [F, 9, 4]
        self._rotations /= np.linalg.norm(self._rotations, axis=-1, keepdims=True)
        self.path = self._positions[-1] - self._positions[0]

        first, second, seconds = self._rotations[:-1], self._rotations[1:], durations[:, None]
        self._velocities = np.diff(self._positions, axis=0) / seconds
        self._angle_velocities = np.diff(self._angles, axis=0) / seconds
        world = product(second[:, 0], inverse(first[:, 0]))
        self._root_velocities = rotation_vector(world) / seconds
        self._joint_velocities = rotation_vector(product(inverse(first[:, 1:]), second[:, 1:])) / seconds[..., None]

    @classmethod
    def load(cls, motion: str | os.PathLike[str]) -> HumanoidMotion:
        """Read a clip.

        Args:
            motion: the name of a shipped one (`shipped_motions`), or a file; `STAND`, 1.5 s of standing; or several
                names with plus signs between them, ``"kick+spin"``, for all at the same time; see `summed`.

        Raises:
            ModuleNotFoundError: if it is the name of a shipped one and pybullet, which ships them, is missing.
            ValueError: if there is none of this name and no such file, the file is no motion, or see the class.
        """
        path = Path(motion)
        if not path.is_file() and (str(motion) == STAND or "+" in str(motion)):
            parts = [] if str(motion) == STAND else [cls.load(name) for name in str(motion).split("+")]
            return cls.summed(parts, str(motion))
        if not path.is_file():
            shipped = shipped_motions()
            if str(motion) not in shipped:
                raise ValueError(f"no motion {str(motion)!r}: no such file, and pybullet ships {', '.join(shipped)}")
            path = shipped[str(motion)]
        try:
            content = json_of(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is no motion file: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("Frames"), list):
            raise ValueError(f"{path} is no motion file: it has no list 'Frames'")
        return cls(content["Frames"], content.get("Loop", "wrap") == "wrap", str(motion))

    @classmethod
    def summed(cls, motions: Sequence[HumanoidMotion], name: str = "the sum") -> HumanoidMotion:
        """Return several clips at the same time, 1.5 s long, each from its `busiest_phase` on; of none, standing.

        What is added is how far each joint is from standing, in the tangent space there: rotation vectors (axis times
        angle, followed over time beyond half a turn), not quaternions. The root's path and its rotation against the
        direction that it faces at first are added likewise.
        """
        table = np.zeros((_WINDOW + 1, _WIDTH))
        table[:, 0], table[:, 2] = 1 / CONTROL_RATE, _STANDING
        vectors = sum((motion.vectors() for motion in motions), np.zeros((_WINDOW + 1, 28)))
        root = np.zeros((_WINDOW + 1, 3))
        for motion in motions:
            start = busiest_phase(motion, _WINDOW) * motion.seconds
            poses = [motion.at(start + tick / CONTROL_RATE) for tick in range(_WINDOW + 1)]
            table[:, 1:4] += np.array([pose.position for pose in poses]) - poses[0].position
            turned = np.array([pose.rotation for pose in poses])
            x, y, z, w = turned[0]
            angle = np.array(np.arctan2(-2 * (x * z - w * y), 1 - 2 * (y * y + z * z)))
            facing = from_axis_angle(np.array([0.0, 1.0, 0.0]), angle)
            root += followed(rotation_vector(product(inverse(facing), turned))[:, None])[:, 0]
        pose = [pose_of(row) for row in vectors]
        rotations = from_axis_angle(root, np.linalg.norm(root, axis=-1))[:, None]
        rotations = np.concatenate([rotations, [[j for j in joints if len(j) == 4] for joints in pose]], 1)
        table[:, _QUATERNIONS] = rotations
        table[:, _ANGLES] = [[j[0] for j in joints if len(j) == 1] for joints in pose]
        made = cls(table, False, name)
        made._summed = vectors
        return made

    def vectors(self, steps: int = _WINDOW) -> np.ndarray:
        """Return the joints from the `busiest_phase` on, ``[steps + 1, 28]``, see `joint_vectors`.

        Those of a sum are the sum of its parts': beyond half a turn in its first frame, too, which a pose cannot say.
        """
        if self._summed is not None:
            return self._summed[np.minimum(np.arange(steps + 1), _WINDOW)]
        start = busiest_phase(self, steps) * self.seconds
        return joint_vectors([self.at(start + tick / CONTROL_RATE) for tick in range(steps + 1)])

    def __len__(self) -> int:
        return len(self._times)

    def at(self, seconds: float) -> HumanoidPose:
        """The pose at a time since the first frame of the first repetition; before it, a clip that loops has others."""
        repetition = np.floor(seconds / self.seconds) if self.loops else 0.0
        within = seconds - repetition * self.seconds if self.loops else min(max(seconds, 0.0), self.seconds)
        if self._duration is None:
            frame = int(np.searchsorted(self._times, within, side="right")) - 1
        else:
            frame = int(within / self._duration)
        frame = min(max(frame, 0), len(self) - 2)
        fraction = (within - self._times[frame]) / (self._times[frame + 1] - self._times[frame])
        fraction = float(min(max(fraction, 0.0), 1.0))

        rotations = slerp(self._rotations[frame], self._rotations[frame + 1], fraction)
        angles = self._angles[frame] + fraction * (self._angles[frame + 1] - self._angles[frame])
        position = self._positions[frame] + fraction * (self._positions[frame + 1] - self._positions[frame])
        over = not self.loops and seconds >= self.seconds
        speed = 0.0 if over else 1.0
        return HumanoidPose(
            position + repetition * self.path,
            rotations[0],
            _by_joint(rotations[1:], angles),
            speed * self._velocities[frame],
            speed * self._root_velocities[frame],
            _by_joint(speed * self._joint_velocities[frame], speed * self._angle_velocities[frame]),
        )


def joint_vectors(poses: Sequence[HumanoidPose]) -> np.ndarray:
    """Return the joints of poses that follow each other, ``[T, 28]``, as they are added.

    The rotation vectors of the 8 spherical joints come first, 3 numbers each, then the 4 angles. A vector goes on from
    the one before, beyond half a turn, too.
    """
    balls = np.array([[j for j in pose.joints if len(j) == 4] for pose in poses])
    hinges = np.array([[j[0] for j in pose.joints if len(j) == 1] for pose in poses])
    return np.concatenate([followed(rotation_vector(balls)).reshape(len(poses), -1), hinges], 1)


def pose_of(vectors: np.ndarray) -> list[np.ndarray]:
    """Return the joints of a pose, the inverse of `joint_vectors`: rotations ``[4]`` and angles ``[1]``."""
    turns = vectors[:24].reshape(8, 3)
    return _by_joint(from_axis_angle(turns, np.linalg.norm(turns, axis=-1)), vectors[24:])


def followed(vectors: np.ndarray) -> np.ndarray:
    """Rotation vectors over time ``[T, N, 3]``, each the one of its rotation that is nearest to the one before."""
    found = [vectors[0]]
    for now in vectors[1:]:
        angle = np.linalg.norm(now, axis=-1, keepdims=True)
        turn = 2 * np.pi * now / np.where(angle < 1e-9, 1.0, angle)
        near = np.round(((found[-1] - now) * turn).sum(-1, keepdims=True) / (4 * np.pi**2))
        found.append(now + np.where(angle < 1e-9, 0.0, near) * turn)
    return np.array(found)


def busiest_phase(motion: HumanoidMotion, steps: int) -> float:
    """Where to begin a window of `steps` actions: at 0, or in a clip of more than 2 s where it turns most.

    Of all windows within one repetition, begun at multiples of 1/30 s, it is the one in which the root turns furthest
    about the vertical, one way or the other: the turns of its steps are summed, each of them the y component of the
    rotation vector in the world. Ties go to the first.
    """
    starts = int(np.floor(motion.seconds * CONTROL_RATE)) - steps + 1
    if motion.seconds <= 2.0 or starts < 2:
        return 0.0
    turns = [motion.at((tick + 0.5) / CONTROL_RATE).angular_velocity[1] for tick in range(starts + steps)]
    total = np.cumsum([0.0, *turns])
    windows = abs(total[steps : steps + starts] - total[:starts])
    # Rounded, so that a tie is one.
    return float(windows.round(9).argmax() / CONTROL_RATE / motion.seconds)


def _by_joint(spherical: np.ndarray, revolute: np.ndarray) -> list[np.ndarray]:
    balls, hinges = iter(spherical), iter(revolute)
    return [next(balls) if is_spherical else next(hinges)[None] for is_spherical in SPHERICAL]


def _table(frames: np.ndarray | list[list[float]], name: str) -> np.ndarray:
    """The frames `[F, 44]` float64, once they are known to be good."""
    if len(frames) < 2:
        raise ValueError(f"{name} has {len(frames)} frames, a motion needs at least 2")
    table = np.empty((len(frames), _WIDTH))
    for index, frame in enumerate(frames):
        if not isinstance(frame, Sequence | np.ndarray):
            raise ValueError(f"{name}: frame {index} is no list of numbers, but a {type(frame).__name__}")
        if len(frame) != _WIDTH:
            raise ValueError(f"{name}: frame {index} has {len(frame)} numbers, a humanoid's has {_WIDTH}")
        for place, number in enumerate(frame):
            if not isinstance(number, Real):
                raise ValueError(f"{name}: frame {index} holds a {type(number).__name__} among its numbers")
            table[index, place] = _as_float(number)
    for bad, what in (
        (~np.isfinite(table).all(1), "holds a number that is NaN or infinite"),
        (np.append(table[:-1, 0] <= 0, False), "does not last: its duration is not positive"),
        (np.append(table[:-1, 0] > _LONGEST, False), f"lasts longer than {_LONGEST} s"),
        (
            (np.linalg.norm(table[:, _QUATERNIONS], axis=-1) < 0.1).any(1),
            "has a quaternion of length 0",
        ),
    ):
        if bad.any():
            raise ValueError(f"{name}: frame {int(bad.argmax())} {what}")
    return table


def _as_float(number: Real) -> float:
    """The number; an integer beyond all floats is infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def bullet_data() -> Path:
    """The folder of pybullet's data: models, motions, policies.

    Raises:
        ModuleNotFoundError: if pybullet is not installed.
    """
    engine, data = (importlib.util.find_spec(name) for name in ("pybullet", "pybullet_data"))
    if engine is None or data is None or data.origin is None:
        raise ModuleNotFoundError(
            "pybullet is missing: pip install pybullet, with Python 3.11 (later ones have no wheel)"
        )
    return Path(data.origin).parent


def shipped_motions() -> dict[str, Path]:
    """The humanoid's motions that pybullet brings, by name.

    Raises:
        ModuleNotFoundError: if pybullet is not installed.
    """
    files = sorted((bullet_data() / "data" / "motions").glob("humanoid3d_*.txt"))
    return {file.stem.removeprefix("humanoid3d_"): file for file in files}
