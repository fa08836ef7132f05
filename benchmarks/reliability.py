"""Remake results/reliability.json: what runs, folders and files survive; a campaign at a time.

    python benchmarks/reliability.py kills --count 1000     # five minutes on one core
    python benchmarks/reliability.py folders --pairs 50
    python benchmarks/reliability.py memory --updates 5000

Each campaign is a function here, whose arguments are its options; its rows replace those of its last run in the file.
A row counts something for one task of a campaign: what was tried so often (``count``), and how often it went wrong,
which should be 0. A new campaign is one more function::

    @campaign
    def files(count: int = 20_000, seed: int = 0) -> Rows:
        \"\"\"Read mutated files of every format.\"\"\"
        for task in ("npz", "minari"):
            begun = time.perf_counter()
            ...
            yield from counted("files", task, begun, seed=seed, count=count, bare_exceptions=0, wrong_data=0)
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import importlib
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pyro
import torch
import tyro
from gymnasium import spaces

import pyrocontrol as pc
from pyrocontrol.inference import fit, read_rows, row, write_results
from pyrocontrol.inference.training import checkpoint
from pyrocontrol.inference.training.results import revision
from training_runs import command_line

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reliability.json"
Rows = Iterator[dict[str, Any]]
CAMPAIGNS: dict[str, Callable[..., Rows]] = {}


def campaign(function: Callable[..., Rows]) -> Callable[..., Rows]:
    """Make a function a campaign, called by its name on the command line."""
    CAMPAIGNS[function.__name__] = function
    return function


def counted(method: str, task: str, begun: float, *, seed: int, count: int, **counts: float) -> Rows:
    """Rows of one task of a campaign: ``count`` tries since a time of the clock, and what came of them, by name."""
    seconds = time.perf_counter() - begun
    for metric, value in counts.items():
        yield row(method, task, metric, value, seed=seed, seconds=seconds, count=count)


def recorded(function: Callable[..., Rows], out: Path = RESULTS) -> Callable[..., None]:
    """The same campaign, whose rows are said and kept in the results file."""

    @functools.wraps(function)
    def record(**options: Any) -> None:
        torch.set_num_threads(1)
        name, rows = function.__name__, []
        for item in function(**options):
            count = item["setting"]["count"]
            print(f"{name}, {item['task']}: {item['metric']} {item['value']:g} of {count}", flush=True)
            item["setting"]["revision"] = revision()  # others of the file may be of another one
            rows.append(item)
        others = [item for item in read_rows(out) if item["method"] != name]
        write_results(out, "reliability", [*others, *rows])

    record.__annotations__ = function.__annotations__ | {"return": None}
    return record


# ---------------------------------------------------------------------- what is trained


class Point(gymnasium.Env[Any, Any]):
    """A point that is pushed, for seven steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin somewhere."""
        super().reset(seed=seed)
        self.time, self.state = 0, self.np_random.normal(size=2).astype(np.float32)
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Push."""
        self.time += 1
        place, speed = self.state
        self.state = np.array([place + 0.1 * speed, speed + 0.1 * float(action[0])], np.float32)
        return self.state, -abs(float(place)), False, self.time == 7, {}


_FIT: dict[str, Any] = {"steps": 6, "batch_size": 2, "checkpoint_every": 2, "progress": False}


def program(folder: Path) -> str:
    """Six updates of a control program and its guide by Pyro's SVI, with gradients clipped and a falling rate."""
    rng = np.random.default_rng(0)
    data = pc.envs.from_arrays(
        [rng.normal(size=(3, 2)).astype(np.float32) for _ in range(4)], [[0, 1]] * 4, action_space=2
    )
    model = pc.models.ControlProgram("actions: a, b\nroot -> a, b", obs_size=2, hidden=(4,))
    guide = pc.guides.CallStackGuide(model)
    falling = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.9}
    optimizer = pyro.optim.ExponentialLR(falling, clip_args={"clip_norm": 1.0})  # type: ignore[attr-defined]
    fit(pyro.infer.SVI(model.model, guide, optimizer, pc.inference.StepwiseKL_ELBO()), data, out=folder, **_FIT)
    return digest_of(folder)


