"""The cross maze, and a point mass in it: the ant's tasks without an ant, tens of times as fast.

The maze is that of T. Haarnoja et al., "Latent Space Policies for Hierarchical Reinforcement Learning" (2018), section
6.3: from the start a corridor leads to a junction, from where three arms lead to one goal each. A goal is worth 1000
and ends the episode, nothing else has a reward. The way to a goal is so long that a policy which has not learnt to keep
going in one direction does not find it. That is what the open floor is for, where all that counts is speed, whatever
its direction.

Lengths are in metres, as for the ant (`ant_maze`), times in seconds.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .._verify import verify_options

__all__ = ["GOALS", "GOAL_RADIUS", "GOAL_REWARD", "WALLS", "PointMaze", "PointMove", "goal_of", "motion_reward"]

Box = tuple[float, float, float, float]

#: Where the three goals are (x, y); the start is at the origin, the junction at (6, 0).
GOALS: tuple[tuple[float, float], ...] = ((6.0, -6.0), (6.0, 6.0), (12.0, 0.0))
GOAL_RADIUS = 2.0
GOAL_REWARD = 1000.0

#: The walls of the cross, boxes parallel to the axes: x and y of the centre, half the lengths in x and y. Between them
#: is -2 <= x <= 14, -2 <= y <= 2 and 4 <= x <= 8, -8 <= y <= 8: corridors that are 4 wide.
WALLS: tuple[Box, ...] = (
    (-2.5, 0.0, 0.5, 3.0),  # behind the start
    (0.5, -2.5, 2.5, 0.5),  # along the corridor of the start
    (0.5, 2.5, 2.5, 0.5),
    (3.5, -5.0, 0.5, 3.0),  # along the arm of the first goal, and its end
    (8.5, -5.0, 0.5, 3.0),
    (6.0, -8.5, 3.0, 0.5),
    (3.5, 5.0, 0.5, 3.0),  # of the second
    (8.5, 5.0, 0.5, 3.0),
    (6.0, 8.5, 3.0, 0.5),
    (11.5, -2.5, 2.5, 0.5),  # of the third
    (11.5, 2.5, 2.5, 0.5),
    (14.5, 0.0, 0.5, 3.0),
)
_EXTENT = ((-3.0, 15.0), (-9.0, 9.0))  # x and y, walls included

_DT = 0.05  # of a step, as the ant's
_TOP = 4.0  # speed
_INERTIA = 0.8  # what is left of a velocity after a step
_BODY = 0.4  # half the width of the point, to the walls
_JITTER = 0.1  # of the position at the start

Result = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


def goal_of(index: int) -> tuple[float, float]:
    """Return the place of a goal.

    Raises:
        ValueError: if there is no goal of that number.
    """
    if index not in range(len(GOALS)):
        raise ValueError(f"goal must be 0 to {len(GOALS) - 1}, got {index!r}")
    return GOALS[index]


def motion_reward(speed: float, squared_action: float, squared_contacts: float = 0.0) -> float:
    """Return ``|v| + 0.05 - 0.005 |a|^2 - 0.0005 |c|^2``: speed in the plane (m/s), whatever its direction.

    Args:
        speed: ``|v|``.
        squared_action: ``|a|^2``.
        squared_contacts: |c|^2, of the contact forces, each clipped to -1 to 1; a point has none.
    """
    return speed + 0.05 - 0.005 * squared_action - 0.0005 * squared_contacts


def _push(x: float, y: float) -> tuple[float, float]:
    """A point of the unit disc for one of the square; areas shrink by pi / 4 everywhere."""
    if x == y == 0.0:
        return 0.0, 0.0
    if abs(x) >= abs(y):
        angle = math.pi / 4 * y / x
        return x * math.cos(angle), x * math.sin(angle)
    angle = math.pi / 4 * x / y
    return y * math.sin(angle), y * math.cos(angle)


def _blocked(walls: tuple[Box, ...], axis: int) -> list[Box]:
    """Where a move along an axis may not end: the least and greatest coordinate along it, then across it."""
    # A point that touches the side of a wall is not in its way, whichever way its place was rounded.
    margin = 1e-9
    return [
        (
            wall[axis] - wall[2 + axis] - _BODY,
            wall[axis] + wall[2 + axis] + _BODY,
            wall[1 - axis] - wall[3 - axis] - _BODY + margin,
            wall[1 - axis] + wall[3 - axis] + _BODY - margin,
        )
        for wall in walls
    ]


class PointMove(gymnasium.Env[np.ndarray, np.ndarray]):
    """Be fast on an open floor, in any direction.

    The action a, in a square, is mapped to a push u in the unit disc such that equal areas stay equal, directions along
    the axes and the diagonals are kept, and ``|u| = max(|a_0|, |a_1|)`` (P. Shirley and K. Chiu, "A Low Distortion Map
    Between Disk and Square", 1997). So no direction is faster than another, and none is likelier for a policy that is
    as random as it can be.

        v' = 0.8 v + 0.2 * 4 u,  x' = x + 0.05 v'.

    Observation: ``[4]`` float32: position (m) and velocity (m/s); ``[2]``, velocity alone, without ``positions``.
    Action: ``[2]`` float32, clipped to -1 to 1. Reward: `motion_reward`, ``|v'| + 0.05 - 0.005 |u|^2``. It begins
    at rest within 0.1 of the origin and does not end by itself; `pyrocontrol/PointMove-v0` is cut off after 300 steps.

    `info` holds `position` (``[2]`` float64) and, after a step, `motion_reward`.

    Args:
        positions: whether the position is observed.
        render_mode: `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: if the render mode makes no sense.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    _walls: tuple[Box, ...] = ()
    _target: tuple[float, float] | None = None

    def __init__(self, positions: bool = True, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.positions, self.render_mode = positions, render_mode
        high = np.array([np.inf, np.inf, _TOP, _TOP][0 if positions else 2 :], np.float32)
        self.observation_space = spaces.Box(-high, high)
        self.action_space: spaces.Space[np.ndarray] = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._blocked = [_blocked(self._walls, axis) for axis in (0, 1)]
        self._velocity = (0.0, 0.0)
        self._track: list[tuple[float, float]] = []  # positions so far
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at rest, near the origin."""
        verify_options(options)
        super().reset(seed=seed)
        x, y = self.np_random.uniform(-_JITTER, _JITTER, 2).tolist()
        self._velocity, self._track, self._over = (0.0, 0.0), [(x, y)], False
        return self._observe(), self._info()

    def step(self, action: Any) -> Result:
        """Push for one step; see the class for the reward."""
        if not self._track:
            raise RuntimeError("call reset before step")
        if self._over:
            raise RuntimeError("the episode is over: call reset before step")
        if np.shape(action) != (2,):
            raise ValueError(f"an action must have shape [2], got {action!r}")
        x, y = float(action[0]), float(action[1])
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"an action must be finite, got {action!r}")
        push = _push(min(max(x, -1.0), 1.0), min(max(y, -1.0), 1.0))
        self._advance(push)
        motion = motion_reward(math.hypot(*self._velocity), push[0] * push[0] + push[1] * push[1])
        reward, self._over = self._judge(motion)
        return self._observe(), reward, self._over, False, self._info() | {"motion_reward": motion}

    def _advance(self, push: tuple[float, float]) -> None:
        """One step, first in x, then in y: so a point that meets a wall aslant slides along it."""
        place, velocity = list(self._track[-1]), list(self._velocity)
        for axis in (0, 1):
            velocity[axis] = _INERTIA * velocity[axis] + (1 - _INERTIA) * _TOP * push[axis]
            if velocity[axis] == 0.0:
                continue
            free = place[axis] + _DT * velocity[axis]
            place[axis], stopped = self._stopped(place, axis, free)
            if stopped:
                velocity[axis] = 0.0
        self._track.append((place[0], place[1]))
        self._velocity = (velocity[0], velocity[1])

    def _stopped(self, place: list[float], axis: int, free: float) -> tuple[float, bool]:
        """Where a move along an axis to `free` ends, and whether a wall ends it; a step is shorter than any wall."""
        other = place[1 - axis]
        for low, high, left, right in self._blocked[axis]:
            if low < free < high and left < other < right:
                return low if place[axis] <= low else high, True
        return free, False

    def _judge(self, motion: float) -> tuple[float, bool]:
        """The reward of the step that was just made, given that for motion, and whether the episode ends."""
        return motion, False

    def _observe(self) -> np.ndarray:
        return np.array((*self._track[-1], *self._velocity) if self.positions else self._velocity, np.float32)

    def _info(self) -> dict[str, Any]:
        return {"position": np.array(self._track[-1])}

    def render(self) -> Any:
        """The floor, the point and its track from above, `[432, 432, 3]` uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        if not self._track:
            raise RuntimeError("call reset before render")
        return _picture(self._track, self._walls, self._target)


class PointMaze(PointMove):
    """Find one of three goals in the cross maze.

    The point moves as in `PointMove`, and walls stop it: it is a square, 0.8 wide. Observation: ``[4]`` float32,
    position (m) and velocity (m/s); nothing in it tells which goal it is. Reward: 1000 for a step that ends less than
    2 m from the goal, which ends the episode, else 0; and ``motion`` times `motion_reward`. `pyrocontrol/PointMaze-v0`
    is truncated after 300 steps.

    `info` holds `position` (``[2]`` float64), `distance` to the goal (m), `is_success` and, after a step,
    `motion_reward`.

    Args:
        goal: which of `GOALS`: 0, 1 or 2.
        motion: how much of the reward for motion is added, 0 for none.
        render_mode: `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: if there is no such goal, ``motion`` is not finite, or the render mode makes no sense.
    """

    _walls = WALLS

    def __init__(self, goal: int = 0, motion: float = 0.0, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self._target = self._aim = goal_of(goal)  # the one is for drawing
        if not math.isfinite(motion):
            raise ValueError(f"motion must be finite, got {motion}")
        self.goal, self.motion = goal, motion
        (left, right), (low, high) = _EXTENT
        self.observation_space = spaces.Box(
            np.array([left, low, -_TOP, -_TOP], np.float32), np.array([right, high, _TOP, _TOP], np.float32)
        )

    def _judge(self, motion: float) -> tuple[float, bool]:
        reached = self._distance() < GOAL_RADIUS
        return GOAL_REWARD * reached + self.motion * motion, reached

    def _distance(self) -> float:
        return math.dist(self._track[-1], self._aim)

    def _info(self) -> dict[str, Any]:
        distance = self._distance()
        return super()._info() | {"distance": distance, "is_success": distance < GOAL_RADIUS}


# ---------------------------------------------------------------------- rendering

_UNIT, _SIZE = 24, 18  # pixels of a metre; metres that are seen in either direction
_FLOOR, _LINE, _WALL = (236, 238, 234), (220, 224, 218), (96, 104, 112)
_GOAL, _POINT, _TRAIL = (150, 204, 142), (214, 94, 30), (44, 92, 142)


def _picture(
    track: list[tuple[float, float]],
    walls: tuple[Box, ...],
    goal: tuple[float, float] | None,
) -> np.ndarray:
    """`[H, W, 3]` uint8, y upwards: the maze, or what of the open floor is around the point."""
    centre = [sum(side) / 2 for side in _EXTENT] if walls else track[-1]
    pixels = (np.arange(_UNIT * _SIZE) + 0.5) / _UNIT - _SIZE / 2
    xs, ys = centre[0] + pixels, centre[1] - pixels
    image = np.empty((len(ys), len(xs), 3), np.uint8)
    image[:] = _FLOOR
    image[:, (xs / 2) % 1 < 1 / _UNIT] = _LINE
    image[(ys / 2) % 1 < 1 / _UNIT] = _LINE
    if goal is not None:
        image[(ys[:, None] - goal[1]) ** 2 + (xs - goal[0]) ** 2 < GOAL_RADIUS**2] = _GOAL
    places = np.array(track)
    # Points along the track, closer to each other than a pixel.
    along = np.concatenate([np.linspace(a, b, 8) for a, b in zip(places[:-1], places[1:], strict=True)] or [places])
    columns = ((along[:, 0] - xs[0]) * _UNIT).round().astype(int)
    rows = ((ys[0] - along[:, 1]) * _UNIT).round().astype(int)
    seen = (columns > 0) & (columns < len(xs)) & (rows > 0) & (rows < len(ys))
    for shift in (0, 1):
        image[rows[seen] - shift, columns[seen]] = image[rows[seen], columns[seen] - shift] = _TRAIL
    for x, y, half_x, half_y in walls:
        image[np.ix_(abs(ys - y) < half_y, abs(xs - x) < half_x)] = _WALL
    x, y = track[-1]
    image[(ys[:, None] - y) ** 2 + (xs - x) ** 2 < _BODY**2] = _POINT
    return image
