"""Demonstrations by experts, made once and kept.

    python -m pyrocontrol.envs.experts --task walker-walk --count 10 --out demonstrations/walker-walk

makes ten demonstrations and keeps each in a file; started again, it makes those that are missing. The experts of DM
Control plan on the true simulator, with the task's own reward (`MPPITeacher`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._progress import ProgressBar
from .._verify import claim_folder, verify_least
from .acting.collect import collect
from .data.demonstrations import Demonstrations
from .dm_control import DMControl
from .planning.mppi import MPPITeacher

__all__ = ["demonstrations"]


def demonstrations(
    task: str,
    count: int = 1,
    *,
    folder: str | os.PathLike[str],
    observations: str = "vectors",
    action_repeat: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> Demonstrations:
    """Return the first demonstrations of a folder; those that are missing are made and kept there.

    Each is in a file of its own, ``vectors-000.npz`` and so on, which is written whole or not at all: what was
    interrupted goes on where it was. Those of pixels are those of vectors, acted again: the same episodes.

    Args:
        task: one of `dm_control.TASKS`.
        count: how many.
        folder: where they are kept; made if missing.
        observations: `"vectors"` or `"pixels"`.
        action_repeat: frames of a step.
        seed: demonstration n is an episode of the seed ``seed + n``.
        progress: whether to show a bar.

    Raises:
        ValueError: if ``count`` is less than 1, the folder was made with other settings, or as `DMControl` does.
        gymnasium.error.DependencyNotInstalled: as `DMControl` does.
    """
    verify_least(1, count=count)
    env = DMControl(task, observations, action_repeat)
    settings = {"task": task, "action_repeat": action_repeat, "seed": seed}
    acted: Demonstrations | None = None
    if observations == "pixels":
        acted = demonstrations(task, count, folder=folder, action_repeat=action_repeat, seed=seed, progress=progress)
    files = [Path(folder) / f"{observations}-{number:03}.npz" for number in range(count)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    try:
        with claim_folder(folder, settings), ProgressBar(observations, count, progress, count - len(missing)) as bar:
            for number in missing:
                expert: Any = MPPITeacher(env, seed=seed + number)
                if acted is not None:
                    actions = iter(acted[number].actions[0].numpy())
                    expert = lambda _, actions=actions: next(actions)  # noqa: E731
                made = collect(env, expert, 1, seed=seed + number, deterministic=True, progress=False)
                made.save(files[number])
                bar.show(bar.done + 1, made.summary)
    finally:
        env.close()
    return Demonstrations.load(files)


@dataclass
class Arguments:
    """Make demonstrations of a task by its expert, and keep them."""

    task: str
    """Which one: cheetah-run, walker-walk, cartpole-swingup or reacher-easy."""
    out: Path
    """The folder where they are kept."""
    count: int = 10
    """How many."""
    observations: str = "vectors"
    """Vectors or pixels."""
    action_repeat: int = 2
    """Frames of a step."""
    seed: int = 0
    """Of the first one."""


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
