"""Learning to act: an environment, a replay and an off-policy learner, which can be watched, stopped and resumed."""

from __future__ import annotations

import copy
import math
import operator
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, SupportsFloat

import gymnasium
import numpy as np
import pyro
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..._random_state import random_state, set_random_state
from ..._verify import verify_device, verify_folder, verify_least, verify_seed
from ..training import checkpoint
from ..training.interrupts import Interrupts
from ..training.progress import Display, History, evaluate_if_due
from .replay import Replay, ReplayBatch
from .seed_batch import SeedBatch

__all__ = ["LearnResult", "Learner", "evaluation", "learn", "learn_together"]

_SAVED = ("step", "modules", "history", "episodes", "replay", "file", "random", "settings")  # in a checkpoint


class Learner(Protocol):
    """What `learn` trains: an ``nn.Module`` whose state is all of it, such as `SoftActorCritic`.

    Of its policy, a module with parameters, `learn` reads ``observation_size``, ``action_size`` and ``squash``, and the
    precision of the first parameter, in which observations and actions are kept. A method ``begin(seed)`` is called
    where an episode begins, if there is one.
    """

    @property
    def observation_size(self) -> int:
        """O."""

    @property
    def action_size(self) -> int:
        """A."""

    policy: Any

    def act(self, observation: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """Return a normalised action ``[A]`` at an observation ``[O]``."""

    def update(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """Take a step on a batch; return named numbers, ``critic_loss`` among them."""


class LearnResult(NamedTuple):
    """What a run came to.

    Attributes:
        step: environment steps, counting those before a resume.
        losses: the learning curve: (step, mean critic loss since the entry before).
        returns: (step, return) of every finished episode; the rewards are the environment's, not scaled.
        seconds: wall-clock time spent, evaluations left out, counting the time before a resume.
        interrupted: whether Ctrl-C ended the run before its last step.
        evaluations: (step, what ``evaluate`` returned).
    """

    step: int
    losses: list[tuple[int, float]]
    returns: list[tuple[int, float]]
    seconds: float
    interrupted: bool
    evaluations: list[tuple[int, dict[str, float]]]


@dataclass
class _Episodes:
    """Where a run is among its episodes; all of it is written to the checkpoint."""

    number: int = 0  # of the episode that is under way or comes next
    steps: int = 0  # that it has had
    rewards: float = 0.0  # their sum
    broken: bool = False  # the environment raised: this episode cannot go on
    returns: list[tuple[int, float]] = field(default_factory=list)

    def next(self) -> None:
        self.number, self.steps, self.rewards, self.broken = self.number + 1, 0, 0.0, False


class _ShapeError(ValueError):
    """An observation of another shape than the environment's space has."""


class Body:
    """An environment, as a policy with normalised actions sees it.

    Raises:
        TypeError: if it is none, its actions are no Box of floats, or the policy does not say what it acts on.
        ValueError: if the policy does not fit into it.
    """

    def __init__(self, env: Any, policy: Any) -> None:
        self.env = env
        if not isinstance(env, gymnasium.Env):
            raise TypeError(f"env must be one Gymnasium environment, not {type(env).__name__}")
        for name in ("observation_size", "action_size", "squash"):
            if not hasattr(policy, name):
                raise TypeError(f"a {type(policy).__name__} is no policy that acts with normalised actions: no {name}")
        seen, acted = env.observation_space, env.action_space
        weights = policy.parameters() if isinstance(policy, nn.Module) else ()
        dtype = next((weight.dtype for weight in weights), torch.float32)
        self.precision = torch.empty((), dtype=dtype).numpy().dtype
        if not isinstance(seen, spaces.Box) or seen.shape != (policy.observation_size,):
            raise ValueError(
                f"the environment's observations are {seen}, not a Box of the {policy.observation_size} numbers "
                f"that the {type(policy).__name__} takes"
            )
        if not isinstance(acted, spaces.Box) or not np.issubdtype(acted.dtype, np.floating):
            raise TypeError(f"continuous control needs a Box of float actions, not {acted}")
        if acted.shape != (policy.action_size,):
            raise ValueError(
                f"the environment's actions are {acted}, not the {policy.action_size} numbers of the "
                f"{type(policy).__name__}"
            )
        self.latent = env.has_wrapper_attr("latent") and env.get_wrapper_attr("latent") is True
        with np.errstate(over="ignore"):
            self.half = (acted.high - acted.low) / 2
        if not self.latent and not np.isfinite(self.half).all():
            raise ValueError(f"actions must be bounded, or the environment marked latent: {acted}")
        if self.latent == bool(policy.squash):
            kind = "latents of any size: the policy needs squash=False"
            raise ValueError(f"the environment takes {kind if self.latent else 'bounded actions: squash=True'}")
        self.low, self.high, self.dtype = acted.low, acted.high, acted.dtype

    def reset(self, seed: int | None) -> np.ndarray:
        observation, _ = self.env.reset(seed=seed)
        return self.observed(observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Take a step with a normalised action ``[A]``; raises FloatingPointError for what is not finite."""
        action = np.asarray(action, self.precision)  # as the replay keeps it, from which an episode is brought back
        if not np.isfinite(action).all():
            raise FloatingPointError(f"the policy's action is {action}")
        if not self.latent:
            action = np.clip(self.low + (action + 1) * self.half, self.low, self.high)
        observation, reward, terminated, truncated, _ = self.env.step(action.astype(self.dtype))
        if np.shape(reward) != () or not isinstance(reward, SupportsFloat):
            raise TypeError(f"the environment's reward is {reward!r}, not a number")
        if not math.isfinite(reward):
            raise FloatingPointError(f"the environment's reward is {reward}")
        return self.observed(observation), float(reward), bool(terminated), bool(truncated)

    def observed(self, observation: Any) -> np.ndarray:
        """Return a copy, as environments may use their array again, in the policy's precision."""
        if np.shape(observation) != self.env.observation_space.shape:
            shapes = f"{[*np.shape(observation)]}, not {[*self.env.observation_space.shape]}"
            raise _ShapeError(f"the environment's observation has shape {shapes}")
        with np.errstate(over="ignore"):
            seen = np.array(observation, self.precision)
        if not np.isfinite(seen).all():
            raise FloatingPointError(f"the environment's observation is {observation}, not finite in {self.precision}")
        return seen


def learn(
    learner: Learner,
    env: gymnasium.Env[Any, Any],
    *,
    steps: int = 200_000,
    batch_size: int = 128,
    replay: int = 1_000_000,
    start: int = 1000,
    updates_per_step: int = 1,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 10_000,
    log_every: int = 1000,
    progress: bool = True,
) -> LearnResult:
    """Act, remember and learn, a step of the environment at a time.

    The learner's policy acts from the first step on; after ``start`` steps, each is followed by ``updates_per_step``
    updates on batches of the replay. Where the task ends, nothing follows; where time runs out (``truncated``), the
    value of the last observation counts. Normalised actions in (-1, 1) are mapped affinely to the environment's bounds;
    an environment with a true attribute ``latent`` takes them as they are.

    Episode number n is reset with a seed made of ``seed`` and n. With ``out``, the run writes ``out/checkpoint.pt``,
    ``out/tensorboard`` and the replay, a file ``out/replay-N.bin`` that only ever grows, and a later call with the same
    arguments goes on from the checkpoint. An environment cannot be saved: its episode is brought back by resetting it
    with the same seed and taking the same actions again. Where the environment is deterministic given its seed, a run
    on a CPU so comes to the same bits as one that was never stopped. Where it is not, a warning is given and a new
    episode begins; what wrappers remember from episode to episode, such as running means, is not brought back.

    If the environment raises, or gives numbers that are not finite, the checkpoint holds all steps before and the error
    goes on; a resume begins a new episode. The first Ctrl-C lets the step finish, saves, and returns; the third stops
    at once. SIGTERM, by which schedulers end a process, does as Ctrl-C does, and takes its course then. The random
    state is set aside during ``evaluate``.

    Args:
        learner: such as `SoftActorCritic`.
        env: one environment with a Box of float actions and a flat Box of observations.
        steps: environment steps to train up to, counting those before a resume.
        batch_size: transitions in a batch.
        replay: greatest number of transitions to learn from.
        start: steps before the first update; with no more steps than that, nothing is learnt, and a warning given.
        updates_per_step: of the learner.
        seed: of torch, numpy and Python at step 0, of the replay, and of the episodes.
        out: folder to write to; made if missing. None writes nothing.
        resume: go on from ``out/checkpoint.pt`` if it is there; False starts anew and overwrites it.
        device: where to move the learner and keep the replay; None leaves the learner where it is.
        evaluate: called with the number of steps, returns named numbers to log; see :func:`evaluation`. Give it an
            environment of its own.
        evaluate_every: steps between calls of ``evaluate``; it is called after the last step in any case.
        checkpoint_every: steps between checkpoints.
        log_every: steps between entries of the learning curve.
        progress: show a bar with loss and rate; off a terminal, a line every tenth of the way.

    Returns:
        Where the run got to; see `LearnResult`.

    Raises:
        TypeError: for an environment or learner of another kind, actions that are not numbers in a Box, or a number
            that should be whole and is not.
        ValueError: for spaces that do not fit the learner, unbounded actions, an argument out of range, a device that
            cannot be used, an ``out`` that is a file, or a checkpoint that is truncated, of another learner, made
            under other settings or beyond ``steps``; nothing has been changed or written then. Also for an
            observation of another shape than before.
        FloatingPointError: an action, reward or observation, the loss or a parameter is not finite.
        OSError: ``out`` cannot be written, or the disk is full; the last checkpoint stands.
    """
    several: Any = learner
    if isinstance(several, SeedBatch):
        raise TypeError("a SeedBatch is several learners: give it to learn_together")
    if not isinstance(learner, nn.Module):
        raise TypeError(f"learner must be a module such as SoftActorCritic, not {type(learner).__name__}")
    run = _Run(learner, env, seed, out, evaluate)
    options = _Options(
        steps=steps,
        batch_size=batch_size,
        replay=replay,
        start=start,
        updates_per_step=updates_per_step,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        progress=progress,
    )
    _learn([run], _Alone(learner), options, resume, device)
    return run.result()


def learn_together(
    batch: SeedBatch,
    envs: Sequence[gymnasium.Env[Any, Any]],
    *,
    seeds: Sequence[int],
    outs: Sequence[str | os.PathLike[str]] | None = None,
    evaluates: Sequence[Callable[[int], dict[str, float]]] | None = None,
    steps: int = 200_000,
    batch_size: int = 128,
    replay: int = 1_000_000,
    start: int = 1000,
    updates_per_step: int = 1,
    resume: bool = True,
    device: str | torch.device | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 10_000,
    log_every: int = 1000,
    progress: bool = True,
) -> list[LearnResult]:
    """Do what :func:`learn` does for several learners at once, each in its own environment, in step with each other.

    Every run has an episode order, a replay, a folder and a checkpoint of its own, as if it were alone; they share the
    random numbers of the noise, seeded by all ``seeds``, and so can only be gone on from together. No checkpoint takes
    the place of an old one before those of all runs are on the disk. If one environment raises, all begin a new episode
    when resumed; if one run's numbers are not finite, all stop.

    Args:
        batch: S learners; each is trained in place.
        envs: S environments.
        seeds: S of them, for episodes and replays.
        outs: S folders, no two the same; None writes nothing.
        evaluates: S functions; see :func:`learn`, as for all that follows.
        steps: environment steps of each run.
        batch_size: transitions in a batch.
        replay: greatest number of transitions to learn from.
        start: steps before the first update.
        updates_per_step: of the learners.
        resume: go on from the checkpoints if they are there.
        device: where to move the learners and keep the replays.
        evaluate_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
        log_every: steps between entries of the learning curve.
        progress: show a bar, of the first run.

    Returns:
        Where each run got to; ``seconds`` are those of all runs together.

    Raises:
        TypeError: as for `learn`, or if seeds are no whole numbers.
        ValueError: as for `learn`, or if there is not one of everything for each learner, or the checkpoints are of
            runs that were not together.
        FloatingPointError: as for `learn`.
    """
    if not isinstance(batch, SeedBatch):
        raise TypeError(f"batch must be a SeedBatch, not {type(batch).__name__}")
    count = len(batch)
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise TypeError(f"seeds must be whole numbers, not {seeds}") from error
    for name, given in {"envs": envs, "seeds": numbers, "outs": outs, "evaluates": evaluates}.items():
        if given is not None and len(given) != count:
            raise ValueError(f"there are {count} learners and {len(given)} {name}")
    bodies = [id(getattr(env, "unwrapped", env)) for env in envs]
    places = [Path(out).resolve() for out in outs or ()]
    for name, same in (("envs", {*bodies}), ("seeds", {*numbers}), ("outs", {*places} or None)):
        if same is not None and len(same) < count:
            raise ValueError(f"two of the {name} are the same")
    none: list[Any] = [None] * count
    parts = zip(batch.learners, envs, numbers, outs or none, evaluates or none, strict=True)
    runs = [_Run(*part, together=numbers) for part in parts]
    options = _Options(
        steps=steps,
        batch_size=batch_size,
        replay=replay,
        start=start,
        updates_per_step=updates_per_step,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        progress=progress,
    )
    _learn(runs, _Together(batch), options, resume, device)
    return [run.result() for run in runs]


class _Alone:
    """A learner as a batch of one."""

    def __init__(self, learner: Any) -> None:
        self.module = self.learner = learner

    def verify(self) -> None: ...

    def act(self, observations: list[np.ndarray]) -> list[np.ndarray]:
        return [self.learner.act(observations[0])]

    def update(self, batches: list[ReplayBatch]) -> list[dict[str, Tensor]]:
        return [self.learner.update(batches[0])]


class _Together:
    """A `SeedBatch`, given and giving what belongs to each learner."""

    def __init__(self, batch: SeedBatch) -> None:
        self.module = batch

    def verify(self) -> None:
        self.module.verify()

    def act(self, observations: list[np.ndarray]) -> list[np.ndarray]:
        return [*self.module.act(np.stack(observations))]

    def update(self, batches: list[ReplayBatch]) -> list[dict[str, Tensor]]:
        numbers = self.module.update(ReplayBatch(*map(torch.stack, zip(*batches, strict=True))))
        each = [values.unbind() for values in numbers.values()]
        return [dict(zip(numbers, values, strict=True)) for values in zip(*each, strict=True)]


class _Options(NamedTuple):
    """Arguments of `learn` that all runs of a batch share."""

    steps: int
    batch_size: int
    replay: int
    start: int
    updates_per_step: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int
    progress: bool

    def verify(self) -> None:
        for name, value in self._asdict().items():
            if name != "progress":
                verify_least(0 if name in ("start", "evaluate_every") else 1, **{name: value})


class _Run:
    """One learner in one environment: its replay, its files, and where it is."""

    def __init__(
        self,
        learner: Any,
        env: Any,
        seed: int,
        out: str | os.PathLike[str] | None,
        evaluate: Callable[[int], dict[str, float]] | None,
        together: list[int] | None = None,
    ) -> None:
        self.learner, self.env, self.seed, self.evaluate, self.together = learner, env, seed, evaluate, together
        self.out, self.path = out, None if out is None else Path(out) / "checkpoint.pt"
        self.history, self.episodes = History(), _Episodes()
        self.observation: np.ndarray | None = None
        self.numbers: dict[str, Tensor] = {}
        self.content: dict[str, Any] | None = None
        self.matched: list[Any] = []
        self.file: Path | None = None
        self.wrote = False
        self.display: Any = None
        self.interrupted = False

    def verify(self, options: _Options, resume: bool) -> None:
        """Refuse what cannot be run or gone on from; nothing is changed yet."""
        verify_seed(self.seed)
        _verify_learner(self.learner)
        if self.evaluate is not None and not callable(self.evaluate):
            raise TypeError(f"evaluate must be a function of the number of steps, got {self.evaluate!r}")
        if options.evaluate_every and self.evaluate is None:
            raise ValueError(f"evaluate_every is {options.evaluate_every}, but there is no evaluate to call")
        verify_folder(self.out)
        self.body = Body(self.env, self.learner.policy)
        if self.env.unwrapped in getattr(self.evaluate, "bodies", ()):
            raise ValueError("evaluate runs episodes in the environment that is learnt in: give it one of its own")
        self.settings: dict[str, Any] = {
            name: getattr(options, name) for name in ("batch_size", "replay", "start", "updates_per_step")
        }
        self.settings |= {"seed": self.seed, "env": _described(self.env)}
        if self.together is not None:
            self.settings["together"] = self.together
        self.spare = options.checkpoint_every
        if self.path is None or not resume or not self.path.exists():
            return
        self.content = checkpoint.read(self.path, *_SAVED)
        checkpoint.verify_settings(self.path, self.content, self.settings, options.steps)
        self.spare = self.content["replay"]["sizes"][1]
        self.matched = checkpoint.match(self.path, [self.learner], self.content["modules"])
        self.file = self.path.with_name(self.content["file"])
        if not self.file.exists():
            raise ValueError(f"{self.path} belongs to {self.file}, which is not there; {checkpoint.ANEW}")

    def open(self, options: _Options, device: str | torch.device | None) -> None:
        """Make the replay, or open that of the checkpoint."""
        if self.path is not None and self.content is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            taken = {old.name for old in self.path.parent.glob("replay-*.bin")}
            free = (name for n in range(len(taken) + 1) if (name := f"replay-{n}.bin") not in taken)
            self.file = self.path.with_name(next(free))
        weight = next(self.learner.policy.parameters())
        self.memory = Replay(
            options.replay,
            self.learner.observation_size,
            self.learner.action_size,
            seed=self.seed,
            dtype=weight.dtype,
            device=device if device is not None else weight.device,
            path=self.file,
            spare=0 if self.path is None else self.spare,
        )

    def go_back(self) -> None:
        """Take up what the checkpoint holds, if there is one."""
        if self.content is not None:
            self.memory.restore(self.content["replay"])
            checkpoint.apply(self.matched)
            self.history = History(**self.content["history"])
            self.episodes = _Episodes(**self.content["episodes"])
            if self.episodes.steps or self.episodes.broken:
                self.observation = _brought_back(self.body, self.memory, self.episodes, self.seed)
                _begin(self.learner, self.seed, self.episodes.number)
        self.saved, self.wrote = self.reached, self.content is not None

    @property
    def reached(self) -> tuple[int, int]:
        """Steps and evaluations so far."""
        return self.history.step, len(self.history.evaluations)

    def observe(self) -> np.ndarray:
        """Return the observation to act on, that of a new episode where one begins."""
        if self.observation is None:
            _begin(self.learner, self.seed, self.episodes.number)
            self.observation = self.body.reset(_mixed(self.seed, self.episodes.number))
        return self.observation

    def take(self, action: np.ndarray, taken: tuple[np.ndarray, float, bool, bool]) -> bool:
        """Note what a step led to; return whether the episode is over."""
        following, reward, terminated, truncated = taken
        assert self.observation is not None
        self.memory.add(self.observation, action, reward, following, terminated)
        self.history.step += 1
        self.episodes.steps += 1
        self.episodes.rewards += reward
        self.observation = following
        return terminated or truncated

    def finish_episode(self) -> None:
        self.episodes.returns.append((self.history.step, self.episodes.rewards))
        values = {"return": self.episodes.rewards, "length": float(self.episodes.steps)}
        self.display.scalars(self.history.step, values)
        self.episodes.next()
        self.observation = None

    def log(self) -> None:
        """Close the learning curve's window."""
        mean, step = self.history.close_window(), self.history.step
        if not math.isfinite(mean):
            raise FloatingPointError(f"the mean critic loss is {mean} at step {step}{self.kept()}")
        values = {name: float(value) for name, value in self.numbers.items()}
        self.display.scalars(step, values | {"loss": mean})

    def kept(self) -> str:
        return f"; {self.path} holds step {self.saved[0]}" if self.wrote else ""

    def to_save(self, broken: bool) -> dict[Path, dict[str, Any]]:
        """The checkpoint, by its path, unless the one that is there holds all of it."""
        if self.path is None or (self.saved == self.reached and not broken):
            return {}
        if not (math.isfinite(float(self.history.window)) and _finite(self.learner)):
            step = self.history.step
            raise FloatingPointError(f"the loss or a parameter is not finite at step {step}{self.kept()}")
        self.memory.flush()
        content = {
            "step": self.history.step,
            "modules": [checkpoint.snapshot(self.learner), checkpoint.snapshot(self.learner.policy)],
            "history": {**vars(self.history), "window": float(self.history.window)},
            "episodes": asdict(self.episodes) | {"broken": broken},
            "replay": self.memory.state(),
            "file": None if self.file is None else self.file.name,
            "random": random_state(),
            "settings": self.settings,
        }
        return {self.path: content}

    def was_saved(self) -> None:
        self.saved, self.wrote = self.reached, True
        assert self.path is not None
        for old in self.path.parent.glob("replay-*.bin"):  # those of runs that this one took the place of
            if self.file is not None and old.name != self.file.name:
                old.unlink()

    def result(self) -> LearnResult:
        history = self.history
        tail = [(history.step, float(history.window) / history.window_steps)] if history.window_steps else []
        losses, returns = history.losses + tail, self.episodes.returns
        return LearnResult(history.step, losses, returns, history.seconds, self.interrupted, history.evaluations)


def _learn(
    runs: list[_Run],
    learners: _Alone | _Together,
    options: _Options,
    resume: bool,
    device: str | torch.device | None,
) -> None:
    """Run several runs in step."""
    options.verify()
    verify_device(device)
    for run in runs:
        run.verify(options, resume)
    steps = {run.content["step"] if run.content else 0 for run in runs}
    if len(steps) > 1:
        at = ", ".join(f"{run.out} at {run.content['step'] if run.content else 0}" for run in runs)
        raise ValueError(f"runs of one batch must be at one step, not {at}; {checkpoint.ANEW}")
    learners.verify()
    if options.steps <= options.start:
        warnings.warn(f"steps={options.steps} with start={options.start}: nothing is learnt yet", stacklevel=3)
    learners.module.to(device)  # before states are loaded, which go where the parameters are
    for run in runs:
        run.open(options, device)
    for run in runs:
        run.go_back()
    if (content := runs[0].content) is None:
        pyro.set_rng_seed(int(runs[0].seed if runs[0].together is None else _mixed(*runs[0].together)))
    else:
        set_random_state(content["random"])

    def save(broken: bool = False) -> None:
        contents: dict[Path, dict[str, Any]] = {}
        for run in runs:
            contents |= run.to_save(broken)
        checkpoint.write_all(contents)
        for run in runs:
            if run.path in contents:
                run.was_saved()

    with Interrupts() as interrupts, ExitStack() as displays:
        interrupts.patience = 2
        for run in runs:
            shown = options.progress and run is runs[0]
            run.display = displays.enter_context(Display(run.history, options.steps, run.path, shown))

        def evaluate_now() -> None:
            for run in runs:
                every, history = options.evaluate_every, run.history
                evaluate_if_due(run.evaluate, every, options.steps, history, run.display, interrupts, save)

        history = runs[0].history
        evaluate_now()
        while history.step < options.steps and not interrupts.requests:
            started = time.perf_counter()
            before = torch.get_rng_state()
            try:
                seen, taken = [], []
                for acting in runs:
                    seen.append(acting.observe())
                acting = runs[0]
                actions = learners.act(seen)
                for acting, action in zip(runs, actions, strict=True):
                    taken.append(acting.body.step(action))
            except Exception as error:
                torch.set_rng_state(before)
                at = f"at step {history.step + 1}, episode {acting.episodes.number}"
                if history.step:  # else there is nothing to keep
                    save(broken=True)
                    at += "" if acting.path is None else f"; {acting.path} holds all steps before"
                if isinstance(error, FloatingPointError | _ShapeError):
                    error.args = (f"{error} {at}",)
                else:
                    error.add_note(at)
                raise
            ended = [run.take(action, led_to) for run, action, led_to in zip(runs, actions, taken, strict=True)]
            if history.step > options.start:
                for _ in range(options.updates_per_step):
                    found = learners.update([run.memory.sample(options.batch_size) for run in runs])
                for run, numbers in zip(runs, found, strict=True):
                    run.numbers = numbers
                    if "critic_loss" not in numbers:
                        raise TypeError(f"update must return a critic_loss, not {', '.join(numbers) or 'nothing'}")
                    run.history.window += numbers["critic_loss"]
                    run.history.window_steps += 1
            for run, over in zip(runs, ended, strict=True):
                if over:
                    run.finish_episode()
            if history.step % options.log_every == 0 and history.window_steps:
                for run in runs:
                    run.log()
            seconds = time.perf_counter() - started
            for run in runs:
                run.history.seconds += seconds
                run.display.tick()
            evaluate_now()
            # Also when the spare rows of the replay are used up, which a resume with rarer checkpoints could come to.
            since = history.step - runs[0].saved[0]
            if history.step % options.checkpoint_every == 0 or since >= max(runs[0].spare, 1):
                save()
        save()
    for run in runs:
        run.interrupted = interrupts.requests > 0


def evaluation(
    policy: Any,
    env: gymnasium.Env[Any, Any] | Callable[[], gymnasium.Env[Any, Any]],
    *,
    episodes: int = 10,
    deterministic: bool = False,
    seed: int = 10_000,
) -> Callable[[int], dict[str, float]]:
    """Return a function of the step that runs the policy and returns its mean return, for :func:`learn`.

    Every call runs the same episodes, seeded ``seed`` and up, with the same noise. A policy that is on a GPU is copied
    to the CPU for that: there, so few observations at a time take less time.

    Args:
        policy: the policy that is being learnt, with normalised actions.
        env: an environment of its own, in which one episode comes after the other; or a function that makes one, called
            once an episode: they are then run side by side, their actions drawn at once, which takes less time.
        episodes: how many to run.
        deterministic: take the policy's mode; else sample, as latent space policies are evaluated.
        seed: of the environment and the policy's noise.

    Returns:
        A function to a dictionary of ``return`` and ``length``, means over the episodes.

    Raises:
        TypeError: for an environment or actions of another kind, or numbers that are not whole.
        ValueError: for spaces that do not fit the policy, or numbers out of range.
    """
    verify_least(1, episodes=episodes)
    verify_seed(seed)
    if isinstance(env, gymnasium.Env) or not callable(env):
        groups = [[(seed + number, Body(env, policy))] for number in range(episodes)]
    else:
        groups = [[(seed + number, Body(env(), policy)) for number in range(episodes)]]
        if len({id(body.env.unwrapped) for _, body in groups[0]}) < episodes:
            raise ValueError("the function must make a new environment at every call: episodes run side by side")

    def evaluate(_step: int) -> dict[str, float]:
        rewards, length = 0.0, 0
        elsewhere = isinstance(policy, nn.Module) and any(weight.is_cuda for weight in policy.parameters())
        acting = copy.deepcopy(policy).cpu() if elsewhere else policy
        torch.manual_seed(seed)
        for group in groups:
            running = [(body, body.reset(own)) for own, body in group]
            while running:
                actions = acting.act(np.stack([seen for _, seen in running]), deterministic)
                going = []
                for (body, _), action in zip(running, actions, strict=True):
                    observation, reward, terminated, truncated = body.step(action)
                    rewards, length = rewards + reward, length + 1
                    if not (terminated or truncated):
                        going.append((body, observation))
                running = going
        return {"return": rewards / episodes, "length": length / episodes}

    evaluate.bodies = [body.env.unwrapped for group in groups for _, body in group]  # type: ignore[attr-defined]
    return evaluate


def _verify_learner(learner: Any) -> None:
    for name in ("policy", "observation_size", "action_size", "act", "update"):
        if not hasattr(learner, name):
            raise TypeError(f"a {type(learner).__name__} is no learner such as SoftActorCritic: it has no {name}")
    for name in ("act", "update"):
        if not callable(getattr(learner, name)):
            raise TypeError(f"a {type(learner).__name__} is no learner: its {name} cannot be called")
    if not isinstance(learner.policy, nn.Module) or next(learner.policy.parameters(), None) is None:
        raise TypeError(f"the policy of the {type(learner).__name__} is no module with parameters")


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _begin(learner: Any, seed: int, episode: int) -> None:
    """Tell a learner that wants to know that an episode begins."""
    if callable(begin := getattr(learner, "begin", None)):
        begin(_mixed(seed, episode))


def _brought_back(body: Body, memory: Replay, episodes: _Episodes, seed: int) -> np.ndarray | None:
    """The last observation of the episode under way, the environment being there again; None begins a new one."""
    number, count = episodes.number, episodes.steps
    if not episodes.broken and count <= len(memory):
        past = memory.latest(count)
        observation = body.reset(_mixed(seed, number))
        for action, expected in zip(past.actions.numpy(), past.next_observations.numpy(), strict=True):
            observation, _, terminated, truncated = body.step(action)
            if not np.array_equal(observation.astype(expected.dtype), expected) or terminated or truncated:
                break
        else:
            return observation
        warnings.warn(
            f"the environment did not come back to step {count} of episode {number}: a new episode begins",
            RuntimeWarning,
            stacklevel=3,
        )
    episodes.next()
    return None


def _finite(learner: nn.Module) -> bool:
    with torch.no_grad():
        return bool(torch.stack([parameter.isfinite().all() for parameter in learner.parameters()]).all())


def _described(env: gymnasium.Env[Any, Any]) -> str:
    """What a run must find again to go on: the environment, its bounds, policies that are a part of it.

    Of a registered one, arguments and wrappers too; of another, nothing else is known but the name of its class.
    """
    if (spec := env.spec) is None:
        found = type(env.unwrapped).__name__
    else:
        given = {name: value for name, value in sorted(spec.kwargs.items()) if name != "render_mode"}
        given |= {f"{n}: {around.name}": around.kwargs for n, around in enumerate(spec.additional_wrappers, 1)}
        found = spec.id + (f" {checkpoint.described(given)}" if given else "")
        found += f" of {spec.max_episode_steps} steps" if spec.max_episode_steps else ""
    found += f", actions {checkpoint.described(env.action_space)}"
    if env.has_wrapper_attr("fingerprint"):
        found += f" through {env.get_wrapper_attr('fingerprint')}"
    return found
