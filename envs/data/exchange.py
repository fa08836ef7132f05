"""Demonstrations from and to what others keep them in: Minari's data sets and imitation's trajectories.

Numbers come and go bit for bit: what a space's type would round is refused, not rounded. Minari and imitation are
imported when they are asked for.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from ...models.space_json import space_from_json, space_to_json
from ...models.spaces import check_action_space, observation_size
from .arrays import end_flags, exact_demonstrations
from .checks import TraceError
from .demonstrations import Demonstrations
from .episodes import Episode

__all__ = ["from_imitation", "from_minari", "to_imitation", "to_minari"]

Space = spaces.Space[Any]

# Minari's own description of a space forgets the type of a Discrete and the order of a Dict; ours stands beside it.
_SPACES = {"action_space": "pyrocontrol_action_space", "observation_space": "pyrocontrol_observation_space"}
# The info by which imitation tells an end that was truncated too from one that only terminated. Stable-Baselines3's
# TimeLimit.truncated says nothing of a truncation at a terminal state.
_TRUNCATED, _ALSO_TRUNCATED = "TimeLimit.truncated", "pyrocontrol.truncated"


# ---------------------------------------------------------------------- Minari


def from_minari(
    dataset: Any,
    *,
    action_space: Space | None = None,
    observation_space: Space | None = None,
    download: bool = False,
) -> Demonstrations:
    """Return the demonstrations of a Minari data set.

    Its infos, seeds and reset options are not kept. Rewards that are all NaN stand for none.

    Args:
        dataset: its id, or a ``minari.MinariDataset``, of which the episodes that it has chosen are taken.
        action_space: takes the place of the data set's own, where that does not hold all recorded actions, say.
        observation_space: the same for observations.
        download: whether to download the data set if it is not there.

    Raises:
        ImportError: without Minari.
        FileNotFoundError: if there is no such data set.
        TypeError: for spaces that are not supported, such as texts.
        ValueError: naming trace and step, if an action is outside its space, a space's type would round a number, an
            episode goes on after its end, or something is NaN or infinite.

    Example:
        >>> demonstrations = from_minari("D4RL/door/human-v2")  # doctest: +SKIP
    """
    minari = _imported("minari", "pip install 'pyrocontrol[data]'")
    if isinstance(dataset, str):
        dataset = minari.load_dataset(dataset, download=download)
    elif not isinstance(dataset, minari.MinariDataset):
        raise TypeError(f"a Minari data set is given by its id or as a MinariDataset, got {type(dataset).__name__}")
    metadata = dataset.storage.metadata
    given = {"action_space": action_space, "observation_space": observation_space}
    found: dict[str, Space] = {}
    for name, space in given.items():
        text = metadata.get(_SPACES[name])
        found[name] = space or (getattr(dataset, name) if text is None else space_from_json(text))
    try:
        check_action_space(found["action_space"])
        observation_size(found["observation_space"])
    except TypeError as error:
        raise TypeError(f"the data set {dataset.id} cannot be read: {error}") from error
    episodes = []
    for index, episode in enumerate(dataset.iterate_episodes()):
        steps = np.array([len(episode.rewards)])
        ended = []
        for name, flags in (("terminated", episode.terminations), ("truncated", episode.truncations)):
            try:
                ended.append(end_flags(name, flags, steps))
            except TraceError as error:
                raise TraceError(index, error.step, error.what) from error
        terminated, truncated = (None if flags is None else bool(flags[0]) for flags in ended)
        one = Episode(
            episode.observations,
            episode.actions,
            rewards=np.asarray(episode.rewards),
            terminated=terminated,
            truncated=bool(truncated),
        )
        episodes.append(one)
    if episodes and all(np.isnan(episode.rewards).all() for episode in episodes):  # type: ignore[arg-type]
        episodes = [episode._replace(rewards=None) for episode in episodes]
    return exact_demonstrations(episodes, **found)


def to_minari(
    demonstrations: Demonstrations, dataset_id: str, *, env: Any = None, overwrite: bool = False, **metadata: Any
) -> Any:
    """Write demonstrations as a Minari data set; :func:`from_minari` returns them bit for bit.

    Images are written as they are, not as JPEG. Where there are no rewards, they are NaN there.

    Args:
        demonstrations: of any spaces, but without tasks, arguments and calls, for which Minari has no place.
        dataset_id: ``(namespace/)name-v0``. Minari keeps it in the folder ``MINARI_DATASETS_PATH``.
        env: the environment, its id or its spec, for those who want to make it again from the data set.
        overwrite: whether to replace a data set of this id; it stands until the new one is there.
        **metadata: for ``minari.create_dataset_from_buffers``: ``algorithm_name``, ``author``, ``author_email``,
            ``code_permalink``, ``description``, ``requirements`` and others.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        ImportError: without Minari.
        FileExistsError: if there is a data set of this id, unless it is to be replaced.
        ValueError: for an id of another form, or demonstrations with tasks, arguments or calls.

    Example:
        >>> to_minari(demonstrations, "cartpole/teacher-v0", env="CartPole-v1", author="me")  # doctest: +SKIP
    """
    minari = _imported("minari", "pip install 'pyrocontrol[data]'")
    _refuse_extras(demonstrations, "a Minari data set")
    try:
        importlib.import_module("minari.dataset.minari_dataset").parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # the latter where the version is missing
        raise ValueError(f"a Minari data set is called (namespace/)name-v0, say, not {dataset_id!r}") from error
    folder = Path(importlib.import_module("minari.storage").get_dataset_path(dataset_id))
    exists, aside = folder.exists(), folder.with_name(f".{folder.name}.old")
    if exists and not overwrite:
        raise FileExistsError(f"there is a Minari data set {dataset_id} at {folder}: pass overwrite=True to replace it")
    buffers = [_minari_buffer(episode) for episode in demonstrations.to_episodes()]
    if exists:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        with warnings.catch_warnings():  # Minari recommends all of the metadata, in a warning each
            warnings.filterwarnings("ignore", r"`\w+` is set to None", UserWarning)
            warnings.filterwarnings("ignore", "env_spec is None, no environment spec is provided", UserWarning)
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=env,
                action_space=demonstrations.action_space,
                observation_space=demonstrations.observation_space,
                **{"jpeg_encoding": False, **metadata},
            )
        texts = {key: space_to_json(getattr(demonstrations, name)) for name, key in _SPACES.items()}
        dataset.storage.update_metadata(texts)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if exists:
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return dataset


def _minari_buffer(episode: Episode) -> Any:
    count = len(episode.actions)
    ends = {"terminations": np.zeros(count, bool), "truncations": np.zeros(count, bool)}
    ends["terminations"][-1], ends["truncations"][-1] = episode.terminated, episode.truncated
    return importlib.import_module("minari.data_collector").EpisodeBuffer(
        observations=episode.observations,
        actions=episode.actions,
        rewards=np.full(count, np.nan) if episode.rewards is None else episode.rewards,
        infos={},
        **ends,
    )


# ---------------------------------------------------------------------- imitation


def from_imitation(
    trajectories: Iterable[Any], action_space: Space | int, observation_space: Space | None = None
) -> Demonstrations:
    """Return demonstrations from trajectories of the package imitation.

    A terminal trajectory is truncated where its last info says so under ``TimeLimit.truncated``, and terminated
    otherwise; one that is not terminal is a fragment. Other infos are not kept.

    Args:
        trajectories: ``imitation.data.types.Trajectory``, or all of them ``TrajectoryWithRew``.
        action_space: of the environment, or a number of actions.
        observation_space: of the environment; needed where observations are ``DictObs``.

    Raises:
        ImportError: without imitation.
        TypeError: for something else than trajectories, or spaces that are not supported.
        ValueError: naming trace and step, where `Demonstrations` refuses something or a space's type would round a
            number.
    """
    types = _imported("imitation.data.types", "pip install --no-deps imitation seals")
    episodes = []
    for index, trajectory in enumerate(trajectories):
        if not isinstance(trajectory, types.Trajectory):
            raise TypeError(f"trace {index} must be a Trajectory of imitation, got {type(trajectory).__name__}")
        observations = trajectory.obs
        if isinstance(observations, types.DictObs):
            if observation_space is None:
                raise ValueError("the observations are dicts: give the observation_space")
            observations = observations.unwrap()
        info = {} if trajectory.infos is None else dict(trajectory.infos[-1])
        cut = bool(info.get(_TRUNCATED, False))
        episodes.append(
            Episode(
                observations,
                trajectory.acts,
                rewards=getattr(trajectory, "rews", None),
                terminated=bool(trajectory.terminal) and not cut,
                truncated=cut or bool(info.get(_ALSO_TRUNCATED, False)),
            )
        )
    return exact_demonstrations(episodes, action_space, observation_space)


def to_imitation(demonstrations: Demonstrations) -> list[Any]:
    """Return demonstrations as trajectories of the package imitation; :func:`from_imitation` returns them bit for bit.

    Args:
        demonstrations: without tasks, arguments and calls. Observations of a Dict space become ``DictObs``.

    Returns:
        ``TrajectoryWithRew`` where there are rewards, else ``Trajectory``; ``terminal`` if terminated or truncated, and
        ``infos[-1]["TimeLimit.truncated"]`` as Stable-Baselines3 has it: if truncated and not terminated.

    Raises:
        ImportError: without imitation.
        TypeError: for observations that are tuples or nested dicts, which imitation does not have.
        ValueError: for demonstrations with tasks, arguments or calls.
    """
    types = _imported("imitation.data.types", "pip install --no-deps imitation seals")
    _refuse_extras(demonstrations, "a trajectory of imitation")
    space = demonstrations.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if any(isinstance(part, spaces.Dict | spaces.Tuple) for part in parts):
        raise TypeError(f"imitation has observations that are arrays or dicts of arrays, not of {space}")
    trajectories = []
    for episode in demonstrations.to_episodes():
        infos = np.array([{} for _ in episode.actions])
        infos[-1] = {_TRUNCATED: episode.truncated and not episode.terminated}
        if episode.truncated and episode.terminated:
            infos[-1][_ALSO_TRUNCATED] = True
        observations = episode.observations
        fields = {
            "obs": types.DictObs(observations) if isinstance(observations, dict) else observations,
            "acts": episode.actions,
            "infos": infos,
            "terminal": bool(episode.terminated or episode.truncated),
        }
        if episode.rewards is None:
            trajectories.append(types.Trajectory(**fields))
        else:
            trajectories.append(types.TrajectoryWithRew(**fields, rews=episode.rewards))
    return trajectories


# ---------------------------------------------------------------------- in common


def _imported(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module.partition('.')[0]} is not installed: {install}") from error


def _refuse_extras(demonstrations: Demonstrations, target: str) -> None:
    found = [name for name in ("task", "arguments") if getattr(demonstrations, name).shape[-1]]
    found += ["calls"] * (demonstrations.calls is not None)
    if found:
        raise ValueError(f"{target} has no place for the {' and '.join(found)} of these demonstrations")
