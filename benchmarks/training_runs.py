"""What benchmarks share: their arguments; for those made of many runs of an example, the runs and a page's table."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyrocontrol.inference import verify_device
from pyrocontrol.inference.training.results import revision


def command_line() -> list[str]:
    """Return the words of a benchmark's command line, for its parser.

    Exits where there are uncommitted changes, as nobody could make such rows again; ``--allow-dirty``, which is left
    out of the words, makes them all the same, marked ``+changes``.
    """
    words = [word for word in sys.argv[1:] if word != "--allow-dirty"]
    if words == sys.argv[1:] and not {"-h", "--help"} & {*words} and revision().endswith("+changes"):
        raise SystemExit("there are uncommitted changes: nobody could make these rows again (--allow-dirty does)")
    return words


def make(script: Path, arguments: Sequence[str], name: str, log: Path) -> None:
    """Run a script in a job of one thread, what it prints appended to ``log``, and say how it ended.

    The job is submitit's: on a machine that can submit to Slurm it is queued there, with what the environment says in
    ``SBATCH_PARTITION``, ``SBATCH_TIMELIMIT`` and so on, else it is a process of this machine. ``CLUSTER=local`` or
    ``CLUSTER=debug`` overrides that. A job that Slurm preempts, or that runs out of time, is queued again, and goes on
    from its checkpoint. The log is locked until the job is over, so that no second process makes the same run.
    """
    import submitit
    import torch

    class Script(submitit.helpers.Checkpointable):  # here, as such a class travels to the job by its code
        def __call__(self) -> int:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            with (
                open(log, "a") as file,
                subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment) as process,
            ):
                try:
                    return process.wait()
                except BaseException:
                    process.terminate()  # it saves, and that is waited for
                    raise

    command = [sys.executable, str(script), *arguments]
    log = log.absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{name}: another process is making it", flush=True)
            return
        executor = submitit.AutoExecutor(log.parent / ".jobs", cluster=os.environ.get("CLUSTER"))
        executor.update_parameters(name=name, timeout_min=24 * 60)
        if executor.cluster == "local":  # which hides the others
            executor.update_parameters(gpus_per_node=torch.cuda.device_count())
        code: int | str
        try:
            code = executor.submit(Script()).result()
        except submitit.core.utils.UncompletedJobError as error:
            code = str(error).splitlines()[0]
    last = log.read_text().rstrip().rpartition("\n")[2]
    print(f"{name}: {'done' if code == 0 else f'exit {code}, {log} ends with: {last}'}", flush=True)


def on(device: str) -> list[str]:
    """Return an example's arguments for learning on a device: those of its default, the CPU, are none."""
    return [] if device == "cpu" else ["--device", device, "--capture"]


def collect(runs: Path, methods: Sequence[str], numbers: int) -> list[dict[str, Any]]:
    """Return the rows of all finished runs, in no order, each with its run's method and revision.

    Args:
        runs: holds ``TASK/METHOD-NUMBER-..-NUMBER/result.json``, or one in each folder ``seed-N`` of that.
        methods: which are known; other folders are somebody's trials.
        numbers: how many there are in a folder's name.
    """
    rows = []
    for path in [*runs.glob("*/*/result.json"), *runs.glob("*/*/seed-*/result.json")]:
        method = path.relative_to(runs).parts[1].rsplit("-", numbers)[0]
        if method in methods:
            content = json.loads(path.read_text())
            made = {"revision": content["revision"]}
            rows += [item | {"method": method, "setting": item["setting"] | made} for item in content["rows"]]
    return rows


def with_table(page: str, lines: str, mark: str = "TABLE") -> str:
    """Return a page with a table replaced, between its mark and the next ``END``."""
    before, rest = page.split(f"<!-- {mark} -->\n")
    return before + f"<!-- {mark} -->\n" + lines + "\n<!-- END -->\n" + rest.split("<!-- END -->\n", 1)[1]


def uncommitted(rows: Sequence[dict[str, Any]], *settings: str) -> list[str]:
    """Return what stands beneath a page's table: which runs were made from uncommitted changes, nothing if none was.

    Args:
        rows: of the table.
        settings: that tell a method's runs apart, beside the task and the seed.
    """
    seeds: dict[str, set[int]] = {}
    for item in rows:
        if item["setting"].get("revision", "").endswith("+changes"):
            apart = [f"{key} {item['setting'][key]}" for key in settings]
            seeds.setdefault(", ".join([item["task"], item["method"], *apart]), set()).add(item["seed"])
    runs = [f"{name} (seed {', '.join(map(str, sorted(numbers)))})" for name, numbers in sorted(seeds.items())]
    return ["", f"*Made from uncommitted changes: {'; '.join(runs)}.*"] if runs else []


def verify_usable(device: str) -> None:
    """Exit with one line if a device is not there."""
    try:
        verify_device(device)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def verify_known(kind: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Exit with one line if something was asked for that there is not."""
    if unknown := [name for name in given if name not in known]:
        raise SystemExit(f"there is no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
