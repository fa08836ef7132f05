"""Small honest files of every format, changed at random: each is read as it was, or refused by an error that names it.

    python tests/helpers/fuzzing.py --count 20000 --first 0      # twenty thousand of them

A number decides the format, and what is done to which of its files: bits, bytes and blocks; numbers, texts, kinds and
depths in JSON; the parts, headers and directories of archives; what a pickle holds; the trees, links and layouts of
HDF5; a file of another format in its place. What reads them is a process of its own, with limits.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import io
import json
import os
import random
import selectors
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import numpy as np

SECONDS = 10  # that reading a file may take
FACTOR, ALLOWANCE = 4, 2**27  # how much memory it may take: so many times the honest files' size, and so much beside
BAD = ("bare", "unnamed", "wrong", "slow", "large", "ended")


class Format(NamedTuple):
    """How files of a format come to be, and what is read of them.

    Attributes:
        write: writes an honest one into a folder, and returns its path.
        read: returns what tells two contents apart.
        checked: whether every byte of the numbers has a checksum.
        needs: packages.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], str]
    checked: bool = True
    needs: tuple[str, ...] = ()


# ---------------------------------------------------------------------- formats


def formats() -> dict[str, Format]:
    """Those that can be written here, by name."""
    import foreign_files as foreign
    import tensor_bundles as bundles
    import torch

    import pyrocontrol as pc
    from pyrocontrol.envs.humanoid.demonstrations import Recording, SkillRecord
    from pyrocontrol.envs.humanoid.experts import AssistedPlayback
    from pyrocontrol.envs.humanoid.tensor_bundle import read_tensor_bundle

    def foreign_file(write: Callable[..., Path]) -> Callable[[Path], Path]:
        return lambda folder: write(folder, foreign.recorded())

    def of_data(read: Callable[[Path], Any]) -> Callable[[Path], str]:
        return lambda path: str(read(path).read().fingerprint())

    def traces() -> Any:
        return pc.envs.bubble_sort.demonstrations(3, 0, annotate=True)

    def write_data(folder: Path, compressed: bool) -> Path:
        traces().save(folder / "traces.npz", compressed=compressed)
        return folder / "traces.npz"

    def write_minari(folder: Path) -> Path:
        pc.envs.to_minari(pc.envs.from_npz(foreign_file(foreign.write_npz)(folder), action_space=foreign.BOX), "a-v0")
        (folder / "data.npz").unlink()
        return folder / "a-v0"

    def write_videos(folder: Path) -> Path:
        root = foreign.write_lerobot(folder, foreign.recorded())
        foreign.write_videos(root)
        return root

    def write_policy(folder: Path) -> Path:
        torch.manual_seed(0)
        pc.models.ReactivePolicy(foreign.BOX, foreign.BOX, hidden=[4]).save(folder / "policy.pt")
        return folder / "policy.pt"

    def write_program(folder: Path) -> Path:
        torch.manual_seed(0)
        made = pc.models.ControlProgram(pc.envs.bubble_sort.BUBBLE_SORT_TREE, obs_size=22, arg_size=1, hidden=(4,))
        pc.guides.CallStackGuide(made, encoder_size=4).save(folder / "guide.pt")
        return folder / "guide.pt"

    def write_old(folder: Path) -> Path:
        old = Path(__file__).parents[1] / "fixtures" / "version-0.1"
        return Path(shutil.copy(old / "hierarchy.pt", folder))

    def write_checkpoint(folder: Path) -> Path:
        torch.manual_seed(0)
        policy = pc.models.ReactivePolicy(foreign.BOX, foreign.BOX, hidden=[4])
        data = pc.envs.from_arrays([np.zeros((4, 2))], [np.zeros((3, 2))], action_space=foreign.BOX)
        pair = policy.loss, torch.optim.Adam(policy.parameters())
        seen = data.replace(observation_space=foreign.BOX, observations=data.observations.float())
        pc.inference.fit(pair, seen.transitions(), steps=2, batch_size=2, out=folder / "out", progress=False)
        os.replace(folder / "out" / "checkpoint.pt", folder / "checkpoint.pt")
        shutil.rmtree(folder / "out")
        return folder / "checkpoint.pt"

    def of_object(path: Path) -> str:
        return _digest(*pc.load(path).state_dict().values())

    def of_checkpoint(path: Path) -> str:
        policy = pc.models.ReactivePolicy(foreign.BOX, foreign.BOX, hidden=[4])
        step = pc.inference.load_checkpoint(path, policy)
        return f"{step} {_digest(*policy.state_dict().values())} {of_object(path)}"

    def write_clip(folder: Path) -> Path:
        frame = [0.03, *[0.0] * 3, *[1.0, 0, 0, 0], *np.zeros(36)]
        for start in [8, 12, 16, 21, 25, 30, 35, 39]:
            frame[start] = 1.0
        frames = [[*frame[:1], place / 7, *frame[2:]] for place in range(3)]
        (folder / "clip.txt").write_text(json.dumps({"Loop": "wrap", "Frames": frames}))
        return folder / "clip.txt"

    def of_clip(path: Path) -> str:
        clip = pc.envs.HumanoidMotion.load(path)
        AssistedPlayback(clip)
        return _digest(clip._positions, clip._rotations, clip._angles, clip._times)

    def write_bundle(folder: Path) -> Path:
        bundles.write(folder / "model.ckpt", {"a": np.arange(60.0), "b": np.zeros((3, 4), np.float32)}, shards=2)
        return folder / "model.ckpt.index"

    def write_recording(folder: Path) -> Path:
        found = SkillRecord("walk", False, *[1] * (len(SkillRecord._fields) - 2))
        Recording(traces(), ("walk",), (found,), {"seed": 0}).save(folder / "skills.npz")
        return folder / "skills.npz"

    def of_recording(path: Path) -> str:
        found = Recording.load(path)
        return f"{found.demonstrations.fingerprint()} {found.names} {found.skills} {found.settings}"

    stored, h5 = Format(lambda folder: write_data(folder, False), of_data(pc.envs.StoredDemonstrations)), ("h5py",)
    made = {
        "demonstrations": Format(lambda folder: write_data(folder, True), of_data(pc.envs.Demonstrations.load)),
        "demonstrations on disk": stored,
        "npz": Format(
            foreign_file(foreign.write_npz), of_data(lambda path: pc.envs.from_npz(path, action_space=foreign.BOX))
        ),
        "d4rl": Format(
            foreign_file(foreign.write_d4rl),
            of_data(lambda path: pc.envs.from_d4rl(path, action_space=foreign.BOX)),
            checked=False,
            needs=h5,
        ),
        "robomimic": Format(
            foreign_file(foreign.write_robomimic),
            of_data(lambda path: pc.envs.from_robomimic(path, ("object", "agentview_image"), "train")),
            checked=False,
            needs=h5,
        ),
        "minari": Format(
            write_minari,
            of_data(lambda path: pc.envs.from_minari(path.name)),
            checked=False,
            needs=("minari", "h5py"),
        ),
        "lerobot": Format(
            foreign_file(foreign.write_lerobot),
            of_data(lambda path: pc.envs.from_lerobot(path, ("observation.state", foreign.IMAGE))),
            checked=False,
            needs=("pyarrow", "PIL"),
        ),
        "lerobot videos": Format(
            write_videos,
            of_data(lambda path: pc.envs.from_lerobot(path, foreign.VIDEO)),
            checked=False,
            needs=("pyarrow", "PIL", "av"),
        ),
        "policy": Format(write_policy, of_object),
        "program": Format(write_program, of_object),
        "hierarchy of version 0.1": Format(write_old, of_object),
        "checkpoint": Format(write_checkpoint, of_checkpoint),
        "clip": Format(write_clip, of_clip, checked=False),
        "tensor bundle": Format(
            write_bundle, lambda path: _digest(*[value for _, value in sorted(read_tensor_bundle(path).items())])
        ),
        "recording": Format(write_recording, of_recording, checked=False),
    }
    return {name: one for name, one in made.items() if all(importlib.util.find_spec(package) for package in one.needs)}


