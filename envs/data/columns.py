"""Columns of a data set: rows of numbers, in memory or in files, of which any can be taken.

All columns of the steps of traces have the same slots: a trace of A actions has A + 2. The first A + 1 hold its
observations, and the first A its actions. The others, and the last one of every trace in any case, hold what a batch is
padded with.

Shapes: N slots, M of them asked for, `*` numbers of a row, B traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .npz_reader import NpzReader

__all__ = ["Column", "StoredColumn", "filled"]


def filled(slots: np.ndarray, spare: int) -> np.ndarray:
    """Return which slots hold something, `[sum(slots) - B spare]`, if the last so many of each trace's do not.

    Args:
        slots: `[B]`, how many slots each trace has.
        spare: how many of them are for padding.
    """
    rows = slots - spare
    return np.arange(rows.sum()) + spare * np.repeat(np.arange(len(slots)), rows)


class Column:
    """Slots in memory, on any device.

    Args:
        values: `[N, *]`.

    Attributes:
        width: shape of a row.
        dtype: type of the numbers.
    """

    def __init__(self, values: Tensor) -> None:
        self.values, self.width, self.dtype = values, tuple(values.shape[1:]), values.dtype

    @classmethod
    def of(cls, rows: Tensor, slots: np.ndarray, spare: int, padding: Any) -> Column:
        """Put rows, those of one trace after those of the other, into their slots; see :func:`filled`."""
        values = rows.new_empty((int(slots.sum()), *rows.shape[1:]))
        values[:] = padding
        values[torch.from_numpy(filled(slots, spare)).to(rows.device)] = rows
        return cls(values)

    def take(self, rows: Tensor) -> Tensor:
        """Return what is in the slots `[M]`, `[M, *]`."""
        return self.values.index_select(0, rows)  # several times as fast as indexing with a tensor

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> Column:
        """The same on another device, or of another precision if these are real numbers."""
        return Column(self.values.to(device, dtype if self.values.is_floating_point() else None))


class StoredColumn:
    """Slots whose rows are those of an array that several files hold a part of, each read when it is asked for.

    What is read comes from positioned reads (``preadv``, which Linux and macOS have); no file is open in between, so
    any number of threads may read at once.

    Args:
        readers: the files, whose rows follow each other.
        name: of the array in them.
        width: shape of a row.
        dtype: what the numbers are cast to.
        slots: `[B]`, how many each trace has.
        spare: how many of them are for padding, which the files do not hold.
        padding: what is in these.
        device: where the rows come to.
    """

    def __init__(
        self,
        readers: Sequence[NpzReader],
        name: str,
        width: tuple[int, ...],
        dtype: torch.dtype,
        slots: np.ndarray,
        spare: int,
        padding: Any,
        device: torch.device | str | None = None,
    ) -> None:
        self.readers, self.name, self.width, self.dtype = readers, name, width, dtype
        self.slots, self.spare, self.padding, self.device = slots, spare, padding, device
        self.ends = np.cumsum(slots)
        self.members = [reader.members[name] for reader in readers]
        counts = np.array([member.shape[0] for member in self.members])
        self.file_ends = np.cumsum(counts)
        self.file_begins = self.file_ends - counts

    def take(self, rows: Tensor) -> Tensor:
        """Read what is in the slots `[M]`, `[M, *]`.

        Raises:
            OSError: if a file cannot be read any more.
            ValueError: if a file has changed.
        """
        slots = rows.cpu().numpy()
        trace = np.searchsorted(self.ends, slots, "right")
        there = self.ends[trace] - slots > self.spare
        found = np.empty((len(slots), *self.width), self.members[0].dtype)
        found[~there] = self.padding
        self._read((slots - self.spare * trace)[there], found, np.flatnonzero(there))
        return torch.from_numpy(found).to(self.device, self.dtype)

    def stored(self, start: int, stop: int) -> np.ndarray:
        """Read rows of the files as they are."""
        found = np.empty((stop - start, *self.width), self.members[0].dtype)
        self._read(np.arange(start, stop), found, np.arange(stop - start))
        return found

    def _read(self, rows: np.ndarray, found: np.ndarray, places: np.ndarray) -> None:
        """Read rows `[N]` of the files into the places `[N]` of an array."""
        if found.size == 0 or rows.size == 0:
            return
        files = np.searchsorted(self.file_ends, rows, "right")
        # Rows that follow each other in a file and in the array are read at once, in the order of the file.
        new = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1) | (np.diff(files) != 0)) + 1
        first = np.concatenate([[0], new])
        counts, rows, places, files = np.diff(np.append(first, len(rows))), rows[first], places[first], files[first]
        order = np.argsort(rows, kind="stable")
        runs = (column[order].tolist() for column in (files, rows - self.file_begins[files], places, counts))
        view = found.data.cast("B")
        size = len(view) // len(found)
        for file, stretches in groupby(zip(*runs, strict=True), lambda run: run[0]):
            reader, member = self.readers[file], self.members[file]
            with reader.opened() as handle:
                for _, row, place, count in stretches:
                    into = view[place * size : (place + count) * size]
                    reader.read(handle, member.offset + row * size, into)

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> StoredColumn:
        """The same, but what is read comes to another device, or in another precision if these are real numbers."""
        cast = dtype if dtype and self.dtype.is_floating_point else self.dtype
        slots, device = self.slots, device or self.device
        return StoredColumn(self.readers, self.name, self.width, cast, slots, self.spare, self.padding, device)
