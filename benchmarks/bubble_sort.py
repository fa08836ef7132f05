"""Remake results/bubble_sort.json: HVIL against recurrent networks on BubbleSort, and the plot beside it.

    python benchmarks/bubble_sort.py                       # everything; runs that are already there are kept
    python benchmarks/bubble_sort.py --methods rnn --demos 40 --seeds 0 1 --jobs 1
    python benchmarks/bubble_sort.py --no-train             # collect finished runs and plot

Each run is `examples/bubble_sort.py` in a process of one thread, with a folder of its own under RUNS; a run that was
stopped goes on from its checkpoint.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import tyro

from pyrocontrol.envs import Demonstrations
from pyrocontrol.envs.bubble_sort import ACTIONS, demonstrations
from pyrocontrol.inference import read_rows, row, select, summary, write_results
from training_runs import command_line, make, uncommitted, with_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

# The test set of examples/bubble_sort.py.
TEST_SEED, TEST_TRACES = 1_000, 100

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "bubble_sort.json", HERE.parent / "docs" / "methods" / "hvil.md"
EXACT = ["--method", "hvil-exact", "--starts", "4", "--trial", "300", "--updates", "3000"]
METHODS: dict[str, list[str]] = {
    "hvil-exact": EXACT,
    "hvil-exact-annotated": [*EXACT, "--annotated", "4"],
    "hvil-exact-generic": [*EXACT, "--tree", "generic"],
    "hvil-exact-move": [*EXACT, "--task", "BubbleSortMove"],
    "hvil-exact-move-annotated": [*EXACT, "--task", "BubbleSortMove", "--annotated", "4"],
    "hvil": ["--method", "hvil"],
    "hvil-numpyro": ["--method", "hvil", "--engine", "numpyro"],
    "hvil-short": ["--method", "hvil", "--updates", "4200"],
    "hvil-paper": ["--method", "hvil", "--procedures", "paper"],
    "hvil-annotated": ["--method", "hvil", "--annotated", "4"],
    "hvil-generic": ["--method", "hvil", "--tree", "generic"],
    "hvil-move": ["--method", "hvil", "--task", "BubbleSortMove"],
    "hvil-move-annotated": ["--method", "hvil", "--task", "BubbleSortMove", "--annotated", "4"],
    "hvil-move-half-annotated": ["--method", "hvil", "--task", "BubbleSortMove", "--annotated", "20"],
    "untrained": ["--method", "hvil", "--updates", "0"],
    "rnn": ["--method", "rnn"],
    "rnn-full": ["--method", "rnn-full"],
    "rnn-full-clipped": ["--method", "rnn-full", "--clip", "1"],
}


@dataclass
class Arguments:
    """Which runs to make."""

    methods: tuple[str, ...] = ("hvil-exact", "hvil", "rnn-full", "rnn")
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


def run_of(item: dict[str, Any]) -> tuple[str, int, int]:
    """Return the run that a row is of."""
    return item["method"], item["setting"]["demos"], item["seed"]


def run(arguments: Arguments, method: str, demos: int, seed: int) -> None:
    """Make one run unless it is there."""
    out = folder(arguments.runs, method, demos, seed)
    if (out / "result.json").exists() or (method, demos, seed) in {run_of(item) for item in read_rows(RESULTS)}:
        return
    given = [*METHODS[method]]
    given += ["--demos", str(demos), "--seed", str(seed), "--out", str(out)]
    make(HERE.parent / "examples" / "bubble_sort.py", given, out.name, out / "log.txt")


def collect(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the rows of all finished runs under RUNS, by method, demonstrations and seed."""
    rows = []
    for method in METHODS:
        found = []
        for path in arguments.runs.glob(f"{method}-*/result.json"):
            content = json.loads(path.read_text())
            if path.parent.name.rsplit("-", 2)[0] == method:
                made = {"revision": content["revision"]}
                found += [item | {"method": method, "setting": item["setting"] | made} for item in content["rows"]]
        rows += sorted(found, key=lambda item: (item["setting"]["demos"], item["seed"]))
    return rows


