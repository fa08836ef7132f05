"""Who shows the humanoid's skills: experts, assisted playback, and the demonstrations that they record.

pybullet brings trained policies for four of its clips; all other clips can only be played back with the root held where
the clip has it (`assisted=True` of `DeepMimicEnv`). What is recorded so is labelled as assisted.

    python -m pyrocontrol.envs.deep_mimic_experts --out skills.npz --skills kick spin jump

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
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
import torch

from .deep_mimic import ACTION_HIGH, ACTION_LOW, CONTROL_RATE, DeepMimicEnv
from .demonstrations import Demonstrations
from .episodes import Episode
from .humanoid_motion import SPHERICAL, HumanoidMotion, bullet_data
from .quaternions import rotation_vector
from .tensor_bundle import read_tensor_bundle

__all__ = [
    "COMPOSITES",
    "EXPERT_SKILLS",
    "AssistedPlayback",
    "DeepMimicExpert",
    "Recording",
    "SkillRecord",
    "busiest_phase",
    "demonstrations",
    "record_demonstrations",
]

EXPERT_SKILLS = ("backflip", "jump", "spinkick", "walk")

# Which skills add up to which. Those of the spin kick are the paper's; it does not say which ones make a backflip, and
# jump + roll is this library's choice.
COMPOSITES = {"spinkick": ("kick", "spin", "jump"), "backflip": ("jump", "roll")}

_STATE, _ACTION = 197, 36
_HALF_RANGE = (ACTION_HIGH - ACTION_LOW) / 2
_BALLS = np.cumsum([0, *(4 if spherical else 1 for spherical in SPHERICAL)])[:-1][list(SPHERICAL)]
_HINGES = np.cumsum([0, *(4 if spherical else 1 for spherical in SPHERICAL)])[:-1][[not ball for ball in SPHERICAL]]


class _Actor(Protocol):
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, Any]: ...


def _observed(observation: Any) -> np.ndarray:
    seen = np.asarray(observation, np.float32)
    if seen.ndim not in (1, 2) or seen.shape[-1] != _STATE:
        raise ValueError(f"the observation must have shape [{_STATE}] or [B, {_STATE}], got {list(seen.shape)}")
    return seen


class DeepMimicExpert:
    """A policy that DeepMimic trained: two hidden layers (1024 and 512, ReLU), and normalisers at both ends.

        a = sd_a * (W_3 relu(W_2 relu(W_1 (o - mean_o) / sd_o + b_1) + b_2) + b_3) + mean_a

    Args:
        motion: one of `EXPERT_SKILLS`, whose policies pybullet brings. Others: `DeepMimicExpert.load`.
        noise: standard deviation of the actions of `deterministic=False`, in units of sd_a; 0.05 is what the policies
            were trained with.

    Raises:
        ModuleNotFoundError: if pybullet is not installed.
        ValueError: if there is no policy of this motion, or the noise is negative.
    """

    def __init__(self, motion: str, *, noise: float = 0.05) -> None:
        if motion not in EXPERT_SKILLS:
            raise ValueError(f"pybullet has no policy of {motion!r}; it has {', '.join(EXPERT_SKILLS)}")
        self._read(bullet_data() / "data" / "policies" / "humanoid3d" / f"humanoid3d_{motion}.ckpt", noise)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, noise: float = 0.05) -> DeepMimicExpert:
        """Read a checkpoint of DeepMimic's, made by the authors' code or by pybullet's.

        Args:
            path: the checkpoint, such as `humanoid3d_kick.ckpt` beside whose `.index` stand its `.data-...` files. It
                holds the tensors `agent/main/actor/{0,1,...}/dense/{kernel,bias}` of the hidden layers,
                `agent/main/actor/dense/{kernel,bias}` of the last one, and `agent/resource/{s_norm,a_norm}/{mean,std}`,
                for 197 observation numbers (no goals) and 36 action numbers.
            noise: see the class.

        Raises:
            FileNotFoundError: if there is no such checkpoint, or a part is missing.
            ValueError: if it cannot be read (see `read_tensor_bundle`), lacks a tensor, or has other sizes.
        """
        expert = cls.__new__(cls)
        expert._read(Path(path), noise)
        return expert

    def _read(self, path: Path, noise: float) -> None:
        if not 0 <= noise < np.inf:
            raise ValueError(f"noise must not be negative, got {noise}")
        self.noise = noise
        tensors = read_tensor_bundle(path)

        def tensor(name: str, *shape: int | None) -> np.ndarray:
            if (found := tensors.get(f"agent/{name}")) is None:
                raise ValueError(f"{path} is no checkpoint of DeepMimic's: it has no tensor agent/{name}")
            if found.ndim != len(shape) or any(w not in (None, n) for w, n in zip(shape, found.shape, strict=True)):
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise ValueError(f"{path}: agent/{name} has shape {list(found.shape)}, expected [{wanted}]")
            if not np.isfinite(found).all():
                raise ValueError(f"{path}: agent/{name} holds a number that is NaN or infinite")
            return found.astype(np.float32)

        self._seen = tuple(tensor(f"resource/s_norm/{name}", _STATE) for name in ("mean", "std"))
        self._acted = tuple(tensor(f"resource/a_norm/{name}", _ACTION) for name in ("mean", "std"))
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []
        width = _STATE
        while f"agent/main/actor/{len(self._layers)}/dense/kernel" in tensors:
            layer = f"main/actor/{len(self._layers)}/dense"
            kernel = tensor(f"{layer}/kernel", width, None)
            width = kernel.shape[1]
            self._layers.append((kernel, tensor(f"{layer}/bias", width)))
        last = "main/actor/dense"
        self._layers.append((tensor(f"{last}/kernel", width, _ACTION), tensor(f"{last}/bias", _ACTION)))

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Return the action for one observation or a batch, clipped to its bounds, and the state as it was.

        Args:
            observation: `[197]` or `[B, 197]`.
            state: not used: the phase is part of the observation.
            episode_start: not used.
            deterministic: the mean; else with the noise of the class, from torch's generator.

        Returns:
            The action, `[36]` or `[B, 36]` float32, and `state`.

        Raises:
            ValueError: if the observation has another shape.
        """
        hidden = (_observed(observation) - self._seen[0]) / self._seen[1]
        for kernel, bias in self._layers[:-1]:
            hidden = np.maximum(hidden @ kernel + bias, 0)
        kernel, bias = self._layers[-1]
        action = hidden @ kernel + bias
        if not deterministic:
            action = action + self.noise * torch.randn(action.shape).numpy()
        return (action * self._acted[1] + self._acted[0]).clip(ACTION_LOW, ACTION_HIGH), state


