"""Demonstrations: observation-action traces, padded into one batch, and their file on disk.

A demonstration of A actions is the trace o_0 a_0 o_1 a_1 ... o_A null: A actions, A + 1 observations, and a
last step at which the demonstrator chose to stop. Its length T = A + 1 counts that last step. On disk only
the A actions are stored; the null is appended on load.

Shapes: B demonstrations, T environment steps, I program steps, O observation numbers, U task numbers (the
argument of the root procedure), V numbers of an action's argument, W numbers of a program step's argument.
"""

from __future__ import annotations

import hashlib
import operator
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Demonstrations", "Episode"]

FORMAT = "pyrocontrol-demonstrations-1"

Index = int | slice | Sequence[int] | Tensor | np.ndarray


class Episode(NamedTuple):
    """One demonstration, without padding and without the null.

    Attributes:
        observations: `[A + 1, O]`, the last one is what the demonstrator saw when it stopped.
        actions: `[A]` integers.
        task: `[U]`, or None where the task has no argument.
        arguments: `[A, V]`, the argument of each action, or None where actions have none.
        calls: `[I, 1 + W]`, the annotated call trace (choice index, then the argument), or None.
        terminated: whether the demonstrator stopped of its own accord. A trace that was cut off is no
            demonstration of stopping and is refused.
    """

    observations: np.ndarray
    actions: np.ndarray
    task: np.ndarray | None = None
    arguments: np.ndarray | None = None
    calls: np.ndarray | None = None
    terminated: bool = True


