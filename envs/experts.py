"""Demonstrations by experts, made once and kept.

    python -m pyrocontrol.envs.experts --task walker-walk --count 10 --out demonstrations/walker-walk

makes ten demonstrations and keeps each in a file; started again, it makes those that are missing. The experts of DM
Control and Baoding plan on the true simulator, with the task's own reward (`MPPITeacher`); that of Sawyer is a script.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._progress import ProgressBar
from .._verify import claim_folder, verify_least
from .acting.collect import collect
from .baoding import Baoding
from .data.demonstrations import Demonstrations
from .dm_control import TASKS, DMControl
from .planning.mppi import MPPITeacher
from .sawyer import SawyerPeg, sawyer_peg_expert

__all__ = ["EXPERTS", "demonstrations"]

_TRIES = 20  # failures one after the other


class Expert(NamedTuple):
    """Who shows a task.

    Attributes:
        make: the environment, for observations of a kind.
        policy: the expert, given the environment and a seed.
        observations: the kinds that there are.
    """

    make: Callable[[str], Any]
    policy: Callable[[Any, int], Any]
    observations: tuple[str, ...] = ("vectors", "pixels")


def _planner(env: Any, seed: int) -> MPPITeacher:
    return MPPITeacher(env, seed=seed)


def _dm_control(task: str) -> Expert:
    return Expert(lambda observations: DMControl(task, observations), _planner)


EXPERTS = {task: _dm_control(task) for task in TASKS} | {
    "baoding": Expert(Baoding, _planner),
    "sawyer-peg": Expert(lambda _: SawyerPeg(), lambda env, seed: sawyer_peg_expert, ("vectors",)),
}


def demonstrations(
    task: str,
    count: int = 1,
    *,
    folder: str | os.PathLike[str],
    observations: str = "vectors",
    seed: int = 0,
    progress: bool = True,
) -> Demonstrations:
    """Return the first demonstrations of a folder; those that are missing are made and kept there.

    Each is in a file of its own, which is written whole or not at all: what was interrupted goes on where it was.
    ``vectors-003.npz`` is the episode of the seed ``seed + 3``. Where a task says whether it succeeded, failures are
    left out. Those of pixels are those of vectors, acted again: the same episodes.

    Args:
        task: one of `EXPERTS`.
        count: how many.
        folder: where they are kept; made if missing.
        observations: `"vectors"` or `"pixels"`.
        seed: of the first episode.
        progress: whether to show a bar.

    Raises:
        ValueError: if there is no such task, or no such observations of it, ``count`` is less than 1, or the folder
            was made with other settings.
        RuntimeError: if the expert fails 20 times in a row.
        gymnasium.error.DependencyNotInstalled: as the environment does.
    """
    if task not in EXPERTS:
        raise ValueError(f"task must be one of {', '.join(map(repr, EXPERTS))}, got {task!r}")
    expert = EXPERTS[task]
    if observations not in expert.observations:
        raise ValueError(f"{task} has no {observations!r}, only {', '.join(map(repr, expert.observations))}")
    verify_least(1, count=count)
    acted: dict[int, np.ndarray] = {}
    if observations == "pixels":
        vectors = demonstrations(task, count, folder=folder, seed=seed, progress=progress)
        numbers = sorted(_there(folder, "vectors"))[:count]
        acted = {number: vectors[row].actions[0].numpy() for row, number in enumerate(numbers)}
    env = expert.make(observations)
    try:
        with claim_folder(folder, {"task": task, "seed": seed}):
            done = _there(folder, observations)
            missing = [number for number in acted if number not in done] or itertools.count(max(done, default=-1) + 1)
            failures = 0
            with ProgressBar(observations, count, progress, min(len(done), count)) as bar:
                for number in itertools.takewhile(lambda _: len(done) < count, missing):
                    policy = _again(acted[number]) if acted else expert.policy(env, seed + number)
                    made = collect(env, policy, 1, seed=seed + number, deterministic=True, progress=False)
                    failures = 0 if getattr(env, "succeeded", True) else failures + 1
                    if failures == _TRIES:
                        raise RuntimeError(f"the expert of {task} has failed {_TRIES} times in a row")
                    if not failures:
                        made.save(_file(folder, observations, number))
                        done.add(number)
                        bar.show(len(done), made.summary)
    finally:
        env.close()
    return Demonstrations.load([_file(folder, observations, number) for number in sorted(done)[:count]])


def _again(actions: np.ndarray) -> Callable[[Any], np.ndarray]:
    """A policy that takes actions `[T, A]` one after the other."""
    left = iter(actions)
    return lambda _: next(left)


def _file(folder: str | os.PathLike[str], observations: str, number: int) -> Path:
    return Path(folder) / f"{observations}-{number:03}.npz"


def _there(folder: str | os.PathLike[str], observations: str) -> set[int]:
    """The numbers of the demonstrations that are there."""
    return {int(file.stem.rpartition("-")[2]) for file in Path(folder).glob(f"{observations}-*.npz")}


@dataclass
class Arguments:
    """Make demonstrations of a task by its expert, and keep them."""

    task: str
    """Which one: cheetah-run, walker-walk, cartpole-swingup, reacher-easy, baoding or sawyer-peg."""
    out: Path
    """The folder where they are kept."""
    count: int = 10
    """How many."""
    observations: str = "vectors"
    """Vectors or pixels."""
    seed: int = 0
    """Of the first episode."""


def main(arguments: Arguments) -> Demonstrations:
    """Make them, and print their returns."""
    given = {name: value for name, value in vars(arguments).items() if name != "out"}
    made = demonstrations(**given, folder=arguments.out)
    assert made.returns is not None
    print(f"{arguments.task}: {made.summary()}; returns {', '.join(f'{value:.0f}' for value in made.returns)}")
    return made


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Arguments))
