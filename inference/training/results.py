"""Results that carry their evidence: one file, its command, machine, versions and raw rows."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from ..._files import writing

__all__ = [
    "ROW_FIELDS",
    "Summary",
    "mean_interval",
    "read_rows",
    "revision",
    "row",
    "select",
    "summary",
    "write_results",
]

ROW_FIELDS = ("method", "task", "setting", "seed", "metric", "value", "seconds")

# Two-sided 95% quantiles of Student's t, by degrees of freedom.
_T_95 = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]


def row(
    method: str, task: str, metric: str, value: float, *, seed: int, seconds: float, **setting: Any
) -> dict[str, Any]:
    """Return one row: a raw, unrounded value of one metric for one method, task, setting and seed."""
    return {
        "method": method,
        "task": task,
        "setting": setting,
        "seed": seed,
        "metric": metric,
        "value": value,
        "seconds": seconds,
    }


def write_results(
    path: str | os.PathLike[str], name: str, rows: list[dict[str, Any]], *, command: str | None = None
) -> None:
    """Write a results file, whole or not at all.

    Raises:
        ValueError: if there are no rows, or a row lacks a field.
    """
    if not rows:
        raise ValueError("a results file needs at least one row")
    for number, item in enumerate(rows):
        missing = [field for field in ROW_FIELDS if field not in item]
        if missing:
            raise ValueError(f"row {number} lacks {', '.join(missing)}")
    content = {
        "name": name,
        "command": command or shlex.join(["python", *sys.argv]),
        "revision": revision(),
        "machine": _machine(),
        "versions": _versions(),
        "rows": rows,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({key: value for key, value in content.items() if key != "rows"}, indent=1)
    lines = ",\n".join("  " + json.dumps(item) for item in rows)
    with writing(path) as file:
        file.write(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'.encode())


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a results file, none if it does not exist."""
    path = Path(path)
    return json.loads(path.read_text())["rows"] if path.exists() else []


class Summary(NamedTuple):
    """Mean over seeds, half width of its 95% interval (NaN from a single seed), and how many seeds."""

    mean: float
    half: float
    seeds: int


def select(
    rows: list[dict[str, Any]], method: str, metric: str, *, task: str | None = None, **setting: Any
) -> list[float]:
    """Return the values of a metric, one a seed, of the rows with these settings (None: those that lack one)."""
    return [
        item["value"]
        for item in rows
        if item["method"] == method
        and item["metric"] == metric
        and task in (None, item["task"])
        and all(item["setting"].get(key) == value for key, value in setting.items())
    ]


def mean_interval(values: list[float]) -> Summary:
    """Return mean and half width of the 95% t-interval of ``values``."""
    count = len(values)
    if count < 2:
        return Summary(values[0] if values else math.nan, math.nan, count)
    quantile = _T_95[count - 1] if count <= len(_T_95) else 1.96 + 2.5 / (count - 1)
    return Summary(statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(count), count)


def summary(
    rows: list[dict[str, Any]], method: str, metric: str, *, task: str | None = None, **setting: Any
) -> Summary:
    """Return mean, half width of the 95% t-interval and number of seeds of the rows that `select` finds."""
    return mean_interval(select(rows, method, metric, task=task, **setting))


@cache
def revision() -> str:
    """Return this repository's revision, and ``+changes`` if there are uncommitted ones of other than results.

    It is what it was when a process first asked: what changes then is not what made its rows.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    changed = ["status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results"]
    try:
        head, status = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if status else "")


def _machine() -> str:
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}, {platform.system()}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    named = (
        "torch",
        "pyro-ppl",
        "numpy",
        "gymnasium",
        "pyrocontrol",
        "mujoco",
        "pybullet",
        "zuko",
        "stable-baselines3",
    )
    for package in named:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
