"""Long-hand addition: four tapes, each with a head that reads and writes.

The tapes hold the first number, the second, the carries and the output. The controller sees only the four symbols under
the heads; it moves the heads and writes. The teacher adds column by column from the right: it writes the digit of the
sum, writes a carry in the next column if the sum is ten or more, and moves all heads one to the left. For K columns
(the one of a last carry included) of which Q carry, its trace has `5 K + 3 Q` actions and its call stack
`11 K + 5 Q + 1` steps.

Domain and teacher after R. Fox et al., "Parametrized Hierarchical Procedures for Neural Programming" (ICLR 2018),
Section 5.2, who took it from S. Reed and N. de Freitas, "Neural Programmer-Interpreters" (ICLR 2016). The paper's four
symbols are one-hot, 11 + 11 + 11 + 11 numbers, its procedures `add`, `add1`, `write`, `carry` and `lshift`. It leaves
open, and here is chosen:

* Its two elementary actions, moving a head and writing a symbol, have arguments. Here each of the 8 moves and 40 writes
  is an action by itself, so that a recurrent network, which models one choice, learns from the same traces.
* Numbers of K digits have their digits i.i.d. on 0 to 9: leading zeros occur.
* `carry` moves the head of the carries to the left, writes 1, and moves it back; `lshift` moves the heads in the order
  of the tapes.
* The teacher ends at the first column in which both numbers and the carry are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from gymnasium import spaces

from .data.demonstrations import Demonstrations, Episode
from .glyphs import glyph
from .machine import Machine, MachineEnv
from .teaching import CallRecorder, taught

__all__ = ["ADDITION_ACTIONS", "ADDITION_TREE", "OBSERVATION", "TAPES", "AdditionEnv", "demonstrations", "teacher"]

TAPES = ("a", "b", "carry", "out")
_MOVES = tuple(f"move_{tape}_{direction}" for tape, direction in product(TAPES, ("left", "right")))
_WRITES = tuple(f"write_{tape}_{digit}" for tape, digit in product(TAPES, range(10)))
ADDITION_ACTIONS = _MOVES + _WRITES

#: What an observation holds, for a `FieldEncoder`: four symbols, digits or empty (the last of the 11).
OBSERVATION = (("digit", 11),) * 4

ADDITION_TREE = f"""\
actions: {", ".join(ADDITION_ACTIONS)}
add -> add1
add1 -> write, carry, lshift
write -> {", ".join(f"write_out_{digit}" for digit in range(10))}
carry -> move_carry_left, write_carry_1, move_carry_right
lshift -> {", ".join(f"move_{tape}_left" for tape in TAPES)}
"""

_A, _B, _CARRY, _OUT = range(4)
_EMPTY = 10
# Of the picture, in pixels: width of a cell, margin, height of a row; and how the tapes stand, from the top.
_CELL, _MARGIN, _ROW = 36, 24, 44
_LAYOUT = (_CARRY, _A, _B, _OUT)
_PAPER, _INK, _LIGHT = (250, 250, 247), (40, 44, 52), (225, 225, 220)
_INKS = (_INK, _INK, (150, 90, 40), (44, 92, 142))  # of the symbols on each tape
_HEAD = (214, 94, 30)


class _Machine(Machine):
    """The tapes `[4, K + 2]`, read from the right, and the places of their heads."""

    def __init__(self, numbers: Sequence[Sequence[int]] | np.ndarray) -> None:
        digits = _checked_numbers(numbers)
        self.tapes = np.full((4, digits.shape[1] + 2), _EMPTY)
        self.tapes[:2, : digits.shape[1]] = digits[:, ::-1]
        self.heads = [0, 0, 0, 0]
        # The sum, digit by digit from the right.
        self.total, carried = self.tapes[_OUT].copy(), 0
        for place in range(digits.shape[1] + 1):
            carried += self.tapes[:2, place][self.tapes[:2, place] < _EMPTY].sum()
            if place < digits.shape[1] or carried:
                carried, self.total[place] = divmod(int(carried), 10)

    def apply(self, action: int) -> None:
        """Move a head, clamped to its tape, or write a digit."""
        if action < len(_MOVES):
            tape, right = divmod(action, 2)
            target = self.heads[tape] + (-1 if right else 1)
            self.heads[tape] = min(max(target, 0), self.tapes.shape[1] - 1)
        else:
            tape, digit = divmod(action - len(_MOVES), 10)
            self.tapes[tape, self.heads[tape]] = digit

    def read(self) -> list[int]:
        """The symbols under the heads."""
        return [int(tape[head]) for tape, head in zip(self.tapes, self.heads, strict=True)]

    def observe(self) -> np.ndarray:
        """`[44]`: one-hot the four symbols under the heads."""
        return np.eye(11, dtype=np.float32)[self.read()].reshape(-1)

    def solved(self) -> bool:
        """Whether the output is the sum, and nothing else."""
        return bool((self.tapes[_OUT] == self.total).all())

    def info(self) -> dict[str, Any]:
        """The tapes and the heads."""
        return {"tapes": self.tapes[:, ::-1].copy(), "heads": self.tapes.shape[1] - 1 - np.array(self.heads)}

    def text(self) -> str:
        """A line a tape, the carries on top; the symbols under the heads in brackets."""
        lines = []
        for tape in _LAYOUT:
            cells = [
                f"{'.' if symbol == _EMPTY else symbol}".join("[]" if place == self.heads[tape] else "  ")
                for place, symbol in enumerate(self.tapes[tape])
            ]
            lines.append(f"{TAPES[tape]:>5} {''.join(reversed(cells))}".rstrip())
        return "\n".join(lines) + "\n"

    def picture(self) -> np.ndarray:
        """`[H, W, 3]` uint8: the numbers as they are written on paper, the carries on top, the heads as frames."""
        count = self.tapes.shape[1]
        image = np.empty((4 * _ROW + 2 * _MARGIN + 8, (count + 1) * _CELL + 2 * _MARGIN, 3), dtype=np.uint8)
        image[:] = _PAPER

        def cell(row: int, column: int) -> np.ndarray:
            top, left = _MARGIN + row * _ROW + 8 * (row == 3), _MARGIN + (column + 1) * _CELL
            return image[top : top + _ROW - 4, left : left + _CELL - 4]

        def draw(place: np.ndarray, character: str | int, colour: tuple[int, int, int]) -> None:
            place[10:30, 10:22][glyph(character)] = colour

        for row, tape in enumerate(_LAYOUT):
            for place, symbol in enumerate(self.tapes[tape]):
                spot = cell(row, count - 1 - place)
                if place == self.heads[tape]:
                    spot[:] = _HEAD
                    spot[3:-3, 3:-3] = _PAPER
                else:
                    spot[-2:] = _LIGHT
                if symbol != _EMPTY:
                    draw(spot, int(symbol), _INKS[tape])
        draw(cell(2, -1), "+", _INK)
        line = _MARGIN + 3 * _ROW
        image[line : line + 3, _MARGIN:-_MARGIN] = _INK
        return image


def _checked_numbers(numbers: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Both numbers as `[2, K]` digits.

    Raises:
        ValueError: if they are not two of equally many digits.
    """
    try:
        digits = np.asarray(numbers)
    except ValueError:
        digits = np.empty(0)
    if digits.ndim != 2 or len(digits) != 2 or not digits.size or digits.dtype.kind not in "iu":
        raise ValueError(f"numbers to add are two lists of equally many digits, got {numbers!r}")
    if digits.min() < 0 or digits.max() > 9:
        raise ValueError(f"numbers to add have digits 0..9, got {numbers!r}")
    return digits.astype(np.int64)


