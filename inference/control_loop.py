"""Learning to act: an environment, a replay and an off-policy learner, which can be watched, stopped and resumed."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
import pyro
import torch
from gymnasium import spaces
from torch import Tensor, nn

from . import checkpoint
from .interrupts import Interrupts
from .progress import Display, History, evaluate_if_due
from .replay import Replay, Transitions
from .usable import verify_device, verify_folder

__all__ = ["LearnResult", "Learner", "evaluation", "learn"]


class Learner(Protocol):
    """What `learn` trains: an ``nn.Module`` whose state is all of it, such as `SoftActorCritic`.

    A method ``begin(seed)`` is called where an episode begins, if there is one.
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

    def update(self, batch: Transitions) -> dict[str, Tensor]:
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


class _Body:
    """An environment, as a learner with normalised actions sees it."""

    def __init__(self, env: Any, policy: Any) -> None:
        self.env = env
        if not isinstance(env, gymnasium.Env):
            raise TypeError(f"env must be one Gymnasium environment, not {type(env).__name__}")
        seen, acted = env.observation_space, env.action_space
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
        self.latent = env.has_wrapper_attr("latent") and bool(env.get_wrapper_attr("latent"))
        if not self.latent and not acted.is_bounded():
            raise ValueError(f"actions must be bounded, or the environment marked latent: {acted}")
        if self.latent == bool(policy.squash):
            kind = "latents of any size: the policy needs squash=False"
            raise ValueError(f"the environment takes {kind if self.latent else 'bounded actions: squash=True'}")
        self.low, self.high, self.dtype = acted.low, acted.high, acted.dtype
        self.half = (acted.high - acted.low) / 2

    def reset(self, seed: int | None) -> np.ndarray:
        observation, _ = self.env.reset(seed=seed)
        return self.observed(observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Take a step with a normalised action ``[A]``; raises FloatingPointError for what is not finite."""
        if not np.isfinite(action).all():
            raise FloatingPointError(f"the policy's action is {action}")
        if not self.latent:
            action = np.clip(self.low + (action + 1) * self.half, self.low, self.high)
        observation, reward, terminated, truncated, _ = self.env.step(action.astype(self.dtype))
        if not math.isfinite(reward):
            raise FloatingPointError(f"the environment's reward is {reward}")
        return self.observed(observation), float(reward), bool(terminated), bool(truncated)

    def observed(self, observation: Any) -> np.ndarray:
        if np.shape(observation) != self.env.observation_space.shape:
            shapes = f"{[*np.shape(observation)]}, not {[*self.env.observation_space.shape]}"
            raise _ShapeError(f"the environment's observation has shape {shapes}")
        if not np.isfinite(observation).all():
            raise FloatingPointError(f"the environment's observation is {observation}")
        return np.asarray(observation)


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
    episode begins.

    If the environment raises, or gives numbers that are not finite, the checkpoint holds all steps before and the error
    goes on; a resume begins a new episode. The first Ctrl-C lets the step finish, saves, and returns; the third stops
    at once. The random state is set aside during ``evaluate``.

    Args:
        learner: such as `SoftActorCritic`.
        env: one environment with a Box of float actions and a flat Box of observations.
        steps: environment steps to train up to, counting those before a resume.
        batch_size: transitions in a batch.
        replay: greatest number of transitions to learn from.
        start: steps before the first update.
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
        TypeError: for an environment or learner of another kind, or actions that are not numbers in a Box.
        ValueError: for spaces that do not fit the learner, unbounded actions, an argument out of range, a device that
            cannot be used, an ``out`` that is a file, or a checkpoint that is truncated, of another learner, made
            under other settings or beyond ``steps``; nothing has been changed or written then. Also for an
            observation of another shape than before.
        FloatingPointError: an action, reward or observation, the loss or a parameter is not finite.
    """
    _verify_least(0, seed=seed, evaluate_every=evaluate_every, start=start)
    _verify_least(1, steps=steps, batch_size=batch_size, replay=replay, updates_per_step=updates_per_step)
    _verify_least(1, checkpoint_every=checkpoint_every, log_every=log_every)
    if not isinstance(learner, nn.Module):
        raise TypeError(f"learner must be a module such as SoftActorCritic, not {type(learner).__name__}")
    if evaluate_every and evaluate is None:
        raise ValueError(f"evaluate_every is {evaluate_every}, but there is no evaluate to call")
    verify_device(device)
    verify_folder(out)
    body = _Body(env, learner.policy)
    path = None if out is None else Path(out) / "checkpoint.pt"
    settings: dict[str, Any] = dict(seed=seed, batch_size=batch_size, replay=replay, start=start)
    settings["updates_per_step"] = updates_per_step
    settings["env"] = _described(env)
    history, episodes, spare = History(), _Episodes(), checkpoint_every
    content: dict[str, Any] | None = None
    dtype = next(learner.policy.parameters()).dtype
    if path is not None and resume and path.exists():
        content = checkpoint.read(path)
        _compare(path, content, settings, steps)
        spare = content["replay"]["sizes"][1]
        matched = checkpoint.match(path, [learner], content["modules"])
        file: Path | None = (stored := path.with_name(content["file"]))
        if not stored.exists():
            raise ValueError(f"{path} belongs to {stored}, which is not there; pass resume=False to start anew")
    else:
        matched, file = [], None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            taken = {old.name for old in path.parent.glob("replay-*.bin")}
            file = path.with_name(next(name for n in range(len(taken) + 1) if (name := f"replay-{n}.bin") not in taken))
    memory = Replay(
        replay,
        learner.observation_size,
        learner.action_size,
        seed=seed,
        dtype=dtype,
        device=device if device is not None else next(learner.policy.parameters()).device,
        path=file,
        spare=0 if path is None else spare,
    )
    observation: np.ndarray | None = None
    learner.to(device)
    if content is None:
        pyro.set_rng_seed(int(seed))
    else:
        memory.restore(content["replay"])
        checkpoint.apply(matched)
        history, episodes = History(**content["history"]), _Episodes(**content["episodes"])
        if episodes.steps or episodes.broken:
            observation = _brought_back(body, memory, episodes, seed)
            _begin(learner, seed, episodes.number)
        checkpoint.set_random_state(content["random"])
    saved = (history.step, len(history.evaluations))
    wrote = content is not None

    def save(broken: bool = False) -> None:
        nonlocal saved, wrote
        if path is None or (saved == (history.step, len(history.evaluations)) and not broken):
            return
        if not (math.isfinite(float(history.window)) and _finite(learner)):
            kept = f"; {path} holds step {saved[0]}" if wrote else ""
            raise FloatingPointError(f"the loss or a parameter is not finite at step {history.step}{kept}")
        memory.flush()
        content = {
            "step": history.step,
            "modules": [checkpoint.snapshot(learner), checkpoint.snapshot(learner.policy)],
            "history": {**vars(history), "window": float(history.window)},
            "episodes": asdict(episodes) | {"broken": broken},
            "replay": memory.state(),
            "file": None if file is None else file.name,
            "random": checkpoint.random_state(),
            "settings": settings,
        }
        checkpoint.write(path, content)
        saved, wrote = (history.step, len(history.evaluations)), True
        for old in path.parent.glob("replay-*.bin"):  # those of runs that this one took the place of
            if file is not None and old.name != file.name:
                old.unlink()

    def evaluate_now() -> None:
        evaluate_if_due(evaluate, evaluate_every, steps, history, display, interrupts, save)

    numbers: dict[str, Tensor] = {}
    with Interrupts() as interrupts, Display(history, steps, path, progress) as display:
        interrupts.patience = 2
        evaluate_now()
        while history.step < steps and not interrupts.requests:
            started = time.perf_counter()
            before = torch.get_rng_state()
            try:
                if observation is None:
                    _begin(learner, seed, episodes.number)
                    observation = body.reset(_episode_seed(seed, episodes.number))
                action = learner.act(observation)
                following, reward, terminated, truncated = body.step(action)
            except Exception as error:
                torch.set_rng_state(before)
                at = f"at step {history.step + 1}, episode {episodes.number}"
                save(broken=True)
                at += "" if path is None else f"; {path} holds all steps before"
                if isinstance(error, FloatingPointError | _ShapeError):
                    error.args = (f"{error} {at}",)
                else:
                    error.add_note(at)
                raise
            memory.add(observation, action, reward, following, terminated)
            history.step += 1
            episodes.steps += 1
            episodes.rewards += reward
            observation = following
            if history.step > start:
                for _ in range(updates_per_step):
                    numbers = learner.update(memory.sample(batch_size))
                history.window += numbers["critic_loss"]
                history.window_steps += 1
            if terminated or truncated:
                episodes.returns.append((history.step, episodes.rewards))
                display.scalars(history.step, {"return": episodes.rewards, "length": episodes.steps})
                episodes.next()
                observation = None
            if history.step % log_every == 0 and history.window_steps:
                mean = history.close_window()
                if not math.isfinite(mean):
                    kept = f"; {path} holds step {saved[0]}" if wrote else ""
                    raise FloatingPointError(f"the mean critic loss is {mean} at step {history.step}{kept}")
                values = {name: float(value) for name, value in numbers.items()}
                display.scalars(history.step, values | {"loss": mean})
            history.seconds += time.perf_counter() - started
            display.tick()
            evaluate_now()
            # Also when the spare rows of the replay are used up, which a resume with rarer checkpoints could come to.
            if history.step % checkpoint_every == 0 or history.step - saved[0] >= max(spare, 1):
                save()
        save()
    tail = [(history.step, float(history.window) / history.window_steps)] if history.window_steps else []
    losses, returns = history.losses + tail, episodes.returns
    return LearnResult(history.step, losses, returns, history.seconds, interrupts.requests > 0, history.evaluations)


def evaluation(
    policy: Any,
    env: gymnasium.Env[Any, Any],
    *,
    episodes: int = 10,
    deterministic: bool = False,
    seed: int = 10_000,
) -> Callable[[int], dict[str, float]]:
    """Return a function of the step that runs the policy and returns its mean return, for :func:`learn`.

    Every call runs the same episodes, seeded ``seed`` and up, with the same noise.

    Args:
        policy: the policy that is being learnt, with normalised actions.
        env: an environment of its own.
        episodes: how many to run.
        deterministic: take the policy's mode; else sample, as latent space policies are evaluated.
        seed: of the environment and the policy's noise.

    Returns:
        A function to a dictionary of ``return`` and ``length``, means over the episodes.

    Raises:
        TypeError: for an environment or actions of another kind.
        ValueError: for spaces that do not fit the policy, or numbers out of range.
    """
    _verify_least(1, episodes=episodes)
    _verify_least(0, seed=seed)
    body = _Body(env, policy)

    def evaluate(_step: int) -> dict[str, float]:
        rewards, length = 0.0, 0
        torch.manual_seed(seed)
        for episode in range(episodes):
            observation, done = body.reset(seed + episode), False
            while not done:
                action, _ = policy.predict(observation, deterministic=deterministic)
                observation, reward, terminated, truncated = body.step(action)
                rewards, length, done = rewards + reward, length + 1, terminated or truncated
        return {"return": rewards / episodes, "length": length / episodes}

    return evaluate


def _episode_seed(seed: int, episode: int) -> int:
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0])