@dataclass(frozen=True, eq=False, repr=False)
class Demonstrations:
    """Demonstrations, padded with zeros (actions with null). A data set and a minibatch are the same class.

    Attributes:
        observations: `[B, T, O]` floats, zero in the padding.
        actions: `[B, T]` long; null (= `num_actions`) at step `lengths - 1` and in the padding.
        lengths: `[B]` long, steps of each trace, the null included.
        num_actions: how many actions there are, the null not included.
        task: `[B, U]` floats, the root procedure's argument. `U` may be 0, which is the default.
        arguments: `[B, T, V]` floats, the actions' arguments, zero at the null and in the padding. `V` may be
            0, which is the default.
        calls: `[B, I, 1 + W]` floats, the annotated call traces: column 0 the choice, the others its
            argument. Padding has choice -1 and argument 0; a trace without annotation is all padding. None
            where no trace is annotated.

    Raises:
        TypeError: if something else than tensors is given.
        ValueError: naming the trace and the step, if shapes disagree, an observation, task or argument is not
            finite, an action is outside `0..num_actions-1`, a trace does not end with null, goes on after it
            or holds nothing else, or if there are no traces at all.
    """

    observations: Tensor
    actions: Tensor
    lengths: Tensor
    num_actions: int
    task: Tensor = None  # type: ignore[assignment]  # filled in below, so that readers always find a tensor
    arguments: Tensor = None  # type: ignore[assignment]
    calls: Tensor | None = None
    # Sizes kept on the host, so that taking a minibatch from a GPU never waits for it: [B] steps, [B] program
    # steps.
    _steps: Tensor = field(init=False)
    _call_steps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "lengths", "task", "arguments", "calls"):
            value = getattr(self, name)
            if not (isinstance(value, Tensor) or (value is None and name in ("task", "arguments", "calls"))):
                raise TypeError(
                    f"{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor, "
                    "or make the traces with Demonstrations.from_episodes"
                )
        object.__setattr__(self, "num_actions", _positive(self.num_actions))
        if self.observations.dim() != 3:
            raise ValueError(f"observations must have shape [B, T, O], got {tuple(self.observations.shape)}")
        batch, horizon, _ = self.observations.shape
        for name, shape in (("task", (batch, 0)), ("arguments", (batch, horizon, 0))):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.observations.new_zeros(shape))
        self._validate_shapes(batch, horizon)
        object.__setattr__(self, "_steps", self.lengths.cpu())
        self._validate_values()
        if self.calls is None:
            call_steps = torch.zeros(batch, dtype=torch.long)
        else:
            call_steps = (self.calls[..., 0] >= 0).sum(1).cpu()
        object.__setattr__(self, "_call_steps", call_steps)

    # ------------------------------------------------------------------ checks

    def _validate_shapes(self, batch: int, horizon: int) -> None:
        if batch == 0:
            raise ValueError("no demonstrations: the data set is empty")
        shapes: dict[str, tuple[Tensor, tuple[int | None, ...]]] = {
            "actions": (self.actions, (batch, horizon)),
            "lengths": (self.lengths, (batch,)),
            "task": (self.task, (batch, None)),
            "arguments": (self.arguments, (batch, horizon, None)),
        }
        if self.calls is not None:
            shapes["calls"] = (self.calls, (batch, None, None))
        for name, (value, expected) in shapes.items():
            fits = value.dim() == len(expected) and all(
                e in (None, n) for e, n in zip(expected, value.shape, strict=True)
            )
            if not fits:
                wanted = ", ".join("any" if e is None else str(e) for e in expected)
                raise ValueError(f"{name} must have shape [{wanted}], got {tuple(value.shape)}")
            integral = name in ("actions", "lengths")
            if integral and value.dtype != torch.long:
                raise ValueError(f"{name} must be long integers, got {value.dtype}")
            if not integral and not value.is_floating_point():
                raise ValueError(f"{name} must be floating point, got {value.dtype}")
            if value.device != self.observations.device:
                raise ValueError(f"{name} is on {value.device}, observations on {self.observations.device}")
        if not self.observations.is_floating_point():
            raise ValueError(f"observations must be floating point, got {self.observations.dtype}")
        if self.calls is not None and self.calls.shape[-1] < 1:
            raise ValueError("calls must have at least one column, the choice")

    def _validate_values(self) -> None:
        horizon, null = self.actions.shape[1], self.null
        bad = _first((self._steps < 2) | (self._steps > horizon))
        if bad is not None:
            length = int(self._steps[bad[0]])
            what = "is empty: it holds no action" if length < 2 else f"has length {length}, but only {horizon} steps"
            raise ValueError(f"trace {bad[0]}, step 0: the trace {what}")

        step = torch.arange(horizon, device=self.actions.device)
        ending = step == (self.lengths - 1).unsqueeze(1)  # [B, T]
        beyond = step >= self.lengths.unsqueeze(1)
        for name, value in (("observation", self.observations), ("action argument", self.arguments)):
            _refuse(~torch.isfinite(value).all(-1), f"the {name} is NaN or infinite")
        _refuse(~torch.isfinite(self.task).all(-1, keepdim=True), "the task is NaN or infinite")

        _refuse(
            ending & (self.actions != null),
            "the trace has no end: its last action must be null",
            self.actions,
        )
        _refuse(beyond & (self.actions != null), "an action after the end of the trace", self.actions)
        inside = ~ending & ~beyond
        _refuse(inside & (self.actions == null), "null before the end of the trace", self.actions)
        _refuse(
            inside & ((self.actions < 0) | (self.actions > null)),
            f"an action outside 0..{null - 1}",
            self.actions,
        )
        _refuse(beyond & (self.observations != 0).any(-1), "an observation after the end of the trace")
        _refuse((beyond | ending) & (self.arguments != 0).any(-1), "an action argument after the last action")
        if self.calls is not None:
            choice = self.calls[..., 0]
            live = (choice >= 0).long()
            _refuse(~torch.isfinite(self.calls).all(-1), "the annotated call is NaN or infinite", step_name="call")
            _refuse(choice != choice.round(), "the annotated choice is no integer", choice, "call")
            _refuse((live > live.cummin(1).values), "an annotated call after the end of the calls", choice, "call")

    # ------------------------------------------------------------------ making, saving, loading

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode], num_actions: int) -> Demonstrations:
        """Pad episodes into one batch and append the null to each.

        Args:
            episodes: the demonstrations, all with the same widths.
            num_actions: how many actions there are, the null not included.

        Raises:
            TypeError: if one of them is no `Episode`.
            ValueError: naming the trace and the step, on the errors of the class, on ragged widths, on a
                number of observations that is not the number of actions + 1, on a number of arguments that is
                not the number of actions, and on an episode that did not terminate.
        """
        num_actions = _positive(num_actions)
        if len(episodes) == 0:
            raise ValueError("no demonstrations: the data set is empty")
        names = ("observations", "actions", "task", "arguments", "calls")
        columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
        annotated: list[int] = []
        for index, episode in enumerate(episodes):
            if not isinstance(episode, Episode):
                raise TypeError(f"trace {index} must be an Episode, got {type(episode).__name__}")
            actions = _checked_column("actions", episode.actions, index, columns["actions"])
            task = np.zeros(0, np.float32) if episode.task is None else episode.task
            arguments = np.zeros((len(actions), 0), np.float32) if episode.arguments is None else episode.arguments
            columns["actions"].append(actions)
            for name, value in (("observations", episode.observations), ("task", task), ("arguments", arguments)):
                columns[name].append(_checked_column(name, value, index, columns[name]))
            if (count := len(columns["arguments"][-1])) != len(actions):
                step = min(count, len(actions))
                raise ValueError(f"trace {index}, step {step}: {count} arguments for {len(actions)} actions")
            if episode.calls is not None:
                columns["calls"].append(_checked_column("calls", episode.calls, index, columns["calls"]))
                annotated.append(index)
        call_counts = np.zeros(len(episodes), np.int64)
        call_counts[annotated] = [len(calls) for calls in columns["calls"]]
        return cls._from_flat(
            {
                "observations": np.concatenate(columns["observations"]),
                "actions": np.concatenate(columns["actions"]),
                "task": np.stack(columns["task"]),
                "arguments": np.concatenate(columns["arguments"]),
                "counts": np.array([len(a) for a in columns["actions"]]),
                "observation_counts": np.array([len(o) for o in columns["observations"]]),
                "terminated": np.array([e.terminated for e in episodes], dtype=bool),
                "calls": np.concatenate(columns["calls"] or [np.zeros((0, 0), np.float32)]),
                "call_counts": call_counts,
            },
            num_actions,
        )

    @classmethod
    def _from_flat(cls, flat: dict[str, np.ndarray], num_actions: int) -> Demonstrations:
        """Pad concatenated episodes: A actions and A + 1 observations each."""
        counts = flat["counts"]
        for index, (actions, observations) in enumerate(zip(counts, flat["observation_counts"], strict=True)):
            if actions == 0:
                raise ValueError(f"trace {index}, step 0: the trace is empty: it holds no action")
            if observations != actions + 1:
                raise ValueError(
                    f"trace {index}, step {min(observations, actions)}: {observations} observations "
                    f"for {actions} actions; a trace has one observation more than actions"
                )
        if not flat["terminated"].all():
            index = int(np.flatnonzero(~flat["terminated"])[0])
            raise ValueError(
                f"trace {index}, step {counts[index]}: the trace has no end: it was cut off, not terminated"
            )
        outside = (flat["actions"] < 0) | (flat["actions"] >= num_actions)
        if outside.any():  # said here, because a null among the actions would be a different error once padded
            place = int(np.flatnonzero(outside)[0])
            index = int(np.searchsorted(np.cumsum(counts), place, side="right"))
            step = place - int(counts[:index].sum())
            raise ValueError(
                f"trace {index}, step {step}: an action outside 0..{num_actions - 1} (it is {flat['actions'][place]})"
            )
        lengths = counts + 1
        calls = None
        if flat["calls"].shape[-1] > 0:
            calls = torch.from_numpy(_pad(flat["calls"], flat["call_counts"], 0))
            unused = torch.arange(calls.shape[1]) >= torch.from_numpy(flat["call_counts"]).unsqueeze(1)
            calls[..., 0].masked_fill_(unused, -1)
        return cls(
            observations=torch.from_numpy(_pad(flat["observations"], lengths, 0)),
            actions=torch.from_numpy(_pad(flat["actions"].astype(np.int64), counts, num_actions, extra=1)),
            lengths=torch.from_numpy(lengths.astype(np.int64)),
            num_actions=num_actions,
            task=torch.from_numpy(flat["task"]),
            arguments=torch.from_numpy(_pad(flat["arguments"], counts, 0, extra=1)),
            calls=calls,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the demonstrations to one `.npz` file. The file appears whole or not at all.

        Args:
            path: the file. It is written under a temporary name beside it and then renamed.
        """
        path = Path(path)
        arrays: dict[str, Any] = {"format": np.array(FORMAT), **self._flat()}
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _flat(self) -> dict[str, np.ndarray]:
        """The traces without padding and null, concatenated: what a file holds."""
        mask, acts = self.mask.cpu(), self.mask.cpu()
        acts[torch.arange(len(self)), self._steps - 1] = False
        flat = {
            "num_actions": np.array(self.num_actions),
            "counts": (self._steps - 1).numpy(),
            "observation_counts": self._steps.numpy(),
            "terminated": np.ones(len(self), dtype=bool),
            "observations": self.observations.cpu()[mask].numpy(),
            "actions": self.actions.cpu()[acts].numpy(),
            "arguments": self.arguments.cpu()[acts].numpy(),
            "task": self.task.cpu().numpy(),
            "call_counts": self._call_steps.numpy(),
            "calls": np.zeros((0, 0), np.float32),
        }
        if self.calls is not None:
            calls = self.calls.cpu()
            flat["calls"] = calls[calls[..., 0] >= 0].numpy()
        return flat

    def fingerprint(self) -> str:
        """A short hash of the traces, the same on every device and under any padding."""
        digest = hashlib.blake2b(digest_size=8)
        for name, array in self._flat().items():
            digest.update(f"{name} {array.nbytes} ".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Demonstrations:
        """Read a file written by `save`, to the last bit. Never unpickles.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is truncated, damaged or something else than a file of demonstrations, or if its
                contents are bad (see the class).
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no demonstrations at {path}")
        names = ("counts", "observation_counts", "terminated", "observations", "actions", "arguments", "task")
        try:
            # Opened here, because numpy leaves the file open when it turns out to be no archive.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                if str(archive["format"]) != FORMAT:
                    raise ValueError(f"its format is {archive['format']}, not {FORMAT}")
                flat = {name: archive[name] for name in (*names, "calls", "call_counts")}
                num_actions = int(archive["num_actions"])
            _check_flat(flat)
        except Exception as error:  # on damaged files numpy raises a dozen kinds, from BadZipFile to TypeError
            raise ValueError(f"{path} is no complete file of demonstrations: {error}") from error
        return cls._from_flat(flat, num_actions)

    # ------------------------------------------------------------------ reading

    @property
    def null(self) -> int:
        """The action that ends a trace: one past the last action."""
        return self.num_actions

    @property
    def mask(self) -> Tensor:
        """`[B, T]` bool: which steps exist, the null step included."""
        return torch.arange(self.actions.shape[1], device=self.lengths.device) < self.lengths.unsqueeze(1)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.observations.device

    def __len__(self) -> int:
        return self.observations.shape[0]

    def __iter__(self) -> Iterator[Demonstrations]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Index) -> Demonstrations:
        """The chosen traces, trimmed to the longest of them. An int gives a batch of one.

        Args:
            index: int, slice, integer sequence or tensor, or boolean mask `[B]`.

        Raises:
            IndexError: if it points outside the data set.
            ValueError: if it chooses nothing.
        """
        rows = torch.arange(len(self))
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"trace {index} of {len(self)}")
            rows = rows[int(index)].unsqueeze(0)
        elif isinstance(index, slice):
            rows = rows[index]
        else:
            rows = rows[torch.as_tensor(index).cpu()]
        if len(rows) == 0:
            raise ValueError("no demonstrations: the selection is empty")
        horizon, call_horizon = int(self._steps[rows].max()), int(self._call_steps[rows].max())
        there = rows.to(self.device, non_blocking=True)
        return self._replace(
            observations=self.observations[there, :horizon],
            actions=self.actions[there, :horizon],
            lengths=self.lengths[there],
            task=self.task[there],
            arguments=self.arguments[there, :horizon],
            calls=None if self.calls is None or call_horizon == 0 else self.calls[there, :call_horizon],
            _steps=self._steps[rows],
            _call_steps=self._call_steps[rows],
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Demonstrations:
        """The same demonstrations on another device, or with their real numbers in another precision."""
        reals = {name: getattr(self, name).to(device, dtype) for name in ("observations", "task", "arguments")}
        return self._replace(
            **reals,
            actions=self.actions.to(device),
            lengths=self.lengths.to(device),
            calls=None if self.calls is None else self.calls.to(device, dtype),
        )

    def _replace(self, **changes: Any) -> Demonstrations:
        """A copy with other tensors, known to be good: unchecked, so that no minibatch pays for checks."""
        copy = object.__new__(Demonstrations)
        copy.__dict__.update({**self.__dict__, **changes})
        return copy

    def __repr__(self) -> str:
        annotated = int((self._call_steps > 0).sum())
        return (
            f"Demonstrations({len(self)} traces, {int(self._steps.sum())} steps "
            f"(longest {int(self._steps.max())}), "
            f"{self.observations.shape[-1]} observation numbers, {self.num_actions} actions with "
            f"{self.arguments.shape[-1]} argument numbers, {self.task.shape[-1]} task numbers, "
            f"{annotated} annotated, {self.device})"
        )


def _first(bad: Tensor) -> tuple[int, ...] | None:
    """Where the first true element is, or None."""
    return tuple(torch.nonzero(bad)[0].tolist()) if bool(bad.any()) else None


def _refuse(bad: Tensor, what: str, value: Tensor | None = None, step_name: str = "step") -> None:
    """Raise ValueError naming the first trace and step where `bad` `[B, T]` holds."""
    place = _first(bad)
    if place is not None:
        shown = "" if value is None else f" (it is {value[place].item():g})"
        raise ValueError(f"trace {place[0]}, {step_name} {place[1]}: {what}{shown}")


def _positive(num_actions: Any) -> int:
    """The number of actions as an int, from an integer of any kind."""
    try:
        number = operator.index(num_actions)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"num_actions must be a positive integer, got {num_actions!r}")
    return number


