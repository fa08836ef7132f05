"""Demonstrations: observation-action traces, padded into one batch, and their file on disk.

A demonstration of A actions is the trace o_0 a_0 o_1 a_1 ... o_A: A actions, A + 1 observations. It is stored in
T = A + 1 steps, of which the last one holds no action; where actions are numbered (Discrete), it holds the null, the
choice to stop. On disk only the A actions are stored.

Shapes: B demonstrations, T environment steps, I program steps, O observation numbers, A action numbers, U task numbers
(the argument of the root procedure), V numbers of an action's argument, W numbers of a program step's argument.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..._files import replacing
from ...models.space_json import space_from_json, space_to_json
from ...models.spaces import as_action_space, observation_parts
from .episodes import Episode, episodes_of, flatten_episodes
from .flat_traces import FlatTraces, TraceError, concatenate, pad
from .selection import Index, chosen_rows, split_rows
from .space_checks import check_action_kind, number_of_actions, observation_space_of, outside_space
from .transitions import Transitions

__all__ = ["Demonstrations", "Episode"]

FORMAT = "pyrocontrol-demonstrations-2"

Space = spaces.Space[Any]

_TENSORS = ("observations", "actions", "lengths", "task", "arguments", "calls", "rewards", "terminated", "truncated")
_REQUIRED = ("observations", "actions", "lengths")
# Shapes of what needs no more than a check of its shape; None for any width.
_WIDTHS: dict[str, tuple[str | None, ...]] = {
    "lengths": ("B",),
    "task": ("B", None),
    "arguments": ("B", "T", None),
    "calls": ("B", None, None),
    "rewards": ("B", "T"),
    "truncated": ("B",),
    "terminated": ("B",),
}


@dataclass(frozen=True, eq=False, repr=False)
class Demonstrations:
    """Demonstrations, padded with zeros (Discrete actions with null). A data set and a minibatch are the same class.

    Attributes:
        observations: `[B, T, O]` floats, flattened (`pyrocontrol.models.flatten_observations`), zero in the padding.
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

    Raises:
        TypeError: if something else than tensors is given, or a space that is not supported.
        ValueError: naming the trace and the step, if shapes or types disagree, an observation, task, argument or reward
            is not finite, an action is outside its space, a trace does not end with null, goes on after it or holds
            nothing else, or if there are no traces at all.
    """

    observations: Tensor
    actions: Tensor
    lengths: Tensor
    action_space: Space
    # None is filled in below, so that readers always find a space and tensors.
    observation_space: Space = None  # type: ignore[assignment]
    task: Tensor = None  # type: ignore[assignment]
    arguments: Tensor = None  # type: ignore[assignment]
    calls: Tensor | None = None
    rewards: Tensor | None = None
    terminated: Tensor = None  # type: ignore[assignment]
    truncated: Tensor = None  # type: ignore[assignment]
    # Sizes kept on the host, so that taking a minibatch from a GPU never waits for it: [B] steps, [B] program
    # steps.
    _steps: Tensor = field(init=False)
    _call_steps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for name in _TENSORS:
            value = getattr(self, name)
            if not (isinstance(value, Tensor) or (value is None and name not in _REQUIRED)):
                raise TypeError(
                    f"{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor, "
                    "or make the traces with Demonstrations.from_episodes"
                )
        if self.observations.dim() != 3:
            raise ValueError(f"observations must have shape [B, T, O], got {tuple(self.observations.shape)}")
        batch, horizon, _ = self.observations.shape
        if batch == 0:
            raise ValueError("no demonstrations: the data set is empty")
        truncated = torch.zeros(batch, dtype=torch.bool, device=self.device)
        filled: dict[str, Any] = {
            "action_space": as_action_space(self.action_space),
            "observation_space": observation_space_of(self.observations, self.observation_space),
        }
        defaults = {
            "task": self.observations.new_zeros(batch, 0),
            "arguments": self.observations.new_zeros(batch, horizon, 0),
            "truncated": truncated,
            "terminated": ~(truncated if self.truncated is None else self.truncated.bool()),
        }
        filled |= {name: value for name, value in defaults.items() if getattr(self, name) is None}
        for name, value in filled.items():
            object.__setattr__(self, name, value)
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
        sizes = {"B": batch, "T": horizon}
        check_action_kind(self.actions, self.action_space, (batch, horizon))
        for name, shape in _WIDTHS.items():
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            expected = [None if size is None else sizes[size] for size in shape]
            fits = value.dim() == len(expected) and all(
                e in (None, n) for e, n in zip(expected, value.shape, strict=True)
            )
            if not fits:
                wanted = ", ".join("any" if e is None else str(e) for e in expected)
                raise ValueError(f"{name} must have shape [{wanted}], got {tuple(value.shape)}")
            kind = {"lengths": torch.long, "terminated": torch.bool, "truncated": torch.bool}.get(name)
            if kind is not None and value.dtype != kind:
                wanted = "long integers" if kind == torch.long else "bool"
                raise ValueError(f"{name} must be {wanted}, got {value.dtype}")
            if kind is None and not value.is_floating_point():
                raise ValueError(f"{name} must be floating point, got {value.dtype}")
        for name in _TENSORS:
            value = getattr(self, name)
            if value is not None and value.device != self.device:
                raise ValueError(f"{name} is on {value.device}, observations on {self.device}")
        if self.calls is not None and self.calls.shape[-1] < 1:
            raise ValueError("calls must have at least one column, the choice")
        if not self.discrete and (self.arguments.shape[-1] or self.calls is not None):
            raise ValueError(f"arguments and calls are of Discrete actions, these are {self.action_space}")

    def _validate_values(self) -> None:
        horizon = self.actions.shape[1]
        wrong = (self._steps < 2) | (self._steps > horizon)
        if bool(wrong.any()):
            trace = int(wrong.nonzero()[0])
            length = int(self._steps[trace])
            what = "is empty: it holds no action" if length < 2 else f"has length {length}, but only {horizon} steps"
            raise TraceError(trace, 0, f"the trace {what}")

        acted, mask = self.acted, self.mask
        _refuse(~torch.isfinite(self.observations).all(-1), "the observation is NaN or infinite")
        _refuse(~torch.isfinite(self.arguments).all(-1), "the action argument is NaN or infinite")
        _refuse(~torch.isfinite(self.task).all(-1, keepdim=True), "the task is NaN or infinite")
        if self.discrete:
            other, null = self.actions != self.null, self.actions == self.null
            _refuse(mask & ~acted & other, "the trace has no end: its last action must be null", self.actions)
            _refuse(~mask & other, "an action after the end of the trace", self.actions)
            _refuse(acted & null, "null before the end of the trace", self.actions)
        else:
            _refuse(~acted & (self.actions != 0).any(-1), "an action after the last one")
        if problem := outside_space(self.actions, self.action_space, acted):
            (trace, step), what = problem
            raise TraceError(trace, step, what)
        _refuse(~mask & (self.observations != 0).any(-1), "an observation after the end of the trace")
        _refuse(~acted & (self.arguments != 0).any(-1), "an action argument after the last action")
        if self.rewards is not None:
            _refuse(~torch.isfinite(self.rewards), "the reward is NaN or infinite")
            _refuse(~acted & (self.rewards != 0), "a reward after the last action", self.rewards)
        if self.calls is not None:
            choice = self.calls[..., 0]
            live = (choice >= 0).long()
            _refuse(~torch.isfinite(self.calls).all(-1), "the annotated call is NaN or infinite", unit="call")
            _refuse(choice != choice.round(), "the annotated choice is no integer", choice, "call")
            _refuse((live > live.cummin(1).values), "an annotated call after the end of the calls", choice, "call")

    # ------------------------------------------------------------------ making, saving, loading

    @classmethod
    def from_episodes(
        cls, episodes: Sequence[Episode], action_space: Space | int, observation_space: Space | None = None
    ) -> Demonstrations:
        """Encode episodes through their spaces and pad them into one batch.

        Real numbers are cast to the type that a space declares. Without an observation space they keep float64, and
        become float32 otherwise; task, arguments and calls have the type of the observations.

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
        flat = flatten_episodes(episodes, action_space, observation_space)
        return cls.from_flat(flat, action_space, observation_space)

    @classmethod
    def from_flat(
        cls, flat: FlatTraces, action_space: Space | int, observation_space: Space | None = None, *, check: bool = True
    ) -> Demonstrations:
        """Pad traces that stand one after the other.

        Args:
            flat: the traces.
            action_space: of their actions.
            observation_space: of their observations; None for plain vectors.
            check: whether to check what they say, on the errors of the class; False for traces that were checked.
        """
        action_space, counts = as_action_space(action_space), flat.counts.astype(np.int64)
        discrete = isinstance(action_space, spaces.Discrete)
        calls = None
        if flat.calls.shape[-1] > 0:
            calls = torch.from_numpy(pad(flat.calls, flat.call_counts))
            unused = torch.arange(calls.shape[1]) >= torch.as_tensor(flat.call_counts).unsqueeze(1)
            calls[..., 0].masked_fill_(unused, -1)
        fill = number_of_actions(action_space) if discrete else 0
        actions = flat.actions if flat.actions.dtype.kind == "f" else flat.actions.astype(np.int64, copy=False)
        fields = {
            "observations": torch.from_numpy(pad(flat.observations, counts + 1)),
            "actions": torch.from_numpy(pad(actions, counts, fill, extra=1)),
            "lengths": torch.from_numpy(counts + 1),
            "task": torch.from_numpy(flat.task.copy()),
            "arguments": torch.from_numpy(pad(flat.arguments, counts, extra=1)),
            "calls": calls,
            "rewards": None if flat.rewards is None else torch.from_numpy(pad(flat.rewards, counts, extra=1)),
            "terminated": torch.from_numpy(flat.terminated.copy()),
            "truncated": torch.from_numpy(flat.truncated.copy()),
            "action_space": action_space,
        }
        if check:
            return cls(**fields, observation_space=observation_space)  # type: ignore[arg-type]
        copy = object.__new__(cls)
        copy.__dict__.update(
            fields,
            observation_space=observation_space_of(fields["observations"], observation_space),  # type: ignore[arg-type]
            _steps=fields["lengths"],
            _call_steps=torch.from_numpy(flat.call_counts.astype(np.int64)),
        )
        return copy

    def flat(self) -> FlatTraces:
        """The traces one after the other, without padding and null: what a file holds."""
        mask, acted = self.mask.cpu(), self.acted.cpu()
        calls = None if self.calls is None else self.calls.cpu()
        return FlatTraces(
            counts=(self._steps - 1).numpy(),
            observations=self.observations.cpu()[mask].numpy(),
            actions=self.actions.cpu()[acted].numpy(),
            terminated=self.terminated.cpu().numpy(),
            truncated=self.truncated.cpu().numpy(),
            task=self.task.cpu().numpy(),
            arguments=self.arguments.cpu()[acted].numpy(),
            call_counts=self._call_steps.numpy(),
            calls=np.zeros((0, 0), np.float32) if calls is None else calls[calls[..., 0] >= 0].numpy(),
            rewards=None if self.rewards is None else self.rewards.cpu()[acted].numpy(),
        )

    def to_episodes(self) -> list[Episode]:
        """The demonstrations one by one, in the environment's form; `from_episodes` takes them back bit for bit."""
        return episodes_of(self.flat(), self.action_space, self.observation_space)

    def transitions(self) -> Transitions:
        """All pairs of an observation and the action taken there, trace after trace."""
        acted = self.acted
        return Transitions(self.observations[acted], self.actions[acted], self.action_space, self.observation_space)

    def save(self, path: str | os.PathLike[str], *, compressed: bool = True) -> None:
        """Write the demonstrations to one `.npz` file. The file appears whole or not at all.

        It holds the arrays of `FlatTraces`, and `format`, `action_space` and `observation_space` (JSON) as texts.

        Args:
            path: the file. It is written under a temporary name beside it and then renamed.
            compressed: whether to compress it.
        """
        path = Path(path)
        texts = {
            "format": FORMAT,
            "action_space": space_to_json(self.action_space),
            "observation_space": space_to_json(self.observation_space),
        }
        arrays: dict[str, Any] = {name: np.array(text) for name, text in texts.items()} | self.flat().arrays()
        with replacing(path) as (temporary,), open(temporary, "wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **arrays)

    def fingerprint(self) -> str:
        """A short hash of the traces and their spaces, the same on every device and under any padding."""
        digest = hashlib.blake2b(digest_size=8)
        for space in (self.action_space, self.observation_space):
            digest.update(space_to_json(space).encode())
        for name, array in self.flat().arrays().items():
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
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
                contents are bad (see the class), naming the file.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no demonstrations at {path}")
        try:
            # Opened here, because numpy leaves the file open when it turns out to be no archive.
            with open(path, "rb") as file:
                archive = np.load(file, allow_pickle=False)
                if isinstance(archive, np.ndarray):
                    raise ValueError("it is a single array, not an .npz file")
                if str(archive["format"]) != FORMAT:
                    raise ValueError(f"its format is {archive['format']}, not {FORMAT}")
                action_space, observation_space = (
                    space_from_json(str(archive[name])) for name in ("action_space", "observation_space")
                )
                flat = FlatTraces.of_arrays(archive)
        except Exception as error:  # on damaged files numpy raises a dozen kinds, from BadZipFile to TypeError
            raise ValueError(f"{path} is no complete file of demonstrations: {error}") from error
        try:
            return cls.from_flat(flat, action_space, observation_space)
        except TraceError as error:
            raise ValueError(f"{path}: {error}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no complete file of demonstrations: {error}") from error

    # ------------------------------------------------------------------ reading

    @property
    def discrete(self) -> bool:
        """Whether the actions are numbered, so that there is a null."""
        return isinstance(self.action_space, spaces.Discrete)

    @property
    def num_actions(self) -> int:
        """How many actions there are, the null not included.

        Raises:
            TypeError: unless the actions are Discrete.
        """
        return number_of_actions(self.action_space)

    @property
    def null(self) -> int:
        """The Discrete action that ends a trace: one past the last action.

        Raises:
            TypeError: unless the actions are Discrete.
        """
        return self.num_actions

    @property
    def mask(self) -> Tensor:
        """`[B, T]` bool: which observations exist, the one at the last step included."""
        return torch.arange(self.actions.shape[1], device=self.lengths.device) < self.lengths.unsqueeze(1)

    @property
    def acted(self) -> Tensor:
        """`[B, T]` bool: at which steps an action was taken, which is all but the last."""
        return torch.arange(1, self.actions.shape[1] + 1, device=self.lengths.device) < self.lengths.unsqueeze(1)

    @property
    def observation_parts(self) -> dict[str, slice]:
        """Where in an observation each of its parts stands, by name; see `pyrocontrol.models.observation_parts`."""
        return observation_parts(self.observation_space)

    @property
    def returns(self) -> Tensor | None:
        """`[B]` floats: the sum of each trace's rewards, in float64; None where there are none."""
        return None if self.rewards is None else self.rewards.double().sum(1)

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
        rows = chosen_rows(index, len(self), "trace")
        steps, call_steps = self._steps.index_select(0, rows), self._call_steps.index_select(0, rows)
        there = rows.to(self.device, non_blocking=True)

        # index_select is several times as fast as indexing with a tensor, and this stands in every training loop.
        def take(tensor: Tensor, horizon: int | None = None) -> Tensor:
            return (tensor if horizon is None else tensor[:, :horizon]).index_select(0, there)

        horizon, call_horizon = int(steps.max()), int(call_steps.max())
        return self._replace(
            observations=take(self.observations, horizon),
            actions=take(self.actions, horizon),
            lengths=take(self.lengths),
            task=take(self.task),
            arguments=take(self.arguments, horizon),
            calls=None if self.calls is None or call_horizon == 0 else take(self.calls, call_horizon),
            rewards=None if self.rewards is None else take(self.rewards, horizon),
            terminated=take(self.terminated),
            truncated=take(self.truncated),
            _steps=steps,
            _call_steps=call_steps,
        )

    def __add__(self, other: Demonstrations) -> Demonstrations:
        """Both, the other's traces after these, where these are.

        Raises:
            ValueError: if their spaces or widths differ, or only one has rewards.
        """
        if not isinstance(other, Demonstrations):
            return NotImplemented
        for name in ("action_space", "observation_space"):
            left, right = getattr(self, name), getattr(other, name)
            if space_to_json(left) != space_to_json(right):  # stricter than ==, which forgives bounds and orders
                raise ValueError(f"demonstrations of different {name.replace('_', ' ')}s: {left} and {right}")
        flat = concatenate([self.flat(), other.flat()])
        return Demonstrations.from_flat(flat, self.action_space, self.observation_space, check=False).to(self.device)

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

        The spaces stay those of the environment.
        """
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return self._replace(
            **{
                name: value if value is None else value.to(device, dtype if value.is_floating_point() else None)
                for name, value in tensors.items()
            }
        )

    def _replace(self, **changes: Any) -> Demonstrations:
        """A copy with other tensors, known to be good: unchecked, so that no minibatch pays for checks."""
        copy = object.__new__(Demonstrations)
        copy.__dict__.update({**self.__dict__, **changes})
        return copy

    # ------------------------------------------------------------------ showing

    def summary(self) -> str:
        """One line: how many, how long, of which spaces, how good, how ended."""
        counts, width = self._steps - 1, self.observations.shape[-1]
        parts = self.observation_parts
        named = f" ({', '.join(parts)})" if 1 < len(parts) <= 8 else ""
        box = f"Box of {self.actions.shape[-1]}" if isinstance(self.action_space, spaces.Box) else self.action_space
        words = [
            f"{len(self)} trace{'s' * (len(self) > 1)}",
            f"{int(counts.sum())} actions ({int(counts.min())} to {int(counts.max())} each)",
            f"{width} observation numbers{named}",
            f"actions {box}",
        ]
        if self.returns is not None:
            words.append(f"return {self.returns.mean():.4g} (sd {self.returns.std(correction=0):.3g})")
        words.append(f"{int(self.terminated.sum())} terminated, {int(self.truncated.sum())} truncated")
        if self.task.shape[-1]:
            words.append(f"{self.task.shape[-1]} task numbers")
        if self.arguments.shape[-1]:
            words.append(f"{self.arguments.shape[-1]} action argument numbers")
        if annotated := int((self._call_steps > 0).sum()):
            words.append(f"{annotated} annotated")
        return ", ".join(words)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw returns and lengths per trace, a histogram of the actions and the ranges of the observations.

        Args:
            path: the picture, a `.png` say; its folder is made if missing.
        """
        from .demonstrations_plot import plot_demonstrations  # here, so that the import of the package stays light

        plot_demonstrations(self, path)

    def __repr__(self) -> str:
        return f"Demonstrations({self.summary()}, {self.device})"


def _refuse(bad: Tensor, what: str, value: Tensor | None = None, unit: str = "step") -> None:
    """Raise naming the first trace and step where `bad` `[B, T]` holds."""
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        shown = "" if value is None else f" (it is {value[place].item():g})"
        raise TraceError(place[0], place[1], what + shown, unit)
