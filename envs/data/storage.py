"""Demonstrations that stay on disk: a data set larger than the memory, read batch by batch.

Shapes: B demonstrations, T environment steps, N transitions, O observation numbers, A action numbers, U task numbers.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.space_json import space_from_json
from ...models.spaces import as_action_space
from .demonstrations import FORMAT, Demonstrations
from .flat_traces import FlatTraces, TraceError
from .npz_reader import NpzReader
from .selection import Index, chosen_rows, split_rows
from .space_checks import number_of_actions, outside_space
from .transitions import Transitions

__all__ = ["StoredDemonstrations", "StoredTransitions"]

Space = spaces.Space[Any]
File = str | os.PathLike[str]

# The arrays of one row a trace are kept in memory, the others stay on disk.
_KEPT = ("counts", "terminated", "truncated", "task", "call_counts")
_ON_DISK = ("observations", "actions", "arguments", "rewards", "calls")
_CHECKED_BYTES = 2**23  # of observations at a time


class _Files:
    """The files behind a data set, and what is kept of them in memory.

    Attributes:
        readers: one a file.
        action_space: of all files.
        observation_space: of all files.
        file: `[B]`, which file each trace is in.
        first: `[B]` by array on disk, the trace's first row in its file.
        counts, call_counts: `[B]`.
        terminated, truncated: `[B]` bool.
        task: `[B, U]`.
        kinds: shape of a row, and type, of each array on disk.
    """

    def __init__(self, paths: Sequence[File]) -> None:
        if not paths:
            raise ValueError("no files of demonstrations")
        self.readers: list[NpzReader] = []
        self.kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        texts: list[dict[str, str]] = []
        tables: list[FlatTraces] = []
        for path in paths:
            if not Path(path).exists():
                raise FileNotFoundError(f"no demonstrations at {path}")
            try:
                reader = NpzReader(path)
                named = {name: str(reader.array(name)) for name in ("format", "action_space", "observation_space")}
                if named["format"] != FORMAT:
                    raise ValueError(f"its format is {named['format']}, not {FORMAT}")
                self.action_space = as_action_space(space_from_json(named["action_space"]))
                self.observation_space = space_from_json(named["observation_space"])
                table = _table(reader)
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise ValueError(f"{path} is no complete file of demonstrations: {error}") from error
            self.readers.append(reader)
            texts.append(named)
            tables.append(table)
            self._agree(texts, table)
        self._tabulate(tables)
        for number, reader in enumerate(self.readers):  # a first trace shows whether widths and types fit the spaces
            first = int(np.searchsorted(self.file, number))
            self._refuse(reader.path, self.traces(np.array([first])), 0)

    def _agree(self, texts: list[dict[str, str]], table: FlatTraces) -> None:
        """Check the last file against those before.

        Raises:
            ValueError: naming both, if they hold something else.
        """
        path, first = self.readers[-1].path, self.readers[0].path
        for name in ("action_space", "observation_space"):
            if texts[-1][name] != texts[0][name]:  # stricter than ==, which forgives bounds and orders
                space = space_from_json(texts[0][name])
                raise ValueError(f"{path} has the {name.replace('_', ' ')} {getattr(self, name)}, {first} has {space}")
        found = {name: (value.shape[1:], value.dtype) for name, value in table.arrays().items()}
        if not table.calls.shape[1]:
            del found["calls"]  # nothing is annotated here, which is no matter
        if len(self.readers) > 1 and ("rewards" in found) != ("rewards" in self.kinds):
            has, had = ("rewards", "none") if "rewards" in found else ("no rewards", "some")
            raise ValueError(f"{path} has {has}, {first} has {had}")
        for name, kind in found.items():
            if name not in (*_ON_DISK, "task"):
                continue
            if (known := self.kinds.setdefault(name, kind)) != kind:
                ours, theirs = (f"{list(shape)} {dtype}" for shape, dtype in (kind, known))
                raise ValueError(f"{path} has {name} of {ours} a row, those before have {theirs}")

    def _tabulate(self, tables: list[FlatTraces]) -> None:
        self.file = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        self.counts, self.call_counts = (
            np.concatenate([getattr(table, name) for table in tables]).astype(np.int64)
            for name in ("counts", "call_counts")
        )
        self.terminated, self.truncated, self.task = (
            np.concatenate([getattr(table, name) for table in tables]) for name in ("terminated", "truncated", "task")
        )

        def starts(name: str, extra: int = 0) -> np.ndarray:
            rows = [getattr(table, name).astype(np.int64) + extra for table in tables]
            return np.concatenate([np.cumsum(count) - count for count in rows])

        of_actions = starts("counts")
        self.first = dict.fromkeys(("actions", "arguments", "rewards"), of_actions)
        self.first |= {"observations": starts("counts", 1), "calls": starts("call_counts")}

    def __len__(self) -> int:
        return len(self.file)

    def gather(self, file: np.ndarray, rows: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        """Read stretches of rows of arrays on disk.

        Args:
            file: `[N]`, which file each stretch is in.
            rows: by array: where the stretches begin in the file `[N]`, and how many rows each has `[N]`.

        Returns:
            The rows of all stretches, one after the other, by array.
        """
        found: dict[str, np.ndarray] = {}
        views: dict[str, memoryview] = {}
        todo: list[tuple[int, str, int, int, int]] = []
        for name, (first, counts) in rows.items():
            shape, dtype = self.kinds[name]
            found[name] = np.empty((int(counts.sum()), *shape), dtype)
            if found[name].size == 0:
                continue
            views[name] = found[name].data.cast("B")
            size = len(views[name]) // len(found[name])
            # Stretches that follow each other in the file are read at once.
            new = np.flatnonzero((np.diff(file) != 0) | (first[1:] != (first + counts)[:-1])) + 1
            new = np.concatenate([[0], new])
            place = (np.cumsum(counts) - counts)[new] * size
            ends = np.append(place[1:], len(views[name]))
            columns = (file[new], first[new] * size, place, ends)
            todo += [
                (which, name, begin, start, end)
                for which, begin, start, end in zip(*(column.tolist() for column in columns), strict=True)
            ]
        for which, stretches in groupby(sorted(todo), lambda stretch: stretch[0]):
            reader = self.readers[which]
            with reader.opened() as handle:
                for _, name, begin, start, end in stretches:
                    reader.read(handle, reader.members[name].offset + begin, views[name][start:end])
        return found

    def traces(self, chosen: np.ndarray) -> FlatTraces:
        """Read the traces ``chosen`` `[B]`, in this order."""
        counts, call_counts = self.counts[chosen], self.call_counts[chosen]
        sizes = dict.fromkeys(("actions", "arguments", "rewards"), counts)
        sizes |= {"observations": counts + 1, "calls": call_counts}
        rows = {name: (self.first[name][chosen], sizes[name]) for name in self.kinds if name != "task"}
        if not call_counts.any():
            rows.pop("calls", None)
        arrays = {"calls": np.zeros((0, 0), np.float32)} | self.gather(self.file[chosen], rows)
        return FlatTraces(
            counts=counts,
            terminated=self.terminated[chosen],
            truncated=self.truncated[chosen],
            task=self.task[chosen],
            call_counts=call_counts,
            **arrays,
        )

    def check(self) -> None:
        """Read everything once, in parts, and refuse what `Demonstrations` refuses, and bytes that have changed.

        Raises:
            ValueError: naming the file, the trace and the step.
        """
        (width,), dtype = self.kinds["observations"]
        rows = _CHECKED_BYTES // max(1, width * dtype.itemsize)
        for number, reader in enumerate(self.readers):
            start, end = np.searchsorted(self.file, [number, number + 1])
            crcs = {name: reader.members[name].header_crc for name in _ON_DISK if name in reader.members}
            for first, last in _parts(self.counts[start:end] + 1, rows):
                flat = self.traces(np.arange(start + first, start + last))
                for name in crcs:
                    crcs[name] = zlib.crc32(getattr(flat, name), crcs[name])
                if not _good(flat, self.action_space):
                    self._refuse(reader.path, flat, first)
            for name, crc in crcs.items():
                if crc != reader.members[name].crc:
                    raise ValueError(f"{reader.path} is damaged: the bytes of {name} are not those that were written")

    def _refuse(self, path: Path, flat: FlatTraces, first: int) -> None:
        """Let `Demonstrations` say what is wrong, one trace at a time, so that no long one is padded against many.

        Args:
            path: of the file.
            flat: some of its traces.
            first: which of its traces they begin with.
        """
        ends, calls = np.cumsum(flat.counts), np.cumsum(flat.call_counts)
        for index, (count, call_count) in enumerate(zip(flat.counts, flat.call_counts, strict=True)):
            rows = {name: slice(index, index + 1) for name in _KEPT}
            rows |= dict.fromkeys(("actions", "arguments", "rewards"), slice(ends[index] - count, ends[index]))
            rows["observations"] = slice(ends[index] - count + index, ends[index] + index + 1)
            rows["calls"] = slice(calls[index] - call_count, calls[index])
            one = FlatTraces(**{name: value[rows[name]] for name, value in flat.arrays().items()})
            try:
                Demonstrations.from_flat(one, self.action_space, self.observation_space)
            except TraceError as error:
                raise ValueError(f"{path}: {TraceError(first + index, error.step, error.what, error.unit)}") from error
            except ValueError as error:
                raise ValueError(f"{path} is no complete file of demonstrations: {error}") from error


def _table(reader: NpzReader) -> FlatTraces:
    """A file's traces, checked to belong together; the arrays that stay on disk have their shape and type alone.

    Raises:
        ValueError: if an array is missing, or does not fit the others.
    """
    if missing := [name for name in (*_KEPT, *_ON_DISK) if name not in (*reader.members, "rewards")]:
        raise ValueError(f"it has no array {missing[0]}")
    arrays = {name: reader.array(name) for name in _KEPT}
    for name in _ON_DISK:
        if name in reader.members:
            member = reader.members[name]
            arrays[name] = np.broadcast_to(np.zeros((), member.dtype), member.shape)  # one element of memory
    table = FlatTraces.of_arrays(arrays)
    if (empty := np.flatnonzero(table.counts == 0)).size:
        raise TraceError(int(empty[0]), 0, "the trace is empty: it holds no action")
    return table


def _parts(counts: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Cut traces `[B]` of these sizes into runs of at most ``most`` together, or of a single one that is larger."""
    ends, first = np.cumsum(counts), 0
    while first < len(counts):
        before = ends[first] - counts[first]
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield first, last
        first = last


