"""NanoCraft: an agent on a grid builds a rectangular fence, block by block.

The controller sees whether there is a block where the agent stands, and four numbers: where the building is to stand
and how large it is to be. It moves the agent and places blocks. The teacher goes right and down to the building's
corner, then around it, right, down, left and up, and places a block wherever there is none yet. For a building at
(x, y) of width w and height h that lacks B blocks, its trace has `x + y + 2 (w + h) + B` actions and its call stack
`13 + 3 (x + y) + 6 (w + h) + B` steps.

Domain and teacher after R. Fox et al., "Parametrized Hierarchical Procedures for Neural Programming" (ICLR 2018),
Section 5.1, a version without colours and materials of the domain of C. Li et al., "Neural Program Lattices" (ICLR
2017). The paper's grid is 6 x 6 and its observation five real numbers. It leaves open, and here is chosen:

* By its program, `builds_r` builds as many blocks as the width says, after the corner: a building of width w and height
  h covers w + 1 columns and h + 1 rows.
* Location and size are at least 1, as its program moves and builds in every direction, and the building fits the grid.
  The horizontal and the vertical pair are drawn uniformly among all that do.
* Which blocks stand there before is a uniformly random subset of those needed: each with probability a half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from .data.demonstrations import Demonstrations, Episode
from .machine import Machine, MachineEnv
from .teaching import CallRecorder, taught

__all__ = ["NANO_CRAFT_ACTIONS", "NANO_CRAFT_TREE", "NanoCraftEnv", "demonstrations", "teacher"]

NANO_CRAFT_ACTIONS = ("move_right", "move_down", "move_left", "move_up", "place_block")

NANO_CRAFT_TREE = f"""\
actions: {", ".join(NANO_CRAFT_ACTIONS)}
nanocraft counts -> moves_r, moves_d, builds_r, builds_d, builds_l, builds_u
moves_r counts -> move_r
moves_d counts -> move_d
builds_r counts -> build_r
builds_d counts -> build_d
builds_l counts -> build_l
builds_u counts -> build_u
move_r -> move_right
move_d -> move_down
build_r -> move_right, place_block
build_d -> move_down, place_block
build_l -> move_left, place_block
build_u -> move_up, place_block
"""

_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # of the moves, in rows and columns
_PLACE = NANO_CRAFT_ACTIONS.index("place_block")
_SIDES = dict(zip("rdlu", NANO_CRAFT_ACTIONS, strict=False))
# Of the picture: pixels a cell, and its parts.
_CELL, _MARGIN = 48, 24
_PAPER, _GROUND, _PLAN, _BLOCK = (250, 250, 247), (225, 225, 220), (22, 138, 102), (150, 90, 40)
_AGENT = (214, 94, 30)

Building = Sequence[int] | np.ndarray


class _Machine(Machine):
    """The grid `[size, size]`, its blocks, and the agent's row and column."""

    def __init__(self, building: Building, blocks: np.ndarray | None, size: int) -> None:
        self.building = _checked_building(building, size)
        x, y, width, height = self.building
        self.plan = np.zeros((size, size), bool)
        self.plan[y : y + height + 1, x : x + width + 1] = True
        self.plan[y + 1 : y + height, x + 1 : x + width] = False
        self.blocks = np.zeros((size, size), bool) if blocks is None else np.array(blocks, bool)
        if self.blocks.shape != self.plan.shape or (self.blocks & ~self.plan).any():
            raise ValueError(f"blocks must be a grid of {size} x {size} that has some of the building's, got {blocks}")
        self.agent = (0, 0)

    def apply(self, action: int) -> None:
        """Move the agent, clamped to the grid, or place a block where it stands."""
        if action == _PLACE:
            self.blocks[self.agent] = True
        else:
            row, column = (
                min(max(place + step, 0), len(self.blocks) - 1)
                for place, step in zip(self.agent, _STEPS[action], strict=True)
            )
            self.agent = (row, column)

    def observe(self) -> np.ndarray:
        """`[5]`: whether there is a block here, and x, y, width and height of the building."""
        return np.array([self.blocks[self.agent], *self.building], dtype=np.float32)

    def solved(self) -> bool:
        """Whether the building stands, and nothing else."""
        return bool((self.blocks == self.plan).all())

    def info(self) -> dict[str, Any]:
        """The blocks, the building and the agent."""
        return {
            "blocks": self.blocks.copy(),
            "building": np.array(self.building),
            "agent": np.array(self.agent),
        }

    def text(self) -> str:
        """The grid: `#` a block, `o` where one is to be, the agent in brackets."""
        lines = []
        for row, (blocks, plan) in enumerate(zip(self.blocks, self.plan, strict=True)):
            cells = np.where(blocks, "#", np.where(plan, "o", "."))
            parts = [str(cell).join("[]" if (row, column) == self.agent else "  ") for column, cell in enumerate(cells)]
            lines.append("".join(parts).rstrip())
        return "\n".join(lines) + "\n"

    def picture(self) -> np.ndarray:
        """`[H, W, 3]` uint8: blocks brown, those to be placed framed in green, the agent a disc."""
        size = len(self.blocks)
        image = np.empty((size * _CELL + 2 * _MARGIN,) * 2 + (3,), dtype=np.uint8)
        image[:] = _PAPER
        for (row, column), planned in np.ndenumerate(self.plan):
            top, left = _MARGIN + row * _CELL, _MARGIN + column * _CELL
            spot = image[top : top + _CELL - 4, left : left + _CELL - 4]
            spot[:] = _PLAN if planned else _GROUND
            if planned:
                spot[3:-3, 3:-3] = _GROUND
            if self.blocks[row, column]:
                spot[3:-3, 3:-3] = _BLOCK
            if (row, column) == self.agent:
                away = np.hypot(*np.meshgrid(*[np.arange(_CELL - 4) - (_CELL - 5) / 2] * 2))
                spot[away < 11] = _PAPER
                spot[away < 9] = _AGENT
        return image