def _digest(*values: Any) -> str:
    found = hashlib.sha256()
    for value in values:
        array = np.ascontiguousarray(value)
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()


# ---------------------------------------------------------------------- changes

NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 3, 255, 2**31 - 1, 2**40, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"))
TEXTS = ("", "../../../etc/passwd", "/dev/zero", "x" * 5000, "\0", "O", "float64", "Box", "ä\n", "{}")
KINDS: tuple[Any, ...] = (None, True, [], {}, [[]], [0, 0], {"a": 1}, 7, "text")


def raw(content: bytes, rng: random.Random) -> bytes:
    """Bits, bytes and blocks of a file changed, taken away, put in or exchanged."""
    found, size = bytearray(content), len(content)
    if not size:
        return b"x"
    length = min(size, 2 ** rng.randrange(12))
    start, other = (rng.randrange(size - length + 1) for _ in range(2))
    kind = rng.randrange(9)
    if kind < 3:
        for _ in range(2 ** rng.randrange(5)):
            found[rng.randrange(size)] ^= 2 ** rng.randrange(8)
    elif kind == 3:
        found[rng.randrange(size)] = rng.choice([0, 255, rng.randrange(256)])
    elif kind == 4:
        del found[rng.randrange(size) :]
    elif kind == 5:
        found[start : start + length] = bytes([rng.choice([0, 255])] * length)
    elif kind == 6:
        found[start:start] = found[other : other + length]
    elif kind == 7:
        found[start : start + length], found[other : other + length] = (
            found[other : other + length],
            found[start : start + length],
        )
    else:
        found[start : start + rng.choice([1, 2, 4, 8])] = rng.randbytes(rng.choice([1, 2, 4, 8]))
    return bytes(found)


