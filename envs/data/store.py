"""Traces one after the other, in memory or in files: what demonstrations are a selection of, and their file format.

Shapes: B traces, U task numbers.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..._files import replacing
from ..._limits import Budget
from ...models.space_json import space_from_json, space_to_json
from ...models.spaces import as_action_space, observation_bytes
from .checks import (
    TraceError,
    bytes_if_they_are,
    check_action_kind,
    check_traces,
    number_of_actions,
    observation_space_of,
)
from .columns import Column, Columns, StoredColumn, slots_of
from .npz_reader import NpzReader, read_array

__all__ = ["SPARE", "TABLES", "Store", "load_store"]

Space = spaces.Space[Any]

# How many slots of a trace pad, by column. What is one row a trace, always in memory; its numbers of rows in a file.
SPARE = {"observations": 1, "bytes": 1, "actions": 2, "arguments": 2, "rewards": 2, "calls": 1}
TABLES, COUNTS = ("task", "terminated", "truncated"), ("counts", "call_counts")
FORMAT, FORMAT_WITH_BYTES = "pyrocontrol-demonstrations-2", "pyrocontrol-demonstrations-3"
_TEXTS = ("format", "action_space", "observation_space")
_CHECKED_BYTES = 2**21  # at a time


@dataclass(frozen=True, eq=False)
class Store(Columns):
    """Traces one after the other.

    Its columns are ``observations`` (and ``bytes``), ``actions``, ``arguments`` and, if there are any, ``rewards`` and
    ``calls``.

    Attributes:
        steps: `[B]`, observations of each trace. On the host, so that taking a minibatch from a GPU never waits for it.
        call_steps: `[B]`, annotated calls of each trace.
        tables: ``task`` `[B, U]`, ``terminated`` and ``truncated`` `[B]`.
        precision: what real numbers were cast to, or None.
    """

    steps: np.ndarray
    call_steps: np.ndarray
    tables: dict[str, Tensor]
    precision: torch.dtype | None = None

    def having(self, rows: Mapping[str, Tensor]) -> Store:
        """The same traces with these rows of columns, in memory.

        Observations that are bytes of their space, or have such parts, are kept as bytes.
        """
        seen, apart = rows["observations"], observation_bytes(self.observation_space)
        rows = {**rows, "observations": bytes_if_they_are(seen, self.observation_space)}
        if "bytes" not in rows and apart.any() and not apart.all():
            place = torch.from_numpy(apart).to(seen.device)
            taken = bytes_if_they_are(seen[:, place], spaces.Box(0, 255, (int(apart.sum()),), np.uint8))
            if taken.dtype == torch.uint8:
                rows |= {"bytes": taken, "observations": seen[:, ~place]}
        columns = {name: Column.of(value, *self._layout(name, value.shape[1:])) for name, value in rows.items()}
        return dataclasses.replace(self, columns=columns)

    def in_files(self, readers: Sequence[NpzReader], kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> Store:
        """The same traces with columns that stay in files, by name of these widths and types."""
        columns = {
            name: StoredColumn(readers, name, width, dtype, *self._layout(name, width))
            for name, (width, dtype) in kinds.items()
        }
        return dataclasses.replace(self, columns=columns)

    def _layout(self, name: str, width: Sequence[int]) -> tuple[np.ndarray, int, Any]:
        """The slots `[B]` of each trace in a column, how many of them are spare, and what these hold."""
        padding: Any = 0
        if name == "actions" and isinstance(self.action_space, spaces.Discrete):
            padding = number_of_actions(self.action_space)
        elif name == "calls":
            padding = torch.tensor([-1.0] + [0.0] * (width[0] - 1))
        return self.slots(name), SPARE[name], padding

    def slots(self, name: str) -> np.ndarray:
        """`[B]`, how many slots each trace has in a column."""
        return (self.call_steps if name == "calls" else self.steps) + 1

    @cached_property
    def everything(self) -> np.ndarray:
        """`[B]`: all traces."""
        return np.arange(len(self.steps))

    @cached_property
    def ends(self) -> dict[str, np.ndarray]:
        """The first and the last slot of each trace in a column, `[B, 2, 1]`."""
        ends = {name: np.cumsum(self.slots(name)) for name in SPARE}
        return {name: np.stack([end - self.slots(name), end - 1], 1)[..., None] for name, end in ends.items()}

    def selected(self, traces: np.ndarray) -> Store:
        """The traces `[B]`, in memory."""
        columns = {
            name: Column(column.take(self.on_device(slots_of(self.slots(name), traces))))
            for name, column in self.columns.items()
        }
        tables = {name: table[self.on_device(traces)] for name, table in self.tables.items()}
        steps, call_steps = self.steps[traces], self.call_steps[traces]
        return dataclasses.replace(self, steps=steps, call_steps=call_steps, tables=tables, columns=columns)

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> Store:
        """The same on another device, or with real numbers of another precision; of files, when they are read."""
        tables = {name: Column(table).to(device, dtype).values for name, table in self.tables.items()}
        columns = {name: column.to(device, dtype) for name, column in self.columns.items()}
        return dataclasses.replace(self, tables=tables, columns=columns, precision=dtype or self.precision)

    def rows(self, name: str, first: int = 0, last: int | None = None) -> Any:
        """The rows of a column as a file has them, of all traces or some: a tensor in memory, an array on disk."""
        column, spare, ends = self.columns[name], SPARE[name], self.ends[name]
        last = len(self.steps) if last is None else last
        start, stop = int(ends[first, 0, 0]), int(ends[last - 1, 1, 0]) + 1
        if isinstance(column, StoredColumn):
            return column.stored(start - spare * first, stop - spare * last)
        return column.values[start:stop][self.on_device(slots_of(self.slots(name)[first:last], None, spare))]

    def check(self) -> None:
        """Read everything once, in parts, and refuse bad numbers, and bytes of a file that have changed.

        Raises:
            ValueError: naming the trace and the step.
        """
        crcs: dict[str, int] = {}
        size = sum(int(np.prod(column.width)) * column.dtype.itemsize for column in self.columns.values())
        for first, last in _parts(self.steps, _CHECKED_BYTES // max(1, size)):
            rows = {name: self.rows(name, first, last) for name in self.columns}
            for name, column in self.columns.items():
                if isinstance(column, StoredColumn):
                    stored = rows[name]
                    crcs[name] = zlib.crc32(stored.data, crcs.get(name, column.members[0].header_crc))
                    rows[name] = torch.from_numpy(stored).to(column.dtype)
                    if column.dtype == torch.uint8 and (rows[name].numpy() != stored).any():
                        raise ValueError(f"{name} are no bytes, which their space is of")
            steps, call_steps = self.steps[first:last], self.call_steps[first:last]
            check_traces(rows, steps, call_steps, self.tables["task"][first:last], self.action_space, first)
        for name, crc in crcs.items():
            if crc != self.columns[name].members[0].crc:  # type: ignore[union-attr]
                raise ValueError(f"it is damaged: the bytes of {name} are not those that were written")

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file holds, in its order; of traces in memory."""
        found = {"counts": torch.from_numpy(self.steps - 1), "call_counts": torch.from_numpy(self.call_steps)}
        found |= {"calls": torch.zeros(0, 0)} | self.tables | {name: self.rows(name) for name in self.columns}
        order = "counts observations bytes actions terminated truncated task arguments call_counts calls rewards"
        return {name: found[name].cpu().numpy() for name in order.split() if name in found}

    def save(self, path: str | os.PathLike[str], compressed: bool) -> None:
        """Write one `.npz` file, which appears whole or not at all."""
        arrays = self.arrays()
        with_bytes = "bytes" in arrays or arrays["observations"].dtype == np.uint8
        texts = {
            "format": FORMAT_WITH_BYTES if with_bytes else FORMAT,
            "action_space": space_to_json(self.action_space),
            "observation_space": space_to_json(self.observation_space),
        }
        everything: dict[str, Any] = {name: np.array(text) for name, text in texts.items()} | arrays
        with replacing(Path(path)) as (temporary,), open(temporary, "wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **everything)

    @classmethod
    def joined(cls, stores: Sequence[Store], names: Sequence[Any]) -> Store:
        """The traces of several, all in memory or all in files, one after the other.

        Args:
            stores: the traces.
            names: what to call each in an error.

        Raises:
            ValueError: naming both, if spaces or widths differ (or types, in files), or only one has rewards.
        """
        if len(stores) == 1:
            return stores[0]
        kinds: list[dict[str, Any]] = []
        for store, name in zip(stores, names, strict=True):
            found = {key: (column.width, column.dtype) for key, column in store.columns.items()}
            kinds.append(found | {"task": (tuple(store.tables["task"].shape[1:]), store.tables["task"].dtype)})
            for space in ("action_space", "observation_space"):
                mine, theirs = getattr(store, space), getattr(stores[0], space)
                if space_to_json(mine) != space_to_json(theirs):  # stricter than ==, which forgives bounds and orders
                    raise ValueError(f"{name} has the {space.replace('_', ' ')} {mine}, {names[0]} has {theirs}")
            for key in kinds[0] | kinds[-1]:
                mine, theirs = (_described(key, kind.get(key), bool(store.readers)) for kind in (kinds[-1], kinds[0]))
                if mine != theirs and not (key == "calls" and "no calls" in (mine, theirs)):
                    raise ValueError(f"{name} has {mine}, {names[0]} has {theirs}")
        joined = dataclasses.replace(
            stores[0],
            steps=np.concatenate([store.steps for store in stores]),
            call_steps=np.concatenate([store.call_steps for store in stores]),
            tables={name: torch.cat([store.tables[name] for store in stores]) for name in TABLES},
        )
        having = {name: [store for store in stores if name in store.columns] for name in SPARE}
        if readers := [reader for store in stores for reader in store.readers]:
            columns = {name: some[0].columns[name] for name, some in having.items() if some}
            return joined.in_files(readers, {name: (column.width, column.dtype) for name, column in columns.items()})
        return joined.having(
            {name: torch.cat([each.rows(name) for each in some]) for name, some in having.items() if some}
        )


def _described(name: str, kind: tuple[tuple[int, ...], torch.dtype] | None, with_type: bool) -> str:
    """What is in a column, in words."""
    if kind is None:
        return f"no {name}"
    return f"{name} of {[*kind[0]]}{f' {kind[1]}'.replace('torch.', '') * with_type} a row"


def _parts(steps: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Cut traces `[B]` of these sizes into runs of at most ``most`` together, or of a single one that is larger."""
    ends, first = np.cumsum(steps), 0
    while first < len(steps):
        before = ends[first] - steps[first]
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield first, last
        first = last


# ---------------------------------------------------------------------- files


def load_store(path: str | os.PathLike[str], *, memory: bool, check: bool) -> Store:
    """Return the traces of a file, in memory or where they are. Nothing is ever unpickled.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no complete file of demonstrations, or what it says is bad.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no demonstrations at {path}")
    try:
        arrays: dict[str, Any]
        readers: list[NpzReader] = []
        if memory:
            budget = Budget(Path(path).stat().st_size)
            with zipfile.ZipFile(path) as archive:  # all that is there: what is not asked for may be damaged too
                parts = archive.infolist()
                arrays = {part.filename.removesuffix(".npy"): read_array(archive, part, budget) for part in parts}
        else:
            readers = [NpzReader(path, whole=(*_TEXTS, *TABLES, *COUNTS))]
            arrays = {**readers[0].members, **readers[0].arrays}
        store = _store_of(arrays, readers)
        if check:
            store.check()
    except TraceError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # on damaged files numpy raises a dozen kinds, from BadZipFile to TypeError
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is no complete file of demonstrations: {what}") from error
    return store


def _store_of(arrays: Mapping[str, Any], readers: Sequence[NpzReader]) -> Store:
    """The traces of a file's arrays, which are given as they are or, where they stay in the file, by shape and type."""
    for name in (*_TEXTS, *TABLES, *COUNTS, *SPARE):
        if name not in (*arrays, "bytes", "rewards"):
            raise ValueError(f"it has no array {name}")
    if (name := str(arrays["format"])) not in (FORMAT, FORMAT_WITH_BYTES):
        raise ValueError(f"its format is {name}, not {FORMAT}")
    _check_arrays(arrays)
    # A space is no larger than what stands in the file.
    widths = [
        8 * int(np.prod(arrays[name].shape[1:])) for name in ("actions", "observations", "bytes") if name in arrays
    ]
    text = {name: space_from_json(str(arrays[name]), max(2**24, sum(widths))) for name in _TEXTS[1:]}
    action_space, observation_space = as_action_space(text["action_space"]), text["observation_space"]
    steps, call_steps = arrays["counts"].astype(np.int64) + 1, arrays["call_counts"].astype(np.int64)
    tables = {name: torch.from_numpy(arrays[name]) for name in TABLES}
    names = [name for name in SPARE if name in arrays and (name != "calls" or arrays[name].shape[1])]  # none: [0, 0]
    types = {name: torch.from_numpy(np.zeros(0, arrays[name].dtype)).dtype for name in names}
    if not types["actions"].is_floating_point:
        types["actions"] = torch.long  # whatever the integers in the file
    apart = observation_bytes(observation_space)
    width = arrays["observations"].shape[1]
    if "bytes" in arrays:
        if arrays["bytes"].shape[1] != apart.sum():
            raise ValueError(f"bytes has width {arrays['bytes'].shape[1]}, the space has {apart.sum()} of them")
        width += int(apart.sum())
    observation_space_of(types["observations"], width, observation_space)
    check_action_kind(arrays["actions"].shape, types["actions"], action_space, arrays["actions"].shape[:1])
    store = Store(action_space, observation_space, {}, steps, call_steps, tables)
    if not readers:
        return store.having({name: torch.from_numpy(arrays[name]).to(types[name]) for name in names})
    if width and apart.all():
        types["observations"] = torch.uint8  # which version 0.1 stored as floats
    return store.in_files(readers, {name: (tuple(arrays[name].shape[1:]), types[name]) for name in names})


def _check_arrays(arrays: Mapping[str, Any]) -> None:
    """Check that a file's arrays belong together.

    Raises:
        ValueError: naming the array.
    """
    kinds = {"observations": ("fB", 2), "bytes": ("B", 2), "rewards": ("f", 1)}  # B for uint8
    kinds |= dict.fromkeys(("task", "arguments", "calls"), ("f", 2))
    kinds |= dict.fromkeys(("terminated", "truncated"), ("b", 1)) | dict.fromkeys(COUNTS, ("iuB", 1))
    for name in (*SPARE, *TABLES, *COUNTS):
        if name in arrays:
            dtype, shape = arrays[name].dtype, arrays[name].shape
            allowed, dimensions = kinds.get(name, ("iuBf", len(shape)))  # actions are checked against their space
            if ("B" if dtype == np.uint8 else dtype.kind) not in allowed or len(shape) != dimensions:
                raise ValueError(f"{name} has shape {shape} and type {dtype}")
    counts, calls = arrays["counts"], arrays["call_counts"]
    if len(counts) == 0:
        raise ValueError("no demonstrations: the data set is empty")
    for name in (*TABLES, "call_counts"):
        if arrays[name].shape[0] != len(counts):
            raise ValueError(f"{name} has {arrays[name].shape[0]} rows for {len(counts)} traces")
    if min(counts.min(), calls.min()) < 0:
        raise ValueError("a trace has a negative number of steps")
    if counts.min() == 0:
        raise TraceError(int(counts.argmin()), 0, "the trace is empty: it holds no action")
    actions = int(counts.sum())
    for name, spare in SPARE.items():
        what, total = ("counts, one more each,", actions + len(counts)) if spare == 1 else ("counts", actions)
        if name == "calls":
            what, total = "call_counts", int(calls.sum())
        if name in arrays and arrays[name].shape[0] != total:
            raise ValueError(f"{name} has {arrays[name].shape[0]} rows, {what} add up to {total}")
    if int(counts.max()) > actions or int(calls.max()) > arrays["calls"].shape[0]:  # of which the sum has overflowed
        raise ValueError("a trace has more steps than there are")
