"""Learning to act: an environment, a replay and an off-policy learner, which can be watched, stopped and resumed."""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Unpack

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from ..._random_state import keep_random_state
from ..._verify import verify_least, verify_seed
from ..training import checkpoint
from ..training.run import Evaluate, Run, RunOptions, Training
from .body import Body, environment_of
from .replay import Replay, ReplayBatch
from .seed_batch import SeedBatch

__all__ = ["LearnOptions", "LearnResult", "Learner", "learn", "learn_together"]

Env = gymnasium.Env[Any, Any]

_LATEST = 10  # episodes, whose mean return is shown


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


class LearnOptions(RunOptions, total=False):
    """Options of `learn`, and of all that calls it, by name: `RunOptions`, and what follows.

    Attributes:
        steps: environment steps to train up to, counting those before a resume (200,000).
        batch_size: transitions in a batch (128).
        replay: greatest number of transitions to learn from (1,000,000).
        start: steps before the first update; with no more steps than that, nothing is learnt, and a warning given
            (1000).
        updates_per_step: of the learner (1).
    """

    steps: int
    batch_size: int
    replay: int
    start: int
    updates_per_step: int


def learn(
    learner: Learner,
    env: Env,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    evaluate: Evaluate | None = None,
    **options: Unpack[LearnOptions],
) -> LearnResult:
    """Act, remember and learn, a step of the environment at a time.

    The learner's policy acts from the first step on; after ``start`` steps, each is followed by ``updates_per_step``
    updates on batches of the replay. Where the task ends, nothing follows; where time runs out (``truncated``), the
    value of the last observation counts. Normalised actions in (-1, 1) are mapped affinely to the environment's bounds;
    an environment with a true attribute ``latent`` takes them as they are.

    Episode number n is reset with a seed made of ``seed`` and n. With ``out``, the run writes ``out/checkpoint.pt``,
    ``out/tensorboard`` and the replay, a file ``out/replay-N.bin`` that only ever grows, and a later call with the same
    arguments goes on from the checkpoint. An environment cannot be saved: its episode is brought back by resetting it
    with the same seed and taking the same actions again, those that the replay has forgotten by the checkpoint. Where
    the environment is deterministic given its seed, a run on a CPU so comes to the same bits as one that was never
    stopped. Where it is not, a warning is given and a new episode begins; what wrappers remember from episode to
    episode, such as running means, is not brought back.

    If the environment raises, or gives numbers that are not finite, the checkpoint holds all steps before and the error
    goes on; a resume begins a new episode. The first Ctrl-C lets the step finish, saves, and returns; the third stops
    at once. SIGTERM, by which schedulers end a process, does as Ctrl-C does, and takes its course then.

    Args:
        learner: such as `SoftActorCritic`.
        env: one environment with a Box of float actions and a flat Box of observations.
        seed: of torch, numpy and Python at step 0, of the replay, and of the episodes.
        out: folder to write to; made if missing. None writes nothing.
        evaluate: called with the number of steps, returns named numbers to log; see :func:`evaluation`. Give it an
            environment of its own.
        **options: see `LearnOptions` and `RunOptions`.

    Returns:
        Where the run got to; see `LearnResult`.

    Raises:
        TypeError: for an environment or learner of another kind, actions that are not numbers in a Box, or a number
            that should be whole and is not.
        ValueError: for spaces that do not fit the learner, unbounded actions, an argument out of range, a device that
            cannot be used, an ``out`` that is a file, or a checkpoint that is truncated, of another learner, made
            under other settings or beyond ``steps``, or a replay that is damaged; nothing has been changed or written
            then. Also for an observation of another shape than before.
        FloatingPointError: an action, reward or observation, the loss or a parameter is not finite.
        BlockingIOError: another run writes to ``out``; says which process, where and since when.
        OSError: ``out`` cannot be written, or the disk is full; names the file, and the last checkpoint stands.
    """
    given: Any = learner
    if isinstance(given, SeedBatch):
        raise TypeError("a SeedBatch is several learners: give it to learn_together")
    if not isinstance(given, nn.Module):
        raise TypeError(f"learner must be a module such as SoftActorCritic, not {type(learner).__name__}")
    outs = None if out is None else [out]
    evaluates = None if evaluate is None else [evaluate]
    return learn_together([learner], [env], seeds=[seed], outs=outs, evaluates=evaluates, **options)[0]