def _checked_column(name: str, given: Any, index: int, before: list[np.ndarray]) -> np.ndarray:
    """One array of episode `index`, with its kind checked, and its width against the episodes' before."""
    place = f"trace {index}, {'call' if name == 'calls' else 'step'} 0"
    dimensions = 1 if name in ("actions", "task") else 2
    try:
        value = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with a gradient
        raise ValueError(f"{place}: {name} cannot be made an array: {error}") from error
    if value.ndim != dimensions:
        raise ValueError(f"{place}: {name} must have {dimensions} dimensions, got shape {value.shape}")
    if name == "actions":
        if value.size and value.dtype.kind not in "iu":
            raise ValueError(f"{place}: actions must be integers, got {value.dtype}")
        return value.astype(np.int64)
    if value.dtype.kind not in "fiub":
        raise ValueError(f"{place}: {name} must be numbers, got {value.dtype}")
    if name == "calls" and value.shape[1] == 0:
        raise ValueError(f"{place}: calls must have at least one column, the choice")
    if before and value.shape[-1] != before[0].shape[-1]:
        raise ValueError(f"{place}: {name} have width {value.shape[-1]}, those before have {before[0].shape[-1]}")
    return value.astype(np.float32)


def _pad(flat: np.ndarray, counts: np.ndarray, fill: float, extra: int = 0) -> np.ndarray:
    """Spread concatenated rows `[sum(counts), ...]` over `[B, max(counts) + extra, ...]`."""
    padded = np.full((len(counts), int(counts.max()) + extra, *flat.shape[1:]), fill, dtype=flat.dtype)
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded[row, column] = flat
    return padded


