"""Learning to act: an environment, a replay and an off-policy learner, which can be watched, stopped and resumed."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Unpack

import gymnasium
import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ..._random_state import keep_random_state, mixed
from ..._verify import verify_least, verify_positive, verify_seed
from ..training import checkpoint
from ..training.interrupts import Interrupts
from ..training.optimized import Optimized
from ..training.processes import on_cpu
from ..training.run import Evaluate, Run, RunOptions, Training
from .body import Body, environment_of
from .observed import Observation
from .replay import Replay, ReplayBatch
from .ring import ReplayOptions
from .seed_batch import SeedBatch

__all__ = ["LearnOptions", "LearnResult", "Learner", "learn", "learn_together"]

Env = gymnasium.Env[Any, Any]

_LATEST = 10  # episodes, whose mean return is shown


class Learner(Protocol):
    """What `learn` trains: an ``nn.Module`` whose state is all of it, such as `SoftActorCritic`.

    Of its policy, a module with parameters, `learn` reads ``observation_size``, ``action_size`` and ``squash``, and the
    precision of the first parameter, in which observations and actions are kept. A learner may have more:

    - ``begin(seed)`` is called where an episode begins. What an agent with a memory carries from one :meth:`act` to the
      next begins anew there. It belongs into the state of the module (``get_extra_state``), and a resumed run acts on
      as if nothing had been.
    - ``observation_space`` says what it takes in place of vectors, a Box of any shape and dtype or a Dict of Boxes:
      :meth:`act` gets an array in that dtype, or a dict of arrays. Nothing but parameters is then read of its policy,
      and actions are normalised unless the learner has ``squash = False``.
    - ``action_space``, of the learner or its policy, says in which bounds demonstrations or other environments had
      their actions: those of the environment must be the same.
    - ``make_replay(capacity, **options)`` returns what it learns from, with the `ReplayOptions` that it is given::

        def make_replay(self, capacity, **options):
            return SequenceReplay(capacity, self.observation_space, self.action_size, length=50, **options)

      :meth:`update` then gets what that replay samples. Without, it is a `Replay` of transitions.
    """

    @property
    def observation_size(self) -> int:
        """O."""

    @property
    def action_size(self) -> int:
        """A."""

    policy: Any

    def act(self, observation: Any, deterministic: bool = False) -> np.ndarray:
        """Return a normalised action ``[A]`` at an observation ``[O]``."""

    def update(self, batch: Any) -> dict[str, Tensor]:
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
        batch_size: transitions, or sequences, in a batch (128).
        replay: greatest number of transitions, or observations, to learn from (1,000,000).
        start: steps before the first update; with no more steps than that, nothing is learnt, and a warning given.
            Where sequences are learnt from, one has to be there by then (1000).
        updates_per_step: of the learner; 0.2 is one every five steps (1).
    """

    steps: int
    batch_size: int
    replay: int
    start: int
    updates_per_step: float


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

    The learner acts from the first step on; after ``start`` steps, each is followed by ``updates_per_step`` updates on
    batches of the replay, or every few of them by one. Where the task ends, nothing follows; where time runs out
    (``truncated``), the value of the last observation counts. Normalised actions in (-1, 1) are mapped affinely to the
    environment's bounds; an environment with a true attribute ``latent`` takes them as they are.

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

    With ``fabric``, a step is one step of the environment of each process: ``steps``, ``start``, ``batch_size`` and
    ``replay`` count in each, so that N processes see N times as much. Each has its own environment, episodes and replay
    (``out/replay-N-RANK.bin``), and an update is one by the mean of their gradients, on N batches together. Result and
    log are of the episodes and updates of the process itself. Resumed, by any number of processes, each begins a new
    episode, and has the replay of the process of its number, or a copy of another one's. Ctrl-C is heeded when the next
    update is over. Where an environment raises, the last checkpoint stands. Learners whose gradients all go through one
    optimiser can be trained so: soft actor-critic and soft Q-learning of any policy, without ``capture``.

    Args:
        learner: such as `SoftActorCritic`.
        env: one environment with a Box of float actions, and a flat Box of observations or what the learner takes.
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
            cannot be used, an ``out`` that is a file, a replay that does not fit into memory, or a checkpoint that is
            truncated, of another learner, made under other settings or beyond ``steps``, or with a damaged replay;
            nothing has been changed or written then. Also for an observation of another shape or dtype than the space
            has, and where there is no sequence to draw, as no episode is long enough.
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
    updates_per_step: float = 1,
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
    verify_positive(updates_per_step=updates_per_step)
    rate = Fraction(float(updates_per_step)).limit_denominator(1_000_000)
    sizes: dict[str, Any] = {"batch_size": batch_size, "replay": replay, "start": start}
    usual: RunOptions = {"checkpoint_every": 10_000, "log_every": 1000}
    options = usual | options
    checkpoint_every = options["checkpoint_every"]
    for name, value in (sizes | {"steps": steps, "checkpoint_every": checkpoint_every}).items():
        verify_least(0 if name == "start" else 1, **{name: value})
    sizes["updates_per_step"] = rate.numerator if rate.denominator == 1 else float(updates_per_step)
    if alone := len(learners) == 1 and not isinstance(batch, SeedBatch):
        settings, first_seed = sizes, int(seeds[0])
    else:  # they share the random numbers of the noise
        kind = "SeedBatch" if isinstance(batch, SeedBatch) else "list"
        settings = sizes | {"together": [*map(int, seeds)], "batch": kind}
        first_seed = mixed(*map(int, seeds))
    none: list[Any] = [None] * len(learners)
    runs = [
        _Acting(learner, env, int(seed), settings, checkpoint_every, out, evaluate)
        for learner, env, seed, out, evaluate in zip(
            learners, envs, seeds, outs or none, evaluates or none, strict=True
        )
    ]
    if isinstance(batch, SeedBatch):
        batch.verify()
    if (steps - start) * rate < 1:
        warnings.warn(f"steps={steps} with start={start}: nothing is learnt yet", stacklevel=2 + alone)
    training = Training(runs=runs, steps=steps, **options)
    training.interrupts.patience = 2
    processes = training.processes
    if processes.count > 1:
        _verify_shared(batch)
    for run in runs:
        run.label = {} if alone else {"seed": run.seed}

    def advance() -> bool:
        if processes.count > 1:
            pyro.set_rng_seed(mixed(first_seed, runs[0].history.step, processes.rank))
        _act(batch, runs, training)
        past = runs[0].history.step - start  # of which each step brings its share of updates
        found: list[dict[str, Tensor]] = []
        for _ in range(int(past * rate) - int((past - 1) * rate) if past > 0 else 0):
            found = _update(batch, [run.memory.sample(batch_size) for run in runs])
        for run, numbers in zip(runs, found, strict=False):  # none where there was no update
            run.count(numbers)
        for run in runs:
            if run.body.over:
                run.finish_episode()
        return True

    with runs[0].sharing(training.interrupts):
        training.train(advance, first_seed)
    return [run.result(training.interrupts.stop) for run in runs]