def learn_together(
    batch: SeedBatch | Sequence[Learner],
    envs: Sequence[Env],
    *,
    seeds: Sequence[int],
    outs: Sequence[str | os.PathLike[str]] | None = None,
    evaluates: Sequence[Evaluate] | None = None,
    steps: int = 200_000,
    batch_size: int = 128,
    replay: int = 1_000_000,
    start: int = 1000,
    updates_per_step: int = 1,
    **options: Unpack[RunOptions],
) -> list[LearnResult]:
    """Do what :func:`learn` does for several learners at once, each in its own environment, in step with each other.

    Every run has an episode order, a replay, a folder and a checkpoint of its own, as if it were alone; they share the
    random numbers of the noise, seeded by all ``seeds``, and so can only be gone on from together. Their checkpoints
    are one: whenever the process ends, a later call finds all of them at the same step. If one environment raises, all
    begin a new episode when resumed; if one run's numbers are not finite, all stop.

    Args:
        batch: a `SeedBatch` of S learners, or a list of any learners, which then act and learn one after the other;
            each is trained in place.
        envs: S environments.
        seeds: S of them, for episodes and replays.
        outs: S folders, no two the same; None writes nothing.
        evaluates: S functions.
        steps: see `LearnOptions`.
        batch_size: as there.
        replay: as there.
        start: as there.
        updates_per_step: as there.
        **options: see `RunOptions`. The bar is of the first run; ``on_evaluation`` and ``log`` are called for each, and
            find its ``seed`` among the numbers.

    Returns:
        Where each run got to; ``seconds`` are those of all runs together.

    Raises:
        TypeError: as for `learn`, or if seeds are no whole numbers.
        ValueError: as for `learn`, or if there is not one of everything for each learner, or the checkpoints are of
            runs that were not together.
        FloatingPointError: as for `learn`.
        OSError: as for `learn`.
    """
    if not isinstance(batch, SeedBatch | list | tuple):
        raise TypeError(f"batch must be a SeedBatch or a list of learners, not {type(batch).__name__}")
    learners: list[Any] = [*batch.learners] if isinstance(batch, SeedBatch) else [*batch]
    for number in seeds:
        verify_seed(number)
    _verify_each(learners, envs=envs, seeds=seeds, outs=outs, evaluates=evaluates)
    sizes: dict[str, Any] = {
        "batch_size": batch_size,
        "replay": replay,
        "start": start,
        "updates_per_step": updates_per_step,
    }
    usual: RunOptions = {"checkpoint_every": 10_000, "log_every": 1000}
    options = usual | options
    checkpoint_every = options["checkpoint_every"]
    for name, value in (sizes | {"steps": steps, "checkpoint_every": checkpoint_every}).items():
        verify_least(0 if name == "start" else 1, **{name: value})
    if alone := len(learners) == 1 and not isinstance(batch, SeedBatch):
        settings, first_seed = sizes, int(seeds[0])
    else:  # they share the random numbers of the noise
        kind = "SeedBatch" if isinstance(batch, SeedBatch) else "list"
        settings = sizes | {"together": [*map(int, seeds)], "batch": kind}
        first_seed = _mixed(*map(int, seeds))
    none: list[Any] = [None] * len(learners)
    runs = [
        _Acting(learner, env, int(seed), settings, checkpoint_every, options.get("device"), out, evaluate)
        for learner, env, seed, out, evaluate in zip(
            learners, envs, seeds, outs or none, evaluates or none, strict=True
        )
    ]
    if isinstance(batch, SeedBatch):
        batch.verify()
    if steps <= start:
        warnings.warn(f"steps={steps} with start={start}: nothing is learnt yet", stacklevel=2 + alone)
    training = Training(runs=runs, steps=steps, **options)
    training.interrupts.patience = 2
    for run in runs:
        run.label = {} if alone else {"seed": run.seed}

    def advance() -> bool:
        _act(batch, runs, training)
        if runs[0].history.step > start:
            for _ in range(updates_per_step):
                found = _update(batch, [run.memory.sample(batch_size) for run in runs])
            for run, numbers in zip(runs, found, strict=True):
                run.count(numbers)
        for run in runs:
            if run.body.over:
                run.finish_episode()
        return True

    training.train(advance, first_seed)
    return [run.result(training.interrupts.requests > 0) for run in runs]