def _draw_numbers(generator: np.random.Generator, min_length: int, max_length: int) -> np.ndarray:
    """Length uniform on `min_length..max_length`, digits i.i.d. uniform on 0..9."""
    return generator.integers(0, 10, size=(2, int(generator.integers(min_length, max_length + 1))))


def _checked_lengths(min_length: int, max_length: int) -> None:
    if not 1 <= min_length <= max_length:
        raise ValueError(f"lengths must satisfy 1 <= min_length <= max_length, got {min_length}..{max_length}")


class AdditionEnv(MachineEnv[_Machine]):
    """Add two numbers on four tapes; the null action ends the episode.

    Observation: `[44]` float32, one-hot the symbols (0 to 9, empty) under the heads of the tapes, in the order of
    `TAPES`. Actions: `Discrete(49)`, see `ADDITION_ACTIONS`, then the null. A tape has two cells more than the numbers
    have digits, and a head that is moved beyond its ends stays.

    The reward is 1 at the null if the output tape then holds the sum and nothing else, and 0 everywhere else. There is
    no time limit; pass `max_episode_steps` to `gymnasium.make` for one. `info` holds `tapes` (`[4, K + 2]`, 10 where
    empty) and `heads` (`[4]`, columns of that).

    `reset(options={"numbers": [[2, 5], [4, 8]]})` adds these two, of equally many digits.

    Args:
        min_length: fewest digits drawn.
        max_length: most digits drawn.
        render_mode: `"ansi"` for text, `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: if the lengths or the render mode make no sense.
    """

    num_actions = len(ADDITION_ACTIONS)
    known_options = ("numbers",)

    def __init__(self, min_length: int = 1, max_length: int = 10, render_mode: str | None = None) -> None:
        _checked_lengths(min_length, max_length)
        self.min_length, self.max_length = min_length, max_length
        super().__init__(spaces.Box(0.0, 1.0, (44,), np.float32), render_mode)

    def _begin(self, options: dict[str, Any]) -> _Machine:
        if "numbers" in options:
            return _Machine(options["numbers"])
        return _Machine(_draw_numbers(self.np_random, self.min_length, self.max_length))


