"""A ring of rows, in memory or in a file that outlives the process: what every replay is made of."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from ..._limits import available_memory
from ..._verify import verify_least

__all__ = ["ReplayOptions", "Ring"]

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 10_000, 2**26  # of a file, that the disk is asked to keep room for
_SUMMED = 1024  # rows under one checksum


class ReplayOptions(TypedDict, total=False):
    """Options that all replays share, by name.

    Attributes:
        seed: of the generator that draws batches, which nothing else uses (0).
        dtype: of actions, rewards and ends, as stored and drawn; of vectors of observations in a `Replay` (float32).
        device: where batches are drawn; memory or a file holds a second copy then (the CPU).
        path: of the file; made, or opened as it is. None keeps rows in memory (None).
        spare: how many calls of ``add`` leave all that counted at a checkpoint as it was (0).
    """

    seed: int
    dtype: torch.dtype
    device: str | torch.device | None
    path: str | os.PathLike[str] | None
    spare: int


class Ring:
    """Rows of named fields, each field in a dtype of its own; the last ``capacity`` of them count.

    A row is a few bytes next to each other, so that drawing a batch is one gather. The memory of a ring is only used as
    it fills up; of a file, room is made for some thousand rows at a time.

    With a ``path``, rows live in a file that is mapped into memory. What goes into a checkpoint is then :meth:`state`,
    a few numbers, after :meth:`flush`: the file itself is neither copied nor read. The ring has more rows than
    ``capacity``, by ``spare`` calls of ``add``, so that up to so many calls after a checkpoint leave all rows which
    counted at the checkpoint as they were; :meth:`restore` goes back to it whenever the process ended. It reads all of
    these rows once, and compares them with checksums that were made when they were added.

    A kind of replay has ``add`` and ``sample``, and says in ``_batch`` what it makes of rows.

    Args:
        capacity: greatest number of rows that count.
        fields: dtype and shape of each field, by its name; None for the ``dtype`` of the options.
        sizes: what a saved ring must share with this one, beside capacity, spare and fields.
        rows_per_add: greatest number of rows that a call of ``add`` makes.
        seed, dtype, device, path, spare: see `ReplayOptions`.

    Attributes:
        total: rows added so far, those that were overwritten counted.
        generator: of the draws.

    Raises:
        TypeError: for a capacity or ``spare`` that is no whole number.
        ValueError: for numbers out of range, a file of another size, or rows that do not fit into the memory that is
            left, of this machine or of the device.
        OSError: the file cannot be written, or the disk has no room for its first rows; ``add`` raises it for later
            ones.
    """

    rows_are = "transitions"

    def __init__(
        self,
        capacity: int,
        fields: Mapping[str, tuple[np.dtype[Any] | None, tuple[int, ...]]],
        sizes: dict[str, int],
        *,
        rows_per_add: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        path: str | os.PathLike[str] | None = None,
        spare: int = 0,
    ) -> None:
        verify_least(1, capacity=capacity)
        verify_least(0, spare=spare)
        self.capacity, self.spare, self.total = capacity, spare, 0
        self.path = None if path is None else Path(path)
        self.device = torch.device("cpu" if device is None else device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._sizes = {"capacity": capacity, "spare": spare} | sizes
        self._room = 0  # rows of the file below this one are on the disk
        self._sums: dict[int, int] = {}  # of rows number n * _SUMMED and on, by n, where they are in a file

        number = torch.empty((), dtype=dtype).numpy().dtype
        typed = {name: (own or number, shape) for name, (own, shape) in fields.items()}
        record = np.dtype([(name, *field) for name, field in typed.items()], align=True)
        self._alike = {own for own, _ in typed.values()} == {number}
        if self._alike:
            self._unit, self._kind, width = dtype, str(dtype), record.itemsize
        else:  # gathered in words of 8 bytes
            self._unit, self._kind = torch.int64, ", ".join(f"{n} {own}{[*s]}" for n, (own, s) in typed.items())
            width = -(-record.itemsize // 8) * 8
            offsets = [record.fields[name][1] for name in typed]  # type: ignore[index]
            formats = [record[name] for name in typed]
            record = np.dtype({"names": [*typed], "formats": formats, "offsets": offsets, "itemsize": width})
        shape = (capacity + rows_per_add * spare, width)
        self._verify_fits(shape[0] * width)
        self._rows: np.ndarray
        self._file: np.memmap | None = None
        if self.path is None:
            self._rows = np.zeros(shape, np.uint8)  # zeros are taken from the system only when written
            self._room = len(self._rows)
        else:
            new = not self.path.exists()
            if not new and self.path.stat().st_size != shape[0] * width:
                raise ValueError(f"{self.path} is a replay of another size or precision")
            try:
                self._file = np.memmap(self.path, np.uint8, "w+" if new else "r+", shape=shape)
                self._rows = self._file.view(np.ndarray)  # whose rows are had in a tenth of the time
                self._make_room(0)
            except OSError as error:
                if new:
                    self.path.unlink(missing_ok=True)
                raise error if error.filename else _without_room(error, self.path) from error
        self._records = self._rows.view(record)[:, 0]
        self._parts: list[tuple[slice | int, torch.dtype | None, tuple[int, ...] | None]] = []
        for name, (own, extent) in typed.items():
            first = int(record.fields[name][1])  # type: ignore[index]
            last = first + math.prod(extent) * own.itemsize
            if self._alike:
                first, last = first // own.itemsize, last // own.itemsize
                self._parts.append((slice(first, last) if extent else first, None, extent if extent[1:] else None))
            else:
                kept = torch.from_numpy(np.zeros(0, own)).dtype
                self._parts.append((slice(first, last), kept, None if len(extent) == 1 else extent))
        self._source = torch.from_numpy(self._rows).view(self._unit)
        self._drawn = self._source if self.device.type == "cpu" else self._source.to(self.device)

    def __len__(self) -> int:
        """Rows that count."""
        return min(self.total, self.capacity)

    def _verify_fits(self, size: int) -> None:
        """Refuse rows that cannot be kept in memory, of this machine or of the device."""
        left = {"memory": available_memory() if self.path is None else None}
        if self.device.type == "cuda":
            left[f"memory of {self.device}"] = torch.cuda.mem_get_info(self.device)[0]
        for where, room in left.items():
            if room is not None and size > room:
                raise ValueError(
                    f"a replay of capacity {self.capacity} takes {size / 2**30:.3g} GiB, more than the "
                    f"{room / 2**30:.3g} GiB of {where} that are left: capacity may be {self.capacity * room // size}"
                    + (", or rows may go to a file: give a path (of learn, an out)" if where == "memory" else "")
                )

    # What adds rows

    def _make_room(self, number: int) -> None:
        """Have the disk keep room for the rows from a number on: writing where it has none ends a process.

        Raises:
            OSError: it has none.
        """
        slot, width = number % len(self._rows), self._rows.strides[0]
        if slot < self._room or self.path is None:
            return
        count = min(_ROWS_AT_ONCE, max(_BYTES_AT_ONCE // width, 1), len(self._rows) - slot)
        if hasattr(os, "posix_fallocate"):
            try:
                with open(self.path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), slot * width, count * width)
            except OSError as error:
                raise _without_room(error, self.path) from error
        self._room = slot + count

    def _append(self, *values: Any) -> None:
        """Add a row, given its fields; the oldest gives way if there is no room.

        Raises:
            OSError: the disk has no room for it; nothing is changed then.
        """
        slot = self.total % len(self._rows)
        if slot >= self._room:
            self._make_room(slot)
        self._records[slot] = values
        if self._drawn is not self._source:
            self._drawn[slot].copy_(self._source[slot])
        if self.path is not None:
            block, within = divmod(self.total, _SUMMED)
            self._sums[block] = zlib.crc32(self._rows[slot], self._sums.get(block, 0) if within else 0)
            self._sums.pop(block - len(self._rows) // _SUMMED - 2, None)
        self.total += 1

    # What draws them

    def _batch(self, rows: Tensor) -> Any:
        """Return what a replay makes of rows ``[N, width]``."""
        raise NotImplementedError

    def _split(self, rows: Tensor) -> list[Tensor]:
        """Return the fields ``[N, *shape]`` of rows ``[N, width]``: views of them."""
        if not self._alike:
            rows = rows.view(torch.uint8)
        parts = []
        for columns, dtype, extent in self._parts:
            part = rows[:, columns]
            if dtype is not None:
                part = part.view(dtype)
            if extent is not None:
                part = part.unflatten(1, extent) if extent else part[:, 0]
            parts.append(part)
        return parts

    def oldest(self) -> Any:
        """Return the row that gives way next, on the CPU, a batch of one."""
        return self._batch(self._source[[(self.total - len(self)) % len(self._rows)]])

    def latest(self, count: int) -> Any:
        """Return the last ``count`` rows, oldest first, on the CPU.

        Raises:
            ValueError: if there are not so many.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"the replay holds {len(self)} {self.rows_are}, not {count}")
        return self._batch(self._source[np.arange(self.total - count, self.total) % len(self._rows)])

    # What outlives the process

    def flush(self) -> None:
        """Write to the file what has not reached it."""
        if self._file is not None:
            self._file.flush()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: a few numbers, and without a file the rows too."""
        state: dict[str, Any] = {"total": self.total, "generator": self.generator.get_state()}
        state["sizes"], state["dtype"] = [*self._sizes.values()], self._kind
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
            ValueError: for a state of a replay of other sizes or dtypes, one without the rows that are not here, or
                rows in the file that are not those that were written; nothing is changed then.
        """
        sizes = [*self._sizes.values()]
        if list(state["sizes"]) != sizes or state["dtype"] != self._kind:
            was = f"{list(state['sizes'])} of {state['dtype']}"
            raise ValueError(f"the saved replay has {', '.join(self._sizes)} = {was}, this one {sizes} of {self._kind}")
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
                which = f"{self.rows_are} {damaged[0].start} to {damaged[0].stop - 1}"
                raise ValueError(f"{self.path} is damaged: {which} are not those that were written")
            self._sums = sums
        if self._drawn is not self._source:
            self._drawn.copy_(self._source)
        self.total = total
        self.generator.set_state(state["generator"])


def _without_room(error: OSError, path: Path) -> OSError:
    """The same error, with the file's name."""
    return OSError(error.errno, f"{error.strerror} (the replay)", str(path))
