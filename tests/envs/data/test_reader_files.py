"""Demonstrations from files that others wrote: what is read, and one error that names the file for every fault."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_files import (
    BOX,
    COUNTS,
    IMAGE,
    VIDEO,
    Rows,
    flat_arrays,
    picture,
    recorded,
    write_d4rl,
    write_lerobot,
    write_npz,
    write_robomimic,
    write_videos,
)
from gymnasium import spaces

from pyrocontrol.envs import (
    Demonstrations,
    Episode,
    bubble_sort,
    from_d4rl,
    from_lerobot,
    from_minari,
    from_npz,
    from_robomimic,
    to_minari,
)
from pyrocontrol.envs.data.readers import files, walk


def wanted(episodes: list[Rows], space: Any = None, **changes: Any) -> Demonstrations:
    made = [
        Episode(one["observations"], one["actions"], rewards=one["rewards"])._replace(**changes) for one in episodes
    ]
    return Demonstrations.from_episodes(made, BOX, space)


def shortened(episodes: list[Rows]) -> Demonstrations:
    """Without the last observation, and so without the last action."""
    cut = [{name: value[:-2] if name == "dones" else value[:-1] for name, value in one.items()} for one in episodes]
    return wanted(cut, terminated=False)


def same(left: Demonstrations, right: Demonstrations) -> bool:
    return left.fingerprint() == right.fingerprint()


# ---------------------------------------------------------------------- npz


def test_npz(tmp_path: Path) -> None:
    episodes = recorded()
    expected = wanted(episodes)
    path = write_npz(tmp_path, episodes)
    assert same(from_npz(path, action_space=BOX), expected)
    arrays = flat_arrays(episodes)
    whole = np.concatenate([one["observations"] for one in episodes])
    acted = {"acts": np.asfortranarray(arrays["actions"]), "rews": arrays["rewards"], "note": np.array([{}])}
    for names in (
        {"obs": whole, "lengths": list(COUNTS), **acted},
        {"obs": whole, "dones": arrays["terminals"].astype(np.float32)[:, None], **acted},
        {"obs": arrays["observations"], "next_obs": arrays["next_observations"], "episode_ends": [4, 6, 9], **acted},
    ):
        np.savez_compressed(path, **names)
        assert same(from_npz(str(path), action_space=BOX), expected)
    np.savez(path, a=whole, b=arrays["actions"], c=arrays["rewards"], obs=np.zeros(3), lengths=list(COUNTS))
    assert same(from_npz(path, action_space=BOX, names={"observations": "a", "actions": "b", "rewards": "c"}), expected)
    space = spaces.Dict([("seen", spaces.Box(-np.inf, np.inf, (3,))), ("image", spaces.Box(0, 255, (2, 2), np.uint8))])
    np.savez(path, x=whole, y=np.zeros((12, 2, 2), np.uint8), acts=arrays["actions"], lengths=list(COUNTS))
    found = from_npz(path, action_space=BOX, names={"observations": {"seen": "x", "image": "y"}})
    assert found.observation_space == space and found.to_episodes()[1].observations["image"].dtype == np.uint8


def test_dones_of_either_kind(tmp_path: Path) -> None:
    """Where only what terminated is done, what was cut off ends too."""
    episodes = recorded()
    cut = np.arange(9) == 5
    for dones in (np.isin(np.arange(9), (3, 5, 8)), np.isin(np.arange(9), (3, 8))):
        found = from_npz(write_npz(tmp_path, episodes, terminals=None, dones=dones, timeouts=cut), action_space=BOX)
        assert found.lengths.tolist() == [5, 3, 4]
        assert found.terminated.tolist() == [True, False, True] and found.truncated.tolist() == [False, True, False]


def test_a_file_of_our_own(tmp_path: Path) -> None:
    data = bubble_sort.demonstrations(3, 0)
    data.save(tmp_path / "ours.npz")
    assert same(from_npz(tmp_path / "ours.npz"), data)
    assert from_npz(tmp_path / "ours.npz", action_space=spaces.Discrete(9)).num_actions == 9
    with pytest.raises(TypeError, match=r"data\.npz: give the action_space"):
        from_npz(write_npz(tmp_path, recorded()))


# ---------------------------------------------------------------------- D4RL


@pytest.mark.parametrize("from_file", [False, True])
def test_d4rl(tmp_path: Path, from_file: bool) -> None:
    episodes = recorded()

    def read(**changes: Any) -> Demonstrations:
        if from_file:
            return from_d4rl(write_d4rl(tmp_path, episodes, **changes), action_space=BOX)
        arrays = flat_arrays(episodes) | changes
        return from_d4rl({name: value for name, value in arrays.items() if value is not None}, action_space=BOX)

    assert same(read(), wanted(episodes))
    ends = np.cumsum(COUNTS) - 1
    timeouts = np.isin(np.arange(9), ends[1]).astype(np.float32)
    terminals = np.isin(np.arange(9), ends[::2]).astype(np.uint8)[:, None]
    found = read(terminals=terminals, timeouts=timeouts)
    assert found.terminated.tolist() == [True, False, True] and found.truncated.tolist() == [False, True, False]
    # Without the observations after each action, the last action of an episode has none.
    assert same(read(next_observations=None), shortened(episodes))
    # What d4rl.qlearning_dataset gives has no timeouts; there it is seen from the observations where episodes end.
    found = read(terminals=terminals)
    assert found.lengths.tolist() == [5, 3, 4] and found.truncated.tolist() == [False, True, False]


# ---------------------------------------------------------------------- robomimic


def test_robomimic(tmp_path: Path) -> None:
    episodes = recorded()
    path = write_robomimic(tmp_path, episodes)
    assert same(from_robomimic(path, "object"), wanted(episodes))
    found = from_robomimic(path, ("object", "agentview_image"), "train")
    assert found.action_space == BOX and list(found.observation_space.spaces) == ["object", "agentview_image"]  # type: ignore[attr-defined]
    assert found.lengths.tolist() == [5, 4]
    assert found.observation_space["agentview_image"] == spaces.Box(0, 255, (4, 5, 3), np.uint8)  # type: ignore[index]
    for one, number, original in zip(found.to_episodes(), (0, 10), episodes[::2], strict=True):
        assert np.array_equal(one.observations["object"], original["observations"])
        assert one.observations["agentview_image"].dtype == np.uint8
        assert one.observations["agentview_image"][:, 0, 0, 0].tolist() == [number] * (len(one.actions)) + [number + 1]
    # Without next_obs, the last action is left away; without dones, and where they come only then, it is a fragment.
    for changes in ({"next_obs/object": None}, {"next_obs/object": None, "dones": None}):
        assert same(from_robomimic(write_robomimic(tmp_path, episodes, **changes), "object"), shortened(episodes))
    # A demonstration that holds on for some steps after it was done goes on to its end.
    episodes[0]["dones"][-3:] = True
    found = from_robomimic(write_robomimic(tmp_path, episodes, **{"next_obs/object": None}), "object")
    assert found.lengths.tolist() == [4, 2, 3] and found.terminated.tolist() == [True, False, False]


# ---------------------------------------------------------------------- LeRobot


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_lerobot(tmp_path: Path, version: str) -> None:
    episodes = recorded()
    root = write_lerobot(tmp_path, episodes, version)
    space, unbounded = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-np.inf, np.inf, (2,))
    rounded = [one | {"rewards": one["rewards"].astype(np.float32)} for one in episodes]
    expected = wanted(rounded, space)
    found = from_lerobot(root, "observation.state", action_space=BOX)
    assert same(found, expected)
    assert same(from_lerobot(root, "observation.state", action_space=BOX, episodes=[2, 0]), expected[[2, 0]])
    found = from_lerobot(root)
    assert found.action_space == unbounded and found.observation_space == spaces.Dict({"observation.state": space})
    write_videos(root, version)
    found = from_lerobot(root, (VIDEO, IMAGE, "observation.state"), episodes=[1, 2])
    for number, one in enumerate(found.to_episodes(), 1):
        images = np.stack([picture(number, frame) for frame in range(len(one.actions) + 1)])
        assert np.array_equal(one.observations[IMAGE], images) and one.observations[VIDEO].dtype == np.uint8
        assert np.abs(one.observations[VIDEO].astype(int) - images).max() <= 3


def test_lerobot_of_other_columns(tmp_path: Path) -> None:
    """Scalars are vectors of one number, or the actions of a Discrete; flags and rewards may be missing."""
    changes = {"next.done": None, "next.reward": None, "action": 1, "observation.state": 0.5}
    root = write_lerobot(tmp_path, recorded(), **changes)
    info = json.loads((root / "meta/info.json").read_text())
    for name in ("next.done", "next.reward"):
        del info["features"][name]
    for name in ("action", "observation.state"):
        info["features"][name]["shape"] = [1]
    (root / "meta/info.json").write_text(json.dumps(info))
    found = from_lerobot(root, "observation.state", action_space=2)
    assert found.actions[0].tolist() == [1, 1, 1, 1, 2] and found.rewards is None
    assert found.observations.shape == (3, 5, 1) and not found.terminated.any()


# ---------------------------------------------------------------------- faults


def read_robomimic(path: Path) -> Demonstrations:
    return from_robomimic(path, ("object",))


def read_flat(reader: Callable[..., Demonstrations]) -> Callable[[Path], Demonstrations]:
    return lambda path: reader(path, action_space=BOX)


def write_minari(folder: Path, episodes: list[Rows], **changes: Any) -> Path:
    pytest.importorskip("minari")
    to_minari(wanted(episodes), "a-v0")
    return folder / "a-v0"


# Of each reader: what writes a file or folder, what reads it, and the file that is spoilt.
READERS: dict[str, tuple[Callable[..., Path], Callable[[Path], Demonstrations], str]] = {
    "npz": (write_npz, read_flat(from_npz), ""),
    "d4rl": (write_d4rl, read_flat(from_d4rl), ""),
    "robomimic": (write_robomimic, read_robomimic, ""),
    "lerobot": (write_lerobot, from_lerobot, "data/chunk-000/episode_000001.parquet"),
    "lerobot v3": (partial(write_lerobot, version="v3.0"), from_lerobot, "data/chunk-000/file-000.parquet"),
    "lerobot info": (write_lerobot, from_lerobot, "meta/info.json"),
    "minari": (write_minari, lambda path: from_minari(path.name), "data/main_data.hdf5"),
    "minari info": (write_minari, lambda path: from_minari(path.name), "data/metadata.json"),
}


def refused(read: Callable[[Path], Demonstrations], path: Path, named: str, fault: str) -> None:
    """One error, of one type, that names the file and the fault."""
    with pytest.raises((ValueError, FileNotFoundError), match=fault) as caught:
        read(path)
    assert type(caught.value) in (ValueError, FileNotFoundError) and named in str(caught.value)
    assert "\n" not in str(caught.value).strip()


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, in which Minari keeps its data sets too."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


FAULTS = {
    "missing": "no file|no data/|No data found|info.json says 3 episodes, 2 are there",
    "empty": "the file is empty|Expecting value",
    "truncated": "no whole .npz|truncated|too small|magic bytes|Unterminated|Expecting",
    "damaged": "no whole .npz|CRC|magic bytes|no HDF5|Expecting|'utf-8'|Unable|Can't|Couldn't|signature|damaged|Error",
    "folder": "it is no file|Is a directory",
    "other": "no whole .npz file: it begins like a zip|no HDF5 file: it begins like a zip|magic bytes|Expecting value",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_spoilt_files(reader: str, fault: str, datasets: Path) -> None:
    write, read, inner = READERS[reader]
    path = write(datasets, recorded())
    file = path / inner if inner else path
    content, size = bytearray(file.read_bytes()), file.stat().st_size
    assert len(read(path)) == 3
    file.unlink()
    if fault == "folder":
        file.mkdir()
    elif fault == "truncated":
        file.write_bytes(content[: size // 2])
    elif fault == "damaged":
        content[8:] = bytes(byte ^ 0xA5 for byte in content[8:])
        file.write_bytes(content)
    elif fault != "missing":
        file.write_bytes(b"" if fault == "empty" else b"PK\x03\x04 is a zip, they say" * 40)
    # Minari reads its metadata itself, and who looks for files cannot name one that is not there.
    refused(read, path, path.name if fault == "missing" or "minari" in reader else file.name, FAULTS[fault])


def spoil(**changes: Callable[[np.ndarray], Any]) -> Callable[[list[Rows]], None]:
    """Change arrays of the second episode."""

    def change(episodes: list[Rows]) -> None:
        for name, function in changes.items():
            episodes[1][name] = function(episodes[1][name].copy())

    return change


def put(value: Any, *place: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


NAN = "trace 1, step 1: the observation is NaN or infinite"
GOES_ON = "trace 1, step 0: the episode goes on although it is terminated"


@pytest.mark.parametrize(
    ("reader", "change", "columns", "fault"),
    [
        *[
            (reader, spoil(observations=put(np.nan, 1, 0)), {}, NAN)
            for reader in ("npz", "d4rl", "robomimic", "lerobot")
        ],
        *[
            (
                reader,
                spoil(actions=put(7, 0, 1)),
                {},
                r"trace 1, step 0: an action outside -1\.\.1 \(component 1 is 7\)",
            )
            for reader in ("npz", "d4rl", "robomimic")
        ],
        ("robomimic", spoil(observations=lambda value: value[:, :2]), {}, r"trace 1.*'object' must have shape"),
        ("robomimic", spoil(actions=lambda value: value[:, :1]), {}, "trace 1.*actions must have shape"),
        ("robomimic", spoil(actions=lambda value: value[:1]), {}, "demo_2/obs/object has 2 rows for 1 actions"),
        (
            "lerobot",
            spoil(observations=lambda value: value[:, :2]),
            {},
            r"episode_000001.parquet: observation.state has shape .2., meta/info.json says .3.",
        ),
        (
            "lerobot v3",
            spoil(observations=lambda value: value[:, :2]),
            {},
            "observation.state has rows of .* widths, 2 and 3",
        ),
        ("lerobot", spoil(dones=put(True, 0)), {}, GOES_ON),
        # Misnamed: which there are, and which were looked for.
        *[
            (reader, None, {"actions": None, "moves": np.zeros((9, 2))}, "no actions or acts: it has .*'moves'")
            for reader in ("npz", "d4rl")
        ],
        ("robomimic", None, {"obs/object": None}, r"there is no 'object': there are \['agentview_image'\]"),
        ("robomimic", None, {"actions": None, "acts": np.zeros(1)}, "no array 'data/demo_0/actions': .*'acts'"),
        ("lerobot", None, {"action": None, "act": 0.5}, "episode_000000.parquet: it has no column 'action': .*'act'"),
        # Flags and lengths that do not say where episodes end.
        *[
            (reader, None, changes, fault)
            for reader in ("npz", "d4rl")
            for changes, fault in (
                ({"terminals": None, "next_observations": None}, "where do episodes end"),
                ({"terminals": np.full(9, 0.5)}, "terminals must be flags, true or false, 1 or 0, got float64"),
                ({"terminals": np.zeros(8)}, "where do episodes end.*terminals|8 terminals|terminals must have shape"),
                ({"lengths": np.array([4, 2, 2])}, r"lengths must be positive and add up to 9.* got \[4, 2, 2\]"),
                ({"lengths": np.array([4, 5])}, "trace 1, step 1: the episode goes on although it is terminated"),
                ({"rewards": np.zeros(8)}, "8 rewards for 9 actions"),
                ({"next_observations": np.zeros((8, 3))}, "8 next_observations for 9 actions"),
                ({"observations": np.zeros((10, 3))}, "10 observations for 9 actions in 3 episodes"),
            )
        ],
        ("robomimic", None, {"dones": 0.5}, "is no array"),
        (
            "lerobot",
            None,
            {"frame_index": 1},
            "episode_000000.parquet: the frames of episode 0 are not 0 to 4, in order",
        ),
        ("lerobot", None, {"episode_index": 0}, "episode_000001.parquet: episode 0 is there twice"),
        ("lerobot", None, {"next.done": 2}, "next.done must be flags"),
        # Numbers that are none.
        ("npz", None, {"actions": np.array([{}] * 9)}, "actions holds Python objects, which are never unpickled"),
        ("d4rl", None, {"actions": np.array([b"x"] * 9)}, r"actions must be numbers, got \|S1"),
        ("lerobot", None, {"action": "left"}, "action must be numbers, got string"),
    ],
)
def test_bad_contents(
    reader: str,
    change: Callable[[list[Rows]], None] | None,
    columns: dict[str, Any],
    fault: str,
    tmp_path: Path,
) -> None:
    write, read, _ = READERS[reader]
    episodes = recorded()
    if change is not None:
        change(episodes)
    path = write(tmp_path, episodes, **columns)
    refused(read, path, path.name, fault)


def test_what_is_asked_for_and_not_there(tmp_path: Path) -> None:
    episodes = recorded()
    npz, robomimic, lerobot = (write(tmp_path, episodes) for write in (write_npz, write_robomimic, write_lerobot))
    for call, fault in (
        (lambda: from_npz(npz, action_space=BOX, names={"actions": "acts"}), "data.npz: it has no array 'acts'"),
        (lambda: from_npz(npz, action_space=BOX, names={"moves": "actions"}), "names are for .*, not for moves"),
        (lambda: from_robomimic(robomimic, ("object", "x")), "there is no 'x': there are .'agentview_image', 'object'"),
        (lambda: from_robomimic(robomimic, ()), "nothing is chosen: there are"),
        (lambda: from_robomimic(robomimic, "object", "test"), "no array 'mask/test': mask holds .'train'."),
        (lambda: from_robomimic(npz, "object"), "data.npz: it is no HDF5 file: it begins like a zip file"),
        (
            lambda: from_robomimic(write_d4rl(tmp_path, episodes), "x"),
            "data.hdf5: it has no demonstrations, data/demo_0",
        ),
        (lambda: from_lerobot(lerobot, "state"), "info.json: there is no 'state': there are"),
        (lambda: from_lerobot(lerobot, episodes=[1, 7]), "lerobot: it has no episode 7"),
        (lambda: from_lerobot(lerobot, episodes=[1, 1]), r"episodes=.1, 1. has 1 twice"),
        (lambda: from_lerobot(lerobot, VIDEO), "no file .*episode_000000.mp4"),
        (lambda: from_lerobot(npz), "data.npz: it is no folder"),
        (lambda: from_npz(lerobot, action_space=BOX), "lerobot: it is no file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=fault):
            call()
    (lerobot / "data/chunk-000/episode_000002.parquet").unlink()
    with pytest.raises(ValueError, match="info.json says 3 episodes, 2 are there"):
        from_lerobot(lerobot)
    info = json.loads((lerobot / "meta/info.json").read_text())
    (lerobot / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    with pytest.raises(ValueError, match="info.json: its version is v1.6; 2.0, 2.1 and 3.0 are read"):
        from_lerobot(lerobot)


def test_spoilt_videos(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path, recorded())
    write_videos(root)
    video = root / f"videos/chunk-000/{VIDEO}/episode_000000.mp4"
    whole = video.read_bytes()
    for content, fault in (
        (whole[: len(whole) // 2], "Invalid data|moov"),
        (b"", "is empty"),
        (b"#EXTM3U\n/etc/passwd\n", "Invalid data|moov"),  # not followed, as another form of video would be
        ((root / f"videos/chunk-000/{VIDEO}/episode_000001.mp4").read_bytes(), "it has no frame 3, at 0.3 s"),
    ):
        video.write_bytes(content)
        refused(lambda path: from_lerobot(path, VIDEO), root, video.name, fault)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][VIDEO]["shape"] = info["features"][IMAGE]["shape"] = [3, 64, 48]
    (root / "meta/info.json").write_text(json.dumps(info))
    video.write_bytes(whole)
    for name in (VIDEO, IMAGE):
        refused(lambda path, name=name: from_lerobot(path, name), root, "episode_000000", "32 x 48, its shape is")


# ---------------------------------------------------------------------- files that mean harm


def test_hdf5_stays_within_its_file(datasets: Path) -> None:
    h5py, tmp_path = pytest.importorskip("h5py"), datasets
    (tmp_path / "secret").write_bytes(bytes(72))
    layout = h5py.VirtualLayout((9, 2), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "x", (9, 2))
    for spoil_file, fault in (
        (lambda file: file.__setitem__("actions", h5py.ExternalLink("other.hdf5", "/x")), "a link to another file"),
        (
            lambda file: file.create_dataset("actions", (9, 2), "f4", external=str(tmp_path / "secret")),
            "in another file",
        ),
        (lambda file: file.create_virtual_dataset("actions", layout), "actions lies in another file"),
        (lambda file: file.create_dataset("actions", (10**9, 2), "f4", chunks=(9, 2)), "claims to hold more"),
    ):
        path = write_d4rl(tmp_path, recorded(), actions=None)
        with h5py.File(path, "a") as file:
            spoil_file(file)
        refused(READERS["d4rl"][1], path, path.name, fault)
    path = write_robomimic(tmp_path, recorded()[:1] * 3, **{"next_obs/object": None})
    with h5py.File(path, "a") as file:  # one array, in every demonstration
        file.create_dataset("large", data=np.zeros((4, 10**6)), chunks=(4, 10**6), compression="gzip")
        for demo in file["data"].values():
            del demo["obs/object"]
            demo["obs/object"] = file["large"]
    refused(READERS["robomimic"][1], path, path.name, "claims to hold more")
    folder = write_minari(tmp_path, recorded())
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = h5py.ExternalLink("other.hdf5", "/x")
    refused(READERS["minari"][1], folder, "main_data.hdf5", "episode_1/rewards is a link to another file")


def test_sizes_are_not_believed(tmp_path: Path) -> None:
    """A header that claims a terabyte is no reason to ask for one."""
    path = write_npz(tmp_path, recorded(), actions=None)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**38,)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("actions.npy", header.getvalue())
    refused(READERS["npz"][1], path, path.name, "actions is damaged: its size is not that of")
    zeros = io.BytesIO()
    np.savez_compressed(zeros, obs=np.zeros((10**6, 2)), acts=np.zeros(3), lengths=[3])
    content = bytearray(zeros.getvalue())
    place = content.index(b"PK\x01\x02") + 24  # the uncompressed size in the central directory
    content[place : place + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    refused(READERS["npz"][1], path, path.name, "claims to hold more")


def test_an_array_that_may_be_missing_does_not_vanish(tmp_path: Path) -> None:
    """A bit of its name in the directory, and rewards would be no rewards."""
    path = write_npz(tmp_path, recorded())
    content = bytearray(path.read_bytes())
    content[content.rindex(b"rewards.npy") + 2] ^= 1
    path.write_bytes(content)
    refused(READERS["npz"][1], path, path.name, "differ")


def test_a_number_that_comes_a_billion_times(tmp_path: Path) -> None:
    """A few hundred bytes of a parquet file, which pyarrow makes gigabytes of."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = write_lerobot(tmp_path, recorded())
    path, count = root / "data/chunk-000/episode_000000.parquet", 2 * 10**7
    table = parquet.read_table(path)
    one = pa.ListArray.from_arrays(pa.array([0, *[count] * 5], pa.int32()), pa.array(np.zeros(count, np.float32)))
    parquet.write_table(table.set_column(1, "action", one), path)
    assert path.stat().st_size < 10**4
    refused(from_lerobot, root, path.name, "claims to hold more")


