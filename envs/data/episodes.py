"""Episodes: one demonstration each, as it was recorded, and how they become traces to store.

Shapes: A actions of an episode, O observation numbers, U task numbers, V numbers of an action's argument, I program
steps, W numbers of a program step's argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.spaces import (
    SpaceError,
    encode_actions,
    flatten_observations,
    observation_bytes,
    observation_size,
    unflatten_observations,
)
from .checks import TraceError

__all__ = ["Episode", "rows_of_episodes"]

Space = spaces.Space[Any]

_EXTRAS = {"task": 1, "arguments": 2, "calls": 2, "rewards": 1}  # what else an episode may have, and its dimensions


class Episode(NamedTuple):
    """One demonstration, without padding and without the null.

    Attributes:
        observations: A + 1 of them, the last one after the last action: a batch in the environment's form (an array,
            or dicts and tuples of arrays), or flattened `[A + 1, O]`.
        actions: A of them, a batch in the environment's form; those of a Box may be flattened.
        task: `[U]`, or None where the task has no argument.
        arguments: `[A, V]`, the argument of each action, or None where actions have none.
        calls: `[I, 1 + W]`, the annotated call trace (choice index, then the argument), or None.
        rewards: `[A]`, or None where none were recorded.
        terminated: whether the episode ended of its own accord: the environment reached a terminal state, or the
            demonstrator stopped. None means: unless it was truncated.
        truncated: whether it was cut off, at a time limit say. Neither is true of a fragment.
    """

    observations: Any
    actions: np.ndarray
    task: np.ndarray | None = None
    arguments: np.ndarray | None = None
    calls: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminated: bool | None = None
    truncated: bool = False


def rows_of_episodes(
    episodes: Sequence[Episode], action_space: Space, observation_space: Space | None = None
) -> tuple[dict[str, Tensor], np.ndarray, np.ndarray, dict[str, Tensor]]:
    """Encode episodes and put them one after the other.

    Args:
        episodes: the demonstrations.
        action_space: a space that `check_action_space` accepts.
        observation_space: None for plain vectors.

    Returns:
        What a `Store` takes: rows by column, steps and calls of each trace, tables.

    Raises:
        TypeError: if one of them is no `Episode`.
        ValueError: naming the trace and the step, if something has another shape or kind than its space or than in
            the episodes before, numbers disagree, or an action is outside its space; see
            `Demonstrations.from_episodes`. Whether observations are finite is not checked here.
    """
    if len(episodes) == 0:
        raise ValueError("no demonstrations: the data set is empty")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*_EXTRAS, "observations", "bytes", "actions")}
    call_steps = np.zeros(len(episodes), np.int64)
    whole = None  # whether the observations are integers
    apart = observation_bytes(observation_space) if observation_space is not None else np.zeros(0, bool)
    for index, episode in enumerate(episodes):
        if not isinstance(episode, Episode):
            raise TypeError(f"trace {index} must be an Episode, got {type(episode).__name__}")
        actions = _actions(action_space, episode.actions, index)
        if observation_space is None:
            seen = _column("observations", episode.observations, index, columns["observations"], 2)
            kinds = ("floats", "integers")[:: -1 if np.asarray(episode.observations).dtype.kind != "f" else 1]
            if whole not in (None, kinds):
                raise TraceError(index, 0, f"observations are {kinds[0]}, those before are {kinds[1]}")
            whole = kinds
        else:
            seen = _flat_observations(observation_space, episode.observations, index)
        what = f"{len(seen)} observations for {len(actions)} actions; a trace has one observation more than actions"
        if len(seen) != len(actions) + 1:
            raise TraceError(index, min(len(seen), len(actions)), what)
        if apart.any() and not apart.all():
            columns["bytes"].append(seen[:, apart].astype(np.uint8))
            seen = seen[:, ~apart]
        columns["observations"].append(seen)
        columns["actions"].append(actions)
        none = {"task": np.zeros(0, np.float32), "arguments": np.zeros((len(actions), 0), np.float32)}
        for name, dimensions in _EXTRAS.items():
            if (given := none.get(name) if getattr(episode, name) is None else getattr(episode, name)) is not None:
                value = _column(name, given, index, columns[name], dimensions)
                if name in ("arguments", "rewards") and len(value) != len(actions):
                    what = f"{len(value)} {name} for {len(actions)} actions"
                    raise TraceError(index, min(len(value), len(actions)), what)
                columns[name].append(value)
        if len(columns["rewards"]) not in (0, index + 1):
            has, had = ("no rewards", "have") if episode.rewards is None else ("rewards", "have none")
            raise TraceError(index, 0, f"the trace has {has}, those before {had}")
        call_steps[index] = 0 if episode.calls is None else len(columns["calls"][-1])
    columns["task"] = [np.stack(columns["task"])]
    joined = {name: np.concatenate(column) for name, column in columns.items() if column}
    # What else there is has the precision of the observations, so that a model reads numbers of one kind.
    real = np.promote_types(joined["observations"].dtype, np.float32)
    rows = {
        name: torch.from_numpy(column.astype(real, copy=False) if name in ("task", "arguments", "calls") else column)
        for name, column in joined.items()
    }
    terminated = [bool(not e.truncated if e.terminated is None else e.terminated) for e in episodes]
    tables = {"task": rows.pop("task"), "terminated": torch.tensor(terminated)}
    tables["truncated"] = torch.tensor([bool(episode.truncated) for episode in episodes])
    return rows, np.array([len(actions) + 1 for actions in columns["actions"]]), call_steps, tables


def _actions(space: Space, given: Any, index: int) -> np.ndarray:
    """The stored actions of one episode, `[A]` or `[A, ...]`."""
    try:
        value = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with a gradient
        raise TraceError(index, 0, f"actions cannot be made an array: {error}") from error
    if value.ndim > 0 and len(value) == 0:
        raise TraceError(index, 0, "the trace is empty: it holds no action")
    shape = space.shape or ()
    if isinstance(space, spaces.Box) and value.ndim == 2 and value.shape[1] == int(np.prod(shape)):
        value = value.reshape((len(value), *shape))  # they came flattened
    if value.ndim != 1 + len(shape):
        raise TraceError(index, 0, f"actions must have {1 + len(shape)} dimensions, got shape {value.shape}")
    try:
        stored = encode_actions(space, value)
    except SpaceError as error:
        raise TraceError(index, error.index[0] if error.index else 0, str(error)) from error
    return stored.astype(np.float32) if stored.dtype == np.float16 else stored


def _flat_observations(space: Space, given: Any, index: int) -> np.ndarray:
    """`[A + 1, O]`, the observations of one episode, flattened if they are not."""
    size = observation_size(space)
    came_flat = getattr(given, "ndim", 0) == 2 and tuple(given.shape[1:]) == (size,) != space.shape
    if isinstance(space, spaces.MultiDiscrete) and space.shape == (size,):  # of one value each: these or their one-hots
        came_flat = np.asarray(given).dtype.kind == "f"
    try:
        # Those that came flattened go to the environment's form and back, to be checked like all others.
        flat = flatten_observations(space, unflatten_observations(space, given) if came_flat else given)
    except SpaceError as error:
        raise TraceError(index, error.index[0] if error.index else 0, str(error)) from error
    if flat.ndim != 2:
        raise TraceError(index, 0, f"the observations must be a batch, one a step, got shape {flat.shape} flattened")
    if came_flat:
        numbers = np.asarray(given).astype(np.promote_types(flat.dtype, np.float32))
        changed = ((flat != numbers) & np.isfinite(numbers)).any(-1)
        if changed.any():
            raise TraceError(index, int(changed.argmax()), "the flattened observation is none of its space")
    return flat


def _column(name: str, given: Any, index: int, before: list[np.ndarray], dimensions: int) -> np.ndarray:
    """One array of floats of episode `index`, its kind and width checked against the episodes' before."""

    def bad(what: str) -> TraceError:
        return TraceError(index, 0, f"{name} {what}", "call" if name == "calls" else "step")

    try:
        value = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise bad(f"cannot be made an array: {error}") from error
    if value.ndim != dimensions:
        raise bad(f"must have {dimensions} dimensions, got shape {value.shape}")
    if value.dtype.kind not in "fiub":  # objects too, which are never looked into
        raise bad(f"must be numbers, got {value.dtype}")
    if name == "calls" and value.shape[1] == 0:
        raise bad("must have at least one column, the choice")
    if name != "rewards" and before and value.shape[-1] != before[0].shape[-1]:
        raise bad(f"have width {value.shape[-1]}, those before have {before[0].shape[-1]}")
    if value.dtype.kind == "f":
        double = value.dtype.itemsize >= 8
    else:  # float32 holds the smaller integers exactly
        double = value.dtype.kind in "iu" and value.size > 0 and np.abs(value.astype(np.float64)).max() > 2**24
    return value.astype(np.float64 if double else np.float32, copy=False)
