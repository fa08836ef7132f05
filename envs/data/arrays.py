"""Demonstrations from plain arrays, of one episode each or of all of them one after the other.

Shapes: B demonstrations, A actions of one, N actions of all, A' whatever an action has in the environment's form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from ...models.spaces import as_action_space
from .checks import TraceError
from .demonstrations import Demonstrations
from .episodes import Episode

__all__ = ["end_flags", "exact_demonstrations", "from_arrays"]

Space = spaces.Space[Any]


def from_arrays(
    observations: Any,
    actions: Any,
    *,
    action_space: Space | int,
    observation_space: Space | None = None,
    lengths: Any = None,
    episode_ends: Any = None,
    next_observations: Any = None,
    rewards: Any = None,
    terminated: Any = None,
    truncated: Any = None,
    drop_last_action: bool = False,
) -> Demonstrations:
    """Return demonstrations from arrays, of one episode each or of all episodes one after the other.

    A list or tuple of ``actions`` holds one array an episode; then so do ``observations`` and ``rewards``. An array
    holds the actions of all episodes, whose ends are given by ``lengths``, by ``episode_ends`` or by ``terminated``
    and ``truncated``; what follows the last end is a fragment then.

    Args:
        observations: of each episode one more than actions, the last one after the last action. In one array there
            may be as many as actions instead, as in D4RL: see ``next_observations`` and ``drop_last_action``.
        actions: `[N, *A']`, or a list of `[A, *A']`, in the environment's form.
        action_space: Discrete, MultiDiscrete or Box, or a number of actions.
        observation_space: of the environment; None for plain vectors. For a Dict, observations are dicts of arrays,
            for a Tuple, tuples of arrays.
        lengths: `[B]`, actions of each episode in one array.
        episode_ends: bool `[N]`, where an episode's last action stands, or integers `[B]`, how many actions there are
            up to the end of each episode.
        next_observations: as many as actions, the one after each; of these, the last one of each episode is used.
        rewards: `[N]`, or a list of `[A]`.
        terminated: bool `[B]`, whether each episode ended of its own accord, or bool `[N]`, true at most at its last
            action. By default those that were not truncated.
        truncated: the same of episodes that were cut off. By default none.
        drop_last_action: where no observation follows an episode's last action, leave this action away, so that the
            observation before it becomes the last one. The episode is a fragment then, neither terminated nor
            truncated; one of a single action vanishes.

    Raises:
        TypeError: for spaces that are not supported.
        ValueError: naming what disagrees, or trace and step where `Demonstrations` refuses something or a space's type
            would round a number.

    Example:
        >>> flat = dict(observations=np.zeros((5, 2)), actions=np.array([0, 1, 1]), lengths=[2, 1])
        >>> from_arrays(**flat, action_space=2)
        Demonstrations(2 traces, 3 actions (1 to 2 each), ...)
    """
    if isinstance(actions, list | tuple):
        for name, value in {
            "lengths": lengths,
            "episode_ends": episode_ends,
            "next_observations": next_observations,
        }.items():
            if value is not None:
                raise ValueError(f"{name} is for one array of all episodes, but the actions are a list of arrays")
        for name, value in {"observations": observations, "rewards": rewards}.items():
            if value is not None and len(value) != len(actions):
                raise ValueError(f"{len(value)} {name} for {len(actions)} episodes of actions")
        steps = np.array([len(np.atleast_1d(one)) for one in actions], dtype=np.int64)
        cut = [(observations[index], actions[index]) for index in range(len(actions))]
        drop = fragment = False
    else:
        actions = np.atleast_1d(np.asarray(actions))
        steps, fragment = _episode_lengths(len(actions), lengths, episode_ends, terminated, truncated)
        found = _count(observations, observation_space)
        drop = drop_last_action and next_observations is None and found == len(actions)
        cut = _cut(observations, actions, steps, next_observations, observation_space, drop)
        if rewards is not None:
            rewards = np.asarray(rewards)
            if rewards.shape != actions.shape[:1]:
                raise ValueError(f"{len(np.atleast_1d(rewards))} rewards for {len(actions)} actions")
            rewards = np.split(rewards, np.cumsum(steps)[:-1])
    stopped, cut_off = (
        end_flags(name, given, steps) for name, given in (("terminated", terminated), ("truncated", truncated))
    )
    if stopped is None and (fragment or drop):
        stopped = np.full(len(steps), True) if cut_off is None else ~cut_off
        stopped[-1] &= not fragment
    episodes = [
        Episode(
            seen,
            acted,
            rewards=None if rewards is None else rewards[index][: len(acted)] if drop else rewards[index],
            terminated=None if stopped is None else bool(stopped[index]) and not drop,
            truncated=cut_off is not None and bool(cut_off[index]) and not drop,
        )
        for index, (seen, acted) in enumerate(cut)
        if not drop or len(acted)
    ]
    return exact_demonstrations(episodes, action_space, observation_space)


def _cut(
    observations: Any,
    actions: np.ndarray,
    steps: np.ndarray,
    next_observations: Any,
    space: Space | None,
    drop: bool,
) -> list[tuple[Any, np.ndarray]]:
    """Observations and actions of each episode, from those of all."""
    found, total = _count(observations, space), len(actions)
    whole = found == total + len(steps)
    if not whole and found != total:
        raise ValueError(
            f"{found} observations for {total} actions in {len(steps)} episodes: there must be one more than "
            f"actions in each episode, {total + len(steps)}, or as many as actions"
        )
    if next_observations is not None and (following := _count(next_observations, space)) != total:
        raise ValueError(f"{following} next_observations for {total} actions")
    if not whole and next_observations is None and not drop:
        raise ValueError(
            "no observation follows the last action of an episode: give next_observations, or leave that action away "
            "with drop_last_action=True"
        )
    episodes = []
    for index, (end, count) in enumerate(zip(np.cumsum(steps).tolist(), steps.tolist(), strict=True)):
        first = end - count + index * whole
        seen = _rows(observations, space, slice(first, first + count + whole))
        if not whole and not drop:
            seen = _joined(seen, _rows(next_observations, space, slice(end - 1, end)), space)
        episodes.append((seen, actions[end - count : end - drop]))
    return episodes


def _episode_lengths(
    total: int, lengths: Any, episode_ends: Any, terminated: Any, truncated: Any
) -> tuple[np.ndarray, bool]:
    """``[B]``, actions of each episode, and whether the last one goes on after them."""
    if lengths is not None and episode_ends is not None:
        raise ValueError("give lengths or episode_ends, not both")
    name = "lengths" if lengths is not None else "episode_ends"
    if lengths is None and episode_ends is None:
        flags = [np.asarray(given) for given in (terminated, truncated) if given is not None]
        if not flags or any(flag.shape != (total,) for flag in flags):
            raise ValueError(
                f"where do episodes end? Give lengths, episode_ends, or terminated and truncated of all {total} actions"
            )
        episode_ends = np.logical_or.reduce(flags)
    given = np.asarray(episode_ends if lengths is None else lengths)
    fragment = False
    if name == "episode_ends" and given.dtype.kind == "b":
        if given.shape != (total,):
            raise ValueError(f"episode_ends has shape {list(given.shape)} for {total} actions")
        fragment = total > 0 and not given[-1]
        given = np.flatnonzero(np.append(given[:-1], [True] * (total > 0))) + 1
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers [B], got {given.dtype} {list(given.shape)}")
    steps = given.astype(np.int64)
    steps = np.diff(steps, prepend=0) if lengths is None else steps
    if (steps < 1).any() or steps.sum() != total:
        wanted = f"increase and end with {total}" if lengths is None else f"be positive and add up to {total}"
        raise ValueError(f"{name} must {wanted}, the number of actions, got {given[:20].tolist()}")
    return steps, fragment


def end_flags(name: str, given: Any, steps: np.ndarray) -> np.ndarray | None:
    """Return how each episode ended, ``[B]``.

    Args:
        name: terminated or truncated, for an error.
        given: flags ``[B]`` or ``[N]``, a list of ``[A]``, or None.
        steps: ``[B]``, actions of each episode.

    Raises:
        ValueError: for flags of other kinds or shapes, or an episode that goes on after its end.
    """
    if given is None:
        return None
    if isinstance(given, list | tuple) and any(np.ndim(one) for one in given):
        if [np.shape(one) for one in given] != [(int(count),) for count in steps]:
            raise ValueError(f"{name} must have one flag an episode, or one an action")
        given = np.concatenate(given)
    flags = np.asarray(given)
    if flags.dtype.kind not in "biu" or not ((flags == 0) | (flags == 1)).all():
        raise ValueError(f"{name} must be bool, got {flags.dtype}")
    flags = flags.astype(bool)
    if flags.shape == steps.shape:
        return flags
    if flags.shape != (steps.sum(),):
        raise ValueError(f"{name} must have shape [{len(steps)}] or [{steps.sum()}], got {list(flags.shape)}")
    ends = np.cumsum(steps) - 1
    inner = flags.copy()
    inner[ends] = False
    if inner.any():
        place = int(inner.argmax())
        trace = int(np.searchsorted(ends, place))
        step = place - int(ends[trace] - steps[trace] + 1)
        raise TraceError(trace, step, f"the episode goes on although it is {name}")
    return flags[ends]


def exact_demonstrations(
    episodes: Sequence[Episode], action_space: Space | int, observation_space: Space | None
) -> Demonstrations:
    """Return the demonstrations of episodes, like `Demonstrations.from_episodes`, but round nothing.

    Raises:
        TypeError: as there.
        ValueError: as there, or naming trace and step, if the type that a space declares does not hold a number.
    """
    action_space = as_action_space(action_space)
    for index, episode in enumerate(episodes):
        for name, space, given in (
            ("action", action_space, episode.actions),
            ("observation", observation_space, episode.observations),
        ):
            for part, leaf, value in _leaves(space, given):
                _refuse_rounding(index, f"{name}{part}", leaf, value)
    return Demonstrations.from_episodes(episodes, action_space, observation_space)


def _refuse_rounding(trace: int, name: str, leaf: Space | None, given: Any) -> None:
    """Refuse numbers that the type of a Box does not hold; whatever else is wrong is said later."""
    if not isinstance(leaf, spaces.Box) or not isinstance(given, np.ndarray | Tensor):  # Python numbers have no type
        return
    try:
        value = np.asarray(given)
    except (TypeError, RuntimeError):  # tensors on a GPU or with a gradient
        return
    if value.dtype == leaf.dtype or value.dtype.kind not in "fiu":
        return
    if leaf.dtype.kind in "iu" and value.dtype.kind == "f" or leaf.dtype.kind not in "fiu":
        return
    with np.errstate(over="ignore"):
        changed = (value.astype(leaf.dtype).astype(value.dtype) != value) & np.isfinite(value)
    if changed.any():
        step = int(np.argwhere(changed)[0][0]) if value.ndim else 0
        raise TraceError(
            trace,
            step,
            f"the {name} is {value.dtype}, its space {leaf.dtype}, which does not hold it: give a space of "
            f"{value.dtype}, or cast it",
        )


def _leaves(space: Space | None, value: Any, name: str = "") -> Iterator[tuple[str, Space | None, Any]]:
    """The parts of observations, with their names; none where they are not those of the space."""
    if isinstance(space, spaces.Dict):
        if isinstance(value, Mapping) and value.keys() == space.spaces.keys():
            for key, part in space.spaces.items():
                yield from _leaves(part, value[key], f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        if isinstance(value, tuple | list) and len(value) == len(space.spaces):
            for index, part in enumerate(space.spaces):
                yield from _leaves(part, value[index], f"{name}[{index}]")
    else:
        yield name, space, value


def _mapped(function: Callable[..., Any], space: Space | None, *values: Any) -> Any:
    """Apply a function to each part of batches of observations."""
    if isinstance(space, spaces.Dict) and all(isinstance(value, Mapping) for value in values):
        if all(value.keys() == space.spaces.keys() for value in values):
            parts = space.spaces.items()
            return {key: _mapped(function, part, *(value[key] for value in values)) for key, part in parts}
    elif isinstance(space, spaces.Tuple) and all(isinstance(value, tuple | list) for value in values):
        if all(len(value) == len(space.spaces) for value in values):
            return tuple(_mapped(function, *both) for both in zip(space.spaces, *values, strict=True))
    elif any(isinstance(value, Mapping) for value in values):
        raise ValueError("the observations are dicts: give their observation_space")
    elif not isinstance(space, spaces.Dict | spaces.Tuple):
        return function(*(np.asarray(value) for value in values))
    raise ValueError(f"the observations are not of the form of their space {space}")


def _rows(observations: Any, space: Space | None, rows: slice) -> Any:
    return _mapped(lambda value: value[rows], space, observations)


def _joined(first: Any, second: Any, space: Space | None) -> Any:
    return _mapped(lambda one, other: np.concatenate([one, other]), space, first, second)


def _count(observations: Any, space: Space | None) -> int:
    """How many rows all parts have."""
    counts: set[int] = set()
    _mapped(lambda value: counts.add(len(value) if value.ndim else 0), space, observations)
    if len(counts) != 1:
        raise ValueError(f"the parts of the observations have {sorted(counts)} rows")
    return counts.pop()