class AssistedPlayback:
    """Follows a clip with the joints: the targets are the clip's own pose, a little ahead of time.

    Stable proportional-derivative control lags behind a moving target by damping / stiffness = 0.1 s, so the targets
    are those of `lead` seconds later. Alone the body would soon fall over: use it in an environment that holds the
    root, `DeepMimicEnv(motion, assisted=True)`.

    Args:
        motion: a clip: the name of a shipped one, a file, or a `HumanoidMotion`.
        lead: how far ahead (s).

    Raises:
        ModuleNotFoundError, ValueError: see `HumanoidMotion.load`; also if the lead is not finite.
    """

    def __init__(self, motion: str | os.PathLike[str] | HumanoidMotion, *, lead: float = 0.1) -> None:
        if not np.isfinite(lead):
            raise ValueError(f"lead must be finite, got {lead}")
        self.motion = motion if isinstance(motion, HumanoidMotion) else HumanoidMotion.load(motion)
        self.lead = lead
        # A rotation about an axis is also one about the opposite axis by the opposite angle. Of the two the one is
        # taken that goes on from the tick before, so that the numbers do not jump where an angle passes 0 (they may
        # where a clip begins anew); it begins with the axis that points along z, about which most joints turn.
        self._ticks = 1 + int(np.ceil(self.motion.seconds * CONTROL_RATE))
        self._axes = np.zeros((self._ticks, len(_BALLS), 3))
        axis = np.tile([0.0, 0.0, 1.0], (len(_BALLS), 1))
        for tick in range(self._ticks):
            axis = self._encode(tick / CONTROL_RATE, axis)[1]
            self._axes[tick] = axis

    def _encode(self, seconds: float, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The clip's pose as an action `[36]`, and its axes `[8, 3]` of length 1, on the side of the axes `like`."""
        joints = self.motion.at(seconds).joints
        turns = rotation_vector(np.array([joint for joint, ball in zip(joints, SPHERICAL, strict=True) if ball]))
        angles = np.linalg.norm(turns, axis=1, keepdims=True)
        none = angles < 1e-6
        axes = np.where(none, like, turns / np.where(none, 1.0, angles))
        sign = np.where((axes * like).sum(1, keepdims=True) < 0, -1.0, 1.0)
        axes, angles = sign * axes, sign * angles
        action = np.zeros(_ACTION)
        action[_BALLS] = angles[:, 0]
        action[_BALLS[:, None] + [1, 2, 3]] = axes
        action[_HINGES] = [float(joint[0]) for joint, ball in zip(joints, SPHERICAL, strict=True) if not ball]
        return action, axes

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Return the targets at the phase that is observed, for one observation or a batch, and the state as it was.

        Args:
            observation: `[197]` or `[B, 197]`, of which only the phase counts.
            state: not used.
            episode_start: not used.
            deterministic: without effect, the playback is deterministic.

        Returns:
            The action, `[36]` or `[B, 36]` float32, and `state`.

        Raises:
            ValueError: if the observation has another shape, or its phase is not in 0..1.
        """
        seen = _observed(observation)
        phases = np.atleast_1d(seen[..., 0]).astype(np.float64)
        if not ((phases >= 0) & (phases <= 1)).all():
            raise ValueError("the phase, the first number of an observation, must be in 0..1")
        actions = []
        for phase in phases:
            seconds = phase * self.motion.seconds + self.lead
            within = seconds % self.motion.seconds if self.motion.loops else min(seconds, self.motion.seconds)
            tick = min(round(within * CONTROL_RATE), self._ticks - 1)
            actions.append(self._encode(seconds, self._axes[tick])[0])
        found = np.array(actions, np.float32).clip(ACTION_LOW, ACTION_HIGH)
        return (found[0] if seen.ndim == 1 else found), state


# ---------------------------------------------------------------------- demonstrations


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

        The records come first: there is no file of demonstrations that does not say which ones are assisted.

        Raises:
            ValueError: if `path` itself ends with `.json`.
        """
        path = Path(path)
        if path.suffix == ".json":
            raise ValueError(f"the records go to {path}: choose another ending for the demonstrations, such as .npz")
        records = path.with_suffix(".json")
        text = {
            "names": list(self.names),
            "skills": [record._asdict() for record in self.skills],
            "settings": self.settings,
            "fingerprint": self.demonstrations.fingerprint(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = records.with_name(f".{records.name}.tmp")
        try:
            with open(temporary, "w") as file:
                file.write(json.dumps(text, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, records)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.demonstrations.save(path)
        return records

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if one of them is damaged, or they do not belong together.
        """
        found = Demonstrations.load(path)
        records = Path(path).with_suffix(".json")
        if not records.is_file():
            raise FileNotFoundError(f"no records beside {path}: {records.name} is missing")
        try:
            text = json.loads(records.read_text())
            skills = tuple(SkillRecord(**record) for record in text["skills"])
            recording = cls(found, tuple(text["names"]), skills, text["settings"])
            fingerprint = text["fingerprint"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{records} holds no records of demonstrations: {error}") from error
        if fingerprint != found.fingerprint():
            raise ValueError(f"{records} does not belong to {path}")
        return recording


def busiest_phase(motion: HumanoidMotion, steps: int) -> float:
    """Where to begin a window of `steps` actions: at 0, or in a clip of more than 2 s where it turns most.

    Of all windows within one repetition, begun at multiples of 1/30 s, it is the one in which the root turns furthest
    about the vertical, one way or the other: the turns of its steps are summed, each of them the y component of the
    rotation vector in the world. Ties go to the first.
    """
    starts = int(np.floor(motion.seconds * CONTROL_RATE)) - steps + 1
    if motion.seconds <= 2.0 or starts < 2:
        return 0.0
    turns = [motion.at((tick + 0.5) / CONTROL_RATE).angular_velocity[1] for tick in range(starts + steps)]
    total = np.cumsum([0.0, *turns])
    windows = abs(total[steps : steps + starts] - total[:starts])
    # Rounded, so that a tie is one.
    return float(windows.round(9).argmax() / CONTROL_RATE / motion.seconds)


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
        skills: names of clips, each once.
        per_skill: demonstrations of each.
        steps: actions of each; fewer where a clip that does not loop is over before.
        seed: of the noise.
        noise: standard deviation of each action number, in units of half its range.
        names: what the columns of `task` stand for; None for the skills.
        progress: whether to show a bar.

    Returns:
        Demonstrations with rewards, skill after skill in the order given, `task` the one-hot of the skill; they count
        as truncated.

    Raises:
        ModuleNotFoundError: if pybullet is not installed.
        ValueError: if there are no skills or one comes twice or is unknown, a number makes no sense, or `names` lacks a
            skill.
        RuntimeError: if a skill fell `20 + 5 per_skill` times.
    """
    skills, columns = tuple(skills), tuple(skills if names is None else names)
    if isinstance(names, str) or not skills or len(set(skills)) != len(skills) or len(set(columns)) != len(columns):
        raise ValueError(f"skills and names must each be there and once, got {skills} and {columns}")
    if missing := [skill for skill in skills if skill not in columns]:
        raise ValueError(f"the names {', '.join(columns)} lack {', '.join(missing)}")
    if per_skill < 1 or steps < 1:
        raise ValueError(f"per_skill and steps must be at least 1, got {per_skill} and {steps}")
    if not 0 <= noise < 0.25:
        raise ValueError(f"noise must be in 0 <= noise < 0.25, got {noise}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    clips = [HumanoidMotion.load(skill) for skill in skills]
    episodes: list[Episode] = []
    records: list[SkillRecord] = []
    with _Bar(len(skills) * per_skill, progress) as bar:
        for skill, clip in zip(skills, clips, strict=True):
            task = np.array([float(column == skill) for column in columns], np.float32)
            found, record = _record(skill, clip, per_skill, steps, seed, noise, task, bar)
            episodes += found
            records.append(record)
    with_spaces = Demonstrations.from_episodes(episodes, *_spaces())
    return Recording(with_spaces, columns, tuple(records), {"seed": seed, "noise": noise, "steps": steps})


def _spaces() -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Of actions and observations of the environment."""
    box = gymnasium.spaces.Box
    return box(ACTION_LOW, ACTION_HIGH, dtype=np.float32), box(-np.inf, np.inf, (_STATE,), np.float32)


def _record(
    skill: str, clip: HumanoidMotion, number: int, steps: int, seed: int, noise: float, task: np.ndarray, bar: _Bar
) -> tuple[list[Episode], SkillRecord]:
    """The demonstrations of one skill."""
    assisted = skill not in EXPERT_SKILLS
    actor: _Actor = AssistedPlayback(clip) if assisted else DeepMimicExpert(skill)
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
            bar.tick(skill)
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
    env: DeepMimicEnv, actor: _Actor, phase: float, steps: int, noise: float, rng: np.random.Generator
) -> tuple[Episode | None, float]:
    """One demonstration, None if it fell, and its mean tracking error."""
    # Slower only: a clip that does not loop would be over before the window.
    speed = 1 - 2 * noise * float(rng.random()) if env.assisted else 1.0
    observation, _ = env.reset(options={"phase": phase, "speed": speed})
    observations, actions, rewards, errors = [observation], [], [], []
    for _ in range(steps):
        action, _ = actor.predict(observation)
        action = (action + noise * _HALF_RANGE * rng.standard_normal(_ACTION)).astype(np.float32)
        action = action.clip(ACTION_LOW, ACTION_HIGH)
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        errors.append(info["tracking_error"])
        if terminated:
            return None, float("nan")
        if truncated:
            break
    episode = Episode(
        observations=np.array(observations),
        actions=np.array(actions),
        rewards=np.array(rewards, np.float32),
        terminated=False,
        truncated=True,
    )
    return episode, float(np.mean(errors))


class _Bar:
    """How far a recording is: a bar, or a line for each tenth off a terminal."""

    def __init__(self, total: int, shown: bool) -> None:
        self.total, self.shown, self.done = total, shown, 0
        self.bar: Any = None
        self.console: Any = None

    def __enter__(self) -> _Bar:
        if self.shown:
            from rich.console import Console  # here, because few need it
            from rich.progress import Progress

            self.console = Console(stderr=True)
            if self.console.is_terminal:
                self.bar = Progress(console=self.console)
                self.row = self.bar.add_task("demonstrations", total=self.total)
                self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def tick(self, skill: str) -> None:
        """Count a demonstration."""
        before, self.done = self.done * 10 // self.total, self.done + 1
        if self.bar is not None:
            self.bar.update(self.row, completed=self.done, description=skill)
        elif self.console is not None and self.done * 10 // self.total > before:
            self.console.print(f"demonstration {self.done}/{self.total}  {skill}", highlight=False)


# ---------------------------------------------------------------------- the command


@dataclass
class Arguments:
    """Record demonstrations of the humanoid's skills."""

    out: Path
    """The file of demonstrations (.npz); what they are is written beside it (.json)."""
    skills: tuple[str, ...] = ("kick", "spin", "jump")
    """Names of clips."""
    per_skill: int = 20
    """Demonstrations of each."""
    steps: int = 45
    """Actions of each, 30 a second."""
    seed: int = 0
    """Of the noise."""
    noise: float = 0.02
    """Standard deviation of the actions' noise, in units of half their range."""


def main(arguments: Arguments) -> Recording:
    """Record, save, and print what was recorded as a table."""
    from rich.console import Console
    from rich.table import Table

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
