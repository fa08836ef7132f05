"""Remake results/lazy_demonstrations.json: training on demonstrations that are larger than the memory allowed.

    python benchmarks/lazy_demonstrations.py --folder /scratch

Ten gigabytes of generated episodes are written in parts, left on disk (`Demonstrations.load(paths, memory=False)`) and
trained on through `fit`: a recurrent policy from whole traces, and a reactive one from single transitions and whole
traces. Each measurement is a process of its own, under a hard limit of what it may allocate (``RLIMIT_DATA``, Linux),
and the same training from one of the files, loaded into memory and under no limit, stands beside it. The page cache of
the files is dropped before a ``cold`` measurement; before the ``warm`` ones the files have just been read, as far as
they fit.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
import tyro
from gymnasium import spaces
from pyro.infer import Trace_ELBO

from pyrocontrol.envs import Demonstrations, from_arrays
from pyrocontrol.inference import fit, row, write_results
from pyrocontrol.models import ReactivePolicy, RecurrentPolicy
from training_runs import command_line

HERE = Path(__file__).parent
OBSERVATION, ACTION = 100, 6
OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
ACTION_SPACE = spaces.Box(-1, 1, (ACTION,), np.float32)
# What is trained on what, in batches of how many.
TRAININGS = (("recurrent", "traces", 16), ("reactive", "transitions", 256), ("reactive", "traces", 8))


@dataclass
class Arguments:
    """Measure training from disk."""

    folder: Path | None = None
    """where the files are made, in a folder that is deleted afterwards; by default the system's temporary folder"""
    out: Path = HERE / "results" / "lazy_demonstrations.json"
    """results file"""
    gigabytes: float = 10.0
    """size of all files"""
    files: int = 40
    """how many there are"""
    steps: int = 400
    """longest episode; the shortest has half of its actions"""
    updates: int = 200
    """training updates a measurement"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """repetitions"""
    limit_gibibytes: float = 2.0
    """what a process that trains from disk may allocate"""


def generate(path: str, size: float, steps: int, seed: int) -> None:
    """Write one file of about ``size`` bytes: a linear teacher among coloured noise."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(0).standard_normal((OBSERVATION, ACTION)).astype(np.float32) / OBSERVATION**0.5
    width = 4 * (OBSERVATION + ACTION + 1)  # bytes of a step: observation, action, reward
    counts = rng.integers(steps // 2, steps + 1, max(2, round(size / (0.75 * steps * width))))
    ends = np.cumsum(counts + 1)
    observations = rng.standard_normal((ends[-1], OBSERVATION), np.float32)
    observations[1:] = (observations[1:] + observations[:-1]) / 2**0.5
    actions = np.tanh(np.delete(observations @ weights, ends - 1, axis=0))  # none at an episode's last step
    data = from_arrays(
        observations,
        actions,
        action_space=ACTION_SPACE,
        observation_space=OBSERVATION_SPACE,
        lengths=counts,
        rewards=actions[:, 0],
        terminated=np.zeros(len(counts), bool),
        truncated=np.ones(len(counts), bool),
    )
    data.save(path, compressed=False)


def drop_cache(paths: list[Path]) -> None:
    """Let go of what the system has cached of the files, so that the next read comes from the disk."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check(paths: list[str]) -> dict[str, float]:
    """Open the files, reading everything once."""
    start = time.perf_counter()
    data = Demonstrations.load(paths, memory=False)
    return {"check_seconds": time.perf_counter() - start, "transitions": float(len(data.transitions()))}


def train(
    paths: list[str], method: str, policy: str, data: str, batch: int, updates: int, seed: int
) -> dict[str, float]:
    """Train a policy, from the files or from the first of them in memory."""
    pyro.set_rng_seed(seed)
    if method == "stored":
        traces = Demonstrations.load(paths, memory=False, check=False)
    else:
        traces = Demonstrations.load(paths[0])
    kind = RecurrentPolicy if policy == "recurrent" else ReactivePolicy
    learner: Any = kind(traces.observation_space, traces.action_space)
    learner.normalize(traces[torch.arange(0, len(traces), max(1, len(traces) // 64))])
    examples = traces if data == "traces" else traces.transitions()
    loss = Trace_ELBO()(learner, learner.guide)
    update = (loss, torch.optim.Adam(loss.parameters(), lr=1e-3))
    marks: list[tuple[int, float, float]] = []

    def mark(step: int) -> dict[str, float]:
        marks.append((step, time.perf_counter(), time.process_time()))
        return {}

    # The first updates, among them the shuffling of an epoch, are not counted.
    first = max(1, updates // 10)
    fit(
        update,
        examples,
        steps=first + updates,
        batch_size=batch,
        seed=seed,
        evaluate=mark,
        evaluate_every=first,
        progress=False,
    )
    steps, seconds, cpu = (end - start for start, end in zip(marks[0], marks[-1], strict=True))
    return {"updates_per_second": steps / seconds, "update_cpu_seconds": cpu / steps}


def perform(what: str, **task: Any) -> dict[str, float]:
    """Generate, check or train; return the numbers found, with the peak memory of this process."""
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    if what == "generate":
        generate(**task)
        return {}
    found = check(**task) if what == "check" else train(**task)
    return found | {"peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}


def in_a_process(limit: int | None = None, **task: Any) -> dict[str, float]:
    """Run :func:`perform` in a fresh process that may allocate ``limit`` bytes; what goes wrong there is an error."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps({"limit": limit, "task": task})]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def child(limit: int | None, task: dict[str, Any]) -> None:
    """Be that process."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(json.dumps(perform(**task)))


class Rows:
    """Rows as they come, said as well."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, method: str, metrics: dict[str, float], *, seed: int, seconds: float, **setting: Any) -> None:
        """Add a row for each metric."""
        for metric, value in metrics.items():
            self.rows.append(row(method, "generated", metric, value, seed=seed, seconds=seconds, **setting))
        said = ", ".join(f"{metric} {value:.6g}" for metric, value in metrics.items())
        print(f"{method} {setting} seed {seed}: {said}", flush=True)


def measure(paths: list[Path], seed: int, rows: Rows, arguments: Arguments) -> None:
    """Check, and train in every way, once."""
    limit = int(arguments.limit_gibibytes * 2**30)

    def timed(method: str, /, **task: Any) -> tuple[dict[str, float], float]:
        used = paths if method == "stored" else paths[:1]
        task |= {"paths": [str(path) for path in used], "limit": limit if method == "stored" else None}
        start = time.perf_counter()
        found = in_a_process(**task)
        return found | {"file_bytes": float(sum(path.stat().st_size for path in used))}, time.perf_counter() - start

    drop_cache(paths)
    found, seconds = timed("stored", what="check")
    rows.add("stored", found, seed=seed, seconds=seconds, part="check", limit=limit, cache="cold")
    for measured in ((("stored", "warm"), ("in-memory", None)), (("stored", "cold"),)):
        for policy, data, batch in TRAININGS:
            for method, cache in measured:
                if cache == "cold":
                    drop_cache(paths)
                task = {"policy": policy, "data": data, "batch": batch, "updates": arguments.updates}
                found, seconds = timed(method, what="train", method=method, seed=seed, **task)
                setting = task | {"limit": limit if method == "stored" else None, "cache": cache}
                rows.add(method, found, seed=seed, seconds=seconds, part="train", **setting)


def main(arguments: Arguments) -> None:
    """Generate the files, measure, write the results, delete the files."""
    folder = Path(tempfile.mkdtemp(prefix="lazy_demonstrations-", dir=arguments.folder))
    rows = Rows()
    try:
        paths = [folder / f"{index:03}.npz" for index in range(arguments.files)]
        for index, path in enumerate(paths):
            size = arguments.gigabytes * 1e9 / arguments.files
            in_a_process(what="generate", path=str(path), size=size, steps=arguments.steps, seed=index)
        for seed in arguments.seeds:
            measure(paths, seed, rows, arguments)
            write_results(arguments.out, "lazy_demonstrations", rows.rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(**json.loads(sys.argv[2]))
    else:
        main(tyro.cli(Arguments, args=command_line()))
