"""Demonstrations on disk: the same batches as in memory, and one clear error for every kind of bad file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from gymnasium import spaces
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyrocontrol.envs import Demonstrations, Episode, bubble_sort
from pyrocontrol.envs.data.demonstrations import StoredDemonstrations, StoredTransitions
from pyrocontrol.inference import fit
from pyrocontrol.models import ReactivePolicy, RecurrentPolicy
from pyrocontrol.models.space_json import space_to_json

FIELDS = ("observations", "actions", "lengths", "task", "arguments", "calls", "rewards", "terminated", "truncated")
DICT = spaces.Dict(position=spaces.Box(-np.inf, np.inf, (2,), np.float64), room=spaces.Discrete(3))


def same(left: Demonstrations, right: Demonstrations) -> bool:
    """Equal to the last bit."""
    pairs = [(getattr(left, name), getattr(right, name)) for name in FIELDS]
    texts = [(space_to_json(one.action_space), space_to_json(one.observation_space)) for one in (left, right)]
    return texts[0] == texts[1] and all(
        a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


def recorded(kind: str, count: int = 12, seed: int = 0) -> Demonstrations:
    """Random traces of 1 to 6 actions."""
    rng = np.random.default_rng(seed)
    if kind == "program":
        return bubble_sort.demonstrations(count, seed, annotate=True)
    action_space: spaces.Space[Any] = {
        "discrete": spaces.Discrete(3, start=2),
        "multidiscrete": spaces.MultiDiscrete([2, 4], start=[0, -1]),
        "box": spaces.Box(-2, 2, (2,), np.float64),
        "dict": spaces.Box(-2, 2, (2, 1), np.float32),
    }[kind]
    action_space.seed(seed)
    episodes = []
    for _ in range(count):
        steps = int(rng.integers(1, 7))
        observations: Any = rng.standard_normal((steps + 1, 3), np.float32)
        if kind == "dict":
            observations = {"position": rng.standard_normal((steps + 1, 2)), "room": rng.integers(0, 3, steps + 1)}
        truncated = bool(rng.integers(2))
        actions = np.stack([action_space.sample() for _ in range(steps)])
        rewards = rng.standard_normal(steps)
        terminated = bool(rng.integers(2))
        episodes.append(Episode(observations, actions, rewards=rewards, terminated=terminated, truncated=truncated))
    return Demonstrations.from_episodes(episodes, action_space, DICT if kind == "dict" else None)


def saved(folder: Path, *parts: Demonstrations) -> list[Path]:
    paths = [folder / f"{index}.npz" for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        part.save(path, compressed=False)
    return paths


def damaged(path: Path, **changes: Any) -> Path:
    """Write the file again with other arrays; None takes one away."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