def _cloned(folder: Path, data: Any, **options: Any) -> Any:
    policy = pc.models.ReactivePolicy(data.observation_space, data.action_space, hidden=(4,))
    pair: Any = policy.loss, torch.optim.Adam(policy.parameters(), lr=1e-2)
    fit(pair, data.transitions(), out=folder, **_FIT | options)
    return policy


def policy(folder: Path) -> str:
    """Six updates of a reactive policy."""
    rng = np.random.default_rng(0)
    _cloned(folder, pc.envs.from_arrays([rng.normal(size=(9, 3)).astype(np.float32)], [[0, 1] * 4], action_space=2))
    return digest_of(folder)


def _learner() -> Any:
    return pc.inference.SoftActorCritic(pc.guides.GaussianPolicy(2, 1, hidden=(4,)), 2, 1, hidden=(4,))


_LEARN: dict[str, Any] = {"steps": 16, "replay": 6, "batch_size": 2, "start": 6, "checkpoint_every": 4}


def learn(folder: Path) -> str:
    """16 steps of soft actor-critic; its replay is a file, and shorter than an episode."""
    pc.inference.learn(_learner(), Point(), seed=1, out=folder, progress=False, **_LEARN)
    return digest_of(folder)


def learn_together(folder: Path) -> str:
    """The same of three learners in one batch."""
    outs = [folder / str(number) for number in range(3)]
    batch = pc.inference.SeedBatch([_learner() for _ in outs])
    envs = [Point() for _ in outs]
    pc.inference.learn_together(batch, envs, seeds=[1, 2, 3], outs=outs, progress=False, **_LEARN)
    return digest_of(*outs)


def _teacher(observation: np.ndarray) -> np.ndarray:
    return np.clip(-observation[:1], -1, 1)


def dagger(folder: Path) -> str:
    """Three rounds of DAgger, each of which trains in a folder of its own."""
    rounds: list[Path] = []

    def learn_from(data: Any) -> Any:
        rounds.append(folder / str(len(rounds)))
        return _cloned(rounds[-1], data, steps=4)

    pc.inference.dagger(Point(), _teacher, learn_from, rounds=3, episodes=1, seed=3, progress=False)
    return digest_of(*rounds)


def minari(folder: Path) -> str:
    """A data set that is overwritten by its fourth version: every action of the n-th is n."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    there = version(folder)
    for number in range(max(0, there), 4):
        made = pc.envs.from_arrays([np.full((4, 2), number, np.float32)], [np.full(3, number)], action_space=9)
        pc.envs.to_minari(made, "toy/kept-v0", overwrite=True)
        said(str(number))
    return f"{version(folder)} {sorted(path.name for path in (folder / 'toy').iterdir())}"


def version(folder: Path) -> int:
    """Of the data set that is there; -1 if there is none."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        data = pc.envs.from_minari("toy/kept-v0")
    except FileNotFoundError:
        return -1
    numbers = {*data.actions[data.acted].tolist(), *data.observations.flatten().tolist()}
    assert len(numbers) == 1, f"a mixture of the versions {numbers}"
    return int(numbers.pop())


def step(folder: Path) -> int:
    """That the checkpoints are at; 0 if they are not all there."""
    paths = (
        [folder / str(n) / "checkpoint.pt" for n in range(3)] if (folder / "0").exists() else [folder / "checkpoint.pt"]
    )
    return min(checkpoint.read(path)["step"] if path.exists() else 0 for path in paths)


def digest_of(*folders: Path) -> str:
    """A hash of all that the checkpoints hold, but times and the names of files."""
    digest = hashlib.blake2b(digest_size=8)

    def add(value: Any, name: str = "") -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in ("seconds", "file"):
                    add(item, f"{name}.{key}")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                add(item, f"{name}.{number}")
        else:
            digest.update(
                f"{name} {checkpoint.fingerprint(value) if isinstance(value, torch.Tensor) else value}".encode()
            )

    for folder in folders:
        add(checkpoint.read(folder / "checkpoint.pt"))
    return digest.hexdigest()


