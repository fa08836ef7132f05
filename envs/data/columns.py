"""Columns of a data set: rows of numbers, in memory or in files, of which any can be taken.

All columns of the steps of traces have the same slots: a trace of A actions has A + 2. The first A + 1 hold its
observations, and the first A its actions. The others, and the last one of every trace in any case, are spare: they hold
what a batch is padded with.

Shapes: N slots, M of them asked for, `*` numbers of a row, B traces, O observation numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.spaces import observation_bytes, observation_leaves, observation_parts
from .npz_reader import NpzReader

__all__ = ["Column", "Columns", "StoredColumn", "slots_of"]

Space = spaces.Space[Any]


def slots_of(counts: np.ndarray, traces: np.ndarray | None = None, spare: int = 0) -> np.ndarray:
    """Return the slots of some traces one after the other, or of all, but for the spare ones at the end of each.

    Args:
        counts: `[B]`, slots of each trace there is.
        traces: which of them.
        spare: how many slots of each trace are spare.
    """
    first = np.cumsum(counts) - counts
    first, counts = (first, counts - spare) if traces is None else (first[traces], counts[traces] - spare)
    return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


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
    def of(cls, rows: Tensor, counts: np.ndarray, spare: int, padding: Any) -> Column:
        """Put rows, those of one trace after those of the other, into their slots."""
        values = rows.new_empty((int(counts.sum()), *rows.shape[1:]))
        values[:] = padding
        values[torch.from_numpy(slots_of(counts, None, spare)).to(rows.device)] = rows
        return cls(values)

    def take(self, rows: Tensor) -> Tensor:
        """Return what is in the slots `[M]`, `[M, *]`."""
        return self.values.index_select(0, rows)  # several times as fast as indexing with a tensor

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> Column:
        """The same on another device, or of another precision if these are real numbers."""
        if not (dtype is None or isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"the precision of real numbers is a torch dtype such as torch.float64, got {dtype!r}")
        return Column(self.values.to(device, dtype if self.dtype.is_floating_point else None))


class StoredColumn:
    """Slots whose rows are those of an array that several files hold a part of, each read when it is asked for.

    What is read comes from positioned reads (``preadv``, which Linux and macOS have); no file is open in between, so
    any number of threads may read at once.

    Args:
        readers: the files, whose rows follow each other.
        name: of the array in them.
        width: shape of a row.
        dtype: what the numbers are cast to.
        counts: `[B]`, slots of each trace.
        spare: how many of them are spare, which the files do not hold.
        padding: what is in these.
        device: where the rows come to.
    """

    def __init__(
        self,
        readers: Sequence[NpzReader],
        name: str,
        width: tuple[int, ...],
        dtype: torch.dtype,
        counts: np.ndarray,
        spare: int,
        padding: Any,
        device: torch.device | str | None = None,
    ) -> None:
        self.given = (readers, name, width, dtype, counts, spare, padding)
        self.readers, self.width, self.dtype, self.spare, self.padding, self.device = (
            readers,
            width,
            dtype,
            spare,
            padding,
            device,
        )
        self.ends = np.cumsum(counts)
        self.members = [reader.members[name] for reader in readers]
        self.file_ends = np.cumsum([member.shape[0] for member in self.members])

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
        rows = rows - np.append(0, self.file_ends)[files]
        view = found.data.cast("B")
        size = len(view) // len(found)
        runs = zip(*(numbers[order].tolist() for numbers in (files, rows, places, counts)), strict=True)
        for file, stretches in groupby(runs, lambda run: run[0]):
            reader, member = self.readers[file], self.members[file]
            with reader.opened() as handle:
                for _, row, place, count in stretches:
                    reader.read(handle, member.offset + row * size, view[place * size : (place + count) * size])

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> StoredColumn:
        """The same, but what is read comes to another device, or in another precision if these are real numbers."""
        readers, name, width, old, counts, spare, padding = self.given
        cast = dtype if dtype and old.is_floating_point else old
        return StoredColumn(readers, name, width, cast, counts, spare, padding, device or self.device)


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of observations, actions and what goes with them, which data sets are selections of.

    Attributes:
        action_space: of the actions.
        observation_space: of the observations.
        columns: ``observations`` `[N, O]`, ``actions`` and others. Where only some parts of the observations are bytes,
            these stand side by side in ``bytes``, and the others in ``observations``.
    """

    action_space: Space
    observation_space: Space
    columns: Mapping[str, Column | StoredColumn]

    @cached_property
    def readers(self) -> Sequence[NpzReader]:
        """The files; none in memory."""
        column = self.columns["actions"]
        return column.readers if isinstance(column, StoredColumn) else ()

    @cached_property
    def device(self) -> torch.device:
        """Where what is read comes to."""
        column = self.columns["actions"]
        return column.values.device if isinstance(column, Column) else torch.device(column.device or "cpu")

    def on_device(self, numbers: np.ndarray) -> Tensor:
        """Numbers of the host there."""
        found = torch.from_numpy(numbers)
        return found if self._on_host else found.to(self.device, non_blocking=True)

    @cached_property
    def _on_host(self) -> bool:
        return self.device.type == "cpu"

    def read(self, name: str, rows: Tensor) -> Any:
        """What is in the slots `[M]`: of a column, the flattened observations, or their parts by name; or None.

        Parts `[M, *shape]` have the shape and type of their spaces.
        """
        if name == "parts" or name == "observations" and "bytes" in self.columns:
            found = {
                key: self.columns[key].take(rows) for key in {column: None for column, _, _ in self._parts.values()}
            }
            pieces = {key: (space, found[column][:, place]) for key, (column, place, space) in self._parts.items()}
            if name == "parts":
                return {key: _in_space(*piece) for key, piece in pieces.items()}
            return torch.cat([piece.to(found["observations"].dtype) for _, piece in pieces.values()], -1)
        return self.columns[name].take(rows) if name in self.columns else None

    @cached_property
    def _parts(self) -> dict[str, tuple[str, slice, Space]]:
        """The column of each part of the observations, where in its rows it is, and its space."""
        of_bytes, ends = observation_bytes(self.observation_space), {"observations": 0, "bytes": 0}
        leaves, found = observation_leaves(self.observation_space), {}
        for name, place in observation_parts(self.observation_space).items():
            column = "bytes" if "bytes" in self.columns and of_bytes[place].any() else "observations"
            start = ends[column]
            ends[column] += place.stop - place.start
            found[name] = (column, slice(start, ends[column]), leaves[name])
        return found

    def hash_observations(self, digest: Any, rows: np.ndarray) -> None:
        """Add the observations in the slots to a hash, as the floats that version 0.1 kept."""
        for some in np.array_split(rows, max(1, len(rows) // 4096)):
            flat = self.read("observations", self.on_device(some)).cpu()
            digest.update((flat.float() if flat.dtype == torch.uint8 else flat).numpy().tobytes())


def _in_space(space: Space, flat: Tensor) -> Tensor:
    """A part of flattened observations `[M, width]` in the environment's form, `[M, *shape]`."""
    shape = (len(flat), *(space.shape or ()))
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        counts = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.reshape(-1).tolist()
        chosen = torch.stack([onehot.argmax(-1) for onehot in flat.split(counts, -1)], -1)
        flat = chosen.view(shape) + torch.as_tensor(np.asarray(space.start), device=flat.device)
    return flat.reshape(shape).to(torch.from_numpy(np.zeros(0, space.dtype)).dtype)