def teacher(numbers: Sequence[Sequence[int]] | np.ndarray) -> Episode:
    """Demonstrate long-hand addition, with the true call trace.

    add is add1 until nothing is left to add in a column; add1 is write, then carry if the column's sum is ten or more,
    then lshift.

    Args:
        numbers: two of equally many digits 0..9, `[2, K]`.

    Returns:
        The episode: A actions, A + 1 observations, and calls `[I, 1]` float32: procedures in tree order from 0, then
        the actions, then the return.

    Raises:
        ValueError: for other numbers.
    """
    machine = _Machine(numbers)
    run = CallRecorder(ADDITION_TREE, machine)
    while any(symbol != _EMPTY for symbol in machine.read()[:_OUT]):
        column = sum(symbol for symbol in machine.read()[:_OUT] if symbol != _EMPTY)
        with run.call("add1"):
            with run.call("write"):
                run.act(f"write_out_{column % 10}")
            if column >= 10:
                with run.call("carry"):
                    for action in ("move_carry_left", "write_carry_1", "move_carry_right"):
                        run.act(action)
            with run.call("lshift"):
                for tape in TAPES:
                    run.act(f"move_{tape}_left")
    return run.episode()


def demonstrations(
    count: int, seed: int, *, stream: str = "train", min_length: int = 1, max_length: int = 10, annotate: bool = False
) -> Demonstrations:
    """Draw pairs of numbers and let the teacher add them.

    Pairs are drawn one after the other, so the first 40 of 160 are the 40 that `count=40` gives. The random streams
    train, validation and test of one seed never overlap.

    Args:
        count: number of demonstrations.
        seed: seed of the draw.
        stream: `"train"`, `"validation"` or `"test"`.
        min_length: fewest digits.
        max_length: most digits; lengths are uniform between the two.
        annotate: keep the true call traces.

    Raises:
        ValueError: if the count, the lengths or the stream make no sense.
    """
    _checked_lengths(min_length, max_length)
    return taught(
        lambda generator: teacher(_draw_numbers(generator, min_length, max_length)),
        len(ADDITION_ACTIONS),
        count,
        seed,
        stream,
        annotate,
    )