def _act(batch: SeedBatch | Sequence[Learner], runs: list[_Acting], training: Training) -> None:
    """Take a step in each environment. If something raises, what was before is saved, and the episodes are broken."""
    put_back = keep_random_state()
    acting = runs[0]
    try:
        seen: list[Any] = []
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
        if acting.history.step and training.processes.count == 1:  # else there is nothing to keep, or not alone
            for run in runs:
                run.broken = True
            training.save(always=True)
            kept = "" if acting.path is None else f"; {acting.path} holds all steps before"
        error.add_note(f"at step {acting.history.step + 1}, episode {acting.body.number}{kept}")
        raise
    for run, step in zip(runs, steps, strict=True):
        run.remember()
        run.memory.add(*step[:-1], first=run.body.steps == 1)
        run.history.step += 1


def _update(batch: SeedBatch | Sequence[Learner], batches: list[Any]) -> list[dict[str, Tensor]]:
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
        out: str | os.PathLike[str] | None,
        evaluate: Evaluate | None,
    ) -> None:
        _verify_learner(learner)
        self.body = Body(env, learner if hasattr(learner, "observation_space") else learner.policy)
        for each in (learner, learner.policy):
            if (acted := getattr(each, "action_space", env.action_space)) != env.action_space:
                raise ValueError(f"the {type(each).__name__} acts in {acted}, the environment in {env.action_space}")
        if env.unwrapped in getattr(evaluate, "bodies", ()):
            raise ValueError("evaluate runs episodes in the environment that is learnt in: give it one of its own")
        own = {"seed": seed, "env": environment_of(env), "frozen": checkpoint.frozen(learner.policy)}
        super().__init__([learner, learner.policy], settings | own, out, evaluate)
        self.learner, self.seed, self.spare = learner, seed, 0 if out is None else spare
        self.returns: list[tuple[int, float]] = []
        self.others: list[dict[str, Any]] = []  # what is saved of other processes
        self.broken = False  # the environment raised: this episode cannot go on
        self.file: Path | None = None
        self.forgotten = bytearray()  # actions of the episode that the replay no longer holds

    def verify_content(self, content: dict[str, Any]) -> None:
        assert self.path is not None
        self.matched = checkpoint.match(self.path, [self.learner], content["modules"], to_train=True)
        # Processes beyond those that were there go on from copies of what these had.
        kept = [content, *content.get("others", ())]
        self.others = kept[1 : self.processes.count]
        round_, number = divmod(self.processes.rank, len(kept))
        self.kept = kept[number]
        self.spare, self.file = self.kept["replay"]["sizes"][1], self.path.with_name(Path(self.kept["file"]).name)
        if not self.file.exists():
            raise ValueError(f"{self.path} belongs to {self.file}, which is not there; {checkpoint.ANEW}")
        if round_:
            self.file = Path(shutil.copyfile(self.file, self._new_file(self.path)))
        self.memory = self._replay()
        self.memory.restore(self.kept["replay"])
        if round_:
            self.memory.generator.manual_seed(self._own_seed)

    def open(self, device: str | torch.device | None, content: dict[str, Any] | None) -> None:
        self.learner.to(device)  # before states are loaded, which go where the parameters are
        if self.path is not None and self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._new_file(self.path)
        if self.path is not None:  # when the spare rows are used up, the next checkpoint is due
            self.room = max(self.spare, 1)
        if content is None:
            self.memory = self._replay()
        else:
            self._take_up(self.kept["episodes"])
            checkpoint.apply(self.matched)  # with what the learner remembers of the episode
        if self.processes.count > 1:
            self.learner.load_state_dict(self.processes.led(lambda: on_cpu(self.learner.state_dict())))

    def _new_file(self, path: Path) -> Path:
        """A name for a replay that no other has."""
        taken = {old.name for old in path.parent.glob("replay-*.bin")}
        ending = f"-{self.processes.rank}.bin" if self.processes.rank else ".bin"
        return path.with_name(next(name for n in itertools.count() if (name := f"replay-{n}{ending}") not in taken))

    @property
    def _own_seed(self) -> int:
        """The seed of episodes and replay, of each process another."""
        return mixed(self.seed, self.processes.rank) if self.processes.rank else self.seed

    @contextmanager
    def sharing(self, interrupts: Interrupts) -> Iterator[None]:
        """Have the learner's optimiser step by the mean gradient of all processes, if there are several."""
        if self.processes.count == 1:
            yield
            return

        def average(optimizer: Optimizer, *_: object) -> None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            asked = torch.tensor([float(interrupts.requests > 0)], device=parameters[0].device)
            self.processes.join(parameters, asked, 1 / self.processes.count)
            interrupts.shared = bool(asked)

        hook = self.learner.optimizer.register_step_pre_hook(average)
        try:
            yield
        finally:
            hook.remove()

    def gather(self) -> None:
        if self.path is not None and self.processes.count > 1:
            self.others = self.processes.gathered(self._of_process())[1:]

    def _replay(self) -> Any:
        weight, capacity = next(self.learner.policy.parameters()), self.settings["replay"]
        options: ReplayOptions = {
            "seed": self._own_seed,
            "dtype": weight.dtype,
            "device": weight.device if self.processes.device is None else self.processes.device,
            "path": self.file,
            "spare": self.spare,
        }
        if callable(make := getattr(self.learner, "make_replay", None)):
            return make(capacity, **options)
        return Replay(capacity, self.learner.observation_size, self.learner.action_size, **options)

    def _take_up(self, episode: dict[str, Any]) -> None:
        """Have the environment where it was in its episode; where it does not come there, that episode is given up."""
        number, steps = episode["number"], episode["steps"]
        self.returns, self.body.number = episode["returns"], number - 1
        if not (steps or episode["broken"]):
            return
        if not episode["broken"] and self.processes.count == 1:
            past = self.memory.latest(min(steps, len(self.memory)))
            before = episode.get("forgotten", past.actions[:0]).numpy()  # of which version 0.1 kept none
            why = "the environment did not come back to"
            if len(before) + len(past.actions) < steps:
                why = "neither replay nor checkpoint hold all actions to"
            elif self._comes_back([*before, *past.actions.numpy()], past.observations, episode.get("observation")):
                self.body.total = episode["rewards"]
                self.forgotten = bytearray(before.tobytes())
                return
            warnings.warn(f"{why} step {steps} of episode {number}: a new episode begins", RuntimeWarning, stacklevel=3)
        self.body.number, self.body.over = number, True

    def _comes_back(self, actions: list[np.ndarray], past: Any, last: Any) -> bool:
        """Take the steps of an episode again; return whether they lead where they led.

        Args:
            actions: all of the episode.
            past: what was observed before the last of them, as far as the replay holds it.
            last: what was observed after them; None where a checkpoint of before version 0.4 does not tell.
        """
        self.observe()
        known = len(pytree.tree_leaves(past)[0])
        for left, action in zip(range(len(actions), 0, -1), actions, strict=True):
            expected = pytree.tree_map(lambda part, at=-left: part[at], past) if left <= known else None
            if self.body.over or not _same(self.body.observation, expected):
                return False
            self.body.step(action)
        return not self.body.over and _same(self.body.observation, last)

    def remember(self) -> None:
        """Keep the action that the replay is about to forget, if the episode cannot be brought back without it."""
        if self.body.steps > self.memory.capacity:
            self.forgotten += self.memory.oldest().actions.numpy().tobytes()

    def state(self) -> dict[str, Any]:
        return self._of_process() | ({"others": self.others} if self.others else {})

    def _of_process(self) -> dict[str, Any]:
        """What of the state is this process's own."""
        self.memory.flush()
        body, over = self.body, self.body.over
        forgotten = np.frombuffer(bytes(b"" if over else self.forgotten), body.precision)
        return {
            "episodes": {
                "number": body.number + over,  # of the one that is under way or comes next
                "steps": 0 if over else body.steps,
                "rewards": 0.0 if over else body.total,
                "broken": self.broken,
                "observation": None if over or self.broken else pytree.tree_map(torch.from_numpy, body.observation),
                "forgotten": torch.from_numpy(forgotten.copy()).reshape(-1, self.learner.action_size),
                "returns": self.returns,
            },
            "replay": self.memory.state(),
            "file": None if self.file is None else self.file.name,
        }

    def was_saved(self) -> None:
        assert self.path is not None
        kept = {self.file.name if self.file else None, *(other["file"] for other in self.others)}
        for old in self.path.parent.glob("replay-*.bin"):  # those of runs that this one took the place of
            if self.file is not None and old.name not in kept:
                old.unlink()

    def told(self) -> list[str]:
        latest = [value for _, value in self.returns[-_LATEST:]]
        return ([f"mean return {statistics.fmean(latest):.4g}"] if latest else []) + super().told()

    def observe(self) -> Observation:
        """Return the observation to act on, that of a new episode where one begins."""
        if self.body.over:
            seed = mixed(self._own_seed, self.body.number + 1)
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