def _begin(learner: Any, seed: int, episode: int) -> None:
    """Tell a learner that wants to know that an episode begins."""
    if callable(begin := getattr(learner, "begin", None)):
        begin(_episode_seed(seed, episode))


def _brought_back(body: _Body, memory: Replay, episodes: _Episodes, seed: int) -> np.ndarray | None:
    """The last observation of the episode under way, the environment being there again; None begins a new one."""
    number, count = episodes.number, episodes.steps
    if not episodes.broken and count <= len(memory):
        past = memory.latest(count)
        observation = body.reset(_episode_seed(seed, number))
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
    """What a run must find again to go on: the environment, its arguments, and policies that are a part of it."""
    if (spec := env.spec) is None:
        found = type(env.unwrapped).__name__
    else:
        given = {name: value for name, value in sorted(spec.kwargs.items()) if name != "render_mode"}
        found = spec.id + (f" {given}" if given else "")
    if env.has_wrapper_attr("fingerprint"):
        found += f" through {env.get_wrapper_attr('fingerprint')}"
    return found


def _verify_least(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def _compare(path: Path, content: dict[str, Any], settings: dict[str, Any], steps: int) -> None:
    """Raises `ValueError` where a checkpoint cannot be gone on from under ``settings`` up to ``steps``."""
    saved, hint = content["settings"], "pass resume=False to start anew, or another out"
    if "replay" not in content:
        raise ValueError(f"{path} is a checkpoint of another kind of training; {hint}")
    for name in {**saved, **settings}:
        was, wanted = saved.get(name), settings.get(name)
        if was != wanted:
            raise ValueError(f"{path} was made with {name}={was}, not {wanted}; {hint}")
    if content["step"] > steps:
        raise ValueError(f"{path} is at step {content['step']}, beyond steps={steps}; {hint}")
