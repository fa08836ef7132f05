"""Learning with a teacher at hand: DAgger, which asks it where the learner goes, and DART, which disturbs it.

Both go in rounds: collect demonstrations in which every action that is stored is the teacher's, whatever was executed;
add them to those of the rounds before; learn from all of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
from gymnasium import spaces

from ..._random_state import random_state, set_random_state
from ..._verify import verify_least
from ...envs.acting.collect import CollectionError, CollectionInterrupted, Collector, predict_along
from ...envs.data.demonstrations import Demonstrations
from ...models.policies.controller import as_controller
from .noise import ConfusionNoise, GaussianNoise, Noise

__all__ = ["InteractiveResult", "Round", "constant", "dagger", "dart", "geometric", "linear"]

Learn = Callable[[Demonstrations], Any]
Schedule = Callable[[int], float]
Pairs = tuple[np.ndarray, np.ndarray]  # stored actions of teacher and learner


class Round(NamedTuple):
    """What one round came to.

    Attributes:
        round: its number, from 0.
        labels: how many labels the teacher had given by its end, those of `initial` not counted.
        episodes: how many it collected, unfinished ones counted.
        steps: how many steps.
        mean_return: of what was executed, over finished episodes; None if there were none.
        beta: DAgger: the chance that the teacher's action was executed.
        noise: DART: the noise on the executed actions.
        disagreement: how far the learner of the round before is from the teacher along this round's trajectories, from
            which it has not learnt: the fraction of steps at which they differ, for a Box the mean squared distance.
            None where there was no learner yet.
    """

    round: int
    labels: int
    episodes: int
    steps: int
    mean_return: float | None
    beta: float | None
    noise: Noise | None
    disagreement: float | None


class InteractiveResult(NamedTuple):
    """What came of all rounds.

    Attributes:
        policy: what the last call of `learn` returned.
        demonstrations: everything that it learnt from, in the order of collection.
        rounds: statistics of each round.
        noise: DART: the noise fitted to the errors of `policy`, which a further round would use.
    """

    policy: Any
    demonstrations: Demonstrations
    rounds: list[Round]
    noise: Noise | None = None


# ---------------------------------------------------------------------- schedules


def geometric(p: float) -> Schedule:
    """beta_i = p^i, i from 0: the teacher alone first, then ever less of it.

    Raises:
        ValueError: unless p is in 0..1.
    """
    _check_probability(p, "p")
    return lambda index: p**index


def linear(rounds: int) -> Schedule:
    """beta_i = max(0, 1 - i / rounds), i from 0.

    Raises:
        ValueError: if rounds is not positive.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    return lambda index: max(0.0, 1 - index / rounds)


def constant(beta: float) -> Schedule:
    """beta_i = beta: 0 for the learner alone, as in the lecture; 1 for the teacher alone, which is plain cloning.

    Raises:
        ValueError: unless beta is in 0..1.
    """
    _check_probability(beta, "beta")
    return lambda index: beta


