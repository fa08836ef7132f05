"""Training a hierarchy stage by stage: learn a policy, freeze it, and learn the next one on its latents.

Algorithm 1 of T. Haarnoja et al., "Latent Space Policies for Hierarchical Reinforcement Learning" (2018). With rewards
r_0, ..., r_{L-1} over the same body, level i is trained in the environment of r_i, in which all levels below it are
embedded: its actions are the latents of level i - 1. The rewards may all be the same, which makes one policy of more
layers, or differ: the lower ones then say how to move, the last one what for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pyro
from gymnasium import spaces

from . import checkpoint
from .control_loop import learn

__all__ = ["Embed", "MakeLearner", "StagewiseResult", "train_stagewise"]

Env = gymnasium.Env[Any, Any]

MakeLearner = Callable[[int, int, int], Any]
"""Makes the learner of a level, given its number, the observation size O and the action size A."""

Embed = Callable[[Env, Any], Env]
"""Makes a policy part of an environment, such as `pyrocontrol.envs.LatentActionEnv` (env, policy)."""


class StagewiseResult(NamedTuple):
    """What came of all levels.

    Attributes:
        policies: from the lowest level to the top, those that were given included; what `Hierarchy` composes.
        results: what ``learn`` returned for each level that was trained.
        interrupted: whether Ctrl-C ended the run; the last policy is then not trained to the end.
    """

    policies: list[Any]
    results: list[Any]
    interrupted: bool


def train_stagewise(
    envs: Sequence[Env | Callable[[], Env]],
    make_learner: MakeLearner,
    steps_per_level: int | Sequence[int],
    *,
    embed: Embed | Sequence[Embed],
    below: Sequence[Any] = (),
    learn: Callable[..., Any] = learn,
    evaluate: Callable[[int, Any], Callable[[int], dict[str, float]]] | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> StagewiseResult:
    """Train one level after the other (Algorithm 1).

    Level i gets a seed of its own, made of ``seed`` and i, which is set before its learner is made. With ``out``, it
    writes to ``out/level-i``; a later call with the same arguments takes up the level at which it was stopped. Levels
    below are part of a level's environment and no more changed.

    Args:
        envs: one environment for each level that is to be trained, the lowest first; or functions that make them, which
            are then closed when the level is done. One and the same may be given several times.
        make_learner: called with the level's number, counting those ``below``, and the sizes O and A of its
            observations and actions. The lowest level acts within (-1, 1), so its policy squashes. The others act on
            latents: theirs do not, and their prior is N(0, I).
        steps_per_level: steps that the level itself makes, of which one may hold for several of the environment; for
            all levels or one for each.
        embed: for all levels, or one for each level but the last (those ``below`` included), such as
            ``partial(LatentActionEnv, observation=slice(2, None), hold=3)``.
        below: policies that are trained already, the lowest first.
        learn: trains a learner in an environment; see `pyrocontrol.inference.control_loop.learn`.
        evaluate: called with the number of a level and its learner; returns what ``learn`` is to evaluate with.
        seed: of everything.
        out: folder to write to; None writes nothing.
        **options: for ``learn``, the same at all levels.

    Returns:
        The policies and what each training came to.

    Raises:
        TypeError: if something is of the wrong kind.
        ValueError: if numbers of levels do not go together, a number of steps is not positive, or, before the first
            step of a level, a policy does not fit into its environment; if ``out`` holds a level that was trained on
            another below.
    """
    if not envs:
        raise ValueError("there are no levels to train: envs is empty")
    count, first = len(envs), len(below)
    for number, env in enumerate(envs, first):
        if not (isinstance(env, gymnasium.Env) or callable(env)):
            raise TypeError(f"the environment of level {number} is none, nor a function that makes one: {env!r}")
    if not callable(make_learner):
        raise TypeError(f"make_learner must be a function of a level and two sizes, got {make_learner!r}")
    steps = [steps_per_level] * count if isinstance(steps_per_level, int) else [*steps_per_level]
    if len(steps) != count or min(steps) < 1:
        raise ValueError(f"steps_per_level must be positive, and one for each of {count} levels, got {steps_per_level}")
    embeds = [embed] * (first + count - 1) if callable(embed) else [*embed]
    if len(embeds) != first + count - 1:
        raise ValueError(f"embed must be one, or one for each of {first + count - 1} levels, got {len(embeds)}")
    if out is not None and options.get("resume", True):
        _verify_finished(Path(out), first, steps)
    policies, results = list(below), []
    for number, made in enumerate(envs, first):
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        with ExitStack() as stack:
            env = made if isinstance(made, gymnasium.Env) else stack.enter_context(closing(made()))
            for put, policy in zip(embeds, policies, strict=False):
                env = put(env, policy)
            pyro.set_rng_seed(own)
            learner = make_learner(number, *_sizes(env, number))
            given = dict(options)
            if evaluate is not None:
                given["evaluate"] = evaluate(number, learner)
            folder = None if out is None else Path(out) / f"level-{number}"
            results.append(learn(learner, env, steps=steps[number - first], seed=own, out=folder, **given))
        policies.append(learner.policy)
        if getattr(results[-1], "interrupted", False):
            return StagewiseResult(policies, results, True)
    return StagewiseResult(policies, results, False)


def _verify_finished(out: Path, first: int, steps: list[int]) -> None:
    """Refuse to train a level further on whose latents another was trained already."""
    for number, wanted in enumerate(steps[:-1], first):
        own, above = (out / f"level-{n}" / "checkpoint.pt" for n in (number, number + 1))
        if own.exists() and above.exists() and (step := checkpoint.read(own)["step"]) != wanted:
            raise ValueError(
                f"{above} was trained on level {number} as it is at step {step}, not {wanted}; "
                "pass resume=False to start anew, or another out"
            )


def _sizes(env: Env, number: int) -> tuple[int, int]:
    sizes = []
    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise TypeError(f"level {number}: the {what} must be a Box of one row, got {space}")
        sizes.append(int(space.shape[0]))
    return sizes[0], sizes[1]
