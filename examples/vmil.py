"""Imitation from a few demonstrations and a simulator, without a reward: a world model, and a policy inferred in it.

After R. Rafailov, T. Yu, A. Rajeswaran and C. Finn, "Variational Model-Based Imitation Learning in High-Dimensional
Observation Spaces" (2021): one ELBO of a latent POMDP, whose latents are inferred of what was seen; a discriminator for
the evidence of optimality; a policy that is inferred in imagined steps. Beside it what it is compared with: the same
with dynamics over observed vectors, and without a model DAC, SQIL (of pixels with DrQ) and cloning.

    python examples/vmil.py --task walker-walk --out out/walker                      # from vectors, a latent model
    python examples/vmil.py --task walker-walk --method observed --out out/observed  # the fast way from vectors
    python examples/vmil.py --task cartpole-swingup --observations pixels --size small --out out/pixels
    python examples/vmil.py --task walker-walk --method dac --out out/dac

The demonstrations are those of a planner on the true simulator, made once and kept in DATA. The run writes
OUT/result.json (`return` and, where the task has one, `success` at every evaluation, `expert` beside them; `foreseen`,
the error of open-loop prediction), OUT/learning_curve.png, OUT/foreseen.png or, from pixels, OUT/foreseen.gif (real
above imagined), OUT/policy.pt, OUT/checkpoint.pt and OUT/tensorboard. Started again, it goes on from its checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import pyro
import torch
import tyro

import pyrocontrol as pc
from plots import plot_curves
from pyrocontrol.envs.experts import demonstrations
from pyrocontrol.guides import BeliefPolicy

# By size: of memory, latents and hidden layers, and the channels of the first convolution.
SIZES = {"debug": (8, 4, 16, 2), "small": (100, 20, 100, 8), "paper": (200, 30, 200, 32)}
# Steps that open-loop prediction is given, and after which its error is measured.
SEEN, AHEAD = 5, (15, 45)
EVALUATION_SEED = 10_000
CHECKPOINT_EVERY = 5_000  # environment steps


@dataclass
class Arguments:
    """Imitate demonstrations."""

    task: str = "walker-walk"
    """one of walker-walk, cheetah-run, cartpole-swingup, reacher-easy"""
    observations: Literal["vectors", "pixels"] = "vectors"
    """what is observed"""
    demos: int = 1
    """number of demonstrations"""
    method: Literal["vmil", "observed", "dac", "sqil", "bc"] = "vmil"
    """vmil: latent dynamics; observed: dynamics over observed vectors; without a model: dac, sqil (of pixels with DrQ),
    bc"""
    size: Literal["debug", "small", "paper"] = "paper"
    """of the networks"""
    steps: int = 30_000
    """environment steps, of two frames each"""
    start: int = 1_000
    """environment steps before the first update"""
    batch: int = 12
    """sequences of the replay in a batch, of vmil and observed; four demonstrated ones are added to twelve"""
    updates_per_step: float = 1.0
    """updates of everything an environment step"""
    judged: Literal["observations", "features"] | None = None
    """what the discriminator reads; by default vectors as observed or decoded, of pixels the features"""
    judge: Literal["discriminator", "density"] = "discriminator"
    """the evidence of optimality: a discriminator, or coupled random networks, which need no adversary"""
    evaluate_every: int = 2_500
    """environment steps between evaluations"""
    episodes: int = 10
    """episodes of each evaluation"""
    seed: int = 0
    """of the initial weights, the episodes and all noise; demonstrations are the same for all seeds"""
    device: str = "cpu"
    """where to learn"""
    data: Path = Path("out/demonstrations")
    """folder of the demonstrations"""
    out: Path = Path("out/vmil")
    """folder for results; a run that was stopped goes on from its checkpoint"""


def main(arguments: Arguments) -> None:
    """Learn, evaluate, draw."""
    check(arguments)
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)
    shown = demonstrations(
        arguments.task, arguments.demos, folder=arguments.data / arguments.task, observations=arguments.observations
    )
    env = environment(arguments)
    torch.manual_seed(arguments.seed)
    curve: list[tuple[int, dict[str, float]]]
    if arguments.method == "bc":
        policy, curve, seconds = cloned(arguments, shown, env)
    else:
        learner = learner_of(arguments, shown, env)
        policy = learner.policy
        evaluate = pc.inference.evaluation(
            policy,
            lambda: environment(arguments),
            episodes=arguments.episodes,
            deterministic=True,
            seed=EVALUATION_SEED,
        )
        result = pc.inference.learn(
            learner,
            env,
            seed=arguments.seed,
            steps=arguments.steps,
            start=arguments.start,
            batch_size=arguments.batch if model_based(arguments) else 256,
            replay=200_000,
            updates_per_step=arguments.updates_per_step,
            evaluate=evaluate,
            evaluate_every=arguments.evaluate_every,
            checkpoint_every=CHECKPOINT_EVERY,
            device=arguments.device,
            out=arguments.out,
        )
        if result.interrupted:
            return
        curve, seconds = result.evaluations, result.seconds
    policy.save(arguments.out / "policy.pt")
    write(arguments, shown, policy, curve, seconds)


def check(arguments: Arguments) -> None:
    """Refuse what does not go together, before anything is made."""
    if arguments.task not in pc.envs.dm_control.TASKS:
        raise SystemExit(f"--task must be one of {', '.join(pc.envs.dm_control.TASKS)}, not {arguments.task}")
    if arguments.observations == "pixels" and arguments.method in ("observed", "dac"):
        raise SystemExit(f"--method {arguments.method} takes vectors, not pixels")


def model_based(arguments: Arguments) -> bool:
    """Whether a world model is learnt."""
    return arguments.method in ("vmil", "observed")


def environment(arguments: Arguments) -> gymnasium.Env[Any, Any]:
    """Return the task."""
    return pc.envs.DMControl(arguments.task, arguments.observations)


def learner_of(arguments: Arguments, shown: pc.envs.Demonstrations, env: gymnasium.Env[Any, Any]) -> Any:
    """Return the learner of a method."""
    memory, latents, hidden, depth = SIZES[arguments.size]
    spaces = env.observation_space, env.action_space
    if arguments.method == "observed":
        return pc.inference.VMIL(BeliefPolicy.observed(*spaces, hidden=(hidden, hidden)), shown, evidence(arguments, 2 * spaces[0].shape[0]))
    if arguments.method == "vmil":
        policy = BeliefPolicy.latent(*spaces, memory_size=memory, latent_size=latents, hidden=hidden, depth=depth)
        features = arguments.judged == "features" or arguments.observations == "pixels"
        size = policy.world.dynamics.feature_size if features else spaces[0].shape[0]
        return pc.inference.VMIL(policy, shown, evidence(arguments, 2 * size), judged=arguments.judged)
    if arguments.method == "dac":
        policy = pc.guides.GaussianPolicy(spaces[0].shape[0], spaces[1].shape[0], hidden=(hidden, hidden))
        return pc.inference.DAC(policy, shown)
    raise NotImplementedError(arguments.method)
