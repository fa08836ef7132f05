"""Demonstrations in files: the same batches as in memory, and one clear error for every kind of bad file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from gymnasium import spaces
from pyro.infer import Trace_ELBO
from recorded import ACTIONS, BYTES, NAMED, recorded, same
from torch import Tensor, nn

from pyrocontrol.envs import Demonstrations, Episode, StoredDemonstrations, StoredTransitions, bubble_sort
from pyrocontrol.envs.data import store
from pyrocontrol.inference import fit
from pyrocontrol.models import ReactivePolicy, RecurrentPolicy
from pyrocontrol.models.space_json import space_to_json

REAL = spaces.Box(-np.inf, np.inf, (3,), np.float32)
BOX = spaces.Box(-2, 2, (2,), np.float64)
KINDS: dict[str, tuple[spaces.Space[Any], spaces.Space[Any]]] = {
    "discrete": (ACTIONS[1], REAL),
    "multidiscrete": (ACTIONS[2], BYTES),
    "box": (BOX, REAL),
    "dict": (spaces.Box(-2, 2, (2, 1), np.float32), NAMED),
}


def demos(kind: str, count: int = 12, seed: int = 0) -> Demonstrations:
    """Random traces of 1 to 6 actions."""
    if kind == "program":
        return bubble_sort.demonstrations(count, seed, annotate=True)
    lengths = np.random.default_rng(seed).integers(1, 7, count).tolist()
    return Demonstrations.from_episodes(recorded(*KINDS[kind], lengths), *KINDS[kind])[np.arange(count) - seed]


def saved(folder: Path, *parts: Demonstrations) -> list[Path]:
    paths = [folder / f"{index}.npz" for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        part.save(path, compressed=False)
    return paths


def damaged(path: Path, **changes: Any) -> Path:
    """Write the file again with other arrays; None takes one away."""
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def on_disk(paths: Any, **settings: Any) -> Demonstrations:
    return Demonstrations.load(paths, memory=False, **settings)


INDICES: dict[str, Any] = {
    "int": 3,
    "last": -1,
    "slice": slice(2, 9),
    "all": slice(None),
    "backwards": slice(None, None, -2),
    "list": [7, 2, 2, 11],
    "array": np.array([0, 5, 6]),
    "tensor": torch.tensor([11, 10, -12]),
    "mask": torch.arange(12) % 3 == 1,
}


@pytest.mark.parametrize("kind", ["program", *KINDS])
@pytest.mark.parametrize("files", [1, 3])
def test_batches_are_those_in_memory(kind: str, files: int, tmp_path: Path) -> None:
    data = demos(kind)
    paths = saved(tmp_path, *([data] if files == 1 else [data[:1], data[1:7], data[7:]]))
    stored = on_disk(paths)
    assert same(Demonstrations.load(paths), data)
    assert stored.on_disk and stored[:].on_disk and not stored.read().on_disk and len(list(stored)) == len(stored) == 12
    for name, index in INDICES.items():
        assert same(stored[index], data[index]), name
    assert same(stored[3:][[1, 0]], data[[4, 3]]) and same(stored + data[:2], data + data[:2])
    for mine, theirs in zip(stored.split(0.7, seed=3), data.split(0.7, seed=3), strict=True):
        assert same(mine, theirs) and same(mine.split(0.5)[1], theirs.split(0.5)[1])
    for settings in ({"dtype": torch.float64}, {"device": "cpu"}, {"device": "cpu", "dtype": torch.float16}):
        assert same(stored[2:].to(**settings), data[2:].to(**settings))  # type: ignore[arg-type]
    assert stored.to(dtype=torch.float64).to("cpu").observation_dtype == data.to(dtype=torch.float64).observation_dtype
    changed = stored[:2]._replace(terminated=~data[:2].terminated)
    assert same(changed[1], data[1]._replace(terminated=~data[1].terminated))


@pytest.mark.parametrize("kind", KINDS)
def test_transitions_are_those_in_memory(kind: str, tmp_path: Path) -> None:
    data = demos(kind)
    stored = on_disk(saved(tmp_path, data[:5], data[5:]))
    order = torch.randperm(len(data.transitions()))
    for mine, theirs in (
        (stored.transitions(), data.transitions()),
        (stored[3:9].transitions(), data[3:9].transitions()),
        (stored.to(dtype=torch.float64).transitions(), data.transitions().to(dtype=torch.float64)),
        (stored.transitions().to(dtype=torch.float64), data.to(dtype=torch.float64).transitions()),
    ):
        assert len(mine) == len(theirs) == len(list(mine)) and mine.on_disk and mine.goals is None
        some = order[order < len(mine)]
        for index in (0, -1, slice(3, 30, 4), some, some[:7].tolist(), torch.arange(len(mine)) > 3):
            one, other = mine[index], theirs[index]
            assert torch.equal(one.observations, other.observations) and torch.equal(one.actions, other.actions)
            assert one.actions.dtype == other.actions.dtype and one.observations.dtype == other.observations.dtype
            assert all(map(torch.equal, one.parts.values(), other.parts.values()))
        goals = torch.arange(len(mine))[:, None].double()
        given, kept = mine.with_goals(goals)[some][2:4], pickle.loads(pickle.dumps(mine.with_goals(goals)[some]))[2:4]
        assert given.goals is not None and kept.goals is not None and torch.equal(given.goals, goals[some[2:4]])
        assert torch.equal(kept.goals, given.goals) and torch.equal(kept.observations, theirs[some[2:4]].observations)


def test_names_of_before(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, demos("box"))
    for given in (path, str(path), [path], (str(path),)):
        assert same(StoredDemonstrations(given), on_disk(path))
    assert len(StoredTransitions(StoredDemonstrations(path, check=False))) == len(on_disk(path).transitions())
    with pytest.raises(ValueError, match="no files of demonstrations"):
        StoredDemonstrations([])


def test_files_with_and_without_annotations_go_together(tmp_path: Path) -> None:
    annotated, plain = bubble_sort.demonstrations(3, 0, annotate=True), bubble_sort.demonstrations(3, 1)
    for parts in ((annotated, plain), (plain, annotated)):
        stored = on_disk(saved(tmp_path, *parts))
        assert same(stored, parts[0] + parts[1])
    assert stored[:3].calls is None


def test_what_a_file_holds(tmp_path: Path) -> None:
    data = demos("box")
    data.save(tmp_path / "new" / "demos.npz")
    assert os.listdir(tmp_path / "new") == ["demos.npz"]
    with np.load(tmp_path / "new" / "demos.npz") as archive:
        assert str(archive["format"]) == "pyrocontrol-demonstrations-2"
        assert archive["actions"].shape == (int(data.acted.sum()), 2), "no null, no padding"
        assert archive["observations"].shape == (int(data.lengths.sum()), 3)
    for kind, widths in (("multidiscrete", {"observations": 5}), ("dict", {"bytes": 7, "observations": 7})):
        demos(kind).save(tmp_path / "bytes.npz", compressed=False)
        with np.load(tmp_path / "bytes.npz") as archive:
            assert str(archive["format"]) == "pyrocontrol-demonstrations-3"
            assert {name: archive[name].shape[1] for name in widths} == widths
            assert archive[next(iter(widths))].dtype == np.uint8, "one byte a pixel"


@pytest.mark.parametrize("kind", ["multidiscrete", "dict"])
def test_bytes_that_version_01_stored_as_floats(kind: str, tmp_path: Path) -> None:
    data = demos(kind)
    (path,) = saved(tmp_path, data)
    rows = data.observations[data.mask].float().numpy()
    damaged(path, observations=rows, bytes=None, format=np.array("pyrocontrol-demonstrations-2"))
    for found in (Demonstrations.load(path), on_disk(path)):
        assert same(found, data) and found.read().fingerprint() == data.fingerprint()
        assert all(map(torch.equal, found.parts.values(), data.parts.values()))
    if kind == "multidiscrete":
        rows[4, 2] = 0.5
        damaged(path, observations=rows)
        assert Demonstrations.load(path).observation_dtype == torch.float32
        with pytest.raises(ValueError, match=r"0\.npz is no .*: observations are no bytes, which their space is of"):
            on_disk(path)


# ---------------------------------------------------------------------- fingerprints, pickling, threads, memory


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    one, other = demos("box", seed=0), demos("box", seed=1)
    first, second = saved(tmp_path, one, other)
    stored = on_disk([first, second])
    (tmp_path / "moved").mkdir()
    assert on_disk(saved(tmp_path / "moved", one, other)).fingerprint() == stored.fingerprint()
    whole, part = stored.transitions(), stored.split(0.5)[0]
    others = [
        *(on_disk([second, first]), on_disk(first), on_disk(second), part, stored.split(0.5)[1]),
        *(stored.to(dtype=torch.float16), whole, part.transitions(), whole[:9]),
        *(whole.with_goals(torch.zeros(len(whole), 1)), stored.read(), stored.read().transitions()),
    ]
    assert len({stored.fingerprint(), *(data.fingerprint() for data in others)}) == len(others) + 1
    assert stored.read().fingerprint() == (one + other).fingerprint()


def test_fingerprints_are_those_of_version_01() -> None:
    old = Path(__file__).parents[2] / "fixtures" / "version-0.1"
    for name, expected in (
        ("bubble_sort", ("62a00390800be465", "a9ab9acb9eea4891", "4ad3f83eb257f04e")),
        ("cart_pole", ("b6d7866fba473acc", "c034e1622edf9783", "fc7c91bf03cae75e")),
    ):
        data = Demonstrations.load(old / f"{name}.npz")
        assert tuple(each.fingerprint() for each in (data, data[1:], data.transitions())) == expected
    stored = on_disk(old / "bubble_sort.npz")
    first, second = stored.split(0.5)
    assert stored.fingerprint() == "653d6fbb21bd1d5a"
    assert stored.transitions().fingerprint() == "transitions-653d6fbb21bd1d5a"
    assert first.to(dtype=torch.float64).fingerprint() == "ec0bbad64349a82b"
    assert second.transitions().fingerprint() == "transitions-4ffb39c86350f935"


def test_it_pickles(tmp_path: Path) -> None:
    data = demos("dict")
    paths = saved(tmp_path, data[:4], data[4:])
    part = on_disk(paths).split(0.5)[1].to(dtype=torch.float32)
    text = pickle.dumps(part)
    assert len(text) < 2000
    copy = pickle.loads(text)
    assert same(copy, part) and copy.fingerprint() == part.fingerprint()
    (tmp_path / "pickled").write_bytes(pickle.dumps(part.transitions()))
    script = f"import pickle; print(len(pickle.load(open({str(tmp_path / 'pickled')!r}, 'rb'))[:5].observations))"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout == "5\n", found.stderr
    demos("dict", 8, seed=5).save(paths[1], compressed=False)
    with pytest.raises(ValueError, match="not the data set any more that was pickled"):
        pickle.loads(text)


def test_threads_read_at_once(tmp_path: Path) -> None:
    data = demos("dict", 40)
    stored = on_disk(saved(tmp_path, data[:15], data[15:]))
    chosen = [torch.randint(40, (8,)) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(same, pool.map(lambda rows: stored[rows].read(), chosen), (data[rows] for rows in chosen)))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    paths = saved(tmp_path, *(demos("box", seed=seed) for seed in range(3)))
    before = os.listdir("/proc/self/fd")
    stored = on_disk(paths)
    assert stored[[0, 20, 30]].observations.shape[0] == 3
    os.truncate(paths[2], 3000)
    with pytest.raises(ValueError, match=r"2\.npz has changed since it was opened"):
        _ = stored[[0, 20, 30]].observations
    with pytest.raises(ValueError, match="no complete file"):
        on_disk(paths)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak of this process from /proc")
def test_memory_stays_flat(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(12):
        episodes = [Episode(rng.standard_normal((101, 500), np.float32), np.zeros(100, int)) for _ in range(50)]
        Demonstrations.from_episodes(episodes, 2).save(tmp_path / f"{index}.npz", compressed=False)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 120e6
    script = f"""
