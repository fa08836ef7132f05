"""Episodes: one demonstration each, as it was recorded, and how they become traces to store.

Shapes: A actions of an episode, O observation numbers, U task numbers, V numbers of an action's argument, I program
steps, W numbers of a program step's argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ...models.spaces import (
    SpaceError,
    decode_actions,
    encode_actions,
    flatten_observations,
    observation_bytes,
    observation_size,
    unflatten_observations,
)
from .checks import TraceError

__all__ = ["Episode", "episodes_of", "rows_of_episodes"]

Space = spaces.Space[Any]


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
        What `Store.of` takes: rows by column, steps and calls of each trace, tables.

    Raises:
        TypeError: if one of them is no `Episode`.
        ValueError: naming the trace and the step, if something has another shape or kind than its space or than in
            the episodes before, numbers disagree, or an action is outside its space; see
            `Demonstrations.from_episodes`. Whether observations are finite is not checked here.
    """
    if len(episodes) == 0:
        raise ValueError("no demonstrations: the data set is empty")
    names = ("observations", "bytes", "actions", "task", "arguments", "calls", "rewards")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    whole: list[bool] = []  # whether the observations of each episode were integers
    call_steps = np.zeros(len(episodes), np.int64)
    apart = observation_bytes(observation_space) if observation_space is not None else np.zeros(0, bool)
    for index, episode in enumerate(episodes):
        if not isinstance(episode, Episode):
            raise TypeError(f"trace {index} must be an Episode, got {type(episode).__name__}")
        actions = _actions(action_space, episode.actions, index)
        columns["actions"].append(actions)
        if observation_space is None:
            observations = _column("observations", episode.observations, index, columns["observations"], 2)
            whole.append(np.asarray(episode.observations).dtype.kind != "f")
            if whole[-1] != whole[0]:
                kinds = ("integers", "floats") if whole[-1] else ("floats", "integers")
                raise TraceError(index, 0, f"observations are {kinds[0]}, those before are {kinds[1]}")
        else:
            observations = _flat_observations(observation_space, episode.observations, index)
        if apart.any() and not apart.all():
            columns["bytes"].append(observations[:, apart].astype(np.uint8))
            observations = observations[:, ~apart]
        columns["observations"].append(observations)
        if len(observations) != len(actions) + 1:
            raise TraceError(
                index,
                min(len(observations), len(actions)),
                f"{len(observations)} observations for {len(actions)} actions; "
                "a trace has one observation more than actions",
            )
        none = {"task": np.zeros(0, np.float32), "arguments": np.zeros((len(actions), 0), np.float32)}
        for name, dimensions in (("task", 1), ("arguments", 2)):
            given = getattr(episode, name)
            value = _column(name, none[name] if given is None else given, index, columns[name], dimensions)
            columns[name].append(value)
        _same_count("arguments", len(columns["arguments"][-1]), len(actions), index)
        if episode.rewards is not None:
            columns["rewards"].append(_column("rewards", episode.rewards, index, columns["rewards"], 1))
            _same_count("rewards", len(columns["rewards"][-1]), len(actions), index)
        if len(columns["rewards"]) not in (0, index + 1):
            has, had = ("no rewards", "have") if episode.rewards is None else ("rewards", "have none")
            raise TraceError(index, 0, f"the trace has {has}, those before {had}")
        if episode.calls is not None:
            calls = _column("calls", episode.calls, index, columns["calls"], 2)
            if calls.shape[1] == 0:
                raise TraceError(index, 0, "calls must have at least one column, the choice", "call")
            columns["calls"].append(calls)
            call_steps[index] = len(calls)
    tables: dict[str, Any] = {"task": np.stack(columns.pop("task"))}
    joined = {name: np.concatenate(column) for name, column in columns.items() if column}
    # What else there is has the precision of the observations, so that a model reads numbers of one kind.
    real = joined["observations"].dtype if joined["observations"].dtype.kind == "f" else np.dtype(np.float32)
    for name, numbers in (("task", tables), ("arguments", joined), ("calls", joined)):
        if name in numbers:
            numbers[name] = numbers[name].astype(real, copy=False)
    tables["terminated"] = np.array([bool(not e.truncated if e.terminated is None else e.terminated) for e in episodes])
    tables["truncated"] = np.array([bool(episode.truncated) for episode in episodes])
    return (
        {name: torch.from_numpy(column) for name, column in joined.items()},
        np.array([len(actions) + 1 for actions in columns["actions"]]),
        call_steps,
        {name: torch.from_numpy(table) for name, table in tables.items()},
    )


def episodes_of(arrays: Mapping[str, np.ndarray], action_space: Space, observation_space: Space) -> list[Episode]:
    """Take the arrays of a file apart again, in the environment's form: the inverse of `rows_of_episodes`."""
    counts, call_counts = arrays["counts"], arrays["call_counts"]
    cuts = {1: np.cumsum(counts + 1)[:-1], 0: np.cumsum(counts)[:-1], -1: np.cumsum(call_counts)[:-1]}
    kinds = {"observations": 1, "bytes": 1, "calls": -1}
    apart = observation_bytes(observation_space)
    episodes = []
    rows = {
        name: np.split(arrays[name], cuts[kinds.get(name, 0)])
        for name in ("observations", "bytes", "actions", "arguments", "calls", "rewards")
        if name in arrays
    }
    for index in range(len(counts)):
        one = {name: column[index] for name, column in rows.items()}
        seen = one["observations"]
        if "bytes" in one:
            seen = np.empty((len(seen), len(apart)), seen.dtype)
            seen[:, apart], seen[:, ~apart] = one["bytes"], one["observations"]
        episodes.append(
            Episode(
                observations=unflatten_observations(observation_space, seen),
                actions=decode_actions(action_space, one["actions"]),
                task=arrays["task"][index].copy() if arrays["task"].shape[1] else None,
                arguments=one["arguments"].copy() if one["arguments"].shape[1] else None,
                calls=one["calls"].copy() if call_counts[index] else None,
                rewards=one["rewards"].copy() if "rewards" in one else None,
                terminated=bool(arrays["terminated"][index]),
                truncated=bool(arrays["truncated"][index]),
            )
        )
    return episodes


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
    if name != "rewards" and before and value.shape[-1] != before[0].shape[-1]:
        raise bad(f"have width {value.shape[-1]}, those before have {before[0].shape[-1]}")
    if value.dtype.kind == "f":
        double = value.dtype.itemsize >= 8
    else:  # float32 holds the smaller integers exactly
        double = value.dtype.kind in "iu" and value.size > 0 and np.abs(value.astype(np.float64)).max() > 2**24
    return value.astype(np.float64 if double else np.float32, copy=False)


def _same_count(name: str, count: int, actions: int, index: int) -> None:
    if count != actions:
        raise TraceError(index, min(count, actions), f"{count} {name} for {actions} actions")