@pytest.mark.parametrize(
    ("script", "fault"), [("while True: pass", "goes round in circles"), ("import os; os.abort()", "is ended by it")]
)
def test_what_looks_at_a_file_may_hang_or_end(
    script: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_d4rl(tmp_path, recorded())
    (tmp_path / "walk.py").write_text(f"print('ready', flush=True)\n{script}")
    monkeypatch.setattr(walk, "__file__", str(tmp_path / "walk.py"))
    monkeypatch.setattr(files, "_SECONDS", 1)
    refused(READERS["d4rl"][1], path, path.name, fault)
    (tmp_path / "walk.py").write_text("raise ImportError")  # where no other Python can be started, this one looks
    assert len(READERS["d4rl"][1](path)) == 3


def test_groups_in_groups(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = write_robomimic(tmp_path, recorded())
    with h5py.File(path, "a") as file:
        file["data/demo_0/itself"] = file["data"]
    refused(READERS["robomimic"][1], path, path.name, "more groups in groups")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"action_space": None}, "it does not say the action_space"),  # and its environment is not made
        ({"action_space": '{"type": "Box", "shape": [99999, 99999], "dtype": "float32"}'}, "is larger than the"),
        ({"total_episodes": 10**12}, "it claims to have 1000000000000 episodes, in"),
        ({"note": [[[]]] * 3 + [json.loads("[" * 99 + "]" * 99)]}, "nested deeper than 64"),
    ],
)
def test_what_a_minari_data_set_says_of_itself(datasets: Path, change: Rows, fault: str) -> None:
    path = write_minari(datasets, recorded()) / "data/metadata.json"
    spec = {"entry_point": "os:mkdir", "id": "Toy-v0", "kwargs": {"path": str(datasets / "made")}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env_spec": json.dumps(spec)} | change))
    refused(READERS["minari"][1], path.parents[1], path.name, fault)
    assert not (datasets / "made").exists()


def test_files_are_given_by_their_paths() -> None:
    for read in (READERS["npz"][1], READERS["d4rl"][1], READERS["robomimic"][1], from_lerobot, Demonstrations.load):
        for given in (None, 3):
            with pytest.raises(TypeError, match=f"is given by its path, got {given}"):
                read(given)  # type: ignore[arg-type]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, ("unpickled",)

    monkeypatch.chdir(tmp_path)
    path = write_npz(tmp_path, recorded(), actions=np.array([Bomb()] * 9))
    refused(READERS["npz"][1], path, path.name, "never unpickled")
    assert not Path("unpickled").exists()


# ---------------------------------------------------------------------- packages


@pytest.mark.parametrize(
    ("package", "reader", "options"),
    [
        ("h5py", "d4rl", {}),
        ("h5py", "robomimic", {}),
        ("pyarrow", "lerobot", {}),
        ("av", "lerobot", {"observations": VIDEO}),
    ],
)
def test_what_to_install(
    package: str, reader: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read, _ = READERS[reader]
    path = write(tmp_path, recorded())
    for name in [package, *[name for name in sys.modules if name.startswith(f"{package}.")]]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"^{package} is not installed: pip install {package}$"):
        read(path) if not options else from_lerobot(path, **options)
