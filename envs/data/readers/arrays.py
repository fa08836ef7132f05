"""Demonstrations from plain arrays, of one episode each or of all of them one after the other.

Shapes: B demonstrations, A actions of one, N actions of all, A' whatever an action has in the environment's form.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from ....models.spaces import as_action_space, observation_size
from ..checks import TraceError
from ..demonstrations import Demonstrations
from ..episodes import Episode
from .files import PATH, naming

__all__ = ["as_flags", "demonstrations_of", "from_arrays"]

Space = spaces.Space[Any]

_FLAGS = ("terminated", "truncated")


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

    A list or tuple of ``actions`` holds one array an episode; then so do the other arguments. An array holds the
    actions of all episodes, whose ends are given by ``lengths``, by ``episode_ends`` or by ``terminated`` and
    ``truncated``; what follows the last end is a fragment then.

    Flags are bools, or zeros and ones of any type. Numbers are cast to the types of their spaces; where that rounds
    them, as it does NumPy's default float64 for a float32 space, one warning says by how much at most.

    Args:
        observations: of each episode one more than actions, the last one after the last action. There may be as many
            as actions instead, as in D4RL: see ``next_observations`` and ``drop_last_action``.
        actions: `[N, *A']`, or a list of `[A, *A']`, in the environment's form.
        action_space: Discrete, MultiDiscrete or Box, or a number of actions.
        observation_space: of the environment. For a Dict, observations are dicts of arrays, of which it chooses those
            that it names; for a Tuple, tuples of arrays. None for vectors, for images (a Box of their type), and for
            dicts of these.
        lengths: `[B]`, actions of each episode in one array.
        episode_ends: flags `[N]`, where an episode's last action stands, or integers `[B]`, how many actions there are
            up to the end of each episode.
        next_observations: as many as actions, the one after each; of these, the last one of each episode is used.
        rewards: `[N]`, or a list of `[A]`.
        terminated: flags `[B]`, whether each episode ended of its own accord, or flags `[N]`, true at most at its last
            action. By default those that were not truncated.
        truncated: the same of episodes that were cut off. By default none.
        drop_last_action: where no observation follows an episode's last action, leave this action away, so that the
            observation before it becomes the last one. The episode is a fragment then, neither terminated nor
            truncated; one of a single action vanishes.

    Raises:
        TypeError: for spaces that are not supported.
        ValueError: naming what disagrees, or trace and step where `Demonstrations` refuses something or a space's type
            cannot hold a number, such as 300 in a uint8.

    Example:
        >>> flat = dict(observations=np.zeros((5, 2)), actions=np.array([0, 1, 1]), lengths=[2, 1])
        >>> from_arrays(**flat, action_space=2)
        Demonstrations(2 traces, 3 actions (1 to 2 each), ...)
    """
    columns = {
        "observations": observations,
        "actions": actions,
        "lengths": lengths,
        "episode_ends": episode_ends,
        "next_observations": next_observations,
        "rewards": rewards,
        "terminated": terminated,
        "truncated": truncated,
    }
    return demonstrations_of(columns, action_space, observation_space, drop_last_action=drop_last_action)


def demonstrations_of(
    columns: Mapping[str, Any],
    action_space: Space | int,
    observation_space: Space | None = None,
    *,
    drop_last_action: bool = False,
    path: PATH | None = None,
    called: Mapping[str, str] | None = None,
) -> Demonstrations:
    """Return demonstrations from the arguments of `from_arrays`, by their names.

    Args:
        columns: the arguments.
        action_space: of the environment, or a number of actions.
        observation_space: of the environment, or None.
        drop_last_action: as there.
        path: of the file they come from, which errors name.
        called: what errors call arguments, where they have other names there.

    Raises:
        TypeError, ValueError: as there.
    """
    action_space = as_action_space(action_space)
    if observation_space is not None:
        observation_size(observation_space)
    rounded: dict[str, float] = {}
    with naming(path):
        columns = _Columns({name: value for name, value in columns.items() if value is not None}, called)
        if missing := [columns.called(name) for name in ("observations", "actions") if name not in columns]:
            raise ValueError(f"there are no {missing[0]}")
        apart = isinstance(columns["actions"], list | tuple)
        if apart and isinstance(columns["observations"], Mapping):
            raise ValueError("the actions are a list of one array an episode: so must be the observations")
        if observation_space is None and len(columns["observations"]):
            observation_space = _space_of(columns["observations"][0] if apart else columns["observations"])
        fragment = False
        if not apart:
            columns, fragment = _split(columns, observation_space)
        episodes = _episodes(columns, observation_space, drop_last_action, fragment)
        for index, episode in enumerate(episodes):
            for name, space in (("observation", observation_space), ("action", action_space)):
                for part, leaf, value in _leaves(space, getattr(episode, f"{name}s")):
                    if (error := _rounding(index, f"{name}{part}", leaf, value)) > 0:
                        kinds = f"the {name}{part} from {value.dtype} to {leaf.dtype}"  # type: ignore[union-attr]
                        rounded[kinds] = max(error, rounded.get(kinds, 0))
        made = Demonstrations.from_episodes(episodes, action_space, observation_space)
    if rounded:
        errors = ", ".join(f"{kinds} by at most {error:.1g}" for kinds, error in rounded.items())
        warnings.warn(f"numbers were rounded to the types of their spaces: {errors}", stacklevel=3)
    return made