# ---------------------------------------------------------------------- kills


class Kind(NamedTuple):
    """Something that goes on after a kill: what is run, its share of all kills, how far it has come by its files."""

    run: Callable[[Path], str]
    share: float
    reached: Callable[[Path], int]


KINDS = {
    "fit, a program": Kind(program, 0.15, step),
    "fit, a policy": Kind(policy, 0.15, step),
    "learn": Kind(learn, 0.15, step),
    "learn_together": Kind(learn_together, 0.2, step),
    "dagger": Kind(dagger, 0.15, lambda folder: 4),  # it begins anew, and its trainings go on
    "to_minari": Kind(minari, 0.2, version),
}
_MOMENTS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "open")  # of the module os
_pipe = -1  # to the parent


class Child:
    """A fork of this process that runs a function, which tells the parent lines, its result last.

    Args:
        function: returns a line; an error is one too.
    """

    def __init__(self, function: Callable[[], str]) -> None:
        self.begun = time.perf_counter()
        read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            global _pipe
            _pipe = write
            try:
                pyro.set_rng_seed(0)
                pyro.clear_param_store()
                said(f"end {function()}")
            except BaseException as error:
                said(f"error {error!r} {traceback.format_exc()}".replace("\n", " | "))
            finally:
                os._exit(0)
        os.close(write)
        self.pipe = open(read, "rb", buffering=0)  # noqa: SIM115  # closed by wait

    def wait(self, seconds: float = 300.0) -> list[str]:
        """Wait until it ends, and kill it if that takes longer; return what it said."""
        with self.pipe as pipe:
            text, limit = b"", self.begun + seconds
            while True:
                if not select.select([pipe], [], [], max(0.0, limit - time.perf_counter()))[0]:
                    os.kill(self.pid, signal.SIGKILL)
                    limit += 60  # what it has said is still to be read
                elif part := pipe.read(65536):
                    text += part
                else:
                    break
        status = os.waitpid(self.pid, 0)[1]
        self.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        self.seconds = time.perf_counter() - self.begun
        return text.decode().splitlines()


def said(what: str) -> None:
    """In a child: tell the parent."""
    if _pipe >= 0:
        os.write(_pipe, f"{what}\n".encode())


def running(kind: Kind, folder: Path, last: int | None = None) -> str:
    """In a child: run something, and say each step that is saved.

    Args:
        kind: of run.
        folder: where.
        last: kill it at this moment. Each call of the operating system that makes, syncs, names or removes files is
            two: before it and after it.
    """
    count, write_all = 0, checkpoint.write_all

    def pass_moment() -> None:
        nonlocal count
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            pass_moment()
            try:
                return function(*args, **kwargs)
            finally:
                pass_moment()

        return call

    def saying(contents: dict[Path, dict[str, Any]]) -> None:
        write_all(contents)
        for content in contents.values():
            said(str(content["step"]))

    for name in _MOMENTS:
        setattr(os, name, counting(getattr(os, name)))
    checkpoint.write_all = saying
    end = kind.run(folder)
    said(f"moments {count}")
    return end


