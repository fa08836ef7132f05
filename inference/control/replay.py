"""Replay: the transitions of an off-policy learner, in memory or in a file that outlives the process."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Replay", "ReplayBatch"]


_ROWS_AT_ONCE = 10_000
_SUMMED = 1024  # rows under one checksum


class ReplayBatch(NamedTuple):
    """A batch of transitions, as a replay draws it.

    Attributes:
        observations: s ``[B, O]``.
        actions: a ``[B, A]``, normalised.
        rewards: r ``[B]``.
        next_observations: s' ``[B, O]``: what the step led to, also where the episode ended with it.
        terminated: ``[B]`` 1 where the task ended, so that nothing follows; 0 else, also where time ran out.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor


class Replay:
    """The last ``capacity`` transitions, uniform batches of which are drawn with replacement.

    A transition is one row ``(s, a, s', r, terminated)`` of one array, so that drawing a batch is one gather. Rows are
    written in a ring. Its memory is only used as it fills up; of a file, room is made for some thousand rows at a time.

    With a ``path``, rows live in a file that is mapped into memory. What goes into a checkpoint is then
    :meth:`state`, a few numbers, after :meth:`flush`: the file itself is neither copied nor read. The ring has
    ``spare`` rows more than it draws from, so that up to so many rows that are written after a checkpoint leave all
    rows which counted at the checkpoint as they were; :meth:`restore` goes back to it whenever the process ended. It
    reads all of these rows once, and compares them with checksums that were made when they were added.

    Args:
        capacity: greatest number of transitions to draw from.
        observation_size: O.
        action_size: A.
        seed: of the generator that draws batches, which nothing else uses.
        dtype: of what is stored and drawn.
        device: where batches are drawn; the file, if any, is then a copy.
        path: of the file; made, or opened as it is.
        spare: rows of the ring beyond ``capacity``.

    Raises:
        ValueError: for sizes that are not positive.
        OSError: the file cannot be written, or the disk has no room for its first rows; :meth:`add` raises it for
            later ones.
    """

    def __init__(
        self,
        capacity: int,
        observation_size: int,
        action_size: int,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        path: str | os.PathLike[str] | None = None,
        spare: int = 0,
    ) -> None:
        for name, value in dict(
            capacity=capacity, observation_size=observation_size, action_size=action_size, spare=spare + 1
        ).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.capacity, self.spare = capacity, spare
        self._room = 0  # rows of the file below this one are on the disk
        self._sums: dict[int, int] = {}  # of rows number n * _SUMMED and on, by n, where they are in a file
        self.observation_size, self.action_size = observation_size, action_size
        self.path = None if path is None else Path(path)
        #: Transitions added so far, those that were overwritten counted.
        self.total = 0
        self.device = torch.device("cpu" if device is None else device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._cuts = np.cumsum([observation_size, action_size, observation_size, 1, 1]).tolist()
        shape = (capacity + spare, self._cuts[-1])
        number = torch.empty((), dtype=dtype).numpy().dtype
        self._rows: np.ndarray
        if self.path is None:
            self._rows = np.zeros(shape, number)  # zeros are taken from the system only when written
        else:
            new = not self.path.exists()
            if not new and self.path.stat().st_size != shape[0] * shape[1] * number.itemsize:
                raise ValueError(f"{self.path} is a replay of another size or precision")
            try:
                self._rows = np.memmap(self.path, number, "w+" if new else "r+", shape=shape)
                self._make_room(0)
            except OSError as error:
                if new:
                    self.path.unlink(missing_ok=True)
                raise _without_room(error, self.path) from error
        self._source = torch.from_numpy(self._rows)
        self._drawn = self._source if self.device.type == "cpu" else self._source.to(self.device)

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return min(self.total, self.capacity)

    def add(
        self, observation: np.ndarray, action: np.ndarray, reward: float, next_observation: np.ndarray, terminated: bool
    ) -> None:
        """Add one transition; the oldest gives way if there is no room.

        Args:
            observation: s ``[O]``.
            action: a ``[A]``, normalised.
            reward: r.
            next_observation: s' ``[O]``, the true one, never that of a reset.
            terminated: whether the task ended, not whether time ran out.

        Raises:
            OSError: the disk has no room for it; nothing is changed then.
        """
        slot = self.total % len(self._rows)
        if self.path is not None and slot >= self._room:
            try:
                self._make_room(slot)
            except OSError as error:
                raise _without_room(error, self.path) from error
        row = self._rows[slot]
        first, second, third, _, _ = self._cuts
        row[:first] = observation
        row[first:second] = action
        row[second:third] = next_observation
        row[third] = reward
        row[third + 1] = terminated
        if self._drawn is not self._source:
            self._drawn[slot].copy_(self._source[slot])
        if self.path is not None:
            block, within = divmod(self.total, _SUMMED)
            self._sums[block] = zlib.crc32(row, self._sums.get(block, 0) if within else 0)
            self._sums.pop(block - len(self._rows) // _SUMMED - 2, None)
        self.total += 1

    def _make_room(self, slot: int) -> None:
        """Have the disk keep room for the rows from one on: writing to a map of what it has none for ends a process."""
        assert self.path is not None
        count = min(_ROWS_AT_ONCE, len(self._rows) - slot)
        if hasattr(os, "posix_fallocate"):
            with open(self.path, "r+b") as file:
                os.posix_fallocate(file.fileno(), slot * self._rows.strides[0], count * self._rows.strides[0])
        self._room = slot + count

    def sample(self, batch_size: int) -> ReplayBatch:
        """Return ``batch_size`` transitions, drawn with replacement, independent of the ring's later contents.

        Raises:
            ValueError: if there are no transitions yet.
        """
        count = len(self)
        if not count:
            raise ValueError("an empty replay has nothing to draw")
        indices = torch.randint(count, (batch_size,), generator=self.generator, device=self.device)
        if self.total > self.capacity:
            indices += self.total - count
            indices %= len(self._rows)
        return self._batch(self._drawn.index_select(0, indices))

    def oldest(self) -> ReplayBatch:
        """Return the transition that gives way next, on the CPU, a batch of one."""
        return self._batch(torch.from_numpy(self._rows[[(self.total - len(self)) % len(self._rows)]]))

    def latest(self, count: int) -> ReplayBatch:
        """Return the last ``count`` transitions, oldest first, on the CPU.

        Raises:
            ValueError: if there are not so many.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"the replay holds {len(self)} transitions, not {count}")
        indices = np.arange(self.total - count, self.total) % len(self._rows)
        return self._batch(torch.from_numpy(self._rows[indices]))

    def _batch(self, rows: Tensor) -> ReplayBatch:
        first, second, third, _, _ = self._cuts
        return ReplayBatch(rows[:, :first], rows[:, first:second], rows[:, third], rows[:, second:third], rows[:, -1])

    def flush(self) -> None:
        """Write to the file what has not reached it."""
        if isinstance(self._rows, np.memmap):
            self._rows.flush()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: a few numbers, and without a file the rows too."""
        state: dict[str, Any] = {"total": self.total, "generator": self.generator.get_state()}
        state["sizes"] = [self.capacity, self.spare, self.observation_size, self.action_size]
        state["dtype"] = str(self._source.dtype)
        state["rows"] = self._source[: min(self.total, len(self._rows))].clone() if self.path is None else None
        if self.path is not None:
            blocks = self._blocks(self.total)
            sums = self._sums | {n: self._sum(blocks[n]) for n in [*blocks][:1]}  # of which some rows gave way
            state["sums"] = [sums[n] for n in blocks]
        return state

    def _blocks(self, total: int) -> dict[int, range]:
        """The numbers of the rows that count where so many were added, by that of the checksum that they are under."""
        first = total - min(total, self.capacity)
        blocks = range(first // _SUMMED, -(-total // _SUMMED))
        return {n: range(max(first, n * _SUMMED), min(total, (n + 1) * _SUMMED)) for n in blocks}

    def _sum(self, rows: range) -> int:
        return zlib.crc32(self._rows[np.asarray(rows) % len(self._rows)])

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state of :meth:`state`.

        Raises:
            ValueError: for a state of a replay of other sizes or precision, one without the rows that are not here, or
                rows in the file that are not those that were written; nothing is changed then.
        """
        sizes = [self.capacity, self.spare, self.observation_size, self.action_size]
        if list(state["sizes"]) != sizes or state["dtype"] != str(self._source.dtype):
            was = f"{list(state['sizes'])} of {state['dtype']}"
            raise ValueError(
                f"the saved replay has capacity, spare, O, A = {was}, this one {sizes} of {self._source.dtype}"
            )
        if state["rows"] is None and self.path is None:
            raise ValueError("the saved replay has its rows in a file: give its path")
        if state["rows"] is not None:
            self._source[: len(state["rows"])] = state["rows"]
        total = int(state["total"])
        if self.path is not None:
            blocks = self._blocks(total)
            sums = {n: self._sum(rows) for n, rows in blocks.items()}
            were = dict(zip(blocks, state.get("sums", sums.values()), strict=False))  # version 0.1 had none
            if damaged := [rows for n, rows in blocks.items() if sums[n] != were.get(n)]:
                which = f"transitions {damaged[0].start} to {damaged[0].stop - 1}"
                raise ValueError(f"{self.path} is damaged: {which} are not those that were written")
            self._sums = sums
        if self._drawn is not self._source:
            self._drawn.copy_(self._source)
        self.total = total
        self.generator.set_state(state["generator"])


def _without_room(error: OSError, path: Path) -> OSError:
    """The same error, with the file's name."""
    return OSError(error.errno, f"{error.strerror} (the replay)", str(path))