def _act(batch: SeedBatch | Sequence[Learner], runs: list[_Acting], training: Training) -> None:
    """Take a step in each environment. If something raises, what was before is saved, and the episodes are broken."""
    put_back = keep_random_state()
    acting = runs[0]
    try:
        seen = []
        for acting in runs:
            seen.append(acting.observe())
        acting = runs[0]
        actions: Any = (
            batch.act(np.stack(seen))
            if isinstance(batch, SeedBatch)
            else [learner.act(observation) for learner, observation in zip(batch, seen, strict=True)]
        )
        steps = []
        for acting, action in zip(runs, actions, strict=True):
            steps.append(acting.body.step(action))
    except Exception as error:
        put_back()
        kept = ""
        if acting.history.step:  # else there is nothing to keep
            for run in runs:
                run.broken = True
            training.save(always=True)
            kept = "" if acting.path is None else f"; {acting.path} holds all steps before"
        error.add_note(f"at step {acting.history.step + 1}, episode {acting.body.number}{kept}")
        raise
    for run, step in zip(runs, steps, strict=True):
        run.remember()
        run.memory.add(step.observation, step.action, step.reward, step.next_observation, step.terminated)
        run.history.step += 1


def _update(batch: SeedBatch | Sequence[Learner], batches: list[ReplayBatch]) -> list[dict[str, Tensor]]:
    """Update each learner on its own batch."""
    if not isinstance(batch, SeedBatch):
        return [learner.update(own) for learner, own in zip(batch, batches, strict=True)]
    numbers = batch.update(ReplayBatch(*map(torch.stack, zip(*batches, strict=True))))
    each = [values.unbind() for values in numbers.values()]
    return [dict(zip(numbers, values, strict=True)) for values in zip(*each, strict=True)]


