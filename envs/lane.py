"""Lane: stay in the lane in gusts of wind, a task in which the errors of a clone grow.

A road has five lanes that look alike; the own one is in the middle. Each step announces the wind of the next: mostly
none or a little, seldom much, each force 0.4 times as frequent as the one below. The teacher takes every gust and
always steers to the middle of its own lane, so demonstrations show no other lane. They also show no force that is
rarer than about one in their number of steps. Where such a force comes for the first time, a clone is blown into
another lane, as the teacher never is; there everything looks as usual but for the number of the lane, which was the
same in all data, and the clone stays where the teacher would return.

So a clone errs in its own lane at a small rate epsilon a step, errs at every step after its first mistake, and its
imitation loss over T steps is O(epsilon T^2). A policy that has also learnt from states which it reached by itself
(DAgger) makes the same first mistakes but returns: O(epsilon T). This is the argument of S. Ross and J. A. Bagnell,
"Efficient Reductions for Imitation Learning" (2010), Theorem 2.1, and of S. Ross, G. Gordon and J. A. Bagnell, "A
Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning" (2011).
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .._saved import Saved
from .._verify import verify_options

__all__ = ["LaneEnv", "LaneTeacher"]

_OUTER = 2  # lanes on either side of the own one
_WIDTH = 2.0  # of a lane
_EDGE = _WIDTH * (_OUTER + 0.5)  # of the road
_FORCES = 13  # 0..12, as Beaufort's
_RATIO = 0.4  # how frequent a force is relative to the one below
_PUSH = 0.25  # of a unit of force in one step
_DRIFT = 0.15  # standard deviation of what is not announced; it is cut off at three of them
_REACH = 3.5  # of steering in one step: enough to take any gust from anywhere in the middle of the lane
_SIZE = 3 + _FORCES
_LANE_SCALE = 1.0 / _OUTER


class LaneEnv(gymnasium.Env[np.ndarray, Any]):
    """Stay in the middle lane of five for `horizon` steps.

    With p the position across the road (0 is the middle of the own lane, a lane is 2 wide, right is positive), the gust
    g = 0.25 direction * force that was announced, steering a and a small drift w that nobody announces,

        p' = clip(p + 3.5 a + g + w, -5, 5),  w ~ N(0, 0.15^2) within three standard deviations.

    Forces 0 to 12 have probabilities 0.6 * 0.4^force (12 takes the rest), either direction is as likely.

    Observation: `[16]` float32: the offset from the middle of the lane in which the car is, -1 to 1; the number of that
    lane, half of -2 to 2; the direction of the next gust, -1, 0 or 1; its force, one-hot of 13. Action: `[1]`
    float32, the steering, clipped to -1 to 1. The reward is 1 for a step that ends in the own lane (-1 <= p' <= 1), and
    0 for any other.

    `info` holds `position` and `lane` (-2 to 2) and, after a step, what it costs that the action was not the one that
    the teacher would have taken there, a*. With e = 3.5 abs(a - a*), how far that puts the car from where the teacher
    would have it, they are `imitation_loss` = 1[e > 0.5] and `squared_loss` = min(1, e^2).

    The weather of an episode is drawn at reset: with one seed it is the same whatever the car does.

    Args:
        horizon: steps of an episode, which is then truncated.
        render_mode: `"ansi"` for text, `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: if the horizon or the render mode make no sense.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 15}

    def __init__(self, horizon: int = 800, render_mode: str | None = None) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        if render_mode not in (None, "ansi", "rgb_array"):
            raise ValueError(f"render_mode must be None, 'ansi' or 'rgb_array', got {render_mode!r}")
        self.horizon, self.render_mode = horizon, render_mode
        low = np.array([-1, -1, -1] + [0] * _FORCES, np.float32)
        self.observation_space = spaces.Box(low, np.ones(_SIZE, np.float32))
        self.action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), np.float32)
        # Before each step t = 0 .. horizon: the force and its direction, and the drift that led there.
        self._forces: list[int] = []
        self._directions: list[int] = []
        self._drifts: list[float] = []
        self._track: list[float] = []  # positions so far

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw the weather and begin near the middle of the own lane."""
        verify_options(options)
        super().reset(seed=seed)
        count = self.horizon + 1
        forces = np.minimum(self.np_random.geometric(1 - _RATIO, count) - 1, _FORCES - 1)
        directions = np.where(forces > 0, self.np_random.choice((-1, 1), count), 0)
        drifts = _DRIFT * np.clip(self.np_random.standard_normal(count), -3, 3)
        # Lists, because a step reads single numbers.
        self._forces, self._directions, self._drifts = forces.tolist(), directions.tolist(), drifts.tolist()
        self._track = [self._drifts[0]]
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Steer through one gust; see the class for the reward and the losses."""
        position, time = self._now()
        if time == self.horizon:
            raise RuntimeError("the episode is over: call reset before step")
        if np.shape(action) != (1,):
            raise ValueError(f"an action must have shape [1], got {action!r}")
        steering = float(action[0])
        if not math.isfinite(steering):
            raise ValueError(f"an action must be finite, got {action!r}")
        displacement = _clip(_REACH * steering, _REACH)
        gust = _PUSH * self._directions[time] * self._forces[time]
        error = abs(displacement - _clip(-(position + gust), _REACH))
        position += displacement + gust + self._drifts[time + 1]
        self._track.append(_clip(position, _EDGE))
        losses = {"imitation_loss": float(error > 0.5), "squared_loss": min(1.0, error * error)}
        in_lane = abs(self._track[-1]) <= _WIDTH / 2
        return self._observe(), float(in_lane), False, time + 1 == self.horizon, self._info() | losses

    def _now(self) -> tuple[float, int]:
        """The position and the time."""
        if not self._track:
            raise RuntimeError("call reset before step or render")
        return self._track[-1], len(self._track) - 1

    def _observe(self) -> np.ndarray:
        position, time = self._now()
        lane = _lane(position)
        observation = np.zeros(_SIZE, np.float32)
        observation[0] = position - _WIDTH * lane
        observation[1] = lane * _LANE_SCALE
        observation[2] = self._directions[time]
        observation[3 + self._forces[time]] = 1.0
        return observation

    def _info(self) -> dict[str, Any]:
        position, _ = self._now()
        return {"position": position, "lane": _lane(position)}

    def render(self) -> Any:
        """The road, the car and the announced gust: text for `"ansi"`, `[H, W, 3]` uint8 for `"rgb_array"`."""
        if self.render_mode is None:
            return None
        position, time = self._now()
        force, direction = self._forces[time], self._directions[time]
        if self.render_mode == "ansi":
            return _text(position, force, direction)
        return _picture(self._track, force, direction)


def _clip(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


def _lane(position: float) -> int:
    """The lane at a position; the edge of the road belongs to the outer one."""
    return min(max(math.floor(position / _WIDTH + 0.5), -_OUTER), _OUTER)


class LaneTeacher(Saved):
    """Steers to the middle of its own lane: a* = clip(-(p + g) / 3.5, -1, 1), whatever lane it is in."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Return the action for one observation or a batch, and the state as it was.

        Args:
            observation: `[16]` or `[B, 16]`.
            state: not used: all that matters can be observed.
            episode_start: not used.
            deterministic: without effect, the teacher is deterministic.

        Returns:
            The action, `[1]` or `[B, 1]` float32, and `state`.

        Raises:
            ValueError: if the observation has another shape.
        """
        seen = np.asarray(observation, np.float64)
        if seen.ndim not in (1, 2) or seen.shape[-1] != _SIZE:
            raise ValueError(f"the observation must have shape [{_SIZE}] or [B, {_SIZE}], got {list(seen.shape)}")
        position = seen[..., 0] + _WIDTH / _LANE_SCALE * seen[..., 1]
        gust = _PUSH * seen[..., 2] * (seen[..., 3:] @ np.arange(_FORCES))
        return np.clip(-(position + gust) / _REACH, -1, 1)[..., None].astype(np.float32), state


# ---------------------------------------------------------------------- rendering


def _text(position: float, force: int, direction: int) -> str:
    """One line: the car `A` between the lane markings, and the gust."""
    borders = {_WIDTH * (lane - 0.5): ":" for lane in range(-_OUTER, _OUTER + 2)} | {-_EDGE: "|", _EDGE: "|"}
    row = [" "] * (int(8 * _EDGE) + 1)
    for place, mark in (borders | {position: "A"}).items():
        row[round(4 * (place + _EDGE))] = mark
    arrows = ("<" if direction < 0 else ">") * force
    return f"{''.join(row)}  wind {force:<2} {arrows}".rstrip() + "\n"


_UNIT, _VERGE, _HEIGHT, _CAR = 28, 20, 320, 216  # pixels: a unit across the road, the verge, the picture, the car's row
_GRASS, _ROAD, _OWN = (222, 232, 214), (214, 216, 220), (198, 214, 230)
_PAINT, _BODY, _TRAIL, _WIND = (250, 250, 247), (214, 94, 30), (226, 160, 120), (44, 92, 142)


def _column(position: float) -> int:
    return _VERGE + round(_UNIT * (position + _EDGE))


def _picture(track: list[float], force: int, direction: int) -> np.ndarray:
    """`[H, W, 3]` uint8: the road from above, driven upwards; the trail behind the car, the gust ahead of it."""
    image = np.empty((_HEIGHT, 2 * _column(0.0), 3), np.uint8)
    image[:] = _GRASS
    image[:, _column(-_EDGE) : _column(_EDGE)] = _ROAD
    image[:, _column(-_WIDTH / 2) : _column(_WIDTH / 2)] = _OWN
    rows = np.arange(_HEIGHT)
    for border in range(-_OUTER, _OUTER):
        # The dashes move with the car, four pixels a step.
        dashes = (rows - 4 * (len(track) - 1)) % 32 < 16
        column = _column(_WIDTH * (border + 0.5))
        image[dashes, column - 1 : column + 1] = _PAINT
    for age, place in enumerate(track[:-1][::-1]):
        row = _CAR + 20 + 4 * age
        if row >= _HEIGHT:
            break
        image[row : row + 4, _column(place) - 2 : _column(place) + 2] = _TRAIL
    centre = _column(track[-1])
    image[_CAR - 20 : _CAR + 20, max(centre - 11, 0) : centre + 11] = _BODY
    image[_CAR - 10 : _CAR - 4, max(centre - 8, 0) : centre + 8] = _PAINT
    if force:
        _draw_gust(image, _column(0.0), round(_UNIT * _PUSH * force), direction)
    return image


def _draw_gust(image: np.ndarray, start: int, length: int, direction: int) -> None:
    """An arrow at the top of the picture, as long as the gust pushes, with its head beyond that."""
    row = 40
    left, right = sorted((start, start + direction * length))
    image[row - 3 : row + 3, left:right] = _WIND
    for step in range(14):
        column = start + direction * (length + step)
        image[row - 14 + step : row + 14 - step, column] = _WIND
