"""Training a hierarchy stage by stage: learn a policy, freeze it, and learn the next one on its latents.

Algorithm 1 of T. Haarnoja et al., "Latent Space Policies for Hierarchical Reinforcement Learning" (2018). With rewards
r_0, ..., r_{L-1} over the same body, level i is trained in the environment of r_i, in which all levels below it are
embedded: its actions are the latents of level i - 1. The rewards may all be the same, which makes one policy of more
layers, or differ: the lower ones then say how to move, the last one what for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import gymnasium
import numpy as np
import pyro
from gymnasium import spaces

from ..._files import locked
from ..._verify import verify_least, verify_seed
from ..training import checkpoint
from .body import Body
from .loop import LearnOptions, learn_together
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
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> StagewiseResult:
    """Train one level after the other (Algorithm 1).

    Level i gets a seed of its own, made of ``seed`` and i, which is set before its learner is made. The learners of all
    levels are made before the first one learns, so that what does not fit is found then. With ``out``, level i writes
    to ``out/level-i``; a later call with the same arguments takes up the level at which it was stopped. Levels below
    are part of a level's environment and no more changed.

    Args:
        envs: one environment for each level that is to be trained, the lowest first; or functions that make them, once
            to see what a level needs and once to train it, which are then closed. One and the same may be given several
            times.
        make_learner: called with the level's number, counting those ``below``, and the sizes O and A of its
            observations and actions. The lowest level acts within (-1, 1), so its policy squashes. The others act on
            latents: theirs do not, and their prior is N(0, I).
        steps_per_level: steps that the level itself makes, of which one may hold for several of the environment; for
            all levels or one for each.
        embed: for all levels, or one for each level but the last (those ``below`` included), such as
            ``partial(LatentActionEnv, observation=slice(2, None), hold=3)``.
        below: policies that are trained already, the lowest first.
        seed: of everything.
        out: folder to write to; None writes nothing. With ``resume=False`` among the options, what it holds is
            overwritten, checkpoints of levels above the one that begins are removed.
        **options: ``evaluate``, ``of_level`` and ``learn`` of :func:`train_stagewise_together`, and `LearnOptions`.

    Returns:
        The policies and what each training came to.

    Raises:
        TypeError: if something is of the wrong kind.
        ValueError: if numbers of levels do not go together, a number of steps is not positive, or a policy does not fit
            into its environment; if ``out`` holds more levels or steps than are asked for, or a level that was trained
            on another below. But for the last, nothing has been trained then.
    """
    return train_stagewise_together(
        envs,
        make_learner,
        steps_per_level,
        seeds=[seed],
        embed=embed,
        below=[below],
        batch=list,
        outs=None if out is None else [out],
        **options,
    )[0]


def train_stagewise_together(
    envs: Sequence[Env | Callable[[], Env]],
    make_learner: MakeLearner,
    steps_per_level: int | Sequence[int],
    *,
    seeds: Sequence[int],
    embed: Embed | Sequence[Embed],
    below: Sequence[Sequence[Any]] | None = None,
    batch: Callable[[Sequence[Any]], SeedBatch | list[Any]] = SeedBatch,
    learn: Callable[..., list[Any]] = learn_together,
    evaluate: Evaluate | None = None,
    outs: Sequence[str | os.PathLike[str]] | None = None,
    of_level: Sequence[LearnOptions] | None = None,
    **options: Unpack[LearnOptions],
) -> list[StagewiseResult]:
    """Do what :func:`train_stagewise` does for several seeds, whose learners are one `SeedBatch` at each level.

    Args:
        envs: functions, one for each level, each called twice a seed; with one seed they may be environments.
        make_learner: see :func:`train_stagewise`, as for what is not named here.
        steps_per_level: of each seed.
        seeds: S of them.
        embed: as there.
        below: for each seed the policies that are trained already.
        batch: makes the batch, such as ``partial(SeedBatch, compile=True)``; ``list`` has the learners of a level learn
            one after the other.
        learn: trains the batch of a level in its environments, and is called as `learn_together` is.
        evaluate: called once a level and seed, with the policies from the lowest to the one that is about to be
            trained; returns what its learning is to evaluate with.
        outs: S folders, no two the same; None writes nothing.
        of_level: options that are a level's own, one dictionary for each.
        **options: for all levels; see `LearnOptions`.

    Returns:
        What came of each seed.

    Raises:
        TypeError: as there.
        ValueError: as there, and if there is not one of everything for each seed.
        BlockingIOError: if another run writes to one of the folders; says which.
    """
    if not isinstance(envs, Sequence):
        raise TypeError(f"envs must be a list with one for each level, got {envs!r}")
    if not envs:
        raise ValueError("there are no levels to train: envs is empty")
    if len(seeds) == 0:
        raise ValueError("there are no seeds to train")
    if len(seeds) > 1 and any(isinstance(env, gymnasium.Env) for env in envs):
        raise TypeError("every seed needs environments of its own: give functions that make them")
    starts = [*map(_listed, [()] * len(seeds) if below is None else _listed(below))]
    for name, given in {"outs": outs, "below": starts}.items():
        if given is not None and len(given) != len(seeds):
            raise ValueError(f"there are {len(seeds)} seeds and {len(given)} {name}")
    if len({len(policies) for policies in starts}) > 1:
        raise ValueError(f"every seed needs as many policies below, not {[len(policies) for policies in starts]}")
    count, first = len(envs), len(starts[0])
    for number, env in enumerate(envs, first):
        if not (isinstance(env, gymnasium.Env) or callable(env)):
            raise TypeError(f"the environment of level {number} is none, nor a function that makes one: {env!r}")
    if not callable(make_learner):
        raise TypeError(f"make_learner must be a function of a level and two sizes, got {make_learner!r}")
    each: Any = steps_per_level
    steps = [*each] if np.ndim(each) else [each] * count
    for number in steps:
        verify_least(1, steps_per_level=number)
    for seed in seeds:
        verify_seed(seed)
    if len(steps) != count:
        raise ValueError(f"steps_per_level must be one, or one for each of {count} levels, got {len(steps)}")
    embeds = [*embed] if isinstance(embed, Sequence) else [embed] * (first + count - 1)
    if len(embeds) != first + count - 1:
        raise ValueError(f"embed must be one, or one for each of {first + count - 1} levels, got {len(embeds)}")
    if not all(map(callable, embeds)):
        raise TypeError(f"embed must make a policy part of an environment, got {embed!r}")
    own_options: list[LearnOptions] = [{}] * count if of_level is None else [*of_level]
    if len(own_options) != count:
        raise ValueError(f"of_level must be one for each of {count} levels, got {len(own_options)}")
    with ExitStack() as held:
        for out in outs or ():
            held.enter_context(locked(Path(out) / ".lock"))
            if options.get("resume", True):
                _verify_levels(Path(out), first, steps)
        stacks = [[*policies] for policies in starts]  # of each seed, as they are before they are trained
        learners_of: list[list[Any]] = []
        for number, made in enumerate(envs, first):
            learners_of.append([])
            for seed, policies in zip(seeds, stacks, strict=True):
                with _stacked(made, embeds, policies) as env:
                    pyro.set_rng_seed(_own_seed(seed, number))
                    learner = make_learner(number, *_sizes(env, number))
                    if not hasattr(learner, "policy"):
                        raise TypeError(f"make_learner must return a learner that has a policy, got {learner!r}")
                    Body(env, learner.policy)  # refuses one that does not fit
                policies.append(learner.policy)
                learners_of[-1].append(learner)
        results = [StagewiseResult(policies, [], False) for policies in starts]
        for number, (made, learners) in enumerate(zip(envs, learners_of, strict=True), first):
            with ExitStack() as stack:
                bodies = [stack.enter_context(_stacked(made, embeds, result.policies)) for result in results]
                own_seeds = [_own_seed(seed, number) for seed in seeds]
                for learner, result in zip(learners, results, strict=True):
                    result.policies.append(learner.policy)
                evaluates = None if evaluate is None else [evaluate([*result.policies]) for result in results]
                folders = None if outs is None else [Path(out) / f"level-{number}" for out in outs]
                given = options | own_options[number - first] | {"steps": steps[number - first]}
                if not given.get("resume", True):
                    for folder in folders or ():
                        _give_up_above(folder)
                found = learn(batch(learners), bodies, seeds=own_seeds, outs=folders, evaluates=evaluates, **given)
            for learnt, result in zip(found, results, strict=True):
                result.results.append(learnt)
            if any(getattr(learnt, "interrupted", False) for learnt in found):
                return [result._replace(interrupted=True) for result in results]
        return results


def _verify_levels(out: Path, first: int, steps: list[int]) -> None:
    """Refuse a folder with more levels or steps than are asked for, and levels that are not done below another.

    A level that is trained further makes those worthless that were trained on its latents.
    """
    last, hint = first + len(steps) - 1, checkpoint.ANEW
    for number, wanted in enumerate(steps, first):
        own, above = (out / f"level-{n}" / "checkpoint.pt" for n in (number, number + 1))
        step = checkpoint.read(own)["step"] if own.exists() else 0
        if step > wanted:
            raise ValueError(f"{own} is at step {step}, beyond the {wanted} asked for; {hint}")
        if above.exists() and step < wanted:
            raise ValueError(f"{above} was trained on level {number} as it is at step {step}, not {wanted}; {hint}")
        if above.exists() and number == last:
            raise ValueError(f"{above} is of a level above the {last + 1} asked for; {hint}")


def _give_up_above(folder: Path) -> None:
    """Remove the checkpoints of levels above one that begins anew: they were trained on its latents as they were."""
    first = int(folder.name.removeprefix("level-"))
    for path in folder.parent.glob("level-*/checkpoint.pt"):
        number = path.parent.name.removeprefix("level-")
        if number.isdigit() and int(number) > first:
            path.unlink()


def _listed(below: Any) -> list[Any]:
    if not isinstance(below, Iterable):
        raise TypeError(f"below must be a list of policies, not a {type(below).__name__}")
    return [*below]


@contextmanager
def _stacked(made: Env | Callable[[], Env], embeds: Sequence[Embed], policies: Sequence[Any]) -> Iterator[Env]:
    """The environment of a level, in which the policies below are embedded; closed at the end if it was made here."""
    env: Any = made if isinstance(made, gymnasium.Env) else made()
    with nullcontext() if env is made else closing(env):
        for put, policy in zip(embeds, policies, strict=False):
            env = put(env, policy)
        yield env


def _own_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([int(seed), number]).generate_state(1)[0])


def _sizes(env: Env, number: int) -> tuple[int, int]:
    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"level {number} has no environment to act in, but {env!r}")
    sizes = []
    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise TypeError(f"level {number}: the {what} must be a Box of one row, got {space}")
        sizes.append(int(space.shape[0]))
    return sizes[0], sizes[1]