def main(arguments: Arguments) -> None:
    """Make the missing runs, then the results file, its plot and the page's table."""
    if arguments.train:
        # Seed by seed, so that what there is at any time is balanced.
        jobs = [(m, d, s) for s in arguments.seeds for d in arguments.demos for m in arguments.methods]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda job: run(arguments, *job), jobs))
    rows = collect(arguments)
    # Runs made elsewhere, whose folders are not here, stay in the file.
    made = {run_of(item) for item in rows}
    rows += [item for item in read_rows(RESULTS) if item["method"] != "data" and run_of(item) not in made]
    for demos, seed in sorted({(item["setting"]["demos"], item["seed"]) for item in rows if item["method"] == "hvil"}):
        rows.append(
            row("data", "BubbleSort", "identifiable", identifiable(demos, seed), seed=seed, seconds=0.0, demos=demos)
        )
    write_results(RESULTS, "bubble_sort", rows, command="python benchmarks/bubble_sort.py")
    plot(rows, HERE / "results" / "bubble_sort.png")
    print(table(rows))
    if arguments.runs == Arguments.runs:  # the whole set of runs, not somebody's trial
        PAGE.write_text(with_table(PAGE.read_text(), table(rows)))


def identifiable(demos: int, seed: int) -> float:
    """Return the fraction of test traces that training traces say enough about.

    These are the traces in which every swapped pair (a, b) was swapped in a training trace, or encloses a pair that
    was: a >= c > d >= b. Without knowing that digits are ordered, nothing says that any other pair is to be swapped.
    """

    def swapped(traces: Demonstrations) -> list[set[tuple[int, int]]]:
        swap = traces.actions == ACTIONS.index("swap")
        digits = traces.observations[..., :10].argmax(-1), traces.observations[..., 11:21].argmax(-1)
        return [
            set(zip(digits[0][b][row].tolist(), digits[1][b][row].tolist(), strict=True)) for b, row in enumerate(swap)
        ]

    shown = set().union(*swapped(demonstrations(demos, seed)))
    test = swapped(demonstrations(TEST_TRACES, TEST_SEED, stream="test"))
    return sum(all(any(a >= c and b <= d for c, d in shown) for a, b in pairs) for pairs in test) / len(test)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the accuracies, and at 40 demonstrations whether boundaries are the teacher's, as a Markdown table."""
    counts = sorted({item["setting"]["demos"] for item in rows})
    heads = [*(f"{n} demonstrations" for n in counts), "boundary F1 at 40: own calls", "posterior"]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    wanted = [("exact_match", {"demos": n, "length": None}) for n in counts]
    wanted += [("boundary_f1", {"demos": 40, "of": of}) for of in ("own", "posterior")]
    for method in METHODS:
        cells = []
        for metric, setting in wanted:
            mean, half, seeds = summary(rows, method, metric, **setting)
            interval = f" ± {half:.2f}" if seeds >= 4 else ""
            cells.append(f"{mean:.2f}{interval} ({seeds})" if seeds else "")
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *uncommitted(rows, "demos")])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy on the paper's mix, and on longer lists, with 95% intervals over seeds."""
    counts = sorted({item["setting"]["demos"] for item in rows})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    # Methods of a few trials are in the table alone.
    shown = [m for m in METHODS if summary(rows, m, "exact_match", demos=40, length=None).seeds >= 4]
    for number, method in enumerate(shown):
        shift = 0.25 * (number - (len(shown) - 1) / 2)
        for axes, places, fixed in ((left, counts, {"length": None}), (right, (10, 15, 20), {"demos": 40})):
            points = []
            for n in places:
                setting = fixed | ({"demos": n} if axes is left else {"length": n})
                mean, half, seeds = summary(rows, method, "exact_match", **setting)
                if seeds:
                    # An interval from fewer than four seeds says nothing; the seeds themselves are shown instead.
                    points.append((n + shift, mean, half if seeds >= 4 else math.nan))
                    values = select(rows, method, "exact_match", **setting)
                    axes.scatter([n + shift] * seeds, values, s=6, color=f"C{number}", alpha=0.5)
            if points:
                x, mean, half = zip(*points, strict=True)
                axes.errorbar(x, mean, half, marker="o", capsize=3, label=method, color=f"C{number}")
    left.scatter([40], [0.88], marker="*", s=120, color="black", label="the paper's hvil", zorder=5)
    left.set(xlabel="demonstrations", ylabel="test traces completely right", ylim=(-0.03, 1.05), xticks=counts)
    left.set_title("lists of 2 to 9, as trained on", loc="left", fontsize=10)
    right.set(xlabel="length of the list", ylim=(-0.03, 1.05), xticks=(10, 15, 20))
    right.set_title("longer lists, 40 demonstrations", loc="left", fontsize=10)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