import torch
from pyrocontrol.envs import Demonstrations
torch.set_num_threads(1)
def peak(): return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
stored = Demonstrations.load([f"{tmp_path}/{{index}}.npz" for index in range(12)], memory=False)
transitions = stored.transitions()
for _ in range(40):
    stored[torch.randint(len(stored), (16,))].observations
    transitions[torch.randint(60000, (256,))].observations
print(peak() - before)
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout and int(found.stdout) < 40e6, found.stderr


# ---------------------------------------------------------------------- training


class LeastSquares(nn.Module):
    """The loss of a linear controller."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, batch: Any) -> Tensor:
        return (self.linear(batch.observations) - batch.actions)[batch.acted].square().mean()


@pytest.mark.parametrize("of", [lambda data: data, lambda data: data.transitions()], ids=["traces", "transitions"])
def test_it_trains_as_in_memory(of: Any, tmp_path: Path) -> None:
    data = demos("box").to(dtype=torch.float32)
    paths = saved(tmp_path, data[:5], data[5:])
    losses = []
    for number, source in enumerate((data, on_disk(paths))):
        torch.manual_seed(0)
        loss = LeastSquares()
        update = (loss, torch.optim.Adam(loss.parameters()))
        out = tmp_path / f"run{number}"
        settings: dict[str, Any] = {"batch_size": 4, "log_every": 1, "out": out, "progress": False}
        losses.append(fit(update, of(source), steps=12, **settings).losses)
        with pytest.raises(ValueError, match="data_fingerprint"):
            fit(update, of(data[::-1] if number == 0 else on_disk(paths[::-1])), steps=13, **settings)
    assert losses[0] == losses[1] and len(losses[0]) == 12
    with pytest.warns(UserWarning, match="the data is torch.float64, .* rounded to it"):
        fit(update, of(on_disk(paths).to(dtype=torch.float64)), steps=1, batch_size=4, progress=False)


def test_policies_learn_from_it_as_from_memory(tmp_path: Path) -> None:
    data = demos("dict", 30).to(dtype=torch.float32)
    stored = on_disk(saved(tmp_path, data[:11], data[11:]))
    weights = []
    for source in (data, stored):
        for kind, of in ((RecurrentPolicy, source), (ReactivePolicy, source.transitions()), (ReactivePolicy, source)):
            pyro.set_rng_seed(0)
            policy = kind(source.observation_space, source.action_space, hidden=5 if kind is RecurrentPolicy else (5,))
            policy.normalize(of)
            loss = Trace_ELBO()(policy, policy.guide)
            fit((loss, torch.optim.Adam(loss.parameters())), of, steps=6, batch_size=4, progress=False)
            weights.append(torch.cat([value.flatten() for value in policy.state_dict().values()]))
    assert all(map(torch.equal, weights[:3], weights[3:])), "to the last bit"


# ---------------------------------------------------------------------- bad files

both = pytest.mark.parametrize("memory", [True, False], ids=["memory", "disk"])


def bad(what: str, path: Path) -> Path:
    """One number of the second trace, of 3 actions, goes wrong."""
    rng = np.random.default_rng(0)
    if what == "call":
        bubble_sort.demonstrations(4, 0, annotate=True).save(path, compressed=False)
        with np.load(path) as archive:
            calls, first = archive["calls"], int(archive["call_counts"][0])
        calls[first + 2, 0] = 0.5
        return damaged(path, calls=calls)
    episodes = [
        Episode(rng.standard_normal((steps + 1, 2)), rng.uniform(-1, 1, (steps, 1)), np.ones(1), rewards=np.ones(steps))
        for steps in (2, 3, 1)
    ]
    data = Demonstrations.from_episodes(episodes, spaces.Box(-1, 1, (1,), np.float64))
    if what == "integer":
        numbered = [episode._replace(actions=np.zeros(len(episode.actions), int)) for episode in episodes]
        data = Demonstrations.from_episodes(numbered, 2)
    data.save(path, compressed=False)
    name, row, value = {
        "observation": ("observations", 3 + 2, np.nan),
        "infinite": ("observations", 3 + 2, np.inf),
        "action": ("actions", 2 + 2, 1.5),
        "no action": ("actions", 2 + 2, np.nan),
        "integer": ("actions", 2 + 2, 2),
        "task": ("task", 1, np.nan),
        "reward": ("rewards", 2 + 2, -np.inf),
    }[what]
    with np.load(path) as archive:
        array = archive[name]
    array[row] = value
    return damaged(path, **{name: array})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("observation", "trace 1, step 2: the observation is NaN or infinite"),
        ("infinite", "trace 1, step 2: the observation is NaN or infinite"),
        ("action", r"trace 1, step 2: an action outside -1\.\.1 \(component 0 is 1.5\)"),
        ("no action", "trace 1, step 2: the action is NaN or infinite"),
        ("integer", r"trace 1, step 2: an action outside 0\.\.1 \(it is 2\)"),
        ("task", "trace 1, step 0: the task is NaN or infinite"),
        ("reward", "trace 1, step 2: the reward is NaN or infinite"),
        ("call", r"trace 1, call 2: the annotated choice is no integer from 0 on \(it is 0.5\)"),
    ],
)
def test_bad_numbers(what: str, message: str, tmp_path: Path) -> None:
    path = bad(what, tmp_path / "bad.npz")
    for memory in (True, False):
        with pytest.raises(ValueError, match=rf"bad\.npz: {message}$"):
            Demonstrations.load(path, memory=memory)
        assert len(Demonstrations.load(path, memory=memory, check=False)) >= 3, "unchecked, it gives what is there"


@both
def test_the_bad_trace_of_many_is_named(memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_CHECKED_BYTES", 200)
    good, path = saved(tmp_path, demos("box", 50), demos("box", 50))
    with np.load(path) as archive:
        observations, counts = archive["observations"], archive["counts"]
    observations[(counts[:37] + 1).sum() + 1] = np.nan
    assert len(Demonstrations.load(good, memory=memory)) == 50
    with pytest.raises(ValueError, match=r"1\.npz: trace 37, step 1: the observation is NaN or infinite"):
        Demonstrations.load([good, damaged(path, observations=observations)], memory=memory)


@both
@pytest.mark.parametrize("kept", [0, 10, 1000, 0.3, 0.9, -30, -1])
def test_truncated_file(memory: bool, kept: float, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, demos("dict"))
    size = path.stat().st_size
    os.truncate(path, int(kept * size) if isinstance(kept, float) else kept % size)
    with pytest.raises(ValueError, match=r"0\.npz is no complete file of demonstrations: \w"):
        Demonstrations.load(path, memory=memory, check=False)


@both
def test_any_changed_byte_is_noticed(memory: bool, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, demos("box", 4))
    content, good = bytearray(path.read_bytes()), demos("box", 4)
    passed = 0
    for place in range(0, len(content), 7 if not memory else 70):
        changed = bytearray(content)
        changed[place] ^= 0x15
        path.write_bytes(changed)
        try:
            found = Demonstrations.load(path, memory=memory)
        except ValueError as error:
            assert "0.npz" in str(error)
        else:  # a date, say, or a version that nobody reads
            passed += 1
            assert same(found, good)
    assert passed < len(content) / (7 if not memory else 70) / 4


def test_compressed_file(tmp_path: Path) -> None:
    data = demos("box")
    data.save(tmp_path / "small.npz")
    advice = r"compressed.*Demonstrations\.load\(path\)\.save\(other_path, compressed=False\)"
    with pytest.raises(ValueError, match=rf"small\.npz is .*{advice}"):
        on_disk(tmp_path / "small.npz")
    Demonstrations.load(tmp_path / "small.npz").save(tmp_path / "large.npz", compressed=False)
    assert same(on_disk(tmp_path / "large.npz"), data)


@both
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array("demonstrations-99")}, "its format is demonstrations-99, not pyrocontrol-demonstrations"),
        ({"observations": None}, "it has no array observations"),
        ({"terminated": None}, "it has no array terminated"),
        ({"counts": None}, "it has no array counts"),
        ({"action_space": None}, "it has no array action_space"),
        ({"action_space": np.array("Box")}, "no description of a space"),
        ({"action_space": np.array(space_to_json(spaces.Box(0, 1, (3,))))}, r"actions must have shape \[\d+, 3\], got"),
        (
            {"observation_space": np.array(space_to_json(spaces.Discrete(4)))},
            "have width 3, their space 4",
        ),
        ({"observations": np.zeros((3, 3))}, "observations has 3 rows, counts, one more each, add up to"),
        ({"actions": np.zeros((3, 2))}, "actions has 3 rows, counts add up to"),
        ({"arguments": np.zeros((3, 0))}, "arguments has 3 rows, counts add up to"),
        ({"rewards": np.zeros(3)}, "rewards has 3 rows, counts add up to"),
        ({"calls": np.zeros((3, 2))}, "calls has 3 rows, call_counts add up to 0"),
        ({"terminated": np.zeros(3, bool)}, "terminated has 3 rows for 12 traces"),
        ({"task": np.zeros((3, 1))}, "task has 3 rows for 12 traces"),
        ({"truncated": np.zeros(12)}, r"truncated has shape \(12,\) and type float64"),
        ({"counts": np.full(12, 0.5)}, r"counts has shape \(12,\) and type float64"),
        ({"counts": np.full(12, -1)}, "a trace has a negative number of steps"),
        ({"counts": np.zeros(0, int)}, "the data set is empty"),
        ({"observations": np.array([[{}, {}]])}, "holds Python objects, which are never unpickled"),
        ({"counts": np.array([{}, {}])}, "holds Python objects, which are never unpickled"),
        ({"observations": np.array([["a", "b"]])}, "observations has shape .* and type <U1"),
    ],
)
def test_arrays_that_do_not_fit(memory: bool, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, demos("box"))
    with pytest.raises(ValueError, match=rf"0\.npz is no complete file of demonstrations: .*{message}"):
        Demonstrations.load(damaged(path, **changes), memory=memory, check=False)


@both
def test_empty_trace(memory: bool, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, demos("box"))
    with np.load(path) as archive:
        counts = archive["counts"]
    counts[1] += counts[0]
    counts[0] = 0
    with pytest.raises(ValueError, match=r"0\.npz: trace 0, step 0: the trace is empty: it holds no action"):
        Demonstrations.load(damaged(path, counts=counts), memory=memory, check=False)


def test_arrays_that_are_not_read_in_parts(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, demos("box"))
    actions = int(demos("box").acted.sum())
    for changes, message in (
        ({"actions": np.zeros((actions, 2), ">f8")}, "another byte order"),
        ({"actions": np.asfortranarray(np.zeros((actions, 2)))}, "stored by columns"),
    ):
        with pytest.raises(ValueError, match=rf"0\.npz is no complete file of demonstrations: .*{message}"):
            on_disk(damaged(path, **changes))


class Payload:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@both
@pytest.mark.parametrize("name", ["counts", "task", "observations", "format", "action_space", "calls", None])
def test_a_pickle_is_never_executed(memory: bool, name: str | None, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    (path,) = saved(tmp_path, demos("box"))
    if name is None:
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        damaged(path, **{name: np.array([Payload(trace)], dtype=object)})
    with pytest.raises(ValueError, match="no complete file of demonstrations"):
        Demonstrations.load(path, memory=memory)
    assert not trace.exists()
    found = np.load(path, allow_pickle=True)  # whoever trusts the file executes it
    if name is not None:
        with found:
            found[name]
    assert trace.exists()


@both
def test_files_of_different_kinds(memory: bool, tmp_path: Path) -> None:
    box = demos("box")
    other_bounds = Demonstrations.from_episodes(box.to_episodes(), spaces.Box(-3, 3, (2,), np.float64), REAL)
    cases = [
        (demos("discrete"), r"1\.npz has the action space Discrete\(3, start=-1\), .*0\.npz has Box"),
        (other_bounds, r"1\.npz has the action space Box\(-3.0, 3.0, \(2,\), float64\), .*0\.npz has Box\(-2.0"),
        (demos("dict"), r"1\.npz has the action space"),
        (box.replace(rewards=None), r"1\.npz has no rewards, .*0\.npz has rewards of \[\]"),
        (
            box.replace(task=torch.ones(12, 1)),
            r"1\.npz has task of \[1\] .*a row, .*0\.npz has task of \[0\]",
        ),
    ]
    if not memory:
        double = box.to(dtype=torch.float64)
        cases.append(
            (double, r"1\.npz has observations of \[3\] float64 a row, .*0\.npz has observations of \[3\] float32")
        )
    for other, message in cases:
        with pytest.raises(ValueError, match=message):
            Demonstrations.load(saved(tmp_path, box, other), memory=memory)


@both
def test_missing_and_other_files(memory: bool, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no demonstrations at"):
        Demonstrations.load(tmp_path / "none.npz", memory=memory)
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "x.npy", np.zeros(3))
    for path in (tmp_path / "text.npz", tmp_path / "x.npy", tmp_path):
        with pytest.raises(ValueError, match=rf"{path.name} is no complete file of demonstrations: ."):
            Demonstrations.load(path, memory=memory)


def test_a_file_that_changes_in_use_is_not_read(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, demos("box"))
    stored = on_disk(path)
    demos("box", seed=7).save(path, compressed=False)
    with pytest.raises(ValueError, match=r"0\.npz has changed since it was opened"):
        _ = stored[0].observations
    path.unlink()
    with pytest.raises(FileNotFoundError, match="0.npz"):
        _ = stored.transitions()[0].actions


def test_summary_is_one_line(tmp_path: Path) -> None:
    one, other = demos("box"), demos("box", seed=1)
    stored = on_disk(saved(tmp_path, one, other))
    actions = int(one.acted.sum() + other.acted.sum())
    assert stored.summary().startswith(f"24 traces in 2 files, {actions} actions (1 to 6 each), 3 observation numbers")
    assert repr(stored) == f"Demonstrations({stored.summary()}, cpu)"
    assert repr(stored.transitions()) == f"Transitions({actions}, 3 observation numbers, actions {BOX}, on disk)"


# ---------------------------------------------------------------------- saving


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old = tmp_path / "demos.npz", demos("box")
    old.save(path)

    def interrupted(file: Any, **arrays: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demos("box", seed=1).save(path)
    assert same(Demonstrations.load(path), old)
    assert os.listdir(tmp_path) == ["demos.npz"]


_KEEP_SAVING = """
import sys
from pyrocontrol.envs.bubble_sort import demonstrations
traces = demonstrations(30, 1)
while True:
    traces.save(sys.argv[1])
"""


def test_a_killed_save_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "demos.npz"
    process = subprocess.Popen([sys.executable, "-c", _KEEP_SAVING, str(path)])
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05)
    process.kill()
    process.wait()
    assert same(Demonstrations.load(path), bubble_sort.demonstrations(30, 1))
