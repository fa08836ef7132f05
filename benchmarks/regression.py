"""Remake results/regression.json: what a training update costs now, against an earlier revision of this repository.

    python benchmarks/regression.py --against 68cde04      # two minutes on one core

Both revisions run in one process, round by round in turn, on equal data: the earlier one is checked out to a temporary
folder and imported under another name, which works because the package imports itself relatively. Each row ``ratio`` is
one round, seconds now over seconds before; below 1 is faster. The printed numbers are medians over the rounds.
"""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pyro
import torch
import tyro

import pyrocontrol
from pyrocontrol.inference import row, write_results
from training_runs import command_line

HERE = Path(__file__).parent
Update = Callable[[], Any]


@dataclass
class Arguments:
    """Measure training updates of two revisions."""

    against: str = "68cde04"
    """the earlier revision"""
    out: Path = HERE / "results" / "regression.json"
    """results file"""
    rounds: int = 31
    """pairs of measurements"""
    updates: int = 10
    """updates in each measurement"""


def hvil(package: ModuleType) -> Update:
    """Four traces of BubbleSort: a program, its guide, the stepwise ELBO, Adam."""
    data = package.envs.bubble_sort.demonstrations(40, seed=0)
    program = package.models.ControlProgram(package.envs.BUBBLE_SORT_TREE, obs_size=22, arg_size=1)
    loss = package.inference.StepwiseKL_ELBO()(program, package.guides.CallStackGuide(program))
    return trained(loss, torch.optim.Adam(loss.parameters(), lr=0.0), data, 4)


def cloning(package: ModuleType) -> Update:
    """64 transitions of CartPole: a reactive policy."""
    policy, data = _clone(package, "ReactivePolicy")
    return trained(policy.loss, torch.optim.Adam(policy.parameters(), lr=0.0), data.transitions(), 64)


def recurrent(package: ModuleType) -> Update:
    """Eight traces of CartPole: a recurrent policy."""
    policy, data = _clone(package, "RecurrentPolicy")
    return trained(policy.loss, torch.optim.Adam(policy.parameters(), lr=0.0), data, 8)


def soft_control(package: ModuleType) -> Update:
    """128 transitions: soft actor-critic with a flow, of HalfCheetah's sizes."""
    learner = package.inference.SoftActorCritic(package.guides.FlowPolicy(17, 6), 17, 6)
    replay = package.inference.Replay(1000, 17, 6)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        replay.add(rng.normal(size=17), rng.uniform(-1, 1, 6), rng.normal(), rng.normal(size=17), False)
    return lambda: learner.update(replay.sample(128))


TASKS = {
    "BubbleSort": ("hvil", hvil),
    "CartPole-v1": ("bc", cloning),
    "CartPole-v1, traces": ("rnn", recurrent),
    "HalfCheetah-v5, sizes of": ("lsp", soft_control),
}


def _clone(package: ModuleType, kind: str) -> tuple[Any, Any]:
    env = gymnasium.make("CartPole-v1")
    data = package.envs.collect(env, package.envs.CartPoleTeacher(), 10, seed=0, max_steps=100, progress=False)
    return getattr(package.models, kind)(env.observation_space, env.action_space), data


def trained(loss: Any, optimizer: torch.optim.Optimizer, data: Any, batch_size: int) -> Update:
    """One update, the drawing of its batch included; at a rate of zero, so that both sides go on doing equal work."""
    indices = torch.Generator().manual_seed(0)

    def update() -> None:
        batch = data[torch.randint(len(data), (batch_size,), generator=indices)]
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return update


def seconds(update: Update, count: int, seed: int) -> float:
    """Of processor time, for one of ``count`` updates: other work on the machine does not count.

    Both sides draw the same random numbers, so that their calls are equally long. One update more comes first: it
    takes the names of the parameters in Pyro's store over from the other side.
    """
    update()
    torch.manual_seed(seed)
    begun = time.process_time()
    for _ in range(count):
        update()
    return (time.process_time() - begun) / count


def main(arguments: Arguments) -> None:
    """Measure, print medians, write the results file."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "A new environment .* overrid|.*[Oo]verriding environment")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(HERE)]
        earlier = Path(folder) / "pyrocontrol_before"
        subprocess.run([*git, "worktree", "add", "--detach", "-q", str(earlier), arguments.against], check=True)
        try:
            sys.path.insert(0, folder)
            before = importlib.import_module(earlier.name)
            revision = subprocess.run(
                [*git, "rev-parse", arguments.against], capture_output=True, text=True, check=True
            ).stdout.strip()
            for task, (method, make) in TASKS.items():
                updates = []
                for package in (pyrocontrol, before):
                    pyro.set_rng_seed(0)
                    updates.append(make(package))
                    seconds(updates[-1], arguments.updates, 0)  # warm up
                ratios = []
                for number in range(arguments.rounds):
                    # In turn, and each first every other time.
                    order = (0, 1) if number % 2 else (1, 0)
                    found = {which: seconds(updates[which], arguments.updates, number) for which in order}
                    ratios.append(found[0] / found[1])
                    setting = {"against": revision, "updates": arguments.updates}
                    values = {
                        "ratio": ratios[-1],
                        "update_cpu_seconds": found[0],
                        "update_cpu_seconds_before": found[1],
                    }
                    for metric, value in values.items():
                        rows.append(
                            row(method, task, metric, value, seed=number, seconds=sum(found.values()), **setting)
                        )
                print(f"{task}: {method} takes {statistics.median(ratios):.3f} of the time before", flush=True)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(earlier)], check=True)
    write_results(arguments.out, "regression", rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
