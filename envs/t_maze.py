"""T-maze: a memory task, in which what is seen now does not say what to do.

A signal at the start of a corridor says left or right. It is visible at the first step only; at the other end of the
corridor, at the junction, the turn has to match it. All cells of the corridor look alike, and alike for both signals,
so that neither the signal nor the position can be read off an observation: a policy without memory turns at random.

The task is that of B. Bakker, "Reinforcement Learning with Long Short-Term Memory" (2001), with its four moves, without
its penalties and in the frame of the walker: forward, left, right, back.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .._saved import Saved
from .._verify import verify_options

__all__ = ["T_MAZE_ACTIONS", "TMazeEnv", "TMazeTeacher"]

T_MAZE_ACTIONS = ("forward", "left", "right", "back")

_FORWARD, _LEFT, _RIGHT, _BACK = range(4)
_SIGNALS = ("left", "right")
_SIGNAL_LEFT, _SIGNAL_RIGHT, _CORRIDOR, _JUNCTION = range(4)
_UNKNOWN = -1


class TMazeEnv(gymnasium.Env[np.ndarray, Any]):
    """Remember a signal along a corridor and turn where it said.

    Observation: `[4]` float32 of 0 and 1: the signal says left, it says right (both 0 after the first step), the walker
    is in the corridor, it is at the junction; all 0 in an arm, where the episode has ended. Action: `Discrete(4)`, see
    `T_MAZE_ACTIONS`. In the corridor left and right, at its start back, and at the junction forward bump into a wall:
    the walker stays. Moving back is possible, so that the time does not tell the position either.

    The reward is 1 for the turn that the signal said and 0 everywhere else; either turn ends the episode, and
    `max_steps` steps truncate it. `info` holds `is_success`, `position` (cells from the start; `length` is the
    junction) and `signal` ("left" or "right").

    `reset(options={"signal": "left"})` sets the signal.

    Args:
        length: cells of the corridor, the start included; the junction is reached after `length` steps.
        max_steps: steps after which an episode is truncated; None for `4 * (length + 1)`, four times what is needed.
        render_mode: `"ansi"` for text, `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: if the length, the steps or the render mode make no sense.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(self, length: int = 10, max_steps: int | None = None, render_mode: str | None = None) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if max_steps is None:
            max_steps = 4 * (length + 1)
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        if render_mode not in (None, "ansi", "rgb_array"):
            raise ValueError(f"render_mode must be None, 'ansi' or 'rgb_array', got {render_mode!r}")
        self.length, self.max_steps, self.render_mode = length, max_steps, render_mode
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(len(T_MAZE_ACTIONS))
        self._signal: int | None = None
        self._position, self._steps, self._turn = 0, 0, _UNKNOWN

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Take the signal of `options`, or draw one, and go to the start."""
        super().reset(seed=seed)
        signal = verify_options(options, "signal").get("signal")
        if signal is None:
            self._signal = int(self.np_random.integers(2))
        elif signal in _SIGNALS:
            self._signal = _SIGNALS.index(signal)
        else:
            raise ValueError(f"signal must be 'left' or 'right', got {signal!r}")
        self._position, self._steps, self._turn = 0, 0, _UNKNOWN
        return self._observe(self._signal), self._info(self._signal)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; see the class for the reward."""
        signal = self._ready()
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        self._steps += 1
        if self._turn == _UNKNOWN:
            if action == _FORWARD:
                self._position = min(self._position + 1, self.length)
            elif action == _BACK:
                self._position = max(self._position - 1, 0)
            elif self._position == self.length:
                self._turn = int(action) - _LEFT
        terminated = self._turn != _UNKNOWN
        truncated = not terminated and self._steps >= self.max_steps
        return self._observe(signal), float(self._turn == signal), terminated, truncated, self._info(signal)

    def _observe(self, signal: int) -> np.ndarray:
        observation = np.zeros(4, np.float32)
        if self._turn == _UNKNOWN:
            observation[_JUNCTION if self._position == self.length else _CORRIDOR] = 1.0
            if self._steps == 0:
                observation[_SIGNAL_LEFT + signal] = 1.0
        return observation

    def _info(self, signal: int) -> dict[str, Any]:
        return {"is_success": self._turn == signal, "position": self._position, "signal": _SIGNALS[signal]}

    def _ready(self) -> int:
        """The signal."""
        if self._signal is None:
            raise RuntimeError("call reset before step or render")
        return self._signal

    def render(self) -> Any:
        """The maze from above, walked from left to right: text for `"ansi"`, `[H, W, 3]` uint8 for `"rgb_array"`."""
        if self.render_mode is None:
            return None
        signal = self._ready()
        return self._text(signal) if self.render_mode == "ansi" else self._picture(signal)

    # ------------------------------------------------------------------ rendering

    def _row(self) -> int:
        """0, 1 or 2: the left arm, the corridor, the right arm."""
        return {_UNKNOWN: 1, 0: 0, 1: 2}[self._turn]

    def _text(self, signal: int) -> str:
        """Three lines; `@` is the walker, `*` the arm to turn to, the first column the signal while it is visible."""
        arms = ["*" if signal == side else "." for side in range(2)]
        rows = [" " * self.length + arms[0], "." * (self.length + 1), " " * self.length + arms[1]]
        place = self._row()
        rows[place] = rows[place][: self._position] + "@" + rows[place][self._position + 1 :]
        said = _SIGNALS[signal] if self._steps == 0 else ""
        return "\n".join(f"{head:<6}{row}" for head, row in zip(("", said, ""), rows, strict=True)) + "\n"

    def _picture(self, signal: int) -> np.ndarray:
        """`[H, W, 3]` uint8: floor, green goal, orange walker, and the signal as an arrow while it is visible."""
        cells = np.zeros((3, self.length + 1), bool)
        cells[1], cells[:, -1] = True, True
        image = np.empty((3 * _CELL + 2 * _MARGIN, (self.length + 1) * _CELL + 2 * _MARGIN, 3), np.uint8)
        image[:] = _WALL
        for row, column in np.argwhere(cells):
            goal = column == self.length and row == 2 * signal
            self._cell(image, row, column)[:] = _GOAL if goal else _FLOOR
        if self._steps == 0:
            self._cell(image, 1, 0)[_arrow(up=signal == 0)] = _SIGN
        self._cell(image, self._row(), self._position)[_disc()] = _WALKER
        return image

    @staticmethod
    def _cell(image: np.ndarray, row: int, column: int) -> np.ndarray:
        """A view of the inside of a cell, `[_CELL - 2, _CELL - 2, 3]`."""
        top, left = _MARGIN + row * _CELL, _MARGIN + column * _CELL
        return image[top + 1 : top + _CELL - 1, left + 1 : left + _CELL - 1]


_CELL, _MARGIN = 40, 12  # pixels
_WALL, _FLOOR, _GOAL, _SIGN, _WALKER = (40, 44, 52), (250, 250, 247), (150, 206, 170), (44, 92, 142), (214, 94, 30)


def _disc() -> np.ndarray:
    """`[_CELL - 2, _CELL - 2]` bool: the walker, in the lower right of its cell so that the signal stays visible."""
    rows, columns = np.indices((_CELL - 2, _CELL - 2))
    return (rows - 19) ** 2 + (columns - 26) ** 2 <= 8**2


def _arrow(up: bool) -> np.ndarray:
    """`[_CELL - 2, _CELL - 2]` bool: an arrow towards the left arm (up) or the right one (down)."""
    rows, columns = np.indices((_CELL - 2, _CELL - 2))
    if not up:
        rows = _CELL - 3 - rows
    head = (rows >= 5) & (rows < 15) & (abs(columns - 9) <= (rows - 5) * 0.7)
    return head | ((rows >= 15) & (rows < 33) & (abs(columns - 9) <= 2))


class TMazeTeacher(Saved):
    """Walks to the junction and turns where the signal said.

    What it remembers is the `state` that `predict` returns: `[B]` (or a number) int64, 0 left, 1 right, -1 not seen.
    """

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Return the action and what is remembered, for one observation or a batch.

        Args:
            observation: `[4]` or `[B, 4]`.
            state: what the last call returned; None at first.
            episode_start: bool, `[B]` for a batch: whether to forget the state.
            deterministic: without effect, the teacher is deterministic.

        Returns:
            The action, `[]` or `[B]` int64, and the state, shaped alike.

        Raises:
            ValueError: if the observation has another shape, or the junction is reached without the signal having been
                seen, as when a state was not passed on.
        """
        seen = np.asarray(observation)
        if seen.ndim not in (1, 2) or seen.shape[-1] != 4:
            raise ValueError(f"the observation must have shape [4] or [B, 4], got {list(seen.shape)}")
        signal = np.full(seen.shape[:-1], _UNKNOWN) if state is None else np.asarray(state)
        if episode_start is not None:
            signal = np.where(episode_start, _UNKNOWN, signal)
        shown = seen[..., [_SIGNAL_LEFT, _SIGNAL_RIGHT]] > 0.5
        signal = np.where(shown.any(-1), shown.argmax(-1), signal)
        junction = seen[..., _JUNCTION] > 0.5
        if (junction & (signal == _UNKNOWN)).any():
            raise ValueError("at the junction without having seen the signal: pass the state that predict returned")
        action = np.where(junction, _LEFT + signal, _FORWARD)
        return action[()], signal[()]