def _good(flat: FlatTraces, action_space: Space) -> bool:
    """Whether `Demonstrations` certainly has nothing against these numbers; at a tenth of the time it needs itself."""
    reals = (flat.observations, flat.task, flat.arguments, flat.calls, flat.rewards)
    if not all(value is None or np.isfinite(value).all() for value in reals):
        return False
    choice = flat.calls[:, 0] if flat.calls.shape[1] else np.zeros(0)
    if (choice < 0).any() or (choice != choice.round()).any():
        return False
    actions = _as_tensor(flat.actions)
    return outside_space(actions, action_space, torch.ones(len(actions), dtype=torch.bool)) is None


def _as_tensor(actions: np.ndarray) -> Tensor:
    return torch.from_numpy(actions if actions.dtype.kind == "f" else actions.astype(np.int64, copy=False))


class StoredDemonstrations:
    """Demonstrations in files, read when they are asked for; `fit` trains on them as on `Demonstrations`.

    They are for `fit` and for :meth:`transitions`; what needs all traces at once, such as hindsight or DAgger, takes a
    batch of them.

    A batch is a `Demonstrations` and comes from positioned reads (``preadv``, which Linux and macOS have): only a few
    numbers a trace are kept in memory, whatever the size of the files, and no file is open in between. Any number of
    threads may read at once, and what is pickled, for a worker process, opens the files again by itself.

    Args:
        path: a file written by ``Demonstrations.save(path, compressed=False)``, or several, of equal spaces, whose
            traces follow each other.
        check: whether to read everything once, in parts of at least a trace, for damaged files and for the errors of
            `Demonstrations`; without, a bad number behind a file's first trace goes unnoticed.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: naming the file, if one is truncated, damaged, compressed, something else than a file of
            demonstrations or of other spaces, types or widths than the first one; naming trace and step as well, if
            what it says is bad. Nothing is ever unpickled.

    Example:
        >>> import tempfile
        >>> from pyrocontrol.envs import bubble_sort
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bubble_sort.demonstrations(20, seed=0).save(f"{folder}/a.npz", compressed=False)
        ...     stored = StoredDemonstrations(f"{folder}/a.npz")
        ...     train, test = stored.split(0.9)
        ...     print(len(train), len(test), len(train[[3, 5]]))
        18 2 2
    """

    def __init__(self, path: File | Sequence[File], *, check: bool = True) -> None:
        self._files = _Files([path] if isinstance(path, str | os.PathLike) else list(path))
        if check:
            self._files.check()
        self._traces = np.arange(len(self._files))  # [B], which traces of the files these are
        self._device: torch.device | str | None = None
        self._dtype: torch.dtype | None = None

    @property
    def action_space(self) -> Space:
        """Discrete, MultiDiscrete or Box."""
        return self._files.action_space

    @property
    def observation_space(self) -> Space:
        """Of the environment."""
        return self._files.observation_space

    @property
    def num_actions(self) -> int:
        """How many actions there are, the null not included.

        Raises:
            TypeError: unless the actions are Discrete.
        """
        return number_of_actions(self.action_space)

    @property
    def lengths(self) -> Tensor:
        """`[B]` long, observations of each trace: its actions + 1."""
        return torch.from_numpy(self._files.counts[self._traces] + 1)

    @property
    def terminated(self) -> Tensor:
        """`[B]` bool, traces that ended of their own accord."""
        return torch.from_numpy(self._files.terminated[self._traces])

    @property
    def truncated(self) -> Tensor:
        """`[B]` bool, traces that were cut off."""
        return torch.from_numpy(self._files.truncated[self._traces])

    def __len__(self) -> int:
        return len(self._traces)

    def __iter__(self) -> Iterator[Demonstrations]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Index) -> Demonstrations:
        """Read the chosen traces. An int gives a batch of one, ``[:]`` all of them, in memory.

        Args:
            index: int, slice, integer sequence or tensor, or boolean mask `[B]`.

        Raises:
            IndexError: if it points outside the data set.
            OSError: if a file cannot be read any more.
            ValueError: if it chooses nothing, or a file has changed.
        """
        chosen = self._traces[chosen_rows(index, len(self), "trace").numpy()]
        flat = self._files.traces(chosen)
        batch = Demonstrations.from_flat(flat, self.action_space, self.observation_space, check=False)
        return batch.to(self._device, self._dtype) if self._device or self._dtype else batch

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> StoredDemonstrations:
        """The same demonstrations, whose batches come to another device, or with real numbers of another precision."""
        return self._replace(_device=device or self._device, _dtype=dtype or self._dtype)

    def split(self, fraction: float, seed: int = 0) -> tuple[StoredDemonstrations, StoredDemonstrations]:
        """Two disjoint parts, whole traces each: those that `Demonstrations.split` chooses.

        Args:
            fraction: how much of the traces the first part gets, rounded to whole traces.
            seed: decides which.

        Raises:
            ValueError: if a part would be empty.
        """
        first, second = split_rows(len(self), fraction, seed)
        return self._replace(_traces=self._traces[first]), self._replace(_traces=self._traces[second])

    def transitions(self) -> StoredTransitions:
        """The pairs of an observation and the action taken there, trace after trace, as a data set on disk."""
        return StoredTransitions(self)

    def fingerprint(self) -> str:
        """A short hash of the files, of the traces chosen and of the precision, for which no trace is read.

        It covers names, shapes, types and CRC-32s of the arrays, as their writer noted them, and the order of the
        files, wherever they are. It is another one than that of the same `Demonstrations` in memory.
        """
        digest = hashlib.blake2b(f"{self._dtype} ".encode(), digest_size=8)
        for reader in self._files.readers:
            for name, member in reader.members.items():
                digest.update(f"{name} {member.shape} {member.dtype} {member.crc} ".encode())
        digest.update(self._traces.tobytes())
        return digest.hexdigest()

    def _replace(self, **changes: Any) -> StoredDemonstrations:
        copy = object.__new__(StoredDemonstrations)
        copy.__dict__.update({**self.__dict__, **changes})
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        paths = [reader.path for reader in self._files.readers]
        changes = {name: value for name, value in self.__dict__.items() if name != "_files"}
        return _reopened, (paths, changes, self.fingerprint())

    def summary(self) -> str:
        """One line: how many traces in how many files, how long, of which spaces."""
        files, counts = len(self._files.readers), self._files.counts[self._traces]
        return (
            f"{len(self)} traces in {files} file{'s' * (files > 1)}, {int(counts.sum())} actions "
            f"({int(counts.min())} to {int(counts.max())} each), {self._files.kinds['observations'][0][0]} observation "
            f"numbers, actions {self.action_space}"
        )

    def __repr__(self) -> str:
        return f"StoredDemonstrations({self.summary()})"