# ---------------------------------------------------------------------- episodes


class _Columns(dict[str, Any]):
    """Arguments of `from_arrays`, and what errors call them."""

    def __init__(self, columns: Mapping[str, Any], called: Mapping[str, str] | None) -> None:
        super().__init__(columns)
        self.names = called or {}

    def called(self, name: str) -> str:
        return self.names.get(name, name)


def _episodes(columns: _Columns, space: Space | None, drop: bool, fragment: bool) -> list[Episode]:
    """Episodes from lists of one array each.

    Args:
        columns: those that there are; flags may also be ``[B]`` or ``[N]``.
        space: of the observations.
        drop: whether to leave away an action that no observation follows.
        fragment: whether the last episode goes on after its last action.
    """
    for name in ("lengths", "episode_ends"):
        if name in columns:
            what = f"{columns.called(name)} is for one array of all episodes"
            raise ValueError(f"{what}, but the actions are a list of arrays")
    actions, following, rewards = columns["actions"], columns.get("next_observations"), columns.get("rewards")
    for name in ("observations", "next_observations", "rewards"):
        if name in columns and len(columns[name]) != len(actions):
            raise ValueError(f"{len(columns[name])} {columns.called(name)} for {len(actions)} episodes of actions")
    counts = [len(np.atleast_1d(one)) for one in actions]
    terminated, truncated = (_ended(columns.called(name), columns.get(name), counts, name) for name in _FLAGS)
    episodes = []
    for index, (acted, count) in enumerate(zip(actions, counts, strict=True)):
        one = Episode(
            _restricted(space, columns["observations"][index]),
            acted,
            rewards=None if rewards is None else rewards[index],
            terminated=None if terminated is None else bool(terminated[index]),
            truncated=truncated is not None and bool(truncated[index]),
        )
        if one.terminated is None and fragment and index + 1 == len(counts):
            one = one._replace(terminated=False)
        if count and _count(index, space, one.observations) == count:
            if following is not None:
                if (found := _count(index, space, following[index])) != count:
                    what = f"{found} {columns.called('next_observations')} for {count} actions"
                    raise TraceError(index, min(found, count), what)
                last = _mapped(lambda value: value[-1:], space, following[index])
                joined = _mapped(lambda *values: np.concatenate(values), space, one.observations, last)
                one = one._replace(observations=joined)
            elif not drop:
                raise TraceError(
                    index,
                    count,
                    f"{count} observations for {count} actions: none follows the last action (from_arrays takes "
                    "next_observations, or leaves that action away with drop_last_action=True)",
                )
            elif count == 1:
                continue
            else:
                earned = None if rewards is None else one.rewards[:-1]  # type: ignore[index]
                one = one._replace(actions=acted[:-1], rewards=earned, terminated=False, truncated=False)
        episodes.append(one)
    return episodes


def _split(columns: _Columns, space: Space | None) -> tuple[_Columns, bool]:
    """Cut arrays of all episodes into lists of one an episode.

    Returns:
        The columns, without those that say where episodes end but for the flags, and whether the last episode goes on
        after its last action.
    """
    actions = np.atleast_1d(np.asarray(columns["actions"]))
    steps, fragment = _episode_lengths(len(actions), columns)
    flags = {name: columns[name] for name in _FLAGS if name in columns}
    parts = _Columns(flags, columns.names)
    ends, total = np.cumsum(steps), len(actions)
    for name, space_of in (("observations", space), ("next_observations", space), ("actions", None), ("rewards", None)):
        if name not in columns:
            continue
        found, extra = _count(None, space_of, columns[name]), 0
        if name == "observations" and found != total:
            if found != total + len(steps):
                raise ValueError(
                    f"{found} observations for {total} actions in {len(steps)} episodes: there must be one more than "
                    f"actions in each episode, {total + len(steps)}, or as many as actions"
                )
            extra = 1
        elif found != total:
            raise ValueError(f"{found} {columns.called(name)} for {total} actions")
        cuts = [
            slice(end - count, end + extra)
            for end, count in zip(ends + extra * np.arange(len(ends)), steps, strict=True)
        ]
        parts[name] = [_mapped(lambda value, rows=rows: value[rows], space_of, columns[name]) for rows in cuts]
    return parts, fragment