def _verify_shared(batch: Any) -> None:
    """Refuse what several processes cannot train: whose gradients are not all those of one optimiser."""
    learner = batch[0] if len(batch) == 1 else batch
    optimized = [m for m in learner.modules() if isinstance(m, Optimized)] if isinstance(learner, nn.Module) else []
    if optimized != [learner] or getattr(learner, "capture", False):
        raise ValueError(
            "several processes can train one learner with one optimiser, such as SoftActorCritic without capture, "
            f"not a {type(learner).__name__}"
        )


def _same(seen: Observation, expected: Any) -> bool:
    """Whether an observation is what was expected, as tensors; nothing may be."""
    pairs = zip(pytree.tree_leaves(seen), pytree.tree_leaves(expected), strict=True) if expected is not None else ()
    return all(torch.equal(torch.from_numpy(one).to(other.dtype), other) for one, other in pairs)


def _verify_learner(learner: Any) -> None:
    takes = "make_replay" if hasattr(learner, "observation_space") else "observation_size"
    for name in ("policy", takes, "action_size", "act", "update"):
        if not hasattr(learner, name):
            raise TypeError(f"a {type(learner).__name__} is no learner such as SoftActorCritic: it has no {name}")
    for name in ("act", "update"):
        if not callable(getattr(learner, name)):
            raise TypeError(f"a {type(learner).__name__} is no learner: its {name} cannot be called")
    if not isinstance(learner.policy, nn.Module) or next(learner.policy.parameters(), None) is None:
        raise TypeError(f"the policy of the {type(learner).__name__} is no module with parameters")