def _check_flat(flat: dict[str, np.ndarray]) -> None:
    """Check that the arrays of a file belong together; what they say is checked later."""
    for name, dimensions in (
        *(("observations", 2), ("arguments", 2), ("task", 2), ("calls", 2), ("actions", 1)),
        *(("counts", 1), ("observation_counts", 1), ("call_counts", 1), ("terminated", 1)),
    ):
        kind = "b" if name == "terminated" else "f" if dimensions == 2 else "iu"
        if flat[name].ndim != dimensions or flat[name].dtype.kind not in kind:
            raise ValueError(f"{name} has shape {flat[name].shape} and type {flat[name].dtype}")
    batch = len(flat["counts"])
    if batch == 0:
        raise ValueError("no demonstrations: the data set is empty")
    for name in ("observation_counts", "call_counts", "terminated", "task"):
        if len(flat[name]) != batch:
            raise ValueError(f"{name} has {len(flat[name])} rows for {batch} traces")
    for name, total in (
        *(("observations", "observation_counts"), ("actions", "counts")),
        *(("arguments", "counts"), ("calls", "call_counts")),
    ):
        if flat[total].min() < 0 or len(flat[name]) != flat[total].sum():
            raise ValueError(f"{name} has {len(flat[name])} rows, {total} add up to {flat[total].sum()}")
