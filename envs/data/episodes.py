"""Episodes: one demonstration each, as it was recorded, and how they become traces to store.

Shapes: A actions of an episode, O observation numbers, U task numbers, V numbers of an action's argument, I program
steps, W numbers of a program step's argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from ...models.spaces import (
    SpaceError,
    decode_actions,
    encode_actions,
    flatten_observations,
    observation_size,
    unflatten_observations,
)
from .flat_traces import FlatTraces, TraceError

__all__ = ["Episode", "episodes_of", "flatten_episodes"]

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


def flatten_episodes(
    episodes: Sequence[Episode], action_space: Space, observation_space: Space | None = None
) -> FlatTraces:
    """Encode episodes and put them one after the other.

    Args:
        episodes: the demonstrations.
        action_space: a space that `check_action_space` accepts.
        observation_space: None for plain vectors.

    Raises:
        TypeError: if one of them is no `Episode`.
        ValueError: naming the trace and the step, if something has another shape or kind than its space or than in
            the episodes before, numbers disagree, or an action is outside its space; see
            `Demonstrations.from_episodes`. Whether observations are finite is not checked here.
    """
    if len(episodes) == 0:
        raise ValueError("no demonstrations: the data set is empty")
    names = ("observations", "actions", "task", "arguments", "calls", "rewards")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    whole: list[bool] = []  # whether the observations of each episode were integers
    call_counts = np.zeros(len(episodes), np.int64)
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
            call_counts[index] = len(calls)
    observations = np.concatenate(columns["observations"])
    # What else there is has the precision of the observations, so that a model reads numbers of one kind.
    cast = {
        name: (np.stack if name == "task" else np.concatenate)(columns[name] or [np.zeros((0, 0))]).astype(
            observations.dtype, copy=False
        )
        for name in ("task", "arguments", "calls")
    }
    return FlatTraces(
        counts=np.array([len(actions) for actions in columns["actions"]]),
        observations=observations,
        actions=np.concatenate(columns["actions"]),
        terminated=np.array(
            [bool(not e.truncated if e.terminated is None else e.terminated) for e in episodes], dtype=bool
        ),
        truncated=np.array([bool(e.truncated) for e in episodes], dtype=bool),
        rewards=np.concatenate(columns["rewards"]) if columns["rewards"] else None,
        call_counts=call_counts,
        **cast,
    )


def episodes_of(flat: FlatTraces, action_space: Space, observation_space: Space) -> list[Episode]:
    """Take traces apart again, in the environment's form: the inverse of `flatten_episodes`."""
    ends = np.cumsum(flat.counts)[:-1]
    observations = np.split(flat.observations, ends + np.arange(1, len(flat)))
    actions = np.split(flat.actions, ends)
    arguments = np.split(flat.arguments, ends)
    rewards = None if flat.rewards is None else np.split(flat.rewards, ends)
    calls = np.split(flat.calls, np.cumsum(flat.call_counts)[:-1])
    return [
        Episode(
            observations=unflatten_observations(observation_space, observations[index]),
            actions=decode_actions(action_space, actions[index]),
            task=flat.task[index].copy() if flat.task.shape[1] else None,
            arguments=arguments[index].copy() if flat.arguments.shape[1] else None,
            calls=calls[index].copy() if flat.call_counts[index] else None,
            rewards=None if rewards is None else rewards[index].copy(),
            terminated=bool(flat.terminated[index]),
            truncated=bool(flat.truncated[index]),
        )
        for index in range(len(flat))
    ]


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
    try:
        # Those that came flattened go to the environment's form and back, to be checked like all others.
        flat = flatten_observations(space, unflatten_observations(space, given) if came_flat else given)
    except SpaceError as error:
        raise TraceError(index, error.index[0] if error.index else 0, str(error)) from error
    if flat.ndim != 2:
        raise TraceError(index, 0, f"the observations must be a batch, one a step, got shape {flat.shape} flattened")
    if came_flat:
        numbers = np.asarray(given).astype(flat.dtype)
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
