"""Demonstrations: observation-action traces, in memory or on disk, padded when a batch of them is read.

A demonstration of A actions is the trace o_0 a_0 o_1 a_1 ... o_A: A actions, A + 1 observations. In a batch it has
T = A + 1 steps, of which the last one holds no action; where actions are numbered (Discrete), it holds the null, the
choice to stop. Only the A actions are stored.

Shapes: B demonstrations, T environment steps, I program steps, O observation numbers, A action numbers, U task numbers
(the argument of the root procedure), V numbers of an action's argument, W numbers of a program step's argument.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.space_json import space_to_json
from ...models.spaces import action_size, as_action_space, decode_actions, observation_size, unflatten_observations
from .checks import TraceError, check_action_kind, number_of_actions, observation_space_of, refuse
from .columns import slots_of
from .dataset import Dataset, when_read
from .episodes import Episode, rows_of_episodes
from .selection import Index, chosen_rows, split_rows
from .store import SPARE, TABLES, Store, load_store
from .transitions import Transitions

__all__ = ["Demonstrations", "Episode", "StoredDemonstrations", "StoredTransitions"]

Space = spaces.Space[Any]
File = str | os.PathLike[str]

_NONE: Mapping[str, Any] = {}
# Shapes of what needs no more than a check of its shape; None for any width.
_OPTIONAL: dict[str, tuple[str | None, ...]] = {
    "task": ("B", None),
    "arguments": ("B", "T", None),
    "calls": ("B", None, None),
    "rewards": ("B", "T"),
    "truncated": ("B",),
    "terminated": ("B",),
}
_WIDTHS = {"lengths": ("B",), **_OPTIONAL}


class Demonstrations(Dataset):
    """Demonstrations, in memory or on disk: a data set, a part of it and a minibatch are the same class.

    Traces of any lengths are kept one after the other. What is read of some of them is padded then, with zeros
    (Discrete actions with null), to the longest of these, and kept; what is not read costs nothing.

    What `load` leaves on disk is read when it is asked for, by positioned reads: only a few numbers a trace are kept in
    memory, whatever the size of the files, and no file is open in between. Any number of threads may read at once, and
    what is pickled, for a worker process, opens the files again by itself.

    Args:
        observations: `[B, T, O]`, flattened (`pyrocontrol.models.flatten_observations`), zero in the padding: floats,
            or bytes (uint8) if all parts of their space are bytes. Parts that are bytes are kept as bytes.
        actions: stored actions (`pyrocontrol.models.encode_actions`). Discrete: `[B, T]` long, null (= n) at step
            `lengths - 1` and in the padding; MultiDiscrete: `[B, T, A]` long, and Box: `[B, T, A]` floats, both zero
            there.
        lengths: `[B]` long, observations of each trace: its actions + 1.
        action_space: Discrete, MultiDiscrete or Box; an integer n stands for `Discrete(n)`.
        observation_space: of the environment; None stands for all vectors of the observations' type.
        task: `[B, U]` floats, the root procedure's argument. `U` may be 0, which is the default.
        arguments: `[B, T, V]` floats, the arguments of Discrete actions, zero at the null and in the padding. `V` may
            be 0, which is the default.
        calls: `[B, I, 1 + W]` floats, the annotated call traces of Discrete actions: column 0 the choice, the others
            its argument. Padding has choice -1 and argument 0; a trace without annotation is all padding. None where
            no trace is annotated.
        rewards: `[B, T]` floats, of each action, zero at step `lengths - 1` and in the padding; None where there are
            none.
        terminated: `[B]` bool, traces that ended of their own accord. By default those that were not truncated.
        truncated: `[B]` bool, traces that were cut off; by default none. Neither holds for a fragment.

    Attributes:
        mask: `[B, T]` bool, which observations exist, the one at the last step included; those of the arguments are
            attributes too, and those of `Dataset`.

    Raises:
        TypeError: if something else than tensors is given, or a space that is not supported.
        ValueError: naming the trace and the step, if shapes or types disagree, an observation, task, argument or reward
            is not finite, an action is outside its space, a trace does not end with null, goes on after it or holds
            nothing else, or if there are no traces at all.

    Example:
        >>> import tempfile
        >>> from pyrocontrol.envs import bubble_sort
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bubble_sort.demonstrations(20, seed=0).save(f"{folder}/a.npz", compressed=False)
        ...     stored = Demonstrations.load(f"{folder}/a.npz", memory=False)
        ...     train, test = stored.split(0.9)
        ...     print(len(train), len(test), train[[3, 5]].actions.shape[0])
        18 2 2
    """

    lengths: Tensor = when_read()
    task: Tensor = when_read()
    arguments: Tensor = when_read()
    calls: Tensor | None = when_read()
    rewards: Tensor | None = when_read()
    terminated: Tensor = when_read()
    truncated: Tensor = when_read()
    mask: Tensor = when_read()
    # Of each trace its observations [B], B and T, and the slots [B T] in the columns of steps.
    _steps: np.ndarray = when_read()
    _shape: tuple[int, int] = when_read()
    _slots: Tensor = when_read()
    _source: Store
    _changes: Mapping[str, Tensor | None]  # what `_replace` has put in the place of what the source holds

    def __init__(
        self,
        observations: Tensor,
        actions: Tensor,
        lengths: Tensor,
        action_space: Space | int,
        observation_space: Space | None = None,
        task: Tensor | None = None,
        arguments: Tensor | None = None,
        calls: Tensor | None = None,
        rewards: Tensor | None = None,
        terminated: Tensor | None = None,
        truncated: Tensor | None = None,
    ) -> None:
        given = dict(observations=observations, actions=actions, lengths=lengths, task=task, arguments=arguments)
        given |= dict(calls=calls, rewards=rewards, truncated=truncated, terminated=terminated)
        for name, value in given.items():
            if not (isinstance(value, Tensor) or value is None and name in _OPTIONAL):
                raise TypeError(
                    f"{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor, "
                    "or make the traces with Demonstrations.from_episodes"
                )
        if observations.dim() != 3:
            raise ValueError(f"observations must have shape [B, T, O], got {tuple(observations.shape)}")
        if len(observations) == 0:
            raise ValueError("no demonstrations: the data set is empty")
        action_space = as_action_space(action_space)
        space = observation_space_of(observations.dtype, observations.shape[2], observation_space)
        check_action_kind(actions.shape, actions.dtype, action_space, tuple(observations.shape[:2]))
        tensors = {name: value for name, value in given.items() if value is not None}
        nothing = observations[..., :0] if observations.is_floating_point() else observations[..., :0].float()
        tensors = {
            "task": nothing[:, 0],
            "arguments": nothing,
            "truncated": torch.zeros_like(nothing[:, 0, :1]).sum(1).bool(),
        } | tensors
        tensors.setdefault("terminated", ~tensors["truncated"].bool())
        _check_shapes(tensors)
        steps, live = _check_padding(tensors, action_space)
        rows = {name: tensors[name][live[name]] for name in SPARE if name in tensors}
        call_steps = live["calls"].sum(1).cpu().numpy() if "calls" in tensors else np.zeros_like(steps)
        tables = {name: tensors[name].clone() for name in TABLES}
        store = Store(action_space, space, {}, steps, call_steps, tables).having(rows)
        store.check()
        self.__dict__.update(self._of(store).__dict__)

    @classmethod
    def _of(cls, store: Store, rows: np.ndarray | None = None) -> Demonstrations:
        """Traces of a store: unchecked, so that no minibatch pays for checks."""
        made = object.__new__(cls)
        made.__dict__.update(_source=store, _rows=store.everything if rows is None else rows, _changes=_NONE)
        return made

    # ------------------------------------------------------------------ making, saving, loading

    @classmethod
    def from_episodes(
        cls, episodes: Sequence[Episode], action_space: Space | int, observation_space: Space | None = None
    ) -> Demonstrations:
        """Encode episodes through their spaces.

        Real numbers are cast to the type that a space declares. Without an observation space they keep float64, and
        become float32 otherwise; task, arguments and calls have the type of the observations, float32 where these are
        bytes.

        Args:
            episodes: the demonstrations, all with the same widths.
            action_space: Discrete, MultiDiscrete or Box, or a number of actions, the null not included.
            observation_space: of the environment; None for plain vectors.

        Raises:
            TypeError: if one of them is no `Episode`, or a space is not supported.
            ValueError: naming the trace and the step, on the errors of the class, on shapes or kinds that are not
                those of the spaces or of the episodes before, on a number of observations that is not the number of
                actions + 1, and on a number of arguments or rewards that is not the number of actions.
        """
        action_space = as_action_space(action_space)
        rows, steps, call_steps, tables = rows_of_episodes(episodes, action_space, observation_space)
        seen = rows["observations"]
        space = observation_space or observation_space_of(seen.dtype, seen.shape[1], None)
        store = Store(action_space, space, {}, steps, call_steps, tables).having(rows)
        store.check()
        return cls._of(store)

    def to_episodes(self) -> list[Episode]:
        """The demonstrations one by one, in the environment's form; `from_episodes` takes them back bit for bit."""
        return [one._episode() for one in self.read()]

    def _episode(self) -> Episode:
        """The only trace of this batch, which has no padding then."""

        def given(value: Tensor | None, until: int | None = None) -> Any:
            return None if value is None or value.dim() == 3 and not value.shape[2] else value[0, :until].cpu().numpy()

        return Episode(
            observations=unflatten_observations(self.observation_space, given(self.observations)),
            actions=decode_actions(self.action_space, self.actions[0, :-1].cpu().numpy()),
            task=given(self.task) if self.task.shape[1] else None,
            arguments=given(self.arguments, -1),
            calls=given(self.calls),
            rewards=given(self.rewards, -1),
            terminated=bool(self.terminated),
            truncated=bool(self.truncated),
        )

    def transitions(self) -> Transitions:
        """All pairs of an observation and the action taken there, trace after trace."""
        made = self._settled()
        slots = slots_of(made._source.slots("actions"), made._rows, SPARE["actions"])
        return Transitions._of(made._source, slots, traces=made if made.on_disk else None)

    def save(self, path: File, *, compressed: bool = True) -> None:
        """Write the demonstrations to one `.npz` file. The file appears whole or not at all.

        It holds, one trace after the other and without padding, ``counts`` (actions of each trace), ``observations``,
        ``actions``, ``terminated``, ``truncated``, ``task``, ``arguments``, ``call_counts``, ``calls``, ``rewards`` if
        there are any, and ``bytes`` if only some parts of the observations are bytes; and ``format``,
        ``action_space`` and ``observation_space`` (JSON) as texts.

        Args:
            path: the file. It is written under a temporary name beside it and then renamed.
            compressed: whether to compress it; without, parts of it can be read from disk.
        """
        self._whole().save(path, compressed)

    @classmethod
    def load(cls, path: File | Sequence[File], *, memory: bool = True, check: bool = True) -> Demonstrations:
        """Read what `save` wrote, to the last bit. Nothing is ever unpickled.

        Args:
            path: a file, or several, of equal spaces, whose traces follow each other.
            memory: whether to load everything into memory; False leaves it on disk, which needs files that are not
                compressed, and Linux or macOS.
            check: whether to read everything once, in parts, for damage and for the errors of the class. Without,
                what cannot be seen from the arrays' shapes goes unnoticed.

        Raises:
            TypeError: if a file is not given by its path.
            FileNotFoundError: if there is no such file.
            ValueError: naming the file, if it is truncated, damaged, something else than a file of demonstrations or
                of other spaces, types or widths than the first one; naming trace and step as well, if what it says is
                bad.
        """
        paths = [path] if isinstance(path, str | os.PathLike) or not isinstance(path, Iterable) else list(path)
        if wrong := [each for each in paths if not isinstance(each, str | os.PathLike)]:
            raise TypeError(f"a file is given by its path, got {wrong[0]!r}")
        if not paths:
            raise ValueError("no files of demonstrations")
        return cls._of(Store.joined([load_store(each, memory=memory, check=check) for each in paths], paths))

    def read(self) -> Demonstrations:
        """The same demonstrations in memory, and nothing else of what they were chosen from."""
        return self._of(self._whole())

    def fingerprint(self) -> str:
        """A short hash of the traces and their spaces, the same on every device and under any padding.

        On disk it is of the files, the traces chosen and the precision, for which no trace is read: names, shapes,
        types and CRC-32s of the arrays, as their writer noted them, and the order of the files, wherever they are. It
        is another one than that of the same demonstrations in memory.
        """
        digest, made = hashlib.blake2b(digest_size=8), self._settled()
        if made.on_disk:
            digest.update(f"{made._source.precision} ".encode())
            for reader in made._source.readers:
                for name, member in reader.members.items():
                    digest.update(f"{name} {member.shape} {member.dtype} {member.crc} ".encode())
            digest.update(made._rows.tobytes())
            return digest.hexdigest()
        for space in (self.action_space, self.observation_space):
            digest.update(space_to_json(space).encode())
        store = self._whole()
        for name, array in store.arrays().items():
            if name == "observations":  # hashed as version 0.1 did
                dtype = "float32" if array.dtype == np.uint8 else array.dtype
                digest.update(f"{name} {dtype} {(len(array), observation_size(self.observation_space))} ".encode())
                store.hash_observations(digest, slots_of(store.slots(name), None, SPARE[name]))
            elif name != "bytes":
                digest.update(f"{name} {array.dtype} {array.shape} ".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()

    def _whole(self) -> Store:
        """A store in memory of these traces and no others."""
        made = self._settled()
        kept = made._rows is made._source.everything and not made.on_disk
        return made._source if kept else made._source.selected(made._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.on_disk or self._changes:
            return self._of, (self._whole(),)
        paths = [reader.path for reader in self._source.readers]
        return _reopened, (paths, self._rows, self.device, self._source.precision, self.fingerprint())

    # ------------------------------------------------------------------ reading a batch

    def _read(self, name: str) -> Any:
        store, rows = self._source, self._rows
        if name in ("observations", "actions", "arguments", "rewards"):
            found = store.read(name, self._slots)
            return found if found is None else found.view(*self._shape, *found.shape[1:])
        if name == "_slots":
            return self._side_by_side("actions", self._shape[1])
        if name == "_shape":
            return len(rows), int(self._steps.max())
        if name == "_steps":
            return store.steps[rows]
        if name == "lengths":
            return store.on_device(self._steps.copy())
        if name in ("mask", "acted"):
            return store.on_device(np.arange(self._shape[1]) < self._steps[:, None] - (name == "acted"))
        if name in TABLES:
            return store.tables[name].index_select(0, store.on_device(rows))
        if name == "calls":
            horizon = int(store.call_steps[rows].max()) if name in store.columns else 0
            return store.read(name, self._side_by_side(name, horizon)).view(len(rows), horizon, -1) if horizon else None
        made = self._settled()
        parts = made._source.read("parts", made._slots)
        return {name: part.view(*self._shape, *part.shape[1:]) for name, part in parts.items()}

    def _side_by_side(self, name: str, horizon: int) -> Tensor:
        """The slots of the traces in a batch `[B horizon]`: after its end each shows its last one, which pads.

        It is computed on the host, by NumPy, which takes half the time of torch for so little.
        """
        ends = self._source.ends[name][self._rows]
        return self._source.on_device(np.minimum(ends[:, 0] + np.arange(horizon), ends[:, 1]).reshape(-1))

    @property
    def returns(self) -> Tensor | None:
        """`[B]` floats: the sum of each trace's rewards, in float64; None where there are none."""
        return None if self.rewards is None else self.rewards.double().sum(1)

    @property
    def discrete(self) -> bool:
        """Whether the actions are numbered, so that there is a null."""
        return isinstance(self.action_space, spaces.Discrete)

    @property
    def null(self) -> int:
        """The Discrete action that ends a trace: one past the last action.

        Raises:
            TypeError: unless the actions are Discrete.
        """
        return self.num_actions

    # ------------------------------------------------------------------ choosing

    def __getitem__(self, index: Index) -> Demonstrations:
        """The chosen traces. An int gives a batch of one.

        Args:
            index: int, slice, integer sequence or tensor, or boolean mask `[B]`.

        Raises:
            IndexError: if it points outside the data set.
            ValueError: if it chooses nothing.
        """
        made = self._settled() if self._changes else self
        return self._of(made._source, chosen_rows(made._rows, index, "trace"))

    def __add__(self, other: Demonstrations) -> Demonstrations:
        """Both in memory, the other's traces after these, where these are.

        Raises:
            ValueError: if their spaces or widths differ, or only one has rewards.
        """
        if not isinstance(other, Demonstrations):
            return NotImplemented
        stores = [self._whole(), other._whole().to(self.device, None)]
        return self._of(Store.joined(stores, ("the first", "the second")))

    def split(self, fraction: float, seed: int = 0) -> tuple[Demonstrations, Demonstrations]:
        """Two disjoint parts, whole traces each, in the order they have here.

        Args:
            fraction: how much of the traces the first part gets, rounded to whole traces.
            seed: decides which.

        Raises:
            ValueError: if a part would be empty.
        """
        first, second = split_rows(len(self), fraction, seed)
        return self[first], self[second]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Demonstrations:
        """The same demonstrations on another device, or with their real numbers in another precision.

        The spaces stay those of the environment. What is on disk stays there, and is moved and cast when it is read.
        """
        if self.on_disk and not self._changes:
            return self._of(self._source.to(device, dtype), self._rows)
        return self._of(self._whole().to(device, dtype))

    def replace(self, **changes: Any) -> Demonstrations:
        """The same with other arguments of the class, in memory, checked as at construction.

        Args:
            **changes: tensors padded as in this batch (None takes away what may be missing), or spaces.
        """
        names = ("observations", "actions", *_WIDTHS, "action_space", "observation_space")
        return Demonstrations(**{name: getattr(self, name) for name in names if name not in changes} | changes)

    def _replace(self, **changes: Tensor | None) -> Demonstrations:
        """A copy with other tensors for the same steps, known to be good: unchecked, so that no minibatch pays."""
        copy = self._of(self._source, self._rows)
        changes = {**self._changes, **changes}
        copy.__dict__.update(changes, _changes=changes)
        return copy

    def _settled(self) -> Demonstrations:
        """The same with what was replaced in a store, in memory; itself if nothing was."""
        if not self._changes:
            return self
        store = self._source.selected(self._rows)
        rows = {name: store.rows(name) for name in store.columns}
        for name, value in self._changes.items():
            rows.pop("bytes" if name == "observations" else name, None)
            if name in TABLES and value is not None:
                store = dataclasses.replace(store, tables=store.tables | {name: value})
            elif name == "calls" and value is not None:
                live = value[..., 0] >= 0
                rows[name], store = value[live], dataclasses.replace(store, call_steps=live.sum(1).cpu().numpy())
            elif value is not None:
                rows[name] = value[self.mask if name == "observations" else self.acted]
        return self._of(store.having(rows))

    # ------------------------------------------------------------------ showing

    def summary(self) -> str:
        """One line: how many, how long, of which spaces, how good (in memory), how ended."""
        count, counts, files = len(self), self._steps - 1, len(self._source.readers)
        parts = self.observation_parts
        named = f" ({', '.join(parts)})" if 1 < len(parts) <= 8 else ""
        box = (
            f"Box of {action_size(self.action_space)}"
            if isinstance(self.action_space, spaces.Box)
            else self.action_space
        )
        words = [
            f"{count} trace{'s' * (count > 1)}" + f" in {files} file{'s' * (files > 1)}" * (files > 0),
            f"{int(counts.sum())} actions ({int(counts.min())} to {int(counts.max())} each)",
            f"{observation_size(self.observation_space)} observation numbers{named}",
            f"actions {box}",
        ]
        if not files and self.returns is not None:
            words.append(f"return {self.returns.mean():.4g} (sd {self.returns.std(correction=0):.3g})")
        words.append(f"{int(self.terminated.sum())} terminated, {int(self.truncated.sum())} truncated")
        if self.task.shape[-1]:
            words.append(f"{self.task.shape[-1]} task numbers")
        if arguments := self._source.columns["arguments"].width[0]:
            words.append(f"{arguments} action argument numbers")
        if annotated := int((self._source.call_steps[self._rows] > 0).sum()):
            words.append(f"{annotated} annotated")
        return ", ".join(words)

    def plot(self, path: File) -> None:
        """Draw returns and lengths per trace, a histogram of the actions and the ranges of the observations.

        Args:
            path: the picture, a `.png` say; its folder is made if missing.
        """
        from .demonstrations_plot import plot_demonstrations  # here, so that the import of the package stays light

        plot_demonstrations(self, path)

    def __repr__(self) -> str:
        return f"Demonstrations({self.summary()}, {self.device})"


def StoredDemonstrations(path: File | Sequence[File], *, check: bool = True) -> Demonstrations:  # noqa: N802
    """Demonstrations that stay in their files: ``Demonstrations.load(path, memory=False, check=check)``."""
    return Demonstrations.load(path, memory=False, check=check)


def StoredTransitions(demonstrations: Demonstrations) -> Transitions:  # noqa: N802
    """The transitions of demonstrations: ``demonstrations.transitions()``."""
    return demonstrations.transitions()


def _reopened(
    paths: Sequence[File],
    rows: np.ndarray | None,
    device: torch.device,
    precision: torch.dtype | None,
    fingerprint: str,
) -> Demonstrations:
    """Unpickle: the files as they are now, if they are what they were."""
    store = Demonstrations.load(paths, memory=False, check=False)._source.to(device, precision)
    found = Demonstrations._of(store, rows)
    if found.fingerprint() != fingerprint:
        raise ValueError(f"{', '.join(map(str, paths))}: not the data set any more that was pickled")
    return found


def _check_shapes(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a padded batch that do not belong together."""
    seen = tensors["observations"]
    for name, value in tensors.items():
        expected = [None if size is None else seen.shape["BT".index(size)] for size in _WIDTHS.get(name, ())]
        fits = len(expected) == value.dim() and all(e in (None, n) for e, n in zip(expected, value.shape, strict=True))
        if expected and not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in expected)
            raise ValueError(f"{name} must have shape [{wanted}], got {tuple(value.shape)}")
        kind = {"lengths": torch.long, "terminated": torch.bool, "truncated": torch.bool}.get(name)
        if expected and (value.dtype != kind if kind else not value.is_floating_point()):
            wanted = {None: "floating point", torch.long: "long integers", torch.bool: "bool"}[kind]
            raise ValueError(f"{name} must be {wanted}, got {value.dtype}")
        if value.device != seen.device:
            raise ValueError(f"{name} is on {value.device}, observations on {seen.device}")
    if "calls" in tensors and tensors["calls"].shape[-1] < 1:
        raise ValueError("calls must have at least one column, the choice")


def _check_padding(tensors: Mapping[str, Tensor], action_space: Space) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Refuse padded traces that do not end where their lengths say.

    Returns:
        Lengths `[B]` on the host, and by tensor where there is something in it, `[B, T]`.
    """
    actions, steps = tensors["actions"], tensors["lengths"].cpu().numpy().copy()
    wrong = (steps < 2) | (steps > actions.shape[1])
    if wrong.any():
        trace, length = int(wrong.argmax()), int(steps[wrong][0])
        what = (
            f"has length {length}, but only {actions.shape[1]} steps" if length > 1 else "is empty: it holds no action"
        )
        raise TraceError(trace, 0, f"the trace {what}")
    clock, lengths = torch.arange(actions.shape[1], device=actions.device), tensors["lengths"].unsqueeze(1)
    mask, acted = clock < lengths, clock + 1 < lengths
    if isinstance(action_space, spaces.Discrete):
        null = actions == number_of_actions(action_space)
        refuse(mask & ~acted & ~null, "the trace has no end: its last action must be null", actions)
        refuse(~mask & ~null, "an action after the end of the trace", actions)
        refuse(acted & null, "null before the end of the trace", actions)
    else:
        refuse(~acted & (actions != 0).any(-1), "an action after the last one")
    refuse(~mask & (tensors["observations"] != 0).any(-1), "an observation after the end of the trace")
    refuse(~acted & (tensors["arguments"] != 0).any(-1), "an action argument after the last action")
    if "rewards" in tensors:
        refuse(~acted & (tensors["rewards"] != 0), "a reward after the last action", tensors["rewards"])
    live = {"observations": mask, "actions": acted, "arguments": acted, "rewards": acted}
    if "calls" in tensors:
        choice = tensors["calls"][..., 0]
        live["calls"] = choice >= 0
        ended = (~live["calls"]).cummax(1).values
        refuse(~torch.isfinite(tensors["calls"]).all(-1), "the annotated call is NaN or infinite", unit="call")
        refuse(live["calls"] & ended, "an annotated call after the end of the calls", choice, "call")
    return steps, live
