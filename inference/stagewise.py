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
from .control_loop import learn, learn_together
from .seed_batch import SeedBatch

__all__ = ["Embed", "Evaluate", "MakeLearner", "StagewiseResult", "train_stagewise", "train_stagewise_together"]

Env = gymnasium.Env[Any, Any]

MakeLearner = Callable[[int, int, int], Any]
"""Makes the learner of a level, given its number, the observation size O and the action size A."""

Embed = Callable[[Env, Any], Env]
"""Makes a policy part of an environment, such as `pyrocontrol.envs.LatentActionEnv` (env, policy)."""


Evaluate = Callable[[list[Any]], Callable[[int], dict[str, float]]]
"""Makes what ``learn`` evaluates with, given the policies from the lowest to the one that is being trained."""


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
    evaluate: Evaluate | None = None,
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
        evaluate: called with the policies from the lowest to the one that is about to be trained; returns what
            ``learn`` is to evaluate with.
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

    def learn_one(
        learners: list[Any], envs: list[Env], seeds: list[int], outs: Any, evaluates: Any, steps: int
    ) -> list[Any]:
        given = options if evaluates is None else options | {"evaluate": evaluates[0]}
        folder = None if outs is None else outs[0]
        return [learn(learners[0], envs[0], steps=steps, seed=seeds[0], out=folder, **given)]

    outs = None if out is None else [out]
    return _train_stagewise(
        envs, make_learner, steps_per_level, embed, [below], learn_one, evaluate, [seed], outs, options
    )[0]


def train_stagewise_together(
    envs: Sequence[Callable[[], Env]],
    make_learner: MakeLearner,
    steps_per_level: int | Sequence[int],
    *,
    seeds: Sequence[int],
    embed: Embed | Sequence[Embed],
    below: Sequence[Sequence[Any]] | None = None,
    batch: Callable[[Sequence[Any]], SeedBatch] = SeedBatch,
    evaluate: Evaluate | None = None,
    outs: Sequence[str | os.PathLike[str]] | None = None,
    **options: Any,
) -> list[StagewiseResult]:
    """Do what :func:`train_stagewise` does for several seeds, whose learners are one `SeedBatch` at each level.

    Args:
        envs: functions, one for each level, each called once a seed.
        make_learner: see :func:`train_stagewise`, as for what is not named here.
        steps_per_level: of each seed.
        seeds: S of them.
        embed: as there.
        below: for each seed the policies that are trained already.
        batch: makes the batch, such as ``partial(SeedBatch, compile=True)``.
        evaluate: as there; called once a seed.
        outs: S folders, no two the same; None writes nothing.
        **options: for `learn_together`.

    Returns:
        What came of each seed.

    Raises:
        TypeError: as there.
        ValueError: as there, and if there is not one of everything for each seed.
    """
    if any(isinstance(env, gymnasium.Env) for env in envs):
        raise TypeError("every seed needs environments of its own: give functions that make them")
    if len(seeds) == 0:
        raise ValueError("there are no seeds to train")
    for name, given in {"outs": outs, "below": below}.items():
        if given is not None and len(given) != len(seeds):
            raise ValueError(f"there are {len(seeds)} seeds and {len(given)} {name}")

    def learn_all(
        learners: list[Any], envs: list[Env], seeds: list[int], outs: Any, evaluates: Any, steps: int
    ) -> list[Any]:
        return learn_together(
            batch(learners), envs, seeds=seeds, outs=outs, evaluates=evaluates, steps=steps, **options
        )

    starts = [()] * len(seeds) if below is None else below
    if len({len(policies) for policies in starts}) > 1:
        raise ValueError(f"every seed needs as many policies below, not {[len(policies) for policies in starts]}")
    return _train_stagewise(
        envs, make_learner, steps_per_level, embed, starts, learn_all, evaluate, seeds, outs, options
    )


def _train_stagewise(
    envs: Sequence[Env | Callable[[], Env]],
    make_learner: MakeLearner,
    steps_per_level: int | Sequence[int],
    embed: Embed | Sequence[Embed],
    below: Sequence[Sequence[Any]],
    learn: Callable[[list[Any], list[Env], list[int], Any, Any, int], list[Any]],
    evaluate: Evaluate | None,
    seeds: Sequence[int],
    outs: Sequence[str | os.PathLike[str]] | None,
    options: dict[str, Any],
) -> list[StagewiseResult]:
    """Both of the above: lists have one entry a seed."""
    if not envs:
        raise ValueError("there are no levels to train: envs is empty")
    count, first = len(envs), len(below[0])
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
    if outs is not None and options.get("resume", True):
        for out in outs:
            _verify_finished(Path(out), first, steps)
    results = [StagewiseResult([*policies], [], False) for policies in below]
    for number, made in enumerate(envs, first):
        with ExitStack() as stack:
            parts: list[tuple[Any, Env, int]] = []
            for seed, result in zip(seeds, results, strict=True):
                env = made if isinstance(made, gymnasium.Env) else stack.enter_context(closing(made()))
                for put, policy in zip(embeds, result.policies, strict=False):
                    env = put(env, policy)
                own = int(np.random.SeedSequence([int(seed), number]).generate_state(1)[0])
                pyro.set_rng_seed(own)
                parts.append((make_learner(number, *_sizes(env, number)), env, own))
            learners, bodies, own_seeds = map(list, zip(*parts, strict=True))
            for learner, result in zip(learners, results, strict=True):
                result.policies.append(learner.policy)
            evaluates = None if evaluate is None else [evaluate([*result.policies]) for result in results]
            folders = None if outs is None else [Path(out) / f"level-{number}" for out in outs]
            found = learn(learners, bodies, own_seeds, folders, evaluates, steps[number - first])
        for learnt, result in zip(found, results, strict=True):
            result.results.append(learnt)
        if any(getattr(learnt, "interrupted", False) for learnt in found):
            return [result._replace(interrupted=True) for result in results]
    return results


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
