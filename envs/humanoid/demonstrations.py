"""Demonstrations of the humanoid's skills: recording them, and their files.

Skills for which there is an expert are shown by it, all others by assisted playback (see `deep_mimic_experts`). What is
recorded says which.

    python -m pyrocontrol.envs.humanoid.demonstrations --out skills.npz --skills kick spin jump

records a set of demonstrations, and beside it `skills.json`, which says what each skill is and whether it is assisted.

Shapes: B demonstrations, T environment steps, U skills.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from ..._files import replacing, settle
from ..._limits import json_of
from ..._progress import ProgressBar
from ..._verify import verify_seed
from ...models.policies.controller import Controller
from ...models.policies.episodes import Episodes
from ..data.demonstrations import Demonstrations
from ..data.episodes import Episode
from ..data.tasks import task_of, verify_names
from .deep_mimic import ACTION_HIGH, ACTION_LOW, DeepMimicEnv
from .experts import ALL_COMPOSITES, EXPERT_SKILLS, AssistedPlayback, DeepMimicExpert
from .motion import HumanoidMotion, busiest_phase

__all__ = ["Recording", "SkillRecord", "busiest_phase", "demonstrations", "record_demonstrations"]

_HALF_RANGE = (ACTION_HIGH - ACTION_LOW) / 2


class SkillRecord(NamedTuple):
    """What was recorded of a skill.

    Attributes:
        skill: its name, that of a clip.
        assisted: whether the root was held where the clip has it, so that nothing is shown of how to keep the balance.
        number: of demonstrations.
        steps: actions of each.
        start_phase: where in the clip each begins.
        mean_reward: a step.
        tracking_error: mean over the steps (rad), see `DeepMimicEnv`.
        rejected: demonstrations that fell and were drawn again.
        seconds: that it took.
    """

    skill: str
    assisted: bool
    number: int
    steps: int
    start_phase: float
    mean_reward: float
    tracking_error: float
    rejected: int
    seconds: float


@dataclass(frozen=True)
class Recording:
    """Demonstrations of skills, and what they are.

    Attributes:
        demonstrations: with `task` `[B, U]`, the one-hot of the skill.
        names: `U` skills, in the order of `task`.
        skills: one record each.
        settings: `seed`, `noise`, `steps` as they were given.
    """

    demonstrations: Demonstrations
    names: tuple[str, ...]
    skills: tuple[SkillRecord, ...]
    settings: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the demonstrations to `path`, and the rest beside them to the same name with `.json`; return that.

        Both files appear or none, the records first: there is no file of demonstrations that does not say which ones
        are assisted.

        Raises:
            ValueError: if `path` itself ends with `.json`, or one of the two is a folder.
            OSError: if one of them cannot be written.
        """
        path = Path(path)
        records = _records_beside(path)
        text = {
            "names": list(self.names),
            "skills": [record._asdict() for record in self.skills],
            "settings": self.settings,
            "fingerprint": self.demonstrations.fingerprint(),
        }
        settle(records, path)
        with replacing(records, path) as (beside, file):
            beside.write_text(json.dumps(text, indent=2) + "\n")
            self.demonstrations.save(file)
        return records

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if one of them is damaged, or they do not belong together.
        """
        records = Path(path).with_suffix(".json")
        settle(records, Path(path))
        found = Demonstrations.load(path)
        if not records.is_file():
            raise FileNotFoundError(f"no records beside {path}: {records.name} is missing")
        try:
            text = json_of(records.read_bytes())
            skills = tuple(SkillRecord(**record) for record in text["skills"])
            recording = cls(found, tuple(text["names"]), skills, text["settings"])
            fingerprint = text["fingerprint"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{records} holds no records of demonstrations: {error}") from error
        if fingerprint != found.fingerprint():
            raise ValueError(f"{records} does not belong to {path}")
        return recording


def _records_beside(path: Path) -> Path:
    """The file of the records of what is saved at `path`.

    Raises:
        ValueError: see `Recording.save`.
    """
    if path.suffix == ".json":
        raise ValueError(f"the records go to {path}: choose another ending for the demonstrations, such as .npz")
    if not path.name:
        raise ValueError(f"{path} is a folder, not a file of demonstrations")
    records = path.with_suffix(".json")
    for file in (path, records):
        if file.is_dir():
            raise ValueError(f"{file} is a folder: choose another name for the demonstrations")
    return records


def demonstrations(
    skills: Sequence[str] = ("kick", "spin", "jump"),
    per_skill: int = 20,
    *,
    steps: int = 45,
    seed: int = 0,
    noise: float = 0.02,
    names: Sequence[str] | None = None,
) -> Demonstrations:
    """Record demonstrations of skills; the demonstrations of `record_demonstrations`, which also says what they are."""
    return record_demonstrations(skills, per_skill, steps=steps, seed=seed, noise=noise, names=names).demonstrations


def record_demonstrations(
    skills: Sequence[str] = ("kick", "spin", "jump"),
    per_skill: int = 20,
    *,
    steps: int = 45,
    seed: int = 0,
    noise: float = 0.02,
    names: Sequence[str] | None = None,
    progress: bool = False,
) -> Recording:
    """Record demonstrations of skills: by the expert where there is one (`EXPERT_SKILLS`), else by assisted playback.

    Each demonstration is one window of a clip, from `busiest_phase`: from its first frame, or, in clips of more than
    2 s, from where it turns most. Those of a skill differ by Gaussian noise on the actions, and assisted ones also by
    how fast the clip is played, which is uniform between 1 - 2 noise and 1. A recorded action is the noisy one, which
    was executed. What falls is drawn again; an assisted body cannot fall. Every demonstration has random numbers of its
    own, from the seed, its skill and its place among those of the skill: other skills, or more, change nothing.

    Args:
        skills: names of clips, each once; see `HumanoidMotion.load`. Sums and ``"stand"`` are assisted.
        per_skill: demonstrations of each.
        steps: actions of each; fewer where a clip that does not loop is over before.
        seed: of the noise.
        noise: standard deviation of each action number, in units of half its range.
        names: what the columns of `task` stand for; None for the skills but ``"stand"``, whose task is zeros. See
            `envs.data.tasks.task_of`.
        progress: whether to show a bar.

    Returns:
        Demonstrations with rewards, skill after skill in the order given, `task` the one-hot of the skill; they count
        as truncated.

    Raises:
        ModuleNotFoundError: if pybullet is not installed.
        ValueError: if there are no skills or one comes twice or is unknown, a number makes no sense, or `names` lacks a
            skill and its parts.
        RuntimeError: if a skill fell `20 + 5 per_skill` times.
    """
    columns = verify_names(skills, names, ALL_COMPOSITES)
    tasks = [task_of(skill, ALL_COMPOSITES, columns) for skill in skills]
    if per_skill < 1 or steps < 1:
        raise ValueError(f"per_skill and steps must be at least 1, got {per_skill} and {steps}")
    if not 0 <= noise < 0.25:
        raise ValueError(f"noise must be in 0 <= noise < 0.25, got {noise}")
    verify_seed(seed)
    clips = [HumanoidMotion.load(skill) for skill in skills]
    episodes: list[Episode] = []
    records: list[SkillRecord] = []
    with ProgressBar("demonstration", len(skills) * per_skill, progress) as bar:
        for skill, clip, task in zip(skills, clips, tasks, strict=True):
            found, record = _record(skill, clip, per_skill, steps, seed, noise, task, bar)
            episodes += found
            records.append(record)
    with_spaces = Demonstrations.from_episodes(episodes, *_spaces())
    return Recording(with_spaces, columns, tuple(records), {"seed": seed, "noise": noise, "steps": steps})


def _spaces() -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Of actions and observations of the environment."""
    box = gymnasium.spaces.Box
    return box(ACTION_LOW, ACTION_HIGH, dtype=np.float32), box(-np.inf, np.inf, (197,), np.float32)