def _episode_lengths(total: int, columns: _Columns) -> tuple[np.ndarray, bool]:
    """``[B]``, actions of each episode, and whether the last one goes on after them."""
    if {"lengths", "episode_ends"} <= columns.keys():
        raise ValueError(f"give {columns.called('lengths')} or {columns.called('episode_ends')}, not both")
    key = "lengths" if "lengths" in columns else "episode_ends"
    name, given = columns.called(key), columns.get(key)
    if given is None:
        flags = {kind: as_flags(columns.called(kind), columns[kind]) for kind in _FLAGS if kind in columns}
        wrong = [f"{columns.called(kind)} {[*flag.shape]}" for kind, flag in flags.items() if flag.shape != (total,)]
        if wrong or not flags:
            one, other = map(columns.called, _FLAGS)
            there = f", got {wrong[0]}" if wrong else ""
            raise ValueError(
                f"where do episodes end? Give lengths, episode_ends, or {one} and {other} of all {total} actions{there}"
            )
        given = np.logical_or.reduce([*flags.values()])
    given = np.asarray(given)
    fragment = False
    if key == "episode_ends" and _are_flags(given) and (given.shape == (total,) or given.dtype.kind == "b"):
        if given.shape != (total,):
            raise ValueError(f"{name} has shape {list(given.shape)} for {total} actions")
        fragment = total > 0 and not given[-1]
        given = np.flatnonzero(np.append(given[:-1], [True] * (total > 0))) + 1
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers [B], got {given.dtype} {list(given.shape)}")
    steps = given.astype(np.int64)
    steps = np.diff(steps, prepend=0) if key == "episode_ends" else steps
    if (steps < 1).any() or (steps > total).any() or steps.sum() != total:
        wanted = "be positive and add up to" if key == "lengths" else "increase and end with"
        raise ValueError(f"{name} must {wanted} {total}, the number of actions, got {given[:20].tolist()}")
    return steps, fragment


def _are_flags(given: np.ndarray) -> bool:
    return given.dtype.kind in "biuf" and bool(((given == 0) | (given == 1)).all())


def as_flags(name: str, given: Any) -> np.ndarray:
    """Return flags of any number type as bools, a column of them as ``[N]``.

    Raises:
        ValueError: by the name, if they are not all zeros and ones.
    """
    flags = np.asarray(given)
    if not _are_flags(flags):
        raise ValueError(f"{name} must be flags, true or false, 1 or 0, got {flags.dtype}")
    return flags.astype(bool).reshape(len(flags) if flags.ndim == 2 and flags.shape[1] == 1 else flags.shape)


def _ended(name: str, given: Any, counts: Sequence[int], how: str) -> np.ndarray | None:
    """How each episode ended, ``[B]``, by flags ``[B]`` or ``[N]``, or a list of ``[A]``.

    Raises:
        ValueError: for flags of other kinds or shapes, or an episode that goes on after its end.
    """
    if given is None:
        return None
    if isinstance(given, list | tuple) and any(np.ndim(one) for one in given):
        given = [as_flags(name, one) for one in given]
        if [one.shape for one in given] != [(count,) for count in counts]:
            raise ValueError(f"{name} must have one flag an episode, or one an action")
        given = np.concatenate(given)
    flags, total = as_flags(name, given), sum(counts)
    if flags.shape == (len(counts),):
        return flags
    if flags.shape != (total,):
        raise ValueError(f"{name} must have shape [{len(counts)}] or [{total}], got {list(flags.shape)}")
    ends = np.cumsum(counts) - 1
    inner = flags.copy()
    inner[ends] = False
    if inner.any():
        place = int(inner.argmax())
        trace = int(np.searchsorted(ends, place))
        step = place - int(ends[trace] - counts[trace] + 1)
        raise TraceError(trace, step, f"the episode goes on although it is {how}")
    return flags[ends]


