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

import numpy as np
from gymnasium import spaces

from .data.demonstrations import Demonstrations, Episode
from .glyphs import glyph
from .machine import Machine, MachineEnv, checked_index
from .teaching import CallRecorder, taught

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

_LEFT, _RIGHT = 0, 1
_SWAP = ACTIONS.index("swap")

# Of the picture, in pixels: width of a cell, margin, foot of the bars, height of one unit.
_CELL, _MARGIN, _BASE, _UNIT = 48, 24, 176, 12
_PAPER, _INK = (250, 250, 247), (40, 44, 52)
_LOW, _HIGH = np.array([198, 214, 230]), np.array([44, 92, 142])  # colour of the bars of 0 and of 9
_POINTERS = ((214, 94, 30), (22, 138, 102))


class _Machine(Machine):
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

    def solved(self) -> bool:
        """Whether the list is sorted."""
        return bool((np.diff(self.values) >= 0).all())

    def info(self) -> dict[str, Any]:
        """The list, the pointers, and the root's argument."""
        return {
            "list": self.values.copy(),
            "pointers": np.array(self.pointers),
            "task": np.array([len(self.values)], dtype=np.float32),
        }

    def text(self) -> str:
        """Three lines: pointer 1 above its digit, the digits, pointer 2 below its digit."""
        above, below = (
            "".join(f" {mark if place == pointer else ' '} " for place in range(len(self.values))).rstrip()
            for mark, pointer in zip("12", self.pointers, strict=True)
        )
        return f"{above}\n{''.join(f'[{value}]' for value in self.values)}\n{below}\n"

    def picture(self) -> np.ndarray:
        """`[H, W, 3]` uint8: a bar and a figure a digit; pointer 1 above the bars, 2 below the figures."""
        count = len(self.values)
        image = np.empty((272, 2 * _MARGIN + count * _CELL, 3), dtype=np.uint8)
        image[:] = _PAPER
        image[_BASE : _BASE + 2, _MARGIN:-_MARGIN] = _INK
        for place, value in enumerate(self.values):
            left = _MARGIN + place * _CELL
            top = _BASE - (int(value) + 1) * _UNIT
            image[top:_BASE, left + 6 : left + _CELL - 6] = _LOW + (_HIGH - _LOW) * int(value) // 9
            image[_BASE + 12 : _BASE + 32, left + 18 : left + 30][glyph(int(value))] = _INK
        for pointer, place in enumerate(self.pointers):
            centre = _MARGIN + place * _CELL + _CELL // 2
            for step in range(14):  # a triangle, its tip towards the list
                row = 42 - step if pointer == 0 else _BASE + 42 + step
                image[row, centre - step // 2 - 1 : centre + step // 2 + 1] = _POINTERS[pointer]
            row = 6 if pointer == 0 else _BASE + 60
            image[row : row + 20, centre - 6 : centre + 6][glyph(pointer + 1)] = _POINTERS[pointer]
        return image


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


class BubbleSortEnv(MachineEnv[_Machine]):
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

    num_actions = len(ACTIONS)
    known_options = ("list",)

    def __init__(self, min_length: int = 2, max_length: int = 9, render_mode: str | None = None) -> None:
        _checked_lengths(min_length, max_length)
        self.min_length, self.max_length = min_length, max_length
        super().__init__(spaces.Box(0.0, 1.0, (OBSERVATION_SIZE,), np.float32), render_mode)

    def _begin(self, options: dict[str, Any]) -> _Machine:
        if "list" in options:
            return _Machine(options["list"])
        return _Machine(_draw_list(self.np_random, self.min_length, self.max_length))


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
        index = checked_index(index, self.num_actions)
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


# ---------------------------------------------------------------------- the teacher


class _Recorder(CallRecorder):
    """Writes the moves down as actions of either variant."""

    machine: _Machine

    def __init__(self, values: Sequence[int] | np.ndarray, move: bool) -> None:
        super().__init__(BUBBLE_SORT_MOVE_TREE if move else BUBBLE_SORT_TREE, _Machine(values))
        self.move = move

    def do(self, primitive: int) -> None:
        """Take the action that has this number in `ACTIONS`."""
        if self.move and primitive != _SWAP:
            argument = np.concatenate([_onehot(part) for part in divmod(primitive, 2)])
            self.act("move", argument, primitive=primitive)
        else:
            self.act(ACTIONS[primitive], primitive=primitive)

    def shift(self, direction: int) -> None:
        """Both pointers one to the left or right: `lshift` and `rshift`, or `shift(direction)`."""
        given = ("shift", _onehot(direction)) if self.move else (("lshift", "rshift")[direction], ())
        with self.call(*given):
            self.do(direction)
            self.do(2 + direction)

    def at_ends(self) -> bool:
        """Whether both pointers are at an edge."""
        return self.machine.at_edge(0) and self.machine.at_edge(1)


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
        with run.call("bubble"):
            run.do(ACTIONS.index("ptr2right"))
            while True:
                with run.call("bstep"):
                    left, right = machine.pointers
                    if machine.values[left] > machine.values[right]:
                        run.do(_SWAP)
                    run.shift(_RIGHT)
                if run.at_ends():
                    break
        with run.call("resetptr"):
            while True:
                run.shift(_LEFT)
                if run.at_ends():
                    break
    return run.episode(task=[length])


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
    actions = MOVE_ACTIONS if move else ACTIONS
    return taught(
        lambda generator: teacher(_draw_list(generator, min_length, max_length), move=move),
        len(actions),
        count,
        seed,
        stream,
        annotate,
    )