def edited(tree: Any, rng: random.Random) -> Any:
    """What JSON or a pickle holds, with one part changed."""
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            places += [(value, key) for key in keys]
            waiting += [value[key] for key in keys]
    if not places:
        return rng.choice(KINDS)
    holder, key = rng.choice(places)
    old, kind = holder[key], rng.randrange(10)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = nested(rng.choice([30, 70, 150]))
    elif kind == 2 and isinstance(holder, dict):
        holder[str(key) + "x"] = old
    elif kind == 3 and isinstance(holder, list):
        holder += holder * 3
    elif kind < 5 or not isinstance(old, int | float | str):
        holder[key] = rng.choice(KINDS)
    elif isinstance(old, str):
        holder[key] = rng.choice([*TEXTS, old[:-1], old + "1"])
    else:
        holder[key] = rng.choice([*NUMBERS, old + 1, -old])
    return tree


def nested(depth: int) -> Any:
    """Lists within lists."""
    value: Any = 0
    for number in range(depth):
        value = [value] if number % 2 else {"spaces": value}
    return value


def edited_json(content: bytes, rng: random.Random) -> bytes:
    """A text of JSON with one part changed, or nested too deep to be read."""
    if rng.randrange(12) == 0:
        return b"[" * rng.choice([100, 5000, 200_000])
    return json.dumps(edited(json.loads(content), rng)).encode()


def edited_archive(content: bytes, rng: random.Random) -> bytes:
    """An archive whose checksums are right, and one of its parts another, twice there, away or compressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place, kind, method = rng.randrange(len(parts)), rng.randrange(8), zipfile.ZIP_STORED
    name, data = parts[place]
    if kind == 0:
        del parts[place]
    elif kind == 1:
        parts.append((name, raw(data, rng)))
    elif kind == 2:
        method = zipfile.ZIP_DEFLATED
    elif kind == 3:
        parts[place] = name, rng.choice(parts)[1]
    elif kind < 6 and name.endswith(".npy"):
        parts[place] = name, edited_array(data, rng)
    else:
        parts[place] = name, raw(data, rng)
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in parts:
            archive.writestr(name, data)
    return stream.getvalue()


def edited_array(content: bytes, rng: random.Random) -> bytes:
    """An array of another shape, type or value than it says, or a text of JSON changed."""
    with np.errstate(all="ignore"):
        array = np.lib.format.read_array(io.BytesIO(content))
    stream = io.BytesIO()
    if array.dtype.kind == "U" and str(array).startswith("{"):
        text = edited_json(str(array).encode(), rng).decode()
        np.lib.format.write_array(stream, np.array(text))
        return stream.getvalue()
    shape = [*array.shape]
    if shape and rng.randrange(2):
        shape[rng.randrange(len(shape))] = rng.choice([0, 1, 2**31, 2**62, 10**9])
    if not rng.randrange(4):
        shape.append(rng.choice([0, 1]))
    kind = rng.choice([array.dtype.str, array.dtype.str, "<f8", "<i8", "|u1", ">f4", "<U9", "|O", "|V0", "<U0"])
    header = {"descr": kind, "fortran_order": bool(rng.randrange(2)), "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
    if rng.randrange(2) and array.size and array.dtype.kind in "iufb":  # the same header, other numbers
        stream = io.BytesIO()
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice([0, 1, 2, 100])
        np.lib.format.write_array(stream, array)
        return stream.getvalue()
    return stream.getvalue() + array.tobytes()


def edited_directory(content: bytes, rng: random.Random) -> bytes:
    """An archive with one field of a header changed."""
    found = bytearray(content)
    fields = {  # where fields of 2 or 4 bytes stand after the signature
        b"PK\3\4": [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
        b"PK\1\2": [(6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)],
        b"PK\5\6": [(4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
    }
    signature = rng.choice([*fields])
    places = [place for place in range(len(found)) if found.startswith(signature, place)]
    start, size = rng.choice(fields[signature])
    start += rng.choice(places)
    (old,) = struct.unpack_from("<H" if size == 2 else "<I", found, start)
    new = rng.choice([0, 1, 8, 2**16 - 1, 2**31, 2**32 - 1, old + 1, old - 1, old * 2]) % 256**size
    struct.pack_into("<H" if size == 2 else "<I", found, start, new)
    return bytes(found)


def edited_pickle(content: bytes, rng: random.Random) -> bytes:
    """A file of torch's that holds another thing, or names or numbers of whose pickle are others."""
    import torch

    stream = io.BytesIO()
    if rng.randrange(3):
        torch.save(edited(torch.load(io.BytesIO(content), weights_only=True), rng), stream)
        return stream.getvalue()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(stream, "w") as copy:
        for info in archive.infolist():
            data = archive.read(info)
            if info.filename.endswith("data.pkl"):
                names = [b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict", b"K\x04", b"q\x01", b"}"]
                others = [
                    b"builtins\nbytearray",
                    b"torch\nFloatTensor",
                    b"J\xff\xff\xff\x7f",
                    b"r\xff\xff\xff\x7f",
                    b"]",
                ]
                data = data.replace(rng.choice(names), rng.choice(others)) if rng.randrange(2) else raw(data, rng)
            copy.writestr(info.filename, data)
    return stream.getvalue()


