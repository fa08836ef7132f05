"""Running policies: collecting demonstrations, and what a policy would have done along given ones.

Shapes: B traces, T environment steps, A action numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pyro
from gymnasium import spaces

from ..._progress import ProgressBar
from ..._random_state import random_state, set_random_state
from ..._verify import verify_least
from ...models.policies.controller import Controller, FunctionController, as_controller
from ...models.policies.episodes import Episodes, Execute, verify_environment
from ...models.spaces import (
    SpaceError,
    check_action_space,
    decode_actions,
    encode_actions,
    flatten_observations,
    observation_size,
    unflatten_observations,
)
from ..data.demonstrations import Demonstrations, Episode

__all__ = ["CollectionError", "CollectionInterrupted", "Collector", "collect", "predict_along"]

Env = gymnasium.Env[Any, Any]
Space = spaces.Space[Any]


class CollectionError(RuntimeError):
    """Collecting ended before its end. The original error is the cause; what was collected is kept.

    Attributes:
        collected: the finished episodes and, as a fragment that neither terminated nor was truncated, the steps of
            the one that was under way; None where there is not a single step.
    """

    def __init__(self, message: str, collected: Demonstrations | None) -> None:
        super().__init__(message)
        self.collected = collected


class CollectionInterrupted(CollectionError, KeyboardInterrupt):
    """The same after Ctrl-C. It is a `KeyboardInterrupt` too, and ends a program that does not catch it."""


def collect(
    env: Env,
    policy: Controller | Callable[[Any], Any],
    episodes: int | None,
    *,
    seed: int = 0,
    execute: Execute | None = None,
    max_steps: int | None = None,
    max_labels: int | None = None,
    deterministic: bool = False,
    progress: bool = True,
) -> Demonstrations:
    """Run a policy for whole episodes and keep everything: observations, actions, rewards, how each one ended.

    One seed gives the same demonstrations, bit for bit. It is the environment's at the first reset (later ones go on
    from there, `env.reset()`), that of its action space, and that of torch, NumPy and Python, whose random state is
    set aside meanwhile: collecting does not change what a program draws afterwards.

    Args:
        env: where to act; its spaces become the demonstrations'.
        policy: has `predict(observation, state, episode_start, deterministic) -> (action, state)`, as a
            stable-baselines3 model has, or is a function from an observation to an action. Its actions are what is
            stored.
        episodes: how many; None for as many as `max_labels` allows.
        seed: of everything that is random.
        execute: maps `(observation, action, episode_start)` to the action that is executed in place of the policy's,
            all in the environment's form; None executes what is stored.
        max_steps: steps after which an episode is truncated; None leaves that to the environment.
        max_labels: stop after exactly so many actions of the policy. An episode that this cuts off is a fragment,
            neither terminated nor truncated.
        deterministic: ask for the likeliest actions instead of samples.
        progress: show a bar with episodes, steps a second and the mean return; off a terminal, a line every tenth of
            the way.

    Returns:
        The demonstrations, in the order of collection.

    Raises:
        TypeError: if there is no way to ask the policy, or a space cannot be stored.
        ValueError: if a number is out of range.
        CollectionError: naming the episode and the step, if the policy or the environment raises, an action is outside
            its space, or an observation or reward is not finite. What was collected is in the error.
        CollectionInterrupted: the same after Ctrl-C.
    """
    return Collector(env, seed=seed, progress=progress).run(
        policy, episodes, execute=execute, max_steps=max_steps, max_labels=max_labels, deterministic=deterministic
    )


def predict_along(
    policy: Controller | Callable[[Any], Any], demonstrations: Demonstrations, *, deterministic: bool = True
) -> np.ndarray:
    """Ask a policy what it would have done along demonstrations, its memory fed with their observations.

    Actions of a Box are clipped to its bounds.

    Args:
        policy: as in `collect`; one with `predict` is asked for all traces at once, step by step.
        demonstrations: B traces of up to T steps.
        deterministic: ask for the likeliest actions instead of samples.

    Returns:
        Stored actions `[B, T]` or `[B, T, A]`. Those from a trace's last step on mean nothing: no action was taken
        there.

    Raises:
        ValueError: if an action is not in its space.
    """
    actor, seen, space = as_controller(policy), demonstrations.observation_space, demonstrations.action_space
    observations, lengths = demonstrations.observations.cpu().numpy(), demonstrations.lengths.cpu().numpy()
    state: Any = None
    predicted = []
    for step in range(observations.shape[1]):
        # Beyond its end a trace shows its last observation again, as padding may be none that the policy knows.
        rows = observations[np.arange(len(lengths)), np.minimum(step, lengths - 1)]
        if isinstance(actor, FunctionController):  # takes one observation at a time
            action = np.stack([actor.function(unflatten_observations(seen, row)) for row in rows])
        else:
            start = np.full(len(lengths), step == 0)
            action, state = actor.predict(unflatten_observations(seen, rows), state, start, deterministic)
        predicted.append(encode_actions(space, _clipped(space, action)))
    return np.stack(predicted, 1)


@dataclass
class _Trace:
    """An episode as it grows. A step is added by one append, so that Ctrl-C finds no half of one."""

    first: np.ndarray
    steps: list[tuple[np.ndarray, float, np.ndarray]] = field(default_factory=list)  # action, reward, next observation
    ended: tuple[bool, bool] = (False, False)  # terminated, truncated

    def episode(self, action_space: Space) -> Episode:
        """The episode so far, which has a step."""
        actions, rewards, observations = zip(*self.steps, strict=True)
        return Episode(
            observations=np.stack([self.first, *observations]),
            actions=decode_actions(action_space, np.stack(actions)),
            rewards=np.array(rewards),
            terminated=self.ended[0],
            truncated=self.ended[1],
        )


class Collector:
    """Runs policies in one environment, one after the other, and keeps what happened.

    `collect` is a single run. A method that changes the policy between episodes makes several: environment and random
    state go on where the run before stopped, so that the same policy run twice is the same as run once for longer,
    whatever else is drawn in between.

    Args:
        env: where to act.
        seed: of everything that is random.
        progress: whether runs show their progress.

    Raises:
        TypeError: if there is no environment or no integer, or a space cannot be stored.
        ValueError: if the seed is negative or beyond 2^32 - 1.
    """

    def __init__(self, env: Env, *, seed: int = 0, progress: bool = True) -> None:
        verify_environment(env)
        if not hasattr(seed, "__index__"):
            raise TypeError(f"seed must be an integer, got {seed!r}")
        check_action_space(env.action_space)
        observation_size(env.observation_space)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in 0..2^32 - 1, not {seed}")
        self.env, self.seed, self.progress = env, int(seed), progress
        self._traces: list[_Trace] = []
        self._random: dict[str, Any] | None = None

    @property
    def labels(self) -> int:
        """How many actions the policies were asked for and took, over all runs."""
        return sum(len(trace.steps) for trace in self._traces)

    def collected(self, start: int = 0) -> Demonstrations | None:
        """The demonstrations of all runs, from episode `start` on; None where there is no step."""
        space = self.env.action_space
        episodes = [trace.episode(space) for trace in self._traces[start:] if trace.steps]
        if not episodes:
            return None
        return Demonstrations.from_episodes(episodes, space, self.env.observation_space)

    def kept(self) -> str:
        """What was collected so far, in words."""
        kept = [trace for trace in self._traces if trace.steps]
        if not kept:
            return "nothing was collected"
        unfinished = sum(not any(trace.ended) for trace in kept)
        aside = f" ({unfinished} unfinished)" if unfinished else ""
        return f"kept {len(kept)} episode{'s' * (len(kept) > 1)}{aside}, {self.labels} steps in all"

    def encode(self, action: Any) -> np.ndarray:
        """An action of the environment as it is stored."""
        return encode_actions(self.env.action_space, action)

    def decode(self, stored: Any) -> Any:
        """A stored action as the environment takes it, clipped to the bounds of a Box."""
        return _clipped(self.env.action_space, decode_actions(self.env.action_space, stored))

    def executable(self, action: Any) -> Any:
        """An action that somebody else than the policy of a run chose, clipped to the bounds of a Box and checked.

        Raises:
            ValueError: if it is not in the action space.
        """
        space = self.env.action_space
        return decode_actions(space, encode_actions(space, _clipped(space, action)))

    def run(
        self,
        policy: Controller | Callable[[Any], Any],
        episodes: int | None,
        *,
        execute: Execute | None = None,
        max_steps: int | None = None,
        max_labels: int | None = None,
        deterministic: bool = False,
        title: str = "",
    ) -> Demonstrations:
        """Run a policy and return the demonstrations of this run; see `collect`.

        Args:
            policy: see `collect`, as for the others that are not here.
            episodes: how many in this run.
            execute: see `collect`.
            max_steps: of an episode.
            max_labels: of this run.
            deterministic: see `collect`.
            title: what to call this run beside its bar.

        Raises:
            CollectionError: as `collect` does, with the demonstrations of all runs.
        """
        if episodes is None and max_labels is None:
            raise ValueError("say how many episodes or how many labels to collect")
        for name, number in (("episodes", episodes), ("max_steps", max_steps), ("max_labels", max_labels)):
            if number is not None:
                verify_least(1, **{name: number})
        actor = as_controller(policy, self.env)
        acting = Episodes(self.env, actor, deterministic=deterministic, max_steps=max_steps)
        start, left = len(self._traces), math.inf if max_labels is None else max_labels

        def place() -> str:
            episode = start + max(acting.number, 0)
            return f"episode {episode}, step {len(self._traces[episode].steps) if episode < len(self._traces) else 0}"

        outside = random_state()
        try:
            self._resume_random_state()
            with _Bar(episodes, max_labels, title, self.progress) as bar:
                while left > 0 and (episodes is None or len(self._traces) - start < episodes):
                    left -= self._episode(acting, execute, left, bar)
        except KeyboardInterrupt as error:
            raise CollectionInterrupted(f"interrupted in {place()}; {self.kept()}", self.collected()) from error
        except Exception as error:
            raised = "" if isinstance(error, SpaceError) else f" raised {type(error).__name__}"
            what = f"{place()}: {acting.doing}{raised}: {error}; {self.kept()}"
            raise CollectionError(what, self.collected()) from error
        finally:
            self._random = random_state()
            set_random_state(outside)
        demonstrations = self.collected(start)
        assert demonstrations is not None  # every episode has a step
        return demonstrations

    def _episode(self, acting: Episodes, execute: Execute | None, left: float, bar: _Bar) -> int:
        """Run one episode, of `left` steps at most, and return how many it took."""
        space = self.env.action_space
        stored: Any = None

        def executed(observation: Any, action: Any, start: np.ndarray) -> Any:
            nonlocal stored
            stored = encode_actions(space, action)
            action = decode_actions(space, stored)
            return action if execute is None else execute(observation, action, start)

        acting.execute = executed
        trace = _Trace(self._flat(acting.begin(None if self._traces else self.seed)))
        self._traces.append(trace)
        for step in acting:
            trace.steps.append((stored, step.reward, self._flat(step.next_observation)))
            trace.ended = (step.terminated, step.truncated)
            bar.tick(trace)
            if len(trace.steps) >= left:
                break
        return len(trace.steps)

    def _flat(self, observation: Any) -> np.ndarray:
        """An observation as numbers `[O]`, copied: many environments change theirs in place."""
        flat = np.array(flatten_observations(self.env.observation_space, observation))
        if flat.ndim != 1:
            raise SpaceError(f"one observation was expected, it gave an array of shape {list(flat.shape)} flattened")
        if not np.isfinite(flat).all():
            raise SpaceError("the observation is NaN or infinite")
        return flat

    def _resume_random_state(self) -> None:
        """Put the random generators where the last run left them, or seed them before the first one."""
        if self._random is not None:
            set_random_state(self._random)
            return
        pyro.set_rng_seed(self.seed)
        self.env.action_space.seed(self.seed)


def _clipped(space: Space, action: Any) -> Any:
    return np.clip(action, space.low, space.high) if isinstance(space, spaces.Box) else action


# ---------------------------------------------------------------------- progress


class _Bar(ProgressBar):
    """How far a run is, how fast it goes, and the mean return."""

    def __init__(self, episodes: int | None, labels: int | None, title: str, shown: bool) -> None:
        super().__init__(*(("episode", episodes) if episodes is not None else ("step", labels or 0)), shown)
        self.title, self.returns, self.began = title, 0.0, time.perf_counter()
        self.counts = {"episode": 0, "step": 0}

    def tick(self, trace: _Trace) -> None:
        """Count a step."""
        self.counts["step"] += 1
        if any(trace.ended):
            self.counts["episode"] += 1
            self.returns += sum(reward for _, reward, _ in trace.steps)
        self.show(self.counts[self.unit], self._told)

    def _told(self) -> str:
        text = f"{self.title}  " if self.title else ""
        text += f"{self.counts['step'] / (time.perf_counter() - self.began):.0f} steps/s"
        return text + (f"  mean return {self.returns / self.counts['episode']:.4g}" if self.counts["episode"] else "")