def _record(
    skill: str,
    clip: HumanoidMotion,
    number: int,
    steps: int,
    seed: int,
    noise: float,
    task: np.ndarray,
    bar: ProgressBar,
) -> tuple[list[Episode], SkillRecord]:
    """The demonstrations of one skill."""
    assisted = skill not in EXPERT_SKILLS
    actor: Controller = AssistedPlayback(clip) if assisted else DeepMimicExpert(skill)
    env = DeepMimicEnv(clip, assisted=assisted)
    phase, began = busiest_phase(clip, steps), time.perf_counter()
    episodes: list[Episode] = []
    errors: list[float] = []
    rejected, most = 0, 20 + 5 * number
    try:
        for index in range(number):
            attempt = 0
            while True:
                rng = np.random.default_rng([seed, zlib.crc32(skill.encode()), index, attempt])
                episode, error = _window(env, actor, phase, steps, noise, rng)
                if episode is not None:
                    break
                attempt, rejected = attempt + 1, rejected + 1
                if rejected >= most:
                    raise RuntimeError(
                        f"{skill} fell {rejected} times, {len(episodes)} of {number} demonstrations are done: "
                        f"with less noise than {noise} it falls less often"
                    )
            episodes.append(episode._replace(task=task))
            errors.append(error)
            bar.show(bar.done + 1, lambda: skill)
    finally:
        env.close()
    rewards = np.concatenate([np.asarray(episode.rewards) for episode in episodes])
    return episodes, SkillRecord(
        skill=skill,
        assisted=assisted,
        number=number,
        steps=max(len(episode.actions) for episode in episodes),
        start_phase=phase,
        mean_reward=float(rewards.mean()),
        tracking_error=float(np.mean(errors)),
        rejected=rejected,
        seconds=round(time.perf_counter() - began, 3),
    )