def edited_hdf5(path: Path, rng: random.Random) -> None:
    """One array or group of an HDF5 file changed, or put elsewhere."""
    import h5py

    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        old = file[name]
        array = old[()] if isinstance(old, h5py.Dataset) else np.zeros(3)
        del file[name]
        kind = rng.randrange(9)
        if kind == 0:
            file[name] = h5py.ExternalLink("/etc/passwd", "/x")
        elif kind == 1:
            file[name] = h5py.SoftLink(rng.choice(["/", f"/{name}", "/nothing", "/" + rng.choice(names)]))
        elif kind == 2:
            file.create_dataset(name, (9, 2), "f4", external="/etc/passwd")
        elif kind == 3:
            file.create_dataset(name, (rng.choice([10**5, 10**9, 2**40]), 2), "f8", chunks=(9, 2))
        elif kind == 4:
            layout = h5py.VirtualLayout((9, 2), "f8")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (9, 2))
            file.create_virtual_dataset(name, layout)
        elif kind == 5:
            file[name] = file  # a group that holds itself
        elif kind == 6:
            file[name] = rng.choice(["", "../x", [0, 0], True, 2, 0.5, b"x", np.array([], "f4"), np.zeros((3, 0))])
        elif kind == 7:
            file[name] = np.resize(np.arange(9), np.shape(array)).astype(rng.choice(["f8", "i1", "S3", "?", "c8"]))
        else:
            file[name] = np.resize(np.asarray(array), rng.choice([(1,), (2, 2), (9, 1), (9, 2, 2), (12, 3), (0,)]))


def change(folder: Path, rng: random.Random, others: list[Path]) -> tuple[Path, bool]:
    """Change one file in a folder, or put one of another folder in its place.

    Returns:
        The file, and whether only bytes of it changed, so that checksums are wrong.
    """
    path = rng.choice(sorted(file for file in folder.rglob("*") if file.is_file() and "namespace" not in file.name))
    content = path.read_bytes()
    if rng.randrange(25) == 0:
        files = sorted(file for file in rng.choice(others).rglob("*") if file.is_file())
        path.write_bytes(rng.choice(files).read_bytes())
        return path, False
    kinds: list[Callable[[bytes, random.Random], bytes]] = []
    if content.startswith(b"PK"):
        kinds = [edited_archive, edited_directory] + [edited_pickle] * 3 * (path.suffix == ".pt")
    elif content.startswith(b"{"):
        kinds = [edited_json] * 3
    elif content.startswith(b"\x89HDF") and rng.randrange(2):
        edited_hdf5(path, rng)
        return path, False
    how = rng.choice([raw, raw, *kinds])
    path.write_bytes(how(content, rng))
    return path, how in (raw, edited_directory)


# ---------------------------------------------------------------------- reading


