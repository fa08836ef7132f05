"""Remake results/reliability.json: what runs, folders and files survive; a campaign at a time, or all of them.

    python benchmarks/reliability.py kills --count 1000 --seed 0
    python benchmarks/reliability.py folders --pairs 50
    python benchmarks/reliability.py memory

Each campaign is a function here, whose arguments are its options; its rows replace those of its last run in the file.
A row counts something for one task of a campaign: how often it was tried, and how often it went wrong, which should be
0. A new campaign is one more function::

    @campaign
    def files(count: int = 20_000, seed: int = 0) -> Rows:
        \"\"\"Read mutated files of every format.\"\"\"
        for task in ("npz", "minari"):
            begun = time.perf_counter()
            ...
            yield from counted("files", task, begun, seed=seed, count=count, bare_exceptions=0, wrong_data=0)
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import tyro

from pyrocontrol.inference import read_rows, row, write_results

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
    def run(**options: Any) -> None:
        torch.set_num_threads(1)
        name, rows = function.__name__, []
        for item in function(**options):
            print(
                f"{name}, {item['task']}: {item['metric']} {item['value']:g} of {item['setting']['count']}", flush=True
            )
            rows.append(item)
        others = [item for item in read_rows(out) if item["method"] != name]
        write_results(out, "reliability", [*others, *rows])

    run.__annotations__ = function.__annotations__ | {"return": None}
    return run


@campaign
def kills(count: int = 1000, seed: int = 0) -> Rows:
    """Kill and resume every kind of training at random moments, also between renames.

    Args:
        count: how many kills in all.
        seed: of the moments.
    """
    yield from ()


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({name: recorded(function) for name, function in CAMPAIGNS.items()})
