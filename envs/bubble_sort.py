"""BubbleSort as a control problem: two pointers over a list of digits.

The controller sees only the two digits under the pointers and whether each pointer stands at an edge of the
list; it moves the pointers and swaps. The teacher runs (n - 1) full passes without early exit. For n = m + 1
digits with I inversions its trace has `4 m^2 + m + I` actions and its call stack `10 m^2 + 5 m + 1 + I`
steps.

Two variants hold the same task:

* `pyrocontrol/BubbleSort-v0`: five actions without arguments, `Discrete(6)` with the null.
* `pyrocontrol/BubbleSortMove-v0`: `move(pointer, direction)` and `swap`. Its action space is
  `MultiDiscrete([3, 2, 2])`: (action, pointer, direction), where the action is 0 move, 1 swap, 2 null, the
  pointer 0 or 1, and the direction 0 left or 1 right; pointer and direction are ignored unless the action is
  move.

A program emits an action index and an argument vector; `encode_action` of either environment turns them into
an element of its action space.

Domain and teacher after R. Fox et al., "Hierarchical Imitation Learning via Variational Inference of Control
Programs", Section 5 and Appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .data.demonstrations import Demonstrations, Episode

__all__ = [
    "ACTIONS",
    "BUBBLE_SORT_MOVE_TREE",
    "BUBBLE_SORT_TREE",
    "MOVE_ACTIONS",
    "OBSERVATION_SIZE",
    "BubbleSortEnv",
    "BubbleSortMoveEnv",
    "demonstrations",
    "teacher",
]

ACTIONS = ("ptr1left", "ptr1right", "ptr2left", "ptr2right", "swap")
MOVE_ACTIONS = ("move", "swap")
OBSERVATION_SIZE = 22

BUBBLE_SORT_TREE = """\
actions: ptr1left, ptr1right, ptr2left, ptr2right, swap
bubblesort(n: real[1]) counts -> bubble, resetptr
bubble -> ptr2right, bstep
resetptr -> lshift
bstep -> swap, rshift
lshift counts -> ptr1left, ptr2left
rshift counts -> ptr1right, ptr2right
"""

BUBBLE_SORT_MOVE_TREE = """\
actions: move(pointer: onehot[2], direction: onehot[2]), swap
bubblesort(n: real[1]) counts -> bubble, resetptr
bubble -> move, bstep
resetptr -> shift
bstep -> swap, shift
shift(direction: onehot[2]) counts -> move
"""

_PROCEDURES = ("bubblesort", "bubble", "resetptr", "bstep", "lshift", "rshift")
_MOVE_PROCEDURES = ("bubblesort", "bubble", "resetptr", "bstep", "shift")
_STREAMS = {"train": 0, "validation": 1, "test": 2}
_LEFT, _RIGHT = 0, 1
_SWAP = ACTIONS.index("swap")


class _Machine:
    """The list and its two pointers (0-based). `apply` takes an index into `ACTIONS`."""

    def __init__(self, values: Sequence[int] | np.ndarray) -> None:
        self.values = _checked_list(values)
        self.pointers = [0, 0]

    def apply(self, action: int) -> None:
        """Move a pointer, clamped to the list, or swap the two digits pointed at."""
        if action == _SWAP:
            left, right = self.pointers
            self.values[[left, right]] = self.values[[right, left]]
        else:
            pointer, direction = divmod(action, 2)
            target = self.pointers[pointer] + (1 if direction == _RIGHT else -1)
            self.pointers[pointer] = min(max(target, 0), len(self.values) - 1)

    def at_edge(self, pointer: int) -> bool:
        """Whether a pointer is at either end of the list."""
        return self.pointers[pointer] in (0, len(self.values) - 1)

    def observe(self) -> np.ndarray:
        """`[22]`: onehot10(L[p1]), edge1, onehot10(L[p2]), edge2."""
        observation = np.zeros((2, 11), dtype=np.float32)
        for pointer, place in enumerate(self.pointers):
            observation[pointer, self.values[place]] = 1.0
            observation[pointer, 10] = float(self.at_edge(pointer))
        return observation.reshape(OBSERVATION_SIZE)


def _checked_list(values: Sequence[int] | np.ndarray) -> np.ndarray:
    """A copy of the digits as `[n]` int64.

    Raises:
        ValueError: if they are fewer than two, or not all digits.
    """
    digits = np.asarray(values)
    if digits.ndim != 1 or len(digits) < 2 or digits.dtype.kind not in "iu":
        raise ValueError(f"a list to sort holds two or more integers, got {values!r}")
    if digits.min() < 0 or digits.max() > 9:
        raise ValueError(f"a list to sort holds digits 0..9, got {values!r}")
    return digits.astype(np.int64)


def _draw_list(generator: np.random.Generator, min_length: int, max_length: int) -> np.ndarray:
    """Length uniform on `min_length..max_length`, digits i.i.d. uniform on 0..9."""
    length = int(generator.integers(min_length, max_length + 1))
    return generator.integers(0, 10, size=length)


def _checked_lengths(min_length: int, max_length: int) -> None:
    if not 2 <= min_length <= max_length:
        raise ValueError(f"list lengths must satisfy 2 <= min_length <= max_length, got {min_length}..{max_length}")


# ---------------------------------------------------------------------- the environments


class BubbleSortEnv(gymnasium.Env[np.ndarray, Any]):
    """Sort a list of digits with two pointers; the null action ends the episode.

    The reward is 1 at the null if the list is then sorted, and 0 everywhere else. There is no time limit;
    pass `max_episode_steps` to `gymnasium.make` for one. `info` holds `list` (the digits, `[n]`), `pointers`
    (`[2]`, 0-based) and `task` (`[1]`, the length n as a float, which is the root procedure's argument).

    `reset(options={"list": [...]})` sorts that list, of any length from 2.

    Args:
        min_length: shortest list drawn.
        max_length: longest list drawn.
        render_mode: `"ansi"` for text, `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: if the lengths or the render mode make no sense.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}
    num_actions = len(ACTIONS)
    argument_size = 0

    def __init__(self, min_length: int = 2, max_length: int = 9, render_mode: str | None = None) -> None:
        _checked_lengths(min_length, max_length)
        if render_mode not in (None, "ansi", "rgb_array"):
            raise ValueError(f"render_mode must be None, 'ansi' or 'rgb_array', got {render_mode!r}")
        self.min_length, self.max_length, self.render_mode = min_length, max_length, render_mode
        self.observation_space = spaces.Box(0.0, 1.0, (OBSERVATION_SIZE,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(len(ACTIONS) + 1)
        self._machine: _Machine | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Take the list of `options`, or draw one, and put both pointers at its left end."""
        super().reset(seed=seed)
        if options is not None and "list" in options:
            values = options["list"]
        else:
            values = _draw_list(self.np_random, self.min_length, self.max_length)
        self._machine = _Machine(values)
        return self._machine.observe(), self._info(self._machine)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one action; see the class for the reward."""
        machine = self._ready()
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        primitive = self._primitive(action)
        stops = primitive is None
        if primitive is not None:
            machine.apply(primitive)
        reward = float(stops and bool((np.diff(machine.values) >= 0).all()))
        return machine.observe(), reward, stops, False, self._info(machine)

    def encode_action(self, index: int, argument: Any = None) -> Any:
        """The element of the action space for what a program emits.

        Args:
            index: index into `ACTIONS`, or `num_actions` for the null.
            argument: `[argument_size]`, unused where actions have no argument.

        Raises:
            ValueError: if there is no such action.
        """
        return np.int64(_checked_index(index, self.num_actions))

    def _primitive(self, action: Any) -> int | None:
        """Index into `ACTIONS`, or None for the null."""
        return None if action == len(ACTIONS) else int(action)

    def _info(self, machine: _Machine) -> dict[str, Any]:
        return {
            "list": machine.values.copy(),
            "pointers": np.array(machine.pointers),
            "task": np.array([len(machine.values)], dtype=np.float32),
        }

    def _ready(self) -> _Machine:
        if self._machine is None:
            raise RuntimeError("call reset before step or render")
        return self._machine

    def render(self) -> Any:
        """The list with its pointers marked: text for `"ansi"`, `[H, W, 3]` uint8 for `"rgb_array"`."""
        if self.render_mode is None:
            return None
        machine = self._ready()
        return _text(machine) if self.render_mode == "ansi" else _picture(machine)


class BubbleSortMoveEnv(BubbleSortEnv):
    """`BubbleSortEnv` whose moves take arguments: `move(pointer, direction)`, `swap`, null.

    Actions are `MultiDiscrete([3, 2, 2])`, see the module. A program's argument vector is `[4]`: the pointer
    one-hot, then the direction one-hot (left, right); it is zero for swap and null.
    """

    num_actions = len(MOVE_ACTIONS)
    argument_size = 4

    def __init__(self, min_length: int = 2, max_length: int = 9, render_mode: str | None = None) -> None:
        super().__init__(min_length, max_length, render_mode)
        self.action_space = spaces.MultiDiscrete([len(MOVE_ACTIONS) + 1, 2, 2])

    def encode_action(self, index: int, argument: Any = None) -> Any:
        """The element of the action space for what a program emits.

        Args:
            index: index into `MOVE_ACTIONS`, or `num_actions` for the null.
            argument: `[4]`, pointer one-hot and direction one-hot; needed for move, else unused.

        Raises:
            ValueError: if there is no such action, or move lacks its argument.
        """
        index = _checked_index(index, self.num_actions)
        if index != MOVE_ACTIONS.index("move"):
            return np.array([index, 0, 0], dtype=np.int64)
        vector = np.asarray([] if argument is None else argument, dtype=np.float64)
        if vector.shape != (4,):
            raise ValueError(f"move takes an argument of 4 numbers, pointer and direction one-hot, got {argument!r}")
        return np.array([index, vector[:2].argmax(), vector[2:].argmax()], dtype=np.int64)

    def _primitive(self, action: Any) -> int | None:
        index, pointer, direction = (int(part) for part in action)
        if index == len(MOVE_ACTIONS):
            return None
        return _SWAP if index == MOVE_ACTIONS.index("swap") else 2 * pointer + direction


def _checked_index(index: int, num_actions: int) -> int:
    if not 0 <= int(index) <= num_actions:
        raise ValueError(f"action {index} is outside 0..{num_actions} ({num_actions} is the null)")
    return int(index)


# ---------------------------------------------------------------------- the teacher


class _Recorder:
    """Runs the teacher's program on a list and writes down what it sees, does and calls."""

    def __init__(self, values: Sequence[int] | np.ndarray, move: bool) -> None:
        self.machine, self.move = _Machine(values), move
        self.procedures = _MOVE_PROCEDURES if move else _PROCEDURES
        self.observations = [self.machine.observe()]
        self.actions: list[int] = []
        self.arguments: list[np.ndarray] = []
        self.calls: list[np.ndarray] = []

    def _record_call(self, choice: int, argument: np.ndarray | None = None) -> None:
        row = np.zeros(1 + (4 if self.move else 1), dtype=np.float32)
        row[0] = choice
        if argument is not None:
            row[1 : 1 + len(argument)] = argument
        self.calls.append(row)

    def call(self, procedure: str, argument: np.ndarray | None = None) -> None:
        self._record_call(self.procedures.index(procedure), argument)

    def finish(self) -> None:
        """Return from the running procedure."""
        self._record_call(len(self.procedures) + len(MOVE_ACTIONS if self.move else ACTIONS))

    def act(self, primitive: int) -> None:
        index, argument = primitive, np.zeros(4 if self.move else 0, dtype=np.float32)
        if self.move and primitive == _SWAP:
            index = MOVE_ACTIONS.index("swap")
        elif self.move:
            index = MOVE_ACTIONS.index("move")
            argument = np.concatenate([_onehot(part) for part in divmod(primitive, 2)])
        self._record_call(len(self.procedures) + index, argument)
        self.machine.apply(primitive)
        self.actions.append(index)
        self.arguments.append(argument)
        self.observations.append(self.machine.observe())

    def shift(self, direction: int) -> None:
        """Both pointers one to the left or right: `lshift` and `rshift`, or `shift(direction)`."""
        if self.move:
            self.call("shift", _onehot(direction))
        else:
            self.call("rshift" if direction == _RIGHT else "lshift")
        self.act(direction)
        self.act(2 + direction)
        self.finish()


def _onehot(index: int) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[index]


def teacher(values: Sequence[int] | np.ndarray, *, move: bool = False) -> Episode:
    """Demonstrate bubble sort on a list, with the true call trace.

    (n - 1) times [bubble, resetptr]: bubble is ptr2right, then bstep until both edges are set after one;
    bstep is swap if L[p1] > L[p2], then rshift; resetptr is lshift until both edges are set after one. Each
    return is one step of the call trace; the null is the return of the root.

    Args:
        values: two or more digits 0..9.
        move: use the actions and procedures of `BUBBLE_SORT_MOVE_TREE` instead of `BUBBLE_SORT_TREE`.

    Returns:
        The episode: A actions, A + 1 observations, task `[n]`, and calls `[I, 1 + W]` float32. Column 0 is
        the choice: procedures in tree order from 0, then the actions, then the return (0..5, 6..10 and 11;
        with `move` 0..4, 5..6 and 7). The rest is the argument of the choice, zero padded on the right (W =
        1; with `move` 4).

    Raises:
        ValueError: if `values` is no such list.
    """
    run = _Recorder(values, move)
    machine, length = run.machine, len(run.machine.values)
    for _ in range(length - 1):
        run.call("bubble")
        run.act(ACTIONS.index("ptr2right"))
        while True:
            run.call("bstep")
            left, right = machine.pointers
            if machine.values[left] > machine.values[right]:
                run.act(_SWAP)
            run.shift(_RIGHT)
            run.finish()
            if machine.at_edge(0) and machine.at_edge(1):
                break
        run.finish()
        run.call("resetptr")
        while True:
            run.shift(_LEFT)
            if machine.at_edge(0) and machine.at_edge(1):
                break
        run.finish()
    run.finish()
    return Episode(
        observations=np.stack(run.observations),
        actions=np.array(run.actions),
        task=np.array([length], dtype=np.float32),
        arguments=np.stack(run.arguments),
        calls=np.stack(run.calls),
    )


def demonstrations(
    count: int,
    seed: int,
    *,
    stream: str = "train",
    min_length: int = 2,
    max_length: int = 9,
    move: bool = False,
    annotate: bool = False,
) -> Demonstrations:
    """Draw lists and let the teacher sort them.

    Lists are drawn one after the other, so the first 40 of 160 are the 40 that `count=40` gives. The random
    streams train, validation and test of one seed never overlap.

    Args:
        count: number of demonstrations.
        seed: seed of the draw.
        stream: `"train"`, `"validation"` or `"test"`.
        min_length: shortest list.
        max_length: longest list; lengths are uniform between the two.
        move: the variant whose actions take arguments.
        annotate: keep the true call traces.

    Raises:
        ValueError: if the count, the lengths or the stream make no sense.
    """
    _checked_lengths(min_length, max_length)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if stream not in _STREAMS:
        raise ValueError(f"stream must be one of {sorted(_STREAMS)}, got {stream!r}")
    generator = np.random.default_rng(np.random.SeedSequence([seed, _STREAMS[stream]]))
    episodes = [teacher(_draw_list(generator, min_length, max_length), move=move) for _ in range(count)]
    if not annotate:
        episodes = [episode._replace(calls=None) for episode in episodes]
    return Demonstrations.from_episodes(episodes, len(MOVE_ACTIONS if move else ACTIONS))


# ---------------------------------------------------------------------- rendering


def _text(machine: _Machine) -> str:
    """Three lines: pointer 1 above its digit, the digits, pointer 2 below its digit."""
    above, below = (
        "".join(f" {mark if place == pointer else ' '} " for place in range(len(machine.values))).rstrip()
        for mark, pointer in zip("12", machine.pointers, strict=True)
    )
    return f"{above}\n{''.join(f'[{value}]' for value in machine.values)}\n{below}\n"


_CELL, _MARGIN, _BASE, _UNIT = (
    48,
    24,
    176,
    12,
)  # pixels: cell width, margin, foot of the bars, height of one unit
_PAPER, _INK = (250, 250, 247), (40, 44, 52)
_LOW, _HIGH = np.array([198, 214, 230]), np.array([44, 92, 142])  # colour of the bars of 0 and of 9
_POINTERS = ((214, 94, 30), (22, 138, 102))
# The digits 0..9, five rows of three pixels each, a row an octal figure.
_FONT = ("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71111", "75757", "75717")


def _glyph(figure: int) -> np.ndarray:
    """`[20, 12]` bool: a digit."""
    small = np.array([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in _FONT[figure]], dtype=bool)
    return np.kron(small, np.ones((4, 4), dtype=bool))


def _picture(machine: _Machine) -> np.ndarray:
    """`[H, W, 3]` uint8: a bar and a figure a digit; pointer 1 above the bars, 2 below the figures."""
    count = len(machine.values)
    image = np.empty((272, 2 * _MARGIN + count * _CELL, 3), dtype=np.uint8)
    image[:] = _PAPER
    image[_BASE : _BASE + 2, _MARGIN:-_MARGIN] = _INK
    for place, value in enumerate(machine.values):
        left = _MARGIN + place * _CELL
        top = _BASE - (int(value) + 1) * _UNIT
        image[top:_BASE, left + 6 : left + _CELL - 6] = _LOW + (_HIGH - _LOW) * int(value) // 9
        image[_BASE + 12 : _BASE + 32, left + 18 : left + 30][_glyph(int(value))] = _INK
    for pointer, place in enumerate(machine.pointers):
        centre = _MARGIN + place * _CELL + _CELL // 2
        for step in range(14):  # a triangle, its tip towards the list
            row = 42 - step if pointer == 0 else _BASE + 42 + step
            image[row, centre - step // 2 - 1 : centre + step // 2 + 1] = _POINTERS[pointer]
        row = 6 if pointer == 0 else _BASE + 60
        image[row : row + 20, centre - 6 : centre + 6][_glyph(pointer + 1)] = _POINTERS[pointer]
    return image
