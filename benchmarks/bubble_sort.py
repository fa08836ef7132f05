"""Remake results/bubble_sort.json: HVIL against recurrent networks on BubbleSort, and the plot beside it.

    python benchmarks/bubble_sort.py                       # everything; runs that are already there are kept
    python benchmarks/bubble_sort.py --methods rnn --demos 40 --seeds 0 1 --jobs 1
    python benchmarks/bubble_sort.py --no-train             # collect finished runs and plot

Each run is `examples/bubble_sort.py` in a process of one thread, with a folder of its own under RUNS; a run that was
stopped goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pyrocontrol.inference import write_results

HERE = Path(__file__).parent
METHODS: dict[str, list[str]] = {
    "hvil": ["--method", "hvil"],
    "hvil-paper": ["--method", "hvil"],
    "rnn": ["--method", "rnn"],
    "rnn-full": ["--method", "rnn-full"],
}


@dataclass
class Arguments:
    """Which runs to make."""

    methods: tuple[str, ...] = tuple(METHODS)
    """which methods"""
    demos: tuple[int, ...] = (40, 20, 100, 10)
    """numbers of demonstrations"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """trials"""
    jobs: int = 2
    """runs side by side"""
    runs: Path = HERE / "runs" / "bubble_sort"
    """where runs are kept"""
    train: bool = True
    """make the runs that are missing (else only collect and plot)"""


def folder(runs: Path, method: str, demos: int, seed: int) -> Path:
    """Return the folder of one run."""
    return runs / f"{method}-{demos}-{seed}"


def run(arguments: Arguments, method: str, demos: int, seed: int) -> None:
    """Make one run unless it is there."""
    out = folder(arguments.runs, method, demos, seed)
    if (out / "result.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE.parent / "examples" / "bubble_sort.py"), *METHODS[method]]
    command += ["--demos", str(demos), "--seed", str(seed), "--out", str(out)]
    with open(out / "log.txt", "a") as log:
        code = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ).returncode
    print(f"{out.name}: {'done' if code == 0 else f'exit {code}, see its log.txt'}", flush=True)


def collect(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of all finished runs under RUNS, by method, demonstrations and seed."""
    rows = []
    for method in METHODS:
        found = []
        for path in arguments.runs.glob(f"{method}-*/result.json"):
            content = json.loads(path.read_text())
            if path.parent.name.rsplit("-", 2)[0] == method:
                found += [item | {"method": method} for item in content["rows"]]
        rows += sorted(found, key=lambda item: (item["setting"]["demos"], item["seed"]))
    return rows


def main(arguments: Arguments) -> None:
    """Make the missing runs, then the results file and its plot."""
    if arguments.train:
        # Seed by seed, so that what there is at any time is balanced.
        jobs = [(m, d, s) for s in arguments.seeds for d in arguments.demos for m in arguments.methods]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda job: run(arguments, *job), jobs))
    rows = collect(arguments)
    write_results(HERE / "results" / "bubble_sort.json", "bubble_sort", rows, command="python benchmarks/bubble_sort.py")
    plot(rows)


def plot(rows: list[dict[str, Any]]) -> None:
    """Draw the accuracy against the number of demonstrations, with 95% intervals over seeds."""


if __name__ == "__main__":
    main(tyro.cli(Arguments))