def outcome(number: int, honest: dict[str, tuple[Format, Path, str]], scratch: Path) -> tuple[str, str]:
    """What came of one change: ``same``, ``other``, ``refused``, or one of `BAD`; and what to say of it."""
    rng = random.Random(number)
    name = [*honest][number % len(honest)]
    one, original, expected = honest[name]
    folder = scratch / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original.parent, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    changed, only_bytes = change(folder, rng, [path.parent for _, path, _ in honest.values()])
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    what = f"number {number}: {name}, {changed.relative_to(folder)}"
    begun, peak = time.perf_counter(), _Peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = one.read(folder / original.name)
        came = "same" if found == expected else "other"
        if came == "other" and one.checked and only_bytes:
            came = "wrong"
    except (ValueError, OSError, TypeError) as error:
        text = str(error)
        what += f": {type(error).__name__}: {text[:300]}"
        came = "refused" if type(error) is not TypeError or original.name in text else "bare"
        if came == "refused" and not any(part in text for part in (str(folder / original.name), str(changed))):
            came = "unnamed"
        if any(isinstance(cause, MemoryError) for cause in _causes(error)):
            came = "large"
    except Exception as error:
        came, what = "bare", f"{what}: {type(error).__name__}: {str(error)[:300]}"
    if (taken := peak.taken()) > FACTOR * size + ALLOWANCE:
        came, what = "large", f"{what}: {taken / 2**20:.0f} MiB"
    if (seconds := time.perf_counter() - begun) > SECONDS:
        came, what = "slow", f"{what}: {seconds:.1f} s"
    return came, what


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _Peak:
    """How much memory this process takes at most from now on, where Linux says it."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
        self.before = self._now("VmRSS")

    def _now(self, name: str) -> int:
        try:
            return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
        except (OSError, IndexError):
            return 0

    def taken(self) -> int:
        return self._now("VmHWM") - self.before


def work(first: int, count: int, guarded: bool) -> None:
    """Read changed files one after the other; print the number of each before, and what came of it after."""
    import torch

    from pyrocontrol.envs.data.readers import files, walk

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not guarded:  # this process can be stopped as well
        files._walked = lambda kind, paths: [walk.found(getattr(walk, f"bytes_of_{kind}"), path) for path in paths]
    memory = Path("/dev/shm")  # where folders come and go faster
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        honest = {}
        for name, one in formats().items():
            folder = Path(scratch) / name.replace(" ", "-")
            folder.mkdir()
            os.environ["MINARI_DATASETS_PATH"] = str(folder)
            path = one.write(folder)
            honest[name] = (one, path, one.read(path))
        _limit_memory()
        for number in range(first, first + count):
            print(json.dumps(number), flush=True)
            faulthandler.dump_traceback_later(SECONDS)
            print(json.dumps(outcome(number, honest, Path(scratch))), flush=True)
            faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    """Let what would take far too much fail at once."""
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, now + 2**31))
    except (ImportError, OSError):
        pass


def campaign(count: int, first: int = 0, report: Callable[[str], Any] = print) -> dict[str, int]:
    """Read changed files.

    Args:
        count: how many.
        first: number of the first.
        report: is told of each bad one.

    Returns:
        How many came out how, by the words of `outcome`; those of `BAD` should be 0.
    """
    counts: Counter[str] = Counter(dict.fromkeys(("same", "other", "refused", *BAD), 0))
    number, last = first, first + count
    while number < last:
        found, number, _ = _worked(number, last - number, guarded=False)
        if number < last:  # this one stopped or ended it: what comes of it where a process of its own looks first?
            again, _, said = _worked(number, 1, guarded=True)
            found += again or [("ended", f"number {number}: {said}")]
            number += 1
        for came, what in found:
            counts[came] += 1
            if came in BAD:
                report(f"{came}: {what}")
    return dict(counts)


def _worked(first: int, count: int, guarded: bool) -> tuple[list[tuple[str, str]], int, str]:
    """What came of changes in a process of its own, the number of the first of which nothing came, and its words."""
    command = [sys.executable, "-X", "faulthandler", __file__, "--work", str(first), str(count), str(int(guarded))]
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    found: list[tuple[str, str]] = []
    begun = False
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(2 * SECONDS if begun else 12 * SECONDS) and (line := process.stdout.readline()):
            begun, value = True, json.loads(line)
            if isinstance(value, list):
                found.append((value[0], value[1]))
        process.kill()  # where it has not ended
        process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")[-1500:]
    if "Traceback" in said or not begun:  # no file did that
        raise RuntimeError(said)
    return found, first + len(found), said


def main() -> int:
    """Try many; print those that are bad."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], given.work[1], bool(given.work[2]))
        return 0
    counts = campaign(given.count, given.first, lambda text: print(text, flush=True))
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    return int(any(counts[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
