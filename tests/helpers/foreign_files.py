"""Small honest files in the layouts of others, as their own programs write them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

Rows = dict[str, Any]
BOX = spaces.Box(-1, 1, (2,), np.float32)
COUNTS = (4, 2, 3)  # actions of each episode


def recorded() -> list[Rows]:
    """Three episodes of what all formats hold; observation t + 1 follows action t."""
    rng = np.random.default_rng(0)
    return [
        {
            "observations": rng.standard_normal((count + 1, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
            "rewards": rng.standard_normal(count),
            "dones": np.arange(count) == count - 1,
        }
        for count in COUNTS
    ]


def flat_arrays(episodes: list[Rows]) -> Rows:
    """Steps one after the other, with the observation after each."""
    return {
        "observations": np.concatenate([one["observations"][:-1] for one in episodes]),
        "next_observations": np.concatenate([one["observations"][1:] for one in episodes]),
        **{name: np.concatenate([one[name] for one in episodes]) for name in ("actions", "rewards")},
        "terminals": np.concatenate([one["dones"] for one in episodes]),
    }


def write_npz(folder: Path, episodes: list[Rows], **changes: Any) -> Path:
    arrays = flat_arrays(episodes) | changes
    np.savez(folder / "data.npz", **{name: value for name, value in arrays.items() if value is not None})
    return folder / "data.npz"


def write_d4rl(folder: Path, episodes: list[Rows], **changes: Any) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "data.hdf5", "w") as file:
        for name, value in (flat_arrays(episodes) | changes).items():
            if value is not None:
                file[name] = value
        file["infos/qpos"] = np.zeros((9, 2))
        file["metadata/algorithm"] = "SAC"
    return folder / "data.hdf5"


def write_robomimic(folder: Path, episodes: list[Rows], **changes: Any) -> Path:
    """Demonstrations 0, 2 and 10, whose order by name is another one."""
    h5py = pytest.importorskip("h5py")
    path = folder / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        for number, one in zip((0, 2, 10), episodes, strict=True):
            count = len(one["actions"])
            images = np.full((count, 4, 5, 3), number, np.uint8)
            demo = file.create_group(f"data/demo_{number}")
            for name, value in {
                "obs/object": one["observations"][:-1],
                "next_obs/object": one["observations"][1:],
                "obs/agentview_image": images,
                "next_obs/agentview_image": images + 1,
                "actions": one["actions"],
                "rewards": one["rewards"],
                "dones": one["dones"].astype(np.int64),
                "states": np.zeros((count, 30)),
                **changes,
            }.items():
                if value is not None:
                    demo[name] = value
            demo.attrs["num_samples"] = count
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "env_type": 1, "env_kwargs": {}})
        file["data"].attrs["total"] = sum(len(one["actions"]) for one in episodes)
        file["mask/train"] = np.array([b"demo_10", b"demo_0"], dtype="S8")
    return path


IMAGE, VIDEO = "observation.images.wrist", "observation.images.top"


def picture(number: int, frame: int) -> np.ndarray:
    """A frame of one colour, which survives any codec."""
    return np.full((32, 48, 3), 40 * number + 20 * frame, np.uint8)


def write_lerobot(folder: Path, episodes: list[Rows], version: str = "v2.1", **changes: Any) -> Path:
    """A frame an observation; the last one has an action too, which nothing follows."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = folder / "lerobot"
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
        IMAGE: {"dtype": "image", "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
        VIDEO: {"dtype": "video", "shape": [3, 32, 48], "names": ["channels", "height", "width"]},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("episode_index", "frame_index")},
    }
    tables = []
    for number, one in enumerate(episodes):
        count = len(one["observations"])
        table = {
            "observation.state": pa.array(list(one["observations"]), pa.list_(pa.float32())),
            "action": pa.array([*one["actions"], np.zeros(2, np.float32)], pa.list_(pa.float32(), 2)),
            IMAGE: [{"bytes": png(picture(number, frame)), "path": None} for frame in range(count)],
            "next.reward": np.append(one["rewards"], 0).astype(np.float32),
            # As in LeRobot's own pusht: both of the last action before the last frame, and of the one at it.
            "next.done": np.append(one["dones"], True),
            "timestamp": (np.arange(count) / 10).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, number),
            **{name: np.full(count, value) for name, value in changes.items() if value is not None},
        }
        tables.append(pa.table({name: value for name, value in table.items() if changes.get(name, 0) is not None}))
    info = {"codebase_version": version, "fps": 10, "total_episodes": len(episodes), "chunks_size": 1000}
    files = {root / f"data/chunk-000/episode_{number:06d}.parquet": one for number, one in enumerate(tables)}
    if version == "v3.0":
        files = {root / "data/chunk-000/file-000.parquet": pa.concat_tables(tables)}
    for path, table in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path, write_page_checksum=True)
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info | {"features": features}))
    return root


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_videos(root: Path, version: str = "v2.1") -> None:
    """One a episode, or all of them in one; of the latter, meta/episodes says where each begins."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    frames = [[picture(number, frame) for frame in range(count + 1)] for number, count in enumerate(COUNTS)]
    if version != "v3.0":
        for number, images in enumerate(frames):
            encode(root / f"videos/chunk-000/{VIDEO}/episode_{number:06d}.mp4", images)
        return
    encode(root / f"videos/{VIDEO}/chunk-000/file-000.mp4", [image for images in frames for image in images])
    lengths = np.array([len(images) for images in frames])
    table = {"episode_index": np.arange(3), f"videos/{VIDEO}/from_timestamp": (np.cumsum(lengths) - lengths) / 10}
    table |= {f"videos/{VIDEO}/{name}": np.zeros(3, int) for name in ("chunk_index", "file_index")}
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.table(table), path)


def encode(path: Path, images: list[np.ndarray]) -> None:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for image in images:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        video.mux(stream.encode())