# ---------------------------------------------------------------------- numbers and their spaces


def _rounding(trace: int, name: str, leaf: Space | None, given: Any) -> float:
    """By how much a Box's type changes numbers at most; whatever else is wrong with them is said later.

    Raises:
        ValueError: if it cannot hold them at all.
    """
    if not isinstance(leaf, spaces.Box) or not isinstance(given, np.ndarray | Tensor):  # Python numbers have no type
        return 0
    try:
        value = np.asarray(given)
    except (TypeError, RuntimeError):  # tensors on a GPU or with a gradient
        return 0
    wanted = leaf.dtype
    if value.dtype == wanted or value.dtype.kind not in "fiu" or wanted.kind not in "fiu" or not value.size:
        return 0
    if wanted.kind in "iu" and value.dtype.kind == "f":
        return 0
    with np.errstate(over="ignore"):
        cast = value.astype(wanted)
    lost = ~np.isfinite(cast) & np.isfinite(value) if wanted.kind == "f" else cast != value
    if lost.any():
        place = tuple(int(i) for i in np.argwhere(lost)[0])
        what = f"the {name} is {value[place]}, which {wanted}, the type of its space, cannot hold"
        raise TraceError(trace, place[0] if place else 0, what)
    exact = np.result_type(value.dtype, np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return float(np.nanmax(np.abs(cast.astype(exact) - value.astype(exact)), initial=0))


def _space_of(observations: Any) -> Space | None:
    """The space of a batch of observations that came without: Boxes of their types; None for vectors."""
    if isinstance(observations, Mapping):
        return spaces.Dict([(key, _space_of(value) or _box(np.asarray(value))) for key, value in observations.items()])
    try:
        value = np.asarray(observations)
    except (TypeError, ValueError, RuntimeError):  # said later, with trace and step
        return None
    return _box(value) if value.ndim > 2 and value.dtype.kind in "fiub" else None


def _box(batch: np.ndarray) -> spaces.Box:
    if batch.dtype.kind not in "fiub" or batch.ndim == 0:
        raise ValueError(f"observations must be arrays of numbers, got {batch.dtype} {list(batch.shape)}")
    if batch.dtype.kind == "b":
        return spaces.Box(0, 1, batch.shape[1:], np.uint8)
    if batch.dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, batch.shape[1:], batch.dtype)
    bounds = np.iinfo(batch.dtype)
    return spaces.Box(bounds.min, bounds.max, batch.shape[1:], batch.dtype)


def _restricted(space: Space | None, value: Any) -> Any:
    """Observations without the parts that their space does not name."""
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping) and value.keys() >= space.spaces.keys():
        return {key: _restricted(part, value[key]) for key, part in space.spaces.items()}
    return value


def _leaves(space: Space | None, value: Any, name: str = "") -> Iterator[tuple[str, Space | None, Any]]:
    """The parts of observations, with their names; none where they are not those of the space."""
    if isinstance(space, spaces.Dict):
        if isinstance(value, Mapping) and value.keys() >= space.spaces.keys():
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
    if not any(isinstance(value, Mapping | tuple | list) for value in values):  # they may come flattened
        return function(*(np.asarray(value) for value in values))
    if isinstance(space, spaces.Dict) and all(isinstance(value, Mapping) for value in values):
        if all(value.keys() >= space.spaces.keys() for value in values):
            parts = space.spaces.items()
            return {key: _mapped(function, part, *(value[key] for value in values)) for key, part in parts}
    elif isinstance(space, spaces.Tuple) and all(isinstance(value, tuple | list) for value in values):
        if all(len(value) == len(space.spaces) for value in values):
            return tuple(_mapped(function, *both) for both in zip(space.spaces, *values, strict=True))
    elif not isinstance(space, spaces.Dict | spaces.Tuple) and not any(isinstance(value, Mapping) for value in values):
        return function(*(np.asarray(value) for value in values))
    raise ValueError(f"the observations are not of the form of their space {space}")


def _count(trace: int | None, space: Space | None, observations: Any) -> int:
    """How many rows all parts have."""
    counts: set[int] = set()
    try:
        _mapped(lambda value: counts.add(len(value) if value.ndim else 0), space, observations)
        if len(counts) != 1:
            raise ValueError(f"the parts of the observations have {sorted(counts)} rows")
    except (TypeError, ValueError, RuntimeError) as error:
        if trace is None:
            raise
        raise TraceError(trace, 0, str(error)) from error
    return counts.pop()