def _check_probability(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in 0..1, not {value}")


# ---------------------------------------------------------------------- the methods


def dagger(
    env: Any,
    teacher: Any,
    learn: Learn,
    *,
    rounds: int,
    episodes: int | None,
    schedule: Schedule | None = None,
    initial: Any = None,
    max_labels: int | None = None,
    max_steps: int | None = None,
    deterministic: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> InteractiveResult:
    """Learn from the teacher's answers where the learner goes.

    Round i runs the mixture of teacher and learner that draws anew at every step,

        pi_i = beta_i pi* + (1 - beta_i) pihat_i,

    stores the teacher's action at every step, whoever's was executed, adds all of it to the data of the rounds before,
    and learns pihat_{i+1} from the whole. The teacher is asked once a step. S. Ross, G. Gordon and J. A. Bagnell, "A
    Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning" (2011), Algorithm 3.1, which
    returns the best of the pihat_i on validation data; this returns the last one.

    As long as there is no learner, the teacher acts alone, whatever the schedule says. The learner may have a state,
    which follows the observations from the start of each episode, also where it is the teacher who acts.

    Args:
        env: where to act.
        teacher: has `predict`, or is a function from an observation to an action; see `collect`.
        learn: maps demonstrations to a policy; called once a round with everything collected so far. `fit` takes
            Ctrl-C as a wish to end the training: raise `KeyboardInterrupt` where its result says so to end all.
        rounds: how often to collect and learn.
        episodes: of each round; None for as many as `max_labels` allows.
        schedule: beta of a round, in 0..1, given its number from 0, such as :func:`geometric`, :func:`linear` or
            :func:`constant`; None for ``geometric(0.5)``.
        initial: demonstrations to begin with, from which a first learner is learnt; or a policy, as the first learner.
        max_labels: stop at exactly so many labels of the teacher. The rounds share them evenly: round i ends, within an
            episode if need be, at `max_labels (i + 1) / rounds` labels in all.
        max_steps: steps after which an episode is truncated.
        deterministic: whether the learner takes its likeliest actions; else it samples them.
        seed: of everything that is random: the environment, teacher, mixture, and the random state that `learn` finds.
        progress: show a bar for each round.

    Returns:
        The policy learnt last, all demonstrations, and statistics of each round.

    Raises:
        TypeError: if something given cannot act, or a space cannot be stored.
        ValueError: if a number is out of range.
        CollectionError: if the teacher, the environment, a learner or `learn` raises. What was collected in all rounds
            is in the error.
        CollectionInterrupted: the same after Ctrl-C.
    """
    _check_given(learn, initial, rounds=rounds, episodes=episodes, max_labels=max_labels, max_steps=max_steps)
    if not (schedule is None or callable(schedule)):
        raise TypeError(f"schedule must be a function of a round's number, such as constant(0.5), got {schedule!r}")
    schedule = geometric(0.5) if schedule is None else schedule
    betas = [float(schedule(index)) for index in range(rounds)]
    for beta in betas:
        _check_probability(beta, "beta")
    interaction = _Interaction(
        Collector(env, seed=seed, progress=progress),
        as_controller(teacher),
        learn,
        total=rounds,
        episodes=episodes,
        max_labels=max_labels,
        max_steps=max_steps,
        deterministic=deterministic,
        initial=initial if isinstance(initial, Demonstrations) else None,
        policy=None if isinstance(initial, Demonstrations) else initial,
    )
    for beta in betas:
        if interaction.policy is None:
            beta = 1.0
        interaction.round(_Mixture(interaction, beta) if beta < 1 else None, beta=beta)
    return interaction.result()


def dart(
    env: Any,
    teacher: Any,
    learn: Learn,
    *,
    rounds: int,
    episodes: int | None,
    noise: Noise | Literal["auto"] = "auto",
    alpha: float | None = None,
    fit_to: Literal["all", "new"] = "all",
    initial: Demonstrations | None = None,
    max_labels: int | None = None,
    max_steps: int | None = None,
    deterministic: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> InteractiveResult:
    """Learn from a teacher who is disturbed as the learner errs.

    The teacher means a*_t and ã_t ~ q_psi(ã | a*_t) is executed, so that it comes to states a little off its way and
    shows how to return; a*_t is stored. After each round the learner is trained on everything so far, and the noise
    fitted to its errors there,

        psi = argmax sum_t log q_psi(pihat(o_t) | a*_t);

    see `GaussianNoise` and `ConfusionNoise`; for numbered actions the default adds `prior=0.1` pseudo-counts a row, and
    `ConfusionNoise(..., prior=0)` is maximum likelihood. Executed actions of a Box are clipped to its bounds.
    M. Laskey et al., "DART: Noise Injection for Robust Imitation Learning" (2017), Algorithm 1.

    Args:
        env: where to act.
        teacher: has `predict`, or is a function from an observation to an action; see `collect`.
        learn: maps demonstrations to a policy; called once a round with everything collected so far. `fit` takes
            Ctrl-C as a wish to end the training: raise `KeyboardInterrupt` where its result says so to end all.
        rounds: how often to collect, learn and fit the noise.
        episodes: of each round; None for as many as `max_labels` allows.
        noise: of the first round, and the family of the others: has `fit(teacher_actions, learner_actions)` and
            `sample(actions, rng)`. `"auto"` begins without noise, Gaussian for a Box, confusion for numbered actions.
        alpha: of the noise `"auto"`: the error that the learner is expected to have in the end, to which fitted noise
            is scaled; None leaves it as fitted.
        fit_to: which errors the noise is fitted to. `"all"`: those of the new learner on all demonstrations, as above.
            It has learnt from these, so that the teacher of one which fits them closely is hardly disturbed, however
            the learner errs elsewhere. `"new"`: those of the learner of the round before on this round's
            demonstrations, which it has not learnt from; in the first round, where there is none, as `"all"`.
        initial: demonstrations to begin with, from which a first learner is learnt and the first noise is fitted.
        max_labels: stop at exactly so many labels of the teacher. The rounds share them evenly: round i ends, within an
            episode if need be, at `max_labels (i + 1) / rounds` labels in all.
        max_steps: steps after which an episode is truncated.
        deterministic: whether the learner's likeliest actions are compared with the teacher's; else samples.
        seed: of everything that is random: the environment, teacher, noise, and the random state that `learn` finds.
        progress: show a bar for each round.

    Returns:
        The policy learnt last, all demonstrations, statistics of each round, and the noise fitted last.

    Raises:
        TypeError: if something given cannot act, or a space cannot be stored.
        ValueError: if a number is out of range.
        CollectionError: if the teacher, the environment, the noise or `learn` raises. What was collected in all rounds
            is in the error.
        CollectionInterrupted: the same after Ctrl-C.
    """
    _check_given(learn, initial, rounds=rounds, episodes=episodes, max_labels=max_labels, max_steps=max_steps)
    if not isinstance(noise, str) and not all(callable(getattr(noise, name, None)) for name in ("fit", "sample")):
        raise TypeError(f"noise must be 'auto' or have the methods fit and sample, got {noise!r}")
    collector = Collector(env, seed=seed, progress=progress)
    current: Noise
    if isinstance(noise, str):
        if noise != "auto":
            raise ValueError(f"noise must be 'auto' or have the methods fit and sample, got {noise!r}")
        current = _no_noise(env.action_space, alpha)
    elif alpha is not None:
        raise ValueError("alpha goes with noise='auto'; give it to the noise otherwise")
    else:
        current = noise
    if initial is not None and not isinstance(initial, Demonstrations):
        raise TypeError(f"initial must be demonstrations, got {type(initial).__name__}")
    if fit_to not in ("all", "new"):
        raise ValueError(f"fit_to must be 'all' or 'new', not {fit_to!r}")
    interaction = _Interaction(
        collector,
        as_controller(teacher),
        learn,
        total=rounds,
        episodes=episodes,
        max_labels=max_labels,
        max_steps=max_steps,
        deterministic=deterministic,
        initial=initial,
    )
    if interaction.policy is not None:
        current = interaction.fitted(current)
    for _ in range(rounds):
        unseen = interaction.round(_Disturbed(interaction, current), noise=current)
        current = interaction.fitted(current, unseen if fit_to == "new" else None)
    return interaction.result(current)


# ---------------------------------------------------------------------- what they share


def _check_given(learn: Any, initial: Any, **counts: int | None) -> None:
    """Refuse what could not end well, before any work is done.

    Raises:
        TypeError: if something is of the wrong kind.
        ValueError: if a number is out of range.
    """
    if not callable(learn):
        raise TypeError(f"learn must be a function from demonstrations to a policy, got {learn!r}")
    if counts["rounds"] is None:
        raise TypeError("rounds must be an integer, got None")
    for name, count in counts.items():
        if count is not None:
            verify_least(1, **{name: count})


@dataclass
class _Interaction:
    """Rounds of collecting the teacher's labels, adding them to what there is, and learning."""

    collector: Collector
    teacher: Any
    learn: Learn
    total: int  # rounds to go
    episodes: int | None
    max_labels: int | None
    max_steps: int | None
    deterministic: bool
    initial: Demonstrations | None
    policy: Any = None
    demonstrations: Demonstrations | None = None
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.max_labels is not None and self.max_labels < self.total:
            raise ValueError(f"max_labels must be at least 1 for each of {self.total} rounds, not {self.max_labels}")
        if self.max_labels is None and self.episodes is None:
            raise ValueError("say how many episodes a round or how many labels to collect")
        # A stream of its own, so that drawing from it changes nothing about environment and policies.
        self.rng = np.random.default_rng([self.collector.seed, 1])
        self.demonstrations = self.initial
        if self.initial is not None:
            for name in ("action_space", "observation_space"):
                theirs, ours = getattr(self.initial, name), getattr(self.collector.env, name)
                if theirs != ours:
                    raise ValueError(f"the {name} of initial is {theirs}, that of the environment {ours}")
            self._learn()
        elif self.policy is not None:
            as_controller(self.policy)

    def round(
        self, execute: Callable[[Any, Any, Any], Any] | None, *, beta: float | None = None, noise: Noise | None = None
    ) -> Pairs | None:
        """Collect with `execute` changing the executed actions, and learn.

        Returns:
            What teacher and learner would do at each new step, the learner before it learnt from it; None if there was
            none.
        """
        index, share = len(self.rounds), None
        if self.max_labels is not None:
            share = self.max_labels * (index + 1) // self.total - self.collector.labels
        new = self.collector.run(
            self.teacher,
            self.episodes,
            execute=execute,
            max_steps=self.max_steps,
            max_labels=share,
            title=f"round {index + 1}/{self.total}",
        )
        pairs = None
        with self._keeping("comparing the learner with the teacher"):
            self.demonstrations = self._aggregate()
            if self.policy is not None:
                pairs = self._pairs(new)
        assert new.returns is not None
        returns = new.returns[new.terminated | new.truncated]
        self.rounds.append(
            Round(
                round=index,
                labels=self.collector.labels,
                episodes=len(new),
                steps=int(new.acted.sum()),
                mean_return=float(returns.mean()) if len(returns) else None,
                beta=beta,
                noise=noise,
                disagreement=None if pairs is None else _disagreement(*pairs),
            )
        )
        self._learn()
        return pairs

    def fitted(self, noise: Noise, pairs: Pairs | None = None) -> Noise:
        """The noise fitted to the learner's errors, by default along all demonstrations."""
        assert self.demonstrations is not None
        with self._keeping("fitting the noise"):
            return noise.fit(*(self._pairs(self.demonstrations) if pairs is None else pairs))

    def result(self, noise: Noise | None = None) -> InteractiveResult:
        assert self.demonstrations is not None
        return InteractiveResult(self.policy, self.demonstrations, self.rounds, noise)

    def _learn(self) -> None:
        assert self.demonstrations is not None
        with self._keeping("learning"):
            policy = self.learn(self.demonstrations)
            as_controller(policy)  # or it could not act in the next round
            self.policy = policy

    def _aggregate(self) -> Demonstrations:
        collected = self.collector.collected()
        assert collected is not None  # a run that has ended has collected something
        if self.initial is None:
            return collected
        if self.initial.rewards is None:
            collected = collected.replace(rewards=None)
        return self.initial + collected

    def _pairs(self, demonstrations: Demonstrations) -> Pairs:
        """The stored actions of teacher and learner at every step of demonstrations, `[N]` or `[N, A]` each."""
        predicted = predict_along(self.policy, demonstrations, deterministic=self.deterministic)
        acted = demonstrations.acted.cpu().numpy()
        return demonstrations.actions.cpu().numpy()[acted], predicted[acted]

    @contextmanager
    def _keeping(self, doing: str) -> Iterator[None]:
        """Work between collections: from a random state of its own, and an error keeps what was collected."""
        before = random_state()
        stream = [self.collector.seed, 2, len(self.rounds), *doing.encode()]
        pyro.set_rng_seed(int(np.random.SeedSequence(stream).generate_state(1)[0]))
        try:
            yield
        except KeyboardInterrupt as error:
            what = f"interrupted while {doing} {self._when()}; {self.collector.kept()}"
            raise CollectionInterrupted(what, self.collector.collected()) from error
        except Exception as error:
            what = f"{doing} {self._when()} raised {type(error).__name__}: {error}"
            raise CollectionError(f"{what}; {self.collector.kept()}", self.collector.collected()) from error
        finally:
            set_random_state(before)

    def _when(self) -> str:
        """How far it is, for an error."""
        return f"after {len(self.rounds)} round{'s' * (len(self.rounds) != 1)}"


class _Mixture:
    """Executes the learner's action in place of the teacher's, with probability 1 - beta at every step."""

    def __init__(self, interaction: _Interaction, beta: float) -> None:
        self.interaction, self.beta = interaction, beta
        self.learner = as_controller(interaction.policy)
        self.state: Any = None

    def __call__(self, observation: Any, action: Any, episode_start: Any) -> Any:
        state = None if episode_start else self.state
        predicted, self.state = self.learner.predict(observation, state, episode_start, self.interaction.deterministic)
        if self.interaction.rng.random() < self.beta:
            return action
        return self.interaction.collector.executable(predicted)


class _Disturbed:
    """Executes the teacher's action with noise."""

    def __init__(self, interaction: _Interaction, noise: Noise) -> None:
        self.interaction, self.noise = interaction, noise

    def __call__(self, observation: Any, action: Any, episode_start: Any) -> Any:
        collector = self.interaction.collector
        return collector.decode(self.noise.sample(collector.encode(action), self.interaction.rng))


def _disagreement(teacher: np.ndarray, learner: np.ndarray) -> float:
    """The fraction of steps at which numbered actions differ, or the mean squared distance of real ones."""
    if teacher.dtype.kind == "f":
        return float(((learner.astype(np.float64) - teacher) ** 2).sum(-1).mean())
    return float((teacher != learner).reshape(len(teacher), -1).any(1).mean())


def _no_noise(space: Any, alpha: float | None) -> Noise:
    """Noise that changes nothing until it is fitted, of the family that a space of actions has."""
    if isinstance(space, spaces.Box):
        size = int(np.prod(space.shape))
        return GaussianNoise(np.zeros((size, size)), alpha)
    if isinstance(space, spaces.MultiDiscrete):
        return ConfusionNoise([np.eye(count) for count in space.nvec.reshape(-1)], alpha=alpha)
    if isinstance(space, spaces.Discrete):
        return ConfusionNoise(np.eye(int(space.n)), alpha=alpha)
    raise TypeError(f"there is no noise for actions of {space}: give one")