INDICES = {
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


@pytest.mark.parametrize("kind", ["program", "discrete", "multidiscrete", "box", "dict"])
@pytest.mark.parametrize("files", [1, 3])
def test_batches_are_those_in_memory(kind: str, files: int, tmp_path: Path) -> None:
    data = recorded(kind)
    parts = [data] if files == 1 else [data[:1], data[1:7], data[7:]]
    stored = StoredDemonstrations(saved(tmp_path, *parts))
    assert len(stored) == len(data) and len(list(stored)) == len(data)
    assert space_to_json(stored.action_space) == space_to_json(data.action_space)
    assert space_to_json(stored.observation_space) == space_to_json(data.observation_space)
    assert torch.equal(stored.lengths, data.lengths)
    assert torch.equal(stored.terminated, data.terminated) and torch.equal(stored.truncated, data.truncated)
    for name, index in INDICES.items():
        assert same(stored[index], data[index]), name  # type: ignore[index]


def test_files_with_and_without_annotations_go_together(tmp_path: Path) -> None:
    annotated = bubble_sort.demonstrations(3, 0, annotate=True)
    plain = bubble_sort.demonstrations(3, 1)
    assert plain.calls is None
    for name, parts in (("a", (annotated, plain)), ("b", (plain, annotated))):
        (tmp_path / name).mkdir()
        stored = StoredDemonstrations(saved(tmp_path / name, *parts))
        assert same(stored[:], parts[0] + parts[1])
    assert stored[:3].calls is None


def test_one_path_or_several(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, recorded("box"))
    for given in (path, str(path), [path], (str(path),)):
        assert len(StoredDemonstrations(given)) == 12
    with pytest.raises(ValueError, match="no files of demonstrations"):
        StoredDemonstrations([])


@pytest.mark.parametrize("kind", ["discrete", "multidiscrete", "box", "dict"])
def test_transitions_are_those_in_memory(kind: str, tmp_path: Path) -> None:
    data = recorded(kind)
    stored = StoredDemonstrations(saved(tmp_path, data[:5], data[5:])).transitions()
    wanted = data.transitions()
    assert isinstance(stored, StoredTransitions) and len(stored) == len(wanted)
    assert stored.goals is None
    order = torch.randperm(len(wanted))
    for index in (0, -1, slice(3, 30, 4), order, order[:7].tolist(), order > 20):
        mine, theirs = stored[index], wanted[index]  # type: ignore[index]
        assert torch.equal(mine.observations, theirs.observations) and torch.equal(mine.actions, theirs.actions)
        assert mine.actions.dtype == theirs.actions.dtype and mine.observations.dtype == theirs.observations.dtype
    assert len(list(stored)) == len(wanted)
    assert space_to_json(stored[0].action_space) == space_to_json(data.action_space)


def test_split_is_that_in_memory(tmp_path: Path) -> None:
    data = recorded("dict")
    stored = StoredDemonstrations(saved(tmp_path, data[:4], data[4:]))
    for mine, theirs in zip(stored.split(0.7, seed=3), data.split(0.7, seed=3), strict=True):
        assert same(mine[:], theirs)
        assert torch.equal(mine.lengths, theirs.lengths)
        assert torch.equal(mine.transitions()[:].observations, theirs.transitions().observations)
        again = mine.split(0.5)[1]
        assert same(again[:], theirs.split(0.5)[1])
    for fraction in (0.0, 0.01, 1.0):
        with pytest.raises(ValueError, match="a part of the split would be empty"):
            stored.split(fraction)


def test_precision_of_batches(tmp_path: Path) -> None:
    data = recorded("box")
    stored = StoredDemonstrations(saved(tmp_path, data)).to(dtype=torch.float64)
    assert same(stored[:], data.to(dtype=torch.float64))
    assert same(stored.split(0.5)[0][:], data.split(0.5)[0].to(dtype=torch.float64))
    assert stored.transitions()[0].observations.dtype == torch.float64
    assert stored.transitions().to(dtype=torch.float32)[0].actions.dtype == torch.float32
    assert stored.to("cpu")[0].observations.dtype == torch.float64, "moving keeps the precision"


def test_index_errors(tmp_path: Path) -> None:
    stored = StoredDemonstrations(saved(tmp_path, recorded("box")))
    with pytest.raises(IndexError, match="trace 12 of 12"):
        stored[[0, 12]]
    with pytest.raises(IndexError, match="transition -1000 of"):
        stored.transitions()[-1000]
    with pytest.raises(ValueError, match="the selection is empty"):
        stored[[]]


def test_num_actions(tmp_path: Path) -> None:
    stored = StoredDemonstrations(saved(tmp_path, recorded("discrete")))
    assert stored.num_actions == stored.transitions().num_actions == 3
    with pytest.raises(TypeError, match="Discrete"):
        _ = StoredDemonstrations(saved(tmp_path, recorded("box"))).num_actions


# Fingerprints, pickling, threads, memory


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    one, other = recorded("box", seed=0), recorded("box", seed=1)
    first, second = saved(tmp_path, one, other)
    stored = StoredDemonstrations([first, second])
    (tmp_path / "moved").mkdir()
    assert StoredDemonstrations(saved(tmp_path / "moved", one, other)).fingerprint() == stored.fingerprint()
    others = [
        StoredDemonstrations([second, first]),
        StoredDemonstrations(first),
        StoredDemonstrations(second),
        stored.split(0.5)[0],
        stored.split(0.5)[1],
        stored.to(dtype=torch.float16),
        stored.transitions(),
        stored.split(0.5)[0].transitions(),
    ]
    assert len({stored.fingerprint(), *(data.fingerprint() for data in others)}) == len(others) + 1


def test_it_pickles(tmp_path: Path) -> None:
    data = recorded("dict")
    paths = saved(tmp_path, data[:4], data[4:])
    part = StoredDemonstrations(paths).split(0.5)[1].to(dtype=torch.float32)
    text = pickle.dumps(part)
    assert len(text) < 2000
    copy = pickle.loads(text)
    assert same(copy[:], part[:]) and copy.fingerprint() == part.fingerprint()
    transitions = pickle.loads(pickle.dumps(part.transitions()))
    assert torch.equal(transitions[:].observations, part.transitions()[:].observations)
    recorded("dict", 8, seed=5).save(paths[1], compressed=False)
    with pytest.raises(ValueError, match="not the data set any more that was pickled"):
        pickle.loads(text)


def test_worker_processes_have_it(tmp_path: Path) -> None:
    data = recorded("box")
    stored = StoredDemonstrations(saved(tmp_path, data))
    (tmp_path / "pickled").write_bytes(pickle.dumps(stored.transitions()))
    script = f"import pickle; print(len(pickle.load(open({str(tmp_path / 'pickled')!r}, 'rb'))[:5]))"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout == "5\n", found.stderr


def test_threads_read_at_once(tmp_path: Path) -> None:
    data = recorded("dict", 40)
    stored = StoredDemonstrations(saved(tmp_path, data[:15], data[15:]))
    chosen = [torch.randint(40, (8,)) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(same, pool.map(stored.__getitem__, chosen), (data[rows] for rows in chosen)))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    paths = saved(tmp_path, *(recorded("box", seed=seed) for seed in range(3)))
    before = os.listdir("/proc/self/fd")
    stored = StoredDemonstrations(paths)
    stored[[0, 20, 30]]
    os.truncate(paths[2], 3000)
    with pytest.raises(ValueError, match=r"2\.npz has changed since it was opened"):
        stored[[0, 20, 30]]
    with pytest.raises(ValueError, match="no complete file"):
        StoredDemonstrations(paths)
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
from pyrocontrol.envs import StoredDemonstrations
torch.set_num_threads(1)
def peak(): return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
stored = StoredDemonstrations([f"{tmp_path}/{{index}}.npz" for index in range(12)])
for _ in range(40):
    stored[torch.randint(len(stored), (16,))]
    stored.transitions()[torch.randint(60000, (256,))]
print(peak() - before)
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout and int(found.stdout) < 50e6, found.stderr


# Training


class LeastSquares(nn.Module):
    """The loss of a linear controller."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, batch: Any) -> Tensor:
        return (self.linear(batch.observations) - batch.actions)[batch.acted].square().mean()


@pytest.mark.parametrize("of", [lambda data: data, lambda data: data.transitions()], ids=["traces", "transitions"])
def test_it_trains_as_in_memory(of: Any, tmp_path: Path) -> None:
    data = recorded("box").to(dtype=torch.float32)
    paths = saved(tmp_path, data[:5], data[5:])
    losses = []
    for number, source in enumerate((data, StoredDemonstrations(paths))):
        torch.manual_seed(0)
        loss = LeastSquares()
        update = (loss, torch.optim.Adam(loss.parameters()))
        out = tmp_path / f"run{number}"
        settings: dict[str, Any] = {"batch_size": 4, "log_every": 1, "out": out, "progress": False}
        losses.append(fit(update, of(source), steps=12, **settings).losses)
        with pytest.raises(ValueError, match="data_fingerprint"):
            fit(update, of(data[::-1] if number == 0 else StoredDemonstrations(paths[::-1])), steps=13, **settings)
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_policies_learn_from_it_as_from_memory(tmp_path: Path) -> None:
    data = recorded("dict", 30).to(dtype=torch.float32)
    stored = StoredDemonstrations(saved(tmp_path, data[:11], data[11:]))
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


# Bad files


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
        ("integer", r"trace 1, step 2: null before the end of the trace \(it is 2\)"),
        ("task", "trace 1, step 0: the task is NaN or infinite"),
        ("reward", "trace 1, step 2: the reward is NaN or infinite"),
        ("call", r"trace 1, call 2: the annotated choice is no integer \(it is 0.5\)"),
    ],
)
def test_bad_numbers_are_refused_as_in_memory(what: str, message: str, tmp_path: Path) -> None:
    path = bad(what, tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=rf"bad\.npz: {message}$"):
        Demonstrations.load(path)
    with pytest.raises(ValueError, match=rf"bad\.npz: {message}$"):
        StoredDemonstrations(path)
    assert len(StoredDemonstrations(path, check=False)) >= 3, "who does not check gets what is there"


def test_the_bad_trace_of_many_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrocontrol.envs.data.storage._CHECKED_BYTES", 200)
    data = recorded("box", 50)
    good, path = saved(tmp_path, data, data)
    with np.load(path) as archive:
        observations, counts = archive["observations"], archive["counts"]
    observations[(counts[:37] + 1).sum() + 1] = np.nan
    assert len(StoredDemonstrations(good)) == 50
    with pytest.raises(ValueError, match=r"1\.npz: trace 37, step 1: the observation is NaN or infinite"):
        StoredDemonstrations([good, damaged(path, observations=observations)])


@pytest.mark.parametrize("kept", [0, 10, 1000, 0.3, 0.9, -30, -1])
def test_truncated_file(kept: float, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, recorded("dict"))
    size = path.stat().st_size
    os.truncate(path, int(kept * size) if isinstance(kept, float) else kept % size)
    with pytest.raises(ValueError, match=r"0\.npz is no complete file of demonstrations: \w"):
        StoredDemonstrations(path, check=False)


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, recorded("box", 4))
    content = bytearray(path.read_bytes())
    good = StoredDemonstrations(path)[:]
    passed = 0
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 0x15
        path.write_bytes(changed)
        try:
            found = StoredDemonstrations(path)
        except ValueError as error:
            assert "0.npz" in str(error)
        else:  # a date, say, or a version that nobody reads
            passed += 1
            assert same(found[:], good)
    assert passed < len(content) / 7 / 4


def test_compressed_file(tmp_path: Path) -> None:
    data = recorded("box")
    data.save(tmp_path / "small.npz")
    advice = r"compressed.*Demonstrations\.load\(path\)\.save\(other_path, compressed=False\)"
    with pytest.raises(ValueError, match=rf"small\.npz is .*{advice}"):
        StoredDemonstrations(tmp_path / "small.npz")
    Demonstrations.load(tmp_path / "small.npz").save(tmp_path / "large.npz", compressed=False)
    assert same(StoredDemonstrations(tmp_path / "large.npz")[:], data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array("demonstrations-99")}, "its format is demonstrations-99, not pyrocontrol-demonstrations"),
        ({"observations": None}, "it has no array observations"),
        ({"terminated": None}, "it has no array terminated"),
        ({"action_space": None}, "action_space is not in the file"),
        ({"action_space": np.array("Box")}, "no description of a space"),
        ({"observations": np.zeros((3, 3))}, "observations has 3 rows, counts, one more each, add up to"),
        ({"actions": np.zeros((3, 2))}, "actions has 3 rows, counts add up to"),
        ({"rewards": np.zeros(3)}, "rewards has 3 rows, counts add up to"),
        ({"terminated": np.zeros(3, bool)}, "terminated has 3 rows for 12 traces"),
        ({"task": np.zeros((3, 1))}, "task has 3 rows for 12 traces"),
        ({"truncated": np.zeros(12)}, r"truncated has shape \(12,\) and type float64"),
        ({"actions": np.zeros(4, ">i4")}, "another byte order"),
        ({"actions": np.asfortranarray(np.zeros((40, 2)))}, "stored by columns"),
        ({"counts": np.zeros(0, int)}, "the data set is empty"),
        ({"observations": np.array([[{}, {}]])}, "observations.npy holds objects, which are never unpickled"),
        ({"counts": np.array([{}, {}])}, "counts.npy holds objects, which are never unpickled"),
        ({"observations": np.array([["a", "b"]])}, "observations has shape .* and type <U1"),
    ],
)
def test_arrays_that_do_not_belong_together(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, recorded("box"))
    with pytest.raises(ValueError, match=rf"0\.npz is no complete file of demonstrations: .*{message}"):
        StoredDemonstrations(damaged(path, **changes), check=False)


def test_width_that_is_not_that_of_the_space(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, recorded("box"))
    with np.load(path) as archive:
        observations, actions, counts = archive["observations"], archive["actions"], archive["counts"]
    with pytest.raises(ValueError, match=r"0\.npz is no .*: the observations have width 2, their space 3"):
        StoredDemonstrations(damaged(path, observations=observations[:, :2]), check=False)
    with pytest.raises(ValueError, match=r"0\.npz is no .*: actions must have shape"):
        StoredDemonstrations(damaged(path, observations=observations, actions=actions[:, :1]), check=False)
    counts[1] += counts[0]
    counts[0] = 0
    with pytest.raises(ValueError, match="trace 0, step 0: the trace is empty: it holds no action"):
        StoredDemonstrations(damaged(path, actions=actions, counts=counts), check=False)


class Payload:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["counts", "task", "observations", "format", "action_space", "calls", None])
@pytest.mark.parametrize("load", [StoredDemonstrations, Demonstrations.load])
def test_a_pickle_is_never_executed(name: str | None, load: Any, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    (path,) = saved(tmp_path, recorded("box"))
    if name is None:
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        damaged(path, **{name: np.array([Payload(trace)], dtype=object)})
    with pytest.raises(ValueError, match="no complete file of demonstrations"):
        load(path)
    assert not trace.exists()
    found = np.load(path, allow_pickle=True)  # whoever trusts the file executes it
    if name is not None:
        with found:
            found[name]
    assert trace.exists()


def test_files_of_different_kinds(tmp_path: Path) -> None:
    box = recorded("box")
    other_bounds = Demonstrations.from_episodes(box.to_episodes(), spaces.Box(-3, 3, (2,), np.float64))
    unrewarded = Demonstrations.from_episodes([e._replace(rewards=None) for e in box.to_episodes()], box.action_space)
    tasks = Demonstrations.from_episodes([e._replace(task=np.ones(1)) for e in box.to_episodes()], box.action_space)
    cases = [
        (recorded("discrete"), r"1\.npz has the action space Discrete\(3, start=2\), .*0\.npz has Box"),
        (other_bounds, r"1\.npz has the action space Box\(-3.0, 3.0, \(2,\), float64\), .*0\.npz has Box\(-2.0"),
        (recorded("dict"), r"1\.npz has the action space"),
        (unrewarded, r"1\.npz has no rewards, .*0\.npz has some"),
        (tasks, r"1\.npz has task of \[1\] float32 a row, those before have \[0\] float32"),
        (box.to(dtype=torch.float64), r"1\.npz has observations of \[3\] float64 a row, those before have \[3\] float"),
    ]
    for other, message in cases:
        with pytest.raises(ValueError, match=message):
            StoredDemonstrations(saved(tmp_path, box, other))


def test_missing_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no demonstrations at"):
        StoredDemonstrations(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz is no complete file of demonstrations: File is not a zip file"):
        StoredDemonstrations(tmp_path / "text.npz")


def test_a_file_that_changes_in_use_is_not_read(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, recorded("box"))
    stored = StoredDemonstrations(path)
    recorded("box", seed=7).save(path, compressed=False)
    with pytest.raises(ValueError, match=r"0\.npz has changed since it was opened"):
        stored[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="0.npz"):
        stored.transitions()[0]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no complete file of demonstrations: .*directory"):
        StoredDemonstrations(tmp_path)


def test_summary_is_one_line(tmp_path: Path) -> None:
    one, other = recorded("box"), recorded("box", seed=1)
    stored = StoredDemonstrations(saved(tmp_path, one, other))
    actions = int(one.acted.sum() + other.acted.sum())
    assert stored.summary().startswith(f"24 traces in 2 files, {actions} actions (1 to 6 each), 3 observation numbers")
    assert repr(stored) == f"StoredDemonstrations({stored.summary()})"
