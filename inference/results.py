"""Results that carry their evidence: one file, its command, machine, versions and raw rows."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from .atomic import replacing

__all__ = ["ROW_FIELDS", "read_rows", "row", "write_results"]

ROW_FIELDS = ("method", "task", "setting", "seed", "metric", "value", "seconds")


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
        "revision": _revision(),
        "machine": _machine(),
        "versions": _versions(),
        "rows": rows,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({key: value for key, value in content.items() if key != "rows"}, indent=1)
    lines = ",\n".join("  " + json.dumps(item) for item in rows)
    with replacing(path) as file:
        file.write(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'.encode())


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a results file, none if it does not exist."""
    path = Path(path)
    return json.loads(path.read_text())["rows"] if path.exists() else []


def _revision() -> str:
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+changes" if status.stdout.strip() else "")


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
    for package in ("torch", "pyro-ppl", "numpy", "gymnasium", "pyrocontrol"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