@contextmanager
def prepared(kinds: Iterable[Kind]) -> Iterator[Path]:
    """An empty folder, and whatever is imported late is there for all forks."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, kind in enumerate(kinds):
            kind.run(Path(folder) / f"first-{number}")
        yield Path(folder)


@campaign
def kills(count: int = 1000, seed: int = 0) -> Rows:
    """Kill and resume every kind of training at random moments, also between renames.

    Half of the kills are at a random time, half just before or after a random one of the calls by which files are made,
    synced, renamed and removed. What was killed goes on from its files, may be killed again, and has to end like what
    was never stopped, bit for bit. ``lost``: it raised an error, or its files held less than it had saved. ``other``:
    it ended otherwise.

    Args:
        count: how many kills in all.
        seed: of the moments.
    """
    rng = random.Random(seed)
    with prepared(KINDS.values()) as parent:
        for name, kind in KINDS.items():
            begun, tries, found = time.perf_counter(), 0, {"kills": 0, "lost": 0, "other": 0}
            whole = Child(lambda: running(kind, parent / f"{name}-whole"))  # noqa: B023  # it has ended by then
            *_, moments, end = whole.wait()
            while found["kills"] < round(count * kind.share):
                tries += 1
                folder, saved, killed_at = parent / f"{name}-{tries}", -1, []
                for _ in range(rng.randint(1, 2)):
                    moment, seconds = rng.randrange(int(moments.split()[1])), rng.uniform(0, whole.seconds)
                    by_time = rng.random() < 0.5
                    child = Child(lambda: running(kind, folder, None if by_time else moment))  # noqa: B023
                    lines = child.wait(seconds) if by_time else child.wait()
                    saved = max([saved, *(int(line) for line in lines if line.isdigit())])
                    killed_at.append(f"{seconds:.3f} s" if by_time else f"moment {moment}")
                    found["kills"] += child.killed
                problem = ""
                try:
                    if rng.random() < 0.5 and (reached := kind.reached(folder)) < saved:
                        problem = f"error: {saved} was saved, {reached} is there"
                except Exception as error:
                    problem = f"error {error!r}"
                last = Child(lambda: running(kind, folder)).wait()[-1:]  # noqa: B023
                if problem or last != [end]:
                    problem = problem or "".join(last)
                    found["lost" if problem.startswith("error") else "other"] += 1
                    print(f"{name}, killed at {', '.join(killed_at)}: {problem}", flush=True)
            yield from counted("kills", name, begun, seed=seed, count=tries, **found)


# ---------------------------------------------------------------------- folders


@campaign
def folders(pairs: int = 50) -> Rows:
    """Start two processes at once that train in one folder: one runs, the other is refused and says who runs.

    Args:
        pairs: how many of each kind of training.
    """
    kinds = {name: KINDS[name] for name in ("fit, a policy", "learn", "learn_together")}
    with prepared(kinds.values()) as parent:
        for name, kind in kinds.items():
            begun, good = time.perf_counter(), 0
            for number in range(pairs):
                folder, refused = parent / f"{name}-{number}", parent / f"{name}-{number}-refused"
                children = [Child(lambda: _one_of_two(kind, folder, refused)) for _ in range(2)]  # noqa: B023
                came = [(child.pid, child.wait(60)[-1:]) for child in children]
                runs = [pid for pid, lines in came if lines and lines[0].startswith("end ran")]
                holder = f"in use by process {runs[0]} on " if runs else "?"
                good += len(runs) == 1 and any(holder in "".join(lines) for _, lines in came)
            yield from counted("folders", name, begun, seed=0, count=pairs, one_runs_one_refuses=good)


def _one_of_two(kind: Kind, folder: Path, refused: Path) -> str:
    """In a child: train, and not end before the other has been refused, or ten seconds have passed."""
    write_all, limit = checkpoint.write_all, time.perf_counter() + 10

    def waiting(contents: dict[Path, dict[str, Any]]) -> None:
        while not refused.exists() and time.perf_counter() < limit:
            time.sleep(0.002)
        write_all(contents)

    checkpoint.write_all = waiting
    try:
        return f"ran {kind.run(folder)}"
    except BlockingIOError as error:
        refused.touch()
        return f"refused {error}"


# ---------------------------------------------------------------------- campaigns of the tests' helpers


@campaign
def models(count: int = 10_000, first: int = 0) -> Rows:
    """Compare estimates of random small models, summed over all that can be drawn, with enumeration.

    Args:
        count: of models.
        first: number of a model, which it is drawn by.
    """
    begun, helper = time.perf_counter(), _helper("random_models")
    torch.set_default_dtype(torch.float64)
    try:
        wrong = sum(helper.is_off(seed) for seed in range(first, first + count))
    finally:
        torch.set_default_dtype(torch.float32)
    yield from counted("models", "random models", begun, seed=first, count=count, off=wrong)


@campaign
def files(count: int = 20_000, first: int = 0) -> Rows:
    """Read mutated files of every format.

    Args:
        count: of mutations, over all formats.
        first: number of a mutation, which it is drawn by.
    """
    begun = time.perf_counter()
    counts = _helper("fuzzing").campaign(count, first)
    yield from counted("files", "all formats", begun, seed=first, count=count, **counts)


@campaign
def sanitizers(count: int = 300, first: int = 0) -> Rows:
    """Run the native code on random trees, under the sanitizers of addresses and of undefined behaviour.

    Args:
        count: of trees.
        first: number of a tree, which it is drawn by.
    """
    begun = time.perf_counter()
    counts = _helper("sanitized_walks").campaign(count, first)
    counts.pop("trees")
    yield from counted("sanitizers", "random trees", begun, seed=first, count=count, **counts)


def _helper(name: str) -> Any:
    """A module that the tests share."""
    sys.path.append(str(HERE.parent / "tests" / "helpers"))
    return importlib.import_module(name)


# ---------------------------------------------------------------------- memory


Mark = Callable[[int], None]
_BETWEEN = 500  # updates between checkpoints, and rounds


@campaign
def memory(updates: int = 10_000, seed: int = 0) -> Rows:
    """Measure by how much a process grows in training: its resident memory, MiB a thousand updates.

    What has been freed is given back to the system before each measurement, so that what counts is what is kept. Of
    DAgger that includes what it collects.

    Args:
        updates: after the first half of which the growth is measured, by a line of least squares.
        seed: of the training.
    """
    trainings = {"fit": _long_fit, "learn": _long_learn, "dagger": _long_dagger}
    for name, train in trainings.items():
        begun = time.perf_counter()
        lines = Child(lambda: _growth(train, updates, seed)).wait()  # noqa: B023
        slope = float(lines[-1].removeprefix("end "))
        yield from counted("memory", name, begun, seed=seed, count=updates, mebibytes_per_thousand_updates=slope)


def _growth(train: Callable[[Path, int, int, Mark], None], updates: int, seed: int) -> str:
    marks: list[tuple[int, float]] = []
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)

    def mark(update: int) -> None:
        gc.collect()
        trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        marks.append((update, pages * os.sysconf("SC_PAGESIZE") / 2**20))

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(Path(folder), updates, seed, mark)
    counts, sizes = np.array([each for each in marks if each[0] >= updates / 2]).T
    return str(1000 * np.polyfit(counts, sizes, 1)[0])


def _long_fit(folder: Path, updates: int, seed: int, mark: Mark) -> None:
    data = pc.envs.from_arrays([np.random.randn(99, 3).astype(np.float32)], [[0, 1] * 49], action_space=2)
    log = lambda step, _: mark(step)  # noqa: E731
    _cloned(folder, data, steps=updates, seed=seed, log=log, log_every=100, checkpoint_every=_BETWEEN)


def _long_learn(folder: Path, updates: int, seed: int, mark: Mark) -> None:
    log = lambda step, values: mark(step) if "loss" in values else None  # noqa: E731
    options = _LEARN | {"steps": updates, "replay": 500, "log_every": 100, "checkpoint_every": _BETWEEN}
    pc.inference.learn(_learner(), Point(), seed=seed, out=folder, progress=False, log=log, **options)


def _long_dagger(folder: Path, updates: int, seed: int, mark: Mark) -> None:
    rounds = 0

    def learn_from(data: Any) -> Any:
        nonlocal rounds
        before, rounds = rounds * _BETWEEN, rounds + 1
        log = lambda step, _: mark(before + step)  # noqa: E731
        return _cloned(folder / str(rounds), data, steps=_BETWEEN, log=log, log_every=100)

    options: dict[str, Any] = {"rounds": updates // _BETWEEN, "episodes": 1, "seed": seed, "progress": False}
    pc.inference.dagger(Point(), _teacher, learn_from, **options)


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # forks cannot use it
    tyro.extras.subcommand_cli_from_dict(
        {name: recorded(function) for name, function in CAMPAIGNS.items()}, args=command_line()
    )