class StoredTransitions:
    """Pairs of an observation and the action taken there, read when they are asked for: a batch is a `Transitions`.

    A random batch is as many small reads. Where the files are larger than what the system caches of them, reading
    whole traces is many times faster for the same number of steps, and a reactive policy learns from these too.

    Args:
        demonstrations: where they come from, trace after trace.
    """

    goals = None  # as in `Transitions`: demonstrations have none

    def __init__(self, demonstrations: StoredDemonstrations) -> None:
        self.demonstrations = demonstrations
        self._ends = (demonstrations.lengths - 1).cumsum(0).numpy()  # [B], transitions up to the end of each trace

    @property
    def action_space(self) -> Space:
        """Discrete, MultiDiscrete or Box."""
        return self.demonstrations.action_space

    @property
    def observation_space(self) -> Space:
        """Of the environment."""
        return self.demonstrations.observation_space

    @property
    def num_actions(self) -> int:
        """How many actions there are.

        Raises:
            TypeError: unless the actions are Discrete.
        """
        return self.demonstrations.num_actions

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __iter__(self) -> Iterator[Transitions]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Index) -> Transitions:
        """Read the chosen transitions. An int gives a batch of one.

        Args:
            index: int, slice, integer sequence or tensor, or boolean mask `[N]`.

        Raises:
            IndexError: if it points outside the data set.
            OSError: if a file cannot be read any more.
            ValueError: if it chooses nothing, or a file has changed, or a number in it is bad.
        """
        chosen = chosen_rows(index, len(self), "transition").numpy()
        whole, files = self.demonstrations, self.demonstrations._files
        place = np.searchsorted(self._ends, chosen, side="right")
        trace = whole._traces[place]
        step = chosen - (self._ends[place] - files.counts[trace])
        once = np.ones_like(chosen)
        found = files.gather(
            files.file[trace],
            {name: (files.first[name][trace] + step, once) for name in ("observations", "actions")},
        )
        batch = Transitions(
            torch.from_numpy(found["observations"]),
            _as_tensor(found["actions"]),
            self.action_space,
            self.observation_space,
        )
        return batch.to(whole._device, whole._dtype) if whole._device or whole._dtype else batch

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> StoredTransitions:
        """The same transitions, whose batches come to another device, or with real numbers of another precision."""
        return StoredTransitions(self.demonstrations.to(device, dtype))

    def fingerprint(self) -> str:
        """A short hash, as that of `StoredDemonstrations`."""
        return f"transitions-{self.demonstrations.fingerprint()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredTransitions, (self.demonstrations,)

    def __repr__(self) -> str:
        return f"StoredTransitions({len(self)}, of {self.demonstrations})"


def _reopened(paths: list[Path], changes: dict[str, Any], fingerprint: str) -> StoredDemonstrations:
    """Unpickle: the files as they are now, if they are what they were."""
    stored = StoredDemonstrations(paths, check=False)._replace(**changes)
    if stored.fingerprint() != fingerprint:
        raise ValueError(f"{', '.join(map(str, paths))}: not the data set any more that was pickled")
    return stored
