"""Demonstrations from and to Minari's data sets: bit for bit."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from ...._files import recover_folder, replacing_folder, verify_room
from ...._limits import json_of
from ....models.space_json import space_from_json, space_to_json, verify_size
from ....models.spaces import check_action_space, observation_size
from ..demonstrations import Demonstrations, Episode
from .arrays import demonstrations_of
from .files import chosen, existing, imported, naming
from .hdf5 import verify_hdf5
from .imitation import refuse_extras

__all__ = ["from_minari", "to_minari"]

Space = spaces.Space[Any]

# Minari's own description of a space forgets the type of a Discrete and the order of a Dict; ours stands beside it.
_SPACES = {"action_space": "pyrocontrol_action_space", "observation_space": "pyrocontrol_observation_space"}

# HDF5 ends the process where the disk is full. These are somewhat more than what its groups and tables take.
_EPISODE_BYTES, _ARRAY_BYTES = 8192, 4096


def from_minari(
    dataset: Any,
    observations: str | Sequence[str] | None = None,
    *,
    action_space: Space | None = None,
    observation_space: Space | None = None,
    download: bool = False,
) -> Demonstrations:
    """Return the demonstrations of a Minari data set (of Minari 0.5).

    Its infos, seeds and reset options are not kept. Rewards that are all NaN stand for none.

    Args:
        dataset: its id, or a ``minari.MinariDataset``, of which the episodes that it has chosen are taken.
        observations: the keys of those to read, where the data set's are a Dict, such as ``("image", "direction")``
            where there are texts beside them; the key of a single one, not in a tuple, for observations that are no
            dict. None for all that the observation space names.
        action_space: takes the place of the data set's own, where that does not hold all recorded actions, say.
        observation_space: the same for observations; a Dict chooses those that it names.
        download: whether to download the data set if it is not there.

    Raises:
        ImportError: without Minari.
        FileNotFoundError: if there is no such data set.
        TypeError: for spaces that are not supported, such as texts.
        ValueError: naming the folder, if a file is truncated or damaged or has links to other files, or a key is not
            there; also trace and step, if an action is outside its space, an episode goes on after its end, or
            something is NaN or infinite.

    Example:
        >>> demonstrations = from_minari("D4RL/door/human-v2")  # doctest: +SKIP
    """
    minari = imported("minari")
    if isinstance(dataset, str):
        folder = Path(importlib.import_module("minari.storage").get_dataset_path(dataset))
        recover_folder(folder, _whole)
        with naming(folder):
            if not (folder / "data").exists():
                if not download:
                    raise FileNotFoundError(f"no data set {dataset} at {folder}: pass download=True to download it")
                minari.download_dataset(dataset)
        _verify_metadata(folder / "data")
        with naming(folder):
            dataset = minari.load_dataset(dataset)
    elif not isinstance(dataset, minari.MinariDataset):
        raise TypeError(f"a Minari data set is given by its id or as a MinariDataset, got {type(dataset).__name__}")
    path = Path(dataset.storage.data_path)
    with naming(path):
        found: dict[str, Any] = {}
        for name, space in (("action_space", action_space), ("observation_space", observation_space)):
            text = dataset.storage.metadata.get(_SPACES[name])
            found[name] = space or (getattr(dataset, name) if text is None else space_from_json(text))
        if observations is not None and observation_space is None:
            parts = chosen(observations, getattr(found["observation_space"], "spaces", {}))
            found["observation_space"] = spaces.Dict([*parts.items()]) if isinstance(parts, dict) else parts
    try:
        check_action_space(found["action_space"])
        observation_size(found["observation_space"])
    except TypeError as error:
        hint = "; choose its parts, observations=(...)" if isinstance(found["observation_space"], spaces.Dict) else ""
        raise TypeError(f"the data set {dataset.id} cannot be read: {error}{hint}") from error
    if (path / "main_data.hdf5").exists():
        verify_hdf5(path / "main_data.hdf5")
    with naming(path):
        episodes = list(dataset.iterate_episodes())
        seen = [one.observations for one in episodes]
        columns: dict[str, Any] = {
            "observations": seen if observations is None else [chosen(observations, one) for one in seen],
            "actions": [one.actions for one in episodes],
            "rewards": [np.asarray(one.rewards) for one in episodes],
            "terminated": [one.terminations for one in episodes],
            "truncated": [one.truncations for one in episodes],
        }
        if all(np.isnan(one).all() for one in columns["rewards"]):
            del columns["rewards"]
    called = {"terminated": "terminations", "truncated": "truncations"}
    return demonstrations_of(columns, **found, path=path, called=called)


def _verify_metadata(folder: Path) -> None:
    """Look at what a data set says of itself, before Minari believes it.

    Raises:
        FileNotFoundError: if it says nothing.
        ValueError: naming the file, if it is damaged, or claims more than there is. Without spaces Minari would make
            the environment, from whatever code the file names.
    """
    path = existing(folder / "metadata.json")
    with naming(path):
        found = json_of(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is no metadata of a Minari data set")
        for name in _SPACES:
            if not isinstance(found.get(name), str):
                raise ValueError(f"it does not say the {name}")
            verify_size(json_of(found[name]))
        most = sum(file.stat().st_size for file in folder.rglob("*"))  # of which an episode takes some
        if not isinstance(count := found.get("total_episodes"), int) or not 0 <= count <= most:
            raise ValueError(f"it claims to have {count!r} episodes, in {most} bytes")


def to_minari(
    demonstrations: Demonstrations, dataset_id: str, *, env: Any = None, overwrite: bool = False, **metadata: Any
) -> Any:
    """Write demonstrations as a Minari data set; :func:`from_minari` returns them bit for bit.

    Images are written as they are, not as JPEG. Where there are no rewards, they are NaN there.

    Args:
        demonstrations: of any spaces, but without tasks, arguments and calls, for which Minari has no place.
        dataset_id: ``(namespace/)name-v0``. Minari keeps it in the folder ``MINARI_DATASETS_PATH``.
        env: the environment, its id or its spec, for those who want to make it again from the data set.
        overwrite: whether to replace a data set of this id; it stands until the new one is there, also where the
            process ends on the way, and :func:`from_minari` finds it.
        **metadata: for ``minari.create_dataset_from_buffers``: ``algorithm_name``, ``author``, ``author_email``,
            ``code_permalink``, ``description``, ``requirements`` and others.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        ImportError: without Minari.
        FileExistsError: if there is a data set of this id, unless it is to be replaced.
        BlockingIOError: if another process is writing this data set; says which.
        OSError: if it cannot be written, or the disk is full; names the folder.
        ValueError: for an id of another form, or demonstrations with tasks, arguments or calls.

    Example:
        >>> to_minari(demonstrations, "cartpole/teacher-v0", env="CartPole-v1", author="me")  # doctest: +SKIP
    """
    minari = imported("minari")
    refuse_extras(demonstrations, "a Minari data set")
    try:
        importlib.import_module("minari.dataset.minari_dataset").parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # the latter where the version is missing
        raise ValueError(f"a Minari data set is called (namespace/)name-v0, say, not {dataset_id!r}") from error
    folder = Path(importlib.import_module("minari.storage").get_dataset_path(dataset_id))
    with replacing_folder(folder, _whole) as new, warnings.catch_warnings():
        if folder.exists() and not overwrite:
            raise FileExistsError(
                f"there is a Minari data set {dataset_id} at {folder}: pass overwrite=True to replace it"
            )
        buffers = [_minari_buffer(episode) for episode in demonstrations.to_episodes()]
        verify_room(folder, sum(_EPISODE_BYTES + _bytes(vars(buffer)) for buffer in buffers))
        # Minari recommends all of the metadata, in a warning each.
        warnings.filterwarnings("ignore", r"`\w+` is set to None", UserWarning)
        warnings.filterwarnings("ignore", "env_spec is None, no environment spec is provided", UserWarning)
        dataset = minari.create_dataset_from_buffers(
            dataset_id.removesuffix(folder.name) + new.name,
            buffers,
            env=env,
            action_space=demonstrations.action_space,
            observation_space=demonstrations.observation_space,
            **{"jpeg_encoding": False, **metadata},
        )
        texts = {key: space_to_json(getattr(demonstrations, name)) for name, key in _SPACES.items()}
        dataset.storage.update_metadata(texts)
        about = new / "data" / "metadata.json"  # Minari itself renames no data set
        about.write_text(json.dumps(json.loads(about.read_text()) | {"dataset_id": dataset_id}))
    return minari.load_dataset(dataset_id)


def _bytes(value: Any) -> int:
    """How many the arrays in a value have, and what HDF5 needs for each array beside them."""
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return value.nbytes + _ARRAY_BYTES if isinstance(value, np.ndarray) else 0


def _whole(folder: Path) -> bool:
    """Whether a data set has all its episodes: Minari counts them when they are written."""
    try:
        return json.loads((folder / "data" / "metadata.json").read_text())["total_episodes"] > 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