def _window(
    env: DeepMimicEnv, actor: Controller, phase: float, steps: int, noise: float, rng: np.random.Generator
) -> tuple[Episode | None, float]:
    """One demonstration, None if it fell, and its mean tracking error."""
    # Slower only: a clip that does not loop would be over before the window.
    speed = 1 - 2 * noise * float(rng.random()) if env.assisted else 1.0

    def disturbed(_observation: Any, action: np.ndarray, _start: Any) -> np.ndarray:
        action = action + noise * _HALF_RANGE * rng.standard_normal(ACTION_LOW.shape)
        return action.astype(np.float32).clip(ACTION_LOW, ACTION_HIGH)

    acting = Episodes(env, actor, deterministic=True, execute=disturbed, max_steps=steps)
    first = acting.begin(options={"phase": phase, "speed": speed})
    taken = list(acting)
    if taken[-1].terminated:
        return None, float("nan")
    episode = Episode(
        observations=np.array([first, *(step.next_observation for step in taken)]),
        actions=np.array([step.action for step in taken]),
        rewards=np.array([step.reward for step in taken], np.float32),
        terminated=False,
        truncated=True,
    )
    return episode, float(np.mean([step.info["tracking_error"] for step in taken]))


# ---------------------------------------------------------------------- the command


@dataclass
class Arguments:
    """Record demonstrations of the humanoid's skills."""

    out: Path
    """The file of demonstrations (.npz); what they are is written beside it (.json)."""
    skills: tuple[str, ...] = ("kick", "spin", "jump")
    """Names of clips."""
    names: tuple[str, ...] | None = None
    """What the columns of the task stand for; by default the skills but stand, whose task is zeros."""
    per_skill: int = 20
    """Demonstrations of each."""
    steps: int = 45
    """Actions of each, 30 a second."""
    seed: int = 0
    """Of the noise."""
    noise: float = 0.02
    """Standard deviation of the actions' noise, in units of half their range."""


def main(arguments: Arguments) -> Recording:
    """Record, save, and print what was recorded as a table; a file that cannot be is refused before."""
    from rich.console import Console
    from rich.table import Table

    _records_beside(arguments.out)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    given = {name: value for name, value in asdict(arguments).items() if name != "out"}
    recording = record_demonstrations(**given, progress=True)
    records = recording.save(arguments.out)
    table = Table("skill", "assisted", "number", "steps", "phase", "reward", "error", "rejected")
    for record in recording.skills:
        table.add_row(
            record.skill,
            "yes" if record.assisted else "no",
            *(str(number) for number in (record.number, record.steps)),
            f"{record.start_phase:.3f}",
            f"{record.mean_reward:.3f}",
            f"{record.tracking_error:.3f}",
            str(record.rejected),
        )
    console = Console()
    console.print(table)
    console.print(
        "assisted: the root was held where the clip has it; phase: where a demonstration begins; reward: mean a step; "
        "error: mean tracking error (rad); rejected: falls",
        highlight=False,
    )
    console.print(f"{arguments.out}, {records}", highlight=False, soft_wrap=True)
    return recording


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Arguments))