class _Acting(Run):
    """One learner in one environment: its replay, its episodes, and where it is."""

    needs = ("episodes", "replay", "file")

    def __init__(
        self,
        learner: Any,
        env: Any,
        seed: int,
        settings: dict[str, Any],
        spare: int,
        device: str | torch.device | None,
        out: str | os.PathLike[str] | None,
        evaluate: Evaluate | None,
    ) -> None:
        _verify_learner(learner)
        self.body = Body(env, learner.policy)
        if env.unwrapped in getattr(evaluate, "bodies", ()):
            raise ValueError("evaluate runs episodes in the environment that is learnt in: give it one of its own")
        own = {"seed": seed, "env": environment_of(env), "frozen": checkpoint.frozen(learner.policy)}
        super().__init__([learner, learner.policy], settings | own, out, evaluate)
        self.learner, self.seed, self.spare, self.device = learner, seed, 0 if out is None else spare, device
        self.returns: list[tuple[int, float]] = []
        self.broken = False  # the environment raised: this episode cannot go on
        self.file: Path | None = None
        self.forgotten = bytearray()  # actions of the episode that the replay no longer holds

    def verify_content(self, content: dict[str, Any]) -> None:
        assert self.path is not None
        self.matched = checkpoint.match(self.path, [self.learner], content["modules"], to_train=True)
        self.spare, self.file = content["replay"]["sizes"][1], self.path.with_name(Path(content["file"]).name)
        if not self.file.exists():
            raise ValueError(f"{self.path} belongs to {self.file}, which is not there; {checkpoint.ANEW}")
        self.memory = self._replay()
        self.memory.restore(content["replay"])

    def open(self, device: str | torch.device | None, content: dict[str, Any] | None) -> None:
        self.learner.to(device)  # before states are loaded, which go where the parameters are
        if self.path is not None and self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            taken = {old.name for old in self.path.parent.glob("replay-*.bin")}
            free = (name for n in range(len(taken) + 1) if (name := f"replay-{n}.bin") not in taken)
            self.file = self.path.with_name(next(free))
        if self.path is not None:  # when the spare rows are used up, the next checkpoint is due
            self.room = max(self.spare, 1)
        if content is None:
            self.memory = self._replay()
        else:
            checkpoint.apply(self.matched)
            self._take_up(content["episodes"])

    def _replay(self) -> Replay:
        weight = next(self.learner.policy.parameters())
        return Replay(
            self.settings["replay"],
            self.learner.observation_size,
            self.learner.action_size,
            seed=self.seed,
            dtype=weight.dtype,
            device=weight.device if self.device is None else self.device,
            path=self.file,
            spare=self.spare,
        )

    def _take_up(self, episode: dict[str, Any]) -> None:
        """Have the environment where it was in its episode; where it does not come there, that episode is given up."""
        number, steps = episode["number"], episode["steps"]
        self.returns, self.body.number = episode["returns"], number - 1
        if not (steps or episode["broken"]):
            return
        if not episode["broken"]:
            past = self.memory.latest(min(steps, len(self.memory)))
            before = episode.get("forgotten", past.actions[:0]).numpy()  # of which version 0.1 kept none
            why = "the environment did not come back to"
            if len(before) + len(past.actions) < steps:
                why = "neither replay nor checkpoint hold all actions to"
            elif self._comes_back(before, past):
                self.body.total = episode["rewards"]
                self.forgotten = bytearray(before.tobytes())
                return
            warnings.warn(f"{why} step {steps} of episode {number}: a new episode begins", RuntimeWarning, stacklevel=3)
        self.body.number, self.body.over = number, True

    def _comes_back(self, before: np.ndarray, past: ReplayBatch) -> bool:
        """Take the steps of an episode again; return whether they lead where they led."""
        self.observe()
        for action in before:
            self.body.step(action)
        for action, expected in zip(past.actions.numpy(), past.next_observations.numpy(), strict=True):
            if self.body.over:
                return False
            seen = self.body.step(action).next_observation
            if not np.array_equal(seen.astype(expected.dtype), expected):
                return False
        return not self.body.over

    def remember(self) -> None:
        """Keep the action that the replay is about to forget, if the episode cannot be brought back without it."""
        if self.body.steps > self.memory.capacity:
            self.forgotten += self.memory.oldest().actions.numpy().tobytes()

    def state(self) -> dict[str, Any]:
        self.memory.flush()
        body, over = self.body, self.body.over
        forgotten = np.frombuffer(bytes(b"" if over else self.forgotten), body.precision)
        return {
            "episodes": {
                "number": body.number + over,  # of the one that is under way or comes next
                "steps": 0 if over else body.steps,
                "rewards": 0.0 if over else body.total,
                "broken": self.broken,
                "forgotten": torch.from_numpy(forgotten.copy()).reshape(-1, self.learner.action_size),
                "returns": self.returns,
            },
            "replay": self.memory.state(),
            "file": None if self.file is None else self.file.name,
        }

    def was_saved(self) -> None:
        assert self.path is not None
        for old in self.path.parent.glob("replay-*.bin"):  # those of runs that this one took the place of
            if self.file is not None and old.name != self.file.name:
                old.unlink()

    def told(self) -> list[str]:
        latest = [value for _, value in self.returns[-_LATEST:]]
        return ([f"mean return {statistics.fmean(latest):.4g}"] if latest else []) + super().told()

    def observe(self) -> np.ndarray:
        """Return the observation to act on, that of a new episode where one begins."""
        if self.body.over:
            seed = _mixed(self.seed, self.body.number + 1)
            if callable(begin := getattr(self.learner, "begin", None)):  # it wants to know
                begin(seed)
            self.body.begin(seed)
            self.forgotten.clear()
        return self.body.observation

    def count(self, numbers: dict[str, Tensor]) -> None:
        """Count an update."""
        if "critic_loss" not in numbers:
            raise TypeError(f"update must return a critic_loss, not {', '.join(numbers) or 'nothing'}")
        self.numbers = {**numbers}
        self.history.window += numbers["critic_loss"]
        self.history.window_steps += 1

    def finish_episode(self) -> None:
        """Note what came of an episode."""
        self.returns.append((self.history.step, self.body.total))
        self.values |= {"return": self.body.total, "length": float(self.body.steps)}

    def result(self, interrupted: bool) -> LearnResult:
        """Return what the run came to."""
        history = self.history
        return LearnResult(
            history.step, history.curve(), self.returns, history.seconds, interrupted, history.evaluations
        )


def _verify_each(learners: list[Any], **given: Sequence[Any] | None) -> None:
    """Refuse lists that have not one entry for each learner, or one twice."""
    for name, each in given.items():
        if each is not None and len(each) != len(learners):
            raise ValueError(f"there are {len(learners)} learners and {len(each)} {name}")
    different: dict[str, list[Any]] = {
        "learners": [*map(id, learners)],
        "envs": [id(getattr(env, "unwrapped", env)) for env in given["envs"] or ()],
        "seeds": [*map(int, given["seeds"] or ())],
        "outs": [Path(out).resolve() for out in given["outs"] or ()],
    }
    for name, values in different.items():
        if len({*values}) < len(values):
            raise ValueError(f"two of the {name} are the same")


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
