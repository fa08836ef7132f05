"""Demonstrations from a data set of LeRobot."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from ...._limits import Budget, json_of
from ...._verify import verify_positive
from ....models.spaces import as_action_space
from ..demonstrations import Demonstrations
from .arrays import demonstrations_of
from .files import PATH, chosen, existing, imported, naming, verify_apart

__all__ = ["from_lerobot"]

Space = spaces.Space[Any]


def from_lerobot(
    folder: PATH,
    observations: str | Sequence[str] = ("observation.state",),
    action: str = "action",
    *,
    episodes: Sequence[int] | None = None,
    action_space: Space | int | None = None,
    observation_space: Space | None = None,
) -> Demonstrations:
    """Return the demonstrations in a folder of LeRobot's data sets, of version 2.0, 2.1 or 3.0.

    It holds ``meta/info.json``, with the features and their shapes, and parquet files of one row a frame: one file an
    episode (``data/chunk-000/episode_000000.parquet``, versions 2) or one of several
    (``data/chunk-000/file-000.parquet``, version 3). Their columns are the features: ``observation.state`` `[S]`,
    ``action`` `[A]`, ``episode_index``, ``frame_index`` and maybe ``next.reward`` and ``next.done``. Tasks, time stamps
    and statistics are not kept.

    Nothing follows the last action of an episode, which is left away: N frames are N observations and N - 1 actions.
    The episode terminated if ``next.done`` says so of the last action that is kept, and is a fragment otherwise.

    Images in the parquet files, and videos (``videos/``, RGB), are read only where they are asked for, and become
    uint8 `[H, W, 3]`. All frames are kept in memory.

    Args:
        folder: of the data set.
        observations: the features to read, as the parts of a Dict; the name of a single one, not in a tuple, for
            observations that are no dict.
        action: the feature that is the action.
        episodes: the numbers of those to read; None for all, which must be there then.
        action_space: by default a Box without bounds.
        observation_space: by default Boxes without bounds; 0 to 255 for images.

    Raises:
        ImportError: without pyarrow, or, for videos, PyAV.
        FileNotFoundError: if the folder or a file in it is missing.
        TypeError: for spaces that are not supported.
        ValueError: naming the file, if it is truncated, damaged or another one, lacks a feature or an episode, or holds
            something that `from_arrays` refuses; trace i is the i-th episode that is read.

    Example:
        >>> from_lerobot("pusht", ("observation.state", "observation.image"), episodes=[0, 1])  # doctest: +SKIP
    """
    imported("pyarrow.parquet")
    numbered = action_space is not None and isinstance(as_action_space(action_space), spaces.Discrete)
    folder = existing(folder, folder=True)
    if episodes is not None:
        episodes = list(episodes)
        if twice := [number for number, count in Counter(episodes).items() if count > 1]:
            raise ValueError(f"episodes={episodes} has {twice[0]} twice")
    names = [observations] if isinstance(observations, str) else list(observations)
    info = _info(folder, [*names, action])
    videos = [name for name in names if info.features[name]["dtype"] == "video"]
    if videos:
        imported("av")
    columns = ["episode_index", action, *(name for name in names if name not in videos)]
    columns += [name for name in ("frame_index", "next.reward", "next.done") if name in info.features]
    files = sorted(folder.glob("data/*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"no data/chunk-000/*.parquet in {folder}")
    found: dict[int, dict[str, np.ndarray]] = {}
    verify_apart("parquet", [existing(file) for file in [*files, *sorted(folder.glob("meta/episodes/*/*.parquet"))]])
    for file in files:
        _read_episodes(file, columns, info, episodes, found)
    with naming(folder):
        if episodes is None and len(found) != info.episodes:
            raise ValueError(
                f"meta/info.json says {info.episodes} episodes, {len(found)} are there: choose some, episodes=[...]"
            )
        wanted = sorted(found) if episodes is None else episodes
        if missing := [number for number in wanted if number not in found]:
            raise ValueError(f"it has no episode {missing[0]}")
        # One frame alone has no action that is kept.
        frames = {number: found[number] for number in wanted if len(found[number][action]) > 1}
        if not frames:
            raise ValueError("no demonstrations: the data set is empty")
        for name in videos:
            for number, images in _videos(folder, name, {key: len(one[action]) for key, one in frames.items()}, info):
                frames[number][name] = images
    for one in frames.values():
        for name in names if numbered else [*names, action]:
            one[name] = one[name][:, None] if one[name].ndim == 1 else one[name]
    parts = list(frames.values())
    if action_space is None:
        action_space = spaces.Box(-np.inf, np.inf, parts[0][action].shape[1:], parts[0][action].dtype)
    given: dict[str, Any] = {
        "observations": [chosen(observations, one) for one in parts],
        "actions": [one[action][:-1] for one in parts],
        "terminated": [False] * len(parts),
    }
    called = {"rewards": "next.reward", "terminated": "next.done"}
    for column, name in called.items():
        if name in columns:
            given[column] = [one[name][:-1] for one in parts]
    return demonstrations_of(given, action_space, observation_space, path=folder, called=called)


class _Info(NamedTuple):
    """What ``meta/info.json`` says: the features by name, and the major version of the layout, 2 or 3."""

    features: dict[str, Any]
    fps: float
    episodes: int
    version: int
    chunk: int


def _info(folder: Path, names: Sequence[str]) -> _Info:
    path = existing(folder / "meta" / "info.json")
    with naming(path):
        info = json_of(path.read_bytes())
        if not isinstance(info, dict) or not {"codebase_version", "features", "fps", "total_episodes"} <= info.keys():
            raise ValueError("it is no info.json of a LeRobot data set")
        version = re.match(r"v?([23])\.", str(info["codebase_version"]))
        if version is None:
            raise ValueError(f"its version is {info['codebase_version']}; 2.0, 2.1 and 3.0 are read")
        for name in ("features", "total_episodes"):
            if not isinstance(info[name], kind := {"features": dict, "total_episodes": int}[name]):
                raise ValueError(f"its {name} must be a {kind.__name__}, got a {type(info[name]).__name__}")
        for name, feature in {**info["features"], **chosen(names, info["features"])}.items():
            if not isinstance(feature, dict) or not {"dtype", "shape"} <= feature.keys():
                raise ValueError(f"the feature {name} has no dtype or no shape")
            if not isinstance(feature["shape"], list) or not all(type(size) is int for size in feature["shape"]):
                raise ValueError(f"the shape of the feature {name} must be a list of numbers, got {feature['shape']!r}")
        verify_positive(fps=info["fps"], chunks_size=info.get("chunks_size", 1000))
        return _Info(
            info["features"], info["fps"], info["total_episodes"], int(version[1]), info.get("chunks_size", 1000)
        )


# ---------------------------------------------------------------------- parquet


def _table(path: Path, columns: Sequence[str]) -> Any:
    """The columns of a parquet file."""
    parquet = imported("pyarrow.parquet")
    path = existing(path)
    with naming(path), parquet.ParquetFile(path, page_checksum_verification=True) as file:
        there = file.schema_arrow.names
        if missing := [name for name in columns if name not in there]:
            raise ValueError(f"it has no column {missing[0]!r}: it has {sorted(there)}")
        budget, batches = Budget(path.stat().st_size), []
        # By batches, so that what has a wrong size is found out soon. Metadata of columns are not asked for here:
        # pyarrow 26 ends the process where they are damaged.
        for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
            budget.take(batch.nbytes)
            batches.append(batch)
        whole = imported("pyarrow").Table.from_batches(batches) if batches else file.schema_arrow.empty_table()
        return whole.select(list(columns))


def _read_episodes(
    path: Path,
    columns: Sequence[str],
    info: _Info,
    episodes: Sequence[int] | None,
    found: dict[int, dict[str, np.ndarray]],
) -> None:
    """Add the episodes of a parquet file to those that were found."""
    table = _table(path, columns)
    with naming(path):
        numbers = _numbers(table, "episode_index")
        if episodes is not None:
            rows = np.flatnonzero(np.isin(numbers, list(episodes)))
            table, numbers = table.take(rows), numbers[rows]
        if not len(numbers):
            return
        frames: dict[str, np.ndarray] = {}
        for name in columns[1:]:
            image = info.features[name]["dtype"] == "image"
            frames[name] = _images(table, name, info, path) if image else _numbers(table, name)
            shape = info.features[name]["shape"]
            if not image and frames[name].shape[1:] not in (tuple(shape), () if shape == [1] else None):
                raise ValueError(f"{name} has shape {[*frames[name].shape[1:]]}, meta/info.json says {shape}")
        ends = np.flatnonzero(np.diff(numbers, append=numbers[-1] - 1)) + 1
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            number = int(numbers[first])
            if number in found:
                raise ValueError(f"episode {number} is there twice")
            found[number] = {name: value[first:end] for name, value in frames.items()}
            index = found[number].get("frame_index", np.arange(end - first))
            if not np.array_equal(index, np.arange(end - first)):
                raise ValueError(f"the frames of episode {number} are not 0 to {end - first - 1}, in order")


def _numbers(table: Any, name: str) -> np.ndarray:
    """A column of numbers, or of lists of them that are all as long, `[N, ...]`."""
    types = imported("pyarrow").types
    values = table.column(name).combine_chunks()
    shape = [len(values)]
    while True:
        if values.null_count:
            raise ValueError(f"{name} has no value in some rows")
        if hasattr(values, "storage"):  # an extension type of somebody's
            values = values.storage
        elif types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
            widths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
            if len(widths) > 1:
                raise ValueError(f"{name} has rows of different widths, {widths[0]} and {widths[-1]}")
            shape.append(int(widths[0]) if len(widths) else 0)
            values = values.flatten()
        else:
            break
    if not (types.is_integer(values.type) or types.is_floating(values.type) or types.is_boolean(values.type)):
        raise ValueError(f"{name} must be numbers, got {values.type}")
    return values.to_numpy(zero_copy_only=False).reshape(shape)


# ---------------------------------------------------------------------- images and videos


def _images(table: Any, name: str, info: _Info, path: Path) -> np.ndarray:
    """A column of images, each in the bytes of a file, `[N, H, W, 3]`."""
    pillow, images, budget = imported("PIL.Image"), [], Budget(path.stat().st_size)
    for row in table.column(name).to_pylist():
        content = row.get("bytes") if isinstance(row, dict) else None
        if content is None:
            raise ValueError(f"{name} has an image that is not in the file")
        with pillow.open(io.BytesIO(content)) as image:
            _check_size(name, image.height, image.width, info)
            budget.take(3 * image.height * image.width)
            images.append(np.asarray(image.convert("RGB")))
    return np.stack(images)


def _videos(folder: Path, name: str, counts: dict[int, int], info: _Info) -> Iterator[tuple[int, np.ndarray]]:
    """The frames of episodes in videos.

    Args:
        folder: of the data set.
        name: of the feature.
        counts: of frames, by episode.
        info: of the data set.

    Returns:
        Pairs of an episode and its frames `[N, H, W, 3]`.
    """
    where: dict[Path, list[tuple[int, int]]] = {}  # by file, the episodes and their first frames in it
    if info.version == 2:
        for number in counts:
            file = folder / "videos" / f"chunk-{number // info.chunk:03d}" / name / f"episode_{number:06d}.mp4"
            where[file] = [(number, 0)]
    else:
        columns = [
            "episode_index",
            *(f"videos/{name}/{what}" for what in ("chunk_index", "file_index", "from_timestamp")),
        ]
        for path in sorted(folder.glob("meta/episodes/*/*.parquet")):
            table = _table(path, columns)
            with naming(path):
                rows = zip(*(_numbers(table, column).tolist() for column in columns), strict=True)
                for number, chunk, index, start in rows:
                    if number in counts:
                        file = folder / "videos" / name / f"chunk-{chunk:03d}" / f"file-{index:03d}.mp4"
                        where.setdefault(file, []).append((number, round(start * info.fps)))
        placed = {number for starts in where.values() for number, _ in starts}
        if missing := [number for number in counts if number not in placed]:
            raise ValueError(f"meta/episodes does not say where the video {name} of episode {missing[0]} is")
    for file, starts in where.items():
        wanted = [range(first, first + counts[number]) for number, first in starts]
        images = _decoded(file, name, set().union(*wanted), info)
        for (number, _), places in zip(starts, wanted, strict=True):
            yield number, np.stack([images[place] for place in places])


def _decoded(path: Path, name: str, wanted: set[int], info: _Info) -> dict[int, np.ndarray]:
    """Decode frames of a video, by their numbers."""
    av, path = imported("av"), existing(path)
    images: dict[int, np.ndarray] = {}
    # As an MP4 whatever it says, and through a stream: other forms, and their decoder, could name further files.
    with naming(path), open(path, "rb") as stream, av.open(stream, format="mp4") as video:
        for frame in video.decode(video=0):
            place = round(frame.time * info.fps)
            if place in wanted:
                _check_size(name, frame.height, frame.width, info)
                images[place] = frame.to_ndarray(format="rgb24")
            if len(images) == len(wanted):
                break
        if missing := sorted(wanted - images.keys()):
            raise ValueError(f"it has no frame {missing[0]}, at {missing[0] / info.fps:g} s")
    return images


def _check_size(name: str, height: int, width: int, info: _Info) -> None:
    """Refuse an image of another size than the data set's, before its pixels are made."""
    shape = tuple(info.features[name]["shape"])
    if shape not in ((height, width, 3), (3, height, width)):
        raise ValueError(f"{name} has an image of {height} x {width}, its shape is {list(shape)}")