def _checked_building(building: Building, size: int) -> tuple[int, int, int, int]:
    """The building as x, y, width and height.

    Raises:
        ValueError: if it is no four whole numbers from 1, or does not fit the grid.
    """
    given = np.asarray(building)
    if given.shape != (4,) or given.dtype.kind not in "iu" or given.min() < 1:
        raise ValueError(f"a building is x, y, width and height, whole numbers from 1, got {building!r}")
    x, y, width, height = (int(number) for number in given)
    if max(x + width, y + height) >= size:
        raise ValueError(f"a building must fit the grid of {size} x {size}: {building!r} does not")
    return x, y, width, height


def _draw(generator: np.random.Generator, size: int) -> _Machine:
    """A building that fits, with some of its blocks."""
    pairs = [(place, extent) for place in range(1, size) for extent in range(1, size - place)]
    (x, width), (y, height) = (pairs[int(generator.integers(len(pairs)))] for _ in range(2))
    machine = _Machine((x, y, width, height), None, size)
    machine.blocks = machine.plan & (generator.random((size, size)) < 0.5)
    return machine


def _checked_size(size: int) -> None:
    if size < 3:
        raise ValueError(f"size must be at least 3, as the smallest building needs, got {size}")


class NanoCraftEnv(MachineEnv[_Machine]):
    """Build a fence on a grid; the null action ends the episode.

    Observation: `[5]` float32, whether there is a block where the agent stands (0 or 1), and x, y, width and height of
    the building. Actions: `Discrete(6)`, see `NANO_CRAFT_ACTIONS`, then the null. The agent starts in the corner at the
    top left, and stays where a move would take it off the grid.

    The reward is 1 at the null if the building then stands and nothing else, and 0 everywhere else. There is no time
    limit; pass `max_episode_steps` to `gymnasium.make` for one. `info` holds `blocks` (`[size, size]` bool), `building`
    (x, y, width, height) and `agent` (row, column).

    `reset(options={"building": [1, 2, 3, 2]})` asks for that one; `blocks` among the options, `[size, size]` bool, are
    those that are there already, by default none.

    Args:
        size: rows and columns of the grid.
        render_mode: `"ansi"` for text, `"rgb_array"` for a picture, or None.

    Raises:
        ValueError: if the size or the render mode make no sense.
    """

    num_actions = len(NANO_CRAFT_ACTIONS)
    known_options = ("building", "blocks")

    def __init__(self, size: int = 6, render_mode: str | None = None) -> None:
        _checked_size(size)
        self.size = size
        low, high = np.array([0, 1, 1, 1, 1], np.float32), np.array([1] + [size - 2] * 4, np.float32)
        super().__init__(spaces.Box(low, high, dtype=np.float32), render_mode)

    def _begin(self, options: dict[str, Any]) -> _Machine:
        if "building" in options:
            return _Machine(options["building"], options.get("blocks"), self.size)
        return _draw(self.np_random, self.size)


def teacher(building: Building, blocks: np.ndarray | None = None, *, size: int = 6) -> Episode:
    """Demonstrate how a fence is built, with the true call trace.

    nanocraft is moves_r, moves_d, builds_r, builds_d, builds_l, builds_u. moves_r is move_r as often as x says,
    builds_r is build_r as often as the width says, and so on; build_r is move_right, then place_block if there is no
    block.

    Args:
        building: x, y, width and height, whole numbers from 1.
        blocks: `[size, size]` bool, those that are there already; by default none.
        size: rows and columns of the grid.

    Returns:
        The episode: A actions, A + 1 observations, and calls `[I, 1]` float32: procedures in tree order from 0, then
        the actions, then the return.

    Raises:
        ValueError: if the building does not fit the grid, or the blocks are not all its own.
    """
    _checked_size(size)
    return _demonstrate(_Machine(building, blocks, size))


def _demonstrate(machine: _Machine) -> Episode:
    run = CallRecorder(NANO_CRAFT_TREE, machine)
    x, y, width, height = machine.building
    for side, times in (("r", x), ("d", y)):
        with run.call(f"moves_{side}"):
            for _ in range(times):
                with run.call(f"move_{side}"):
                    run.act(_SIDES[side])
    for side, times in (("r", width), ("d", height), ("l", width), ("u", height)):
        with run.call(f"builds_{side}"):
            for _ in range(times):
                with run.call(f"build_{side}"):
                    run.act(_SIDES[side])
                    if not machine.blocks[machine.agent]:
                        run.act("place_block")
    return run.episode()


def demonstrations(
    count: int, seed: int, *, stream: str = "train", size: int = 6, annotate: bool = False
) -> Demonstrations:
    """Draw buildings and let the teacher build them.

    Buildings are drawn one after the other, so the first 40 of 160 are the 40 that `count=40` gives. The random streams
    train, validation and test of one seed never overlap.

    Args:
        count: number of demonstrations.
        seed: seed of the draw.
        stream: `"train"`, `"validation"` or `"test"`.
        size: rows and columns of the grid.
        annotate: keep the true call traces.

    Raises:
        ValueError: if the count, the size or the stream make no sense.
    """
    _checked_size(size)
    return taught(
        lambda generator: _demonstrate(_draw(generator, size)), len(NANO_CRAFT_ACTIONS), count, seed, stream, annotate
    )
