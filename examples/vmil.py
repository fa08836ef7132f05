"""Imitation from a few demonstrations and a simulator, without a reward: a world model, and a policy inferred in it.

After R. Rafailov, T. Yu, A. Rajeswaran and C. Finn, "Variational Model-Based Imitation Learning in High-Dimensional
Observation Spaces" (2021): one ELBO of a latent POMDP, whose latents are inferred of what was seen; a discriminator for
the evidence of optimality; a policy that is inferred in imagined steps. Beside it what it is compared with: the same
with dynamics over observed vectors, and without a model DAC, SQIL (of pixels with DrQ) and cloning.

    python examples/vmil.py --task walker-walk --out out/walker                      # from vectors, a latent model
    python examples/vmil.py --task walker-walk --method observed --out out/observed  # the fast way from vectors
    python examples/vmil.py --task cartpole-swingup --observations pixels --size small --out out/pixels
    python examples/vmil.py --task walker-walk --method dac --out out/dac

The demonstrations are those of a planner on the true simulator, made once and kept. The run writes OUT/result.json:
`return` at every evaluation and `training_return` of every episode learnt from, both by actions that the policy draws;
`expert` beside them; of the test at the end `test_return` and, where the task says so, `test_success` of each episode,
and by the likeliest actions `test_return_of_mode` and `test_success_of_mode`;
`foreseen`, the error of open-loop prediction, and `foreseen_by_copying`, that of the last observation. It also writes
OUT/learning_curve.png, OUT/foreseen.png or, from pixels, OUT/foreseen.gif (real above imagined), OUT/policy.pt,
OUT/checkpoint.pt and OUT/tensorboard. Started again, it goes on from its checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import pyro
import torch
import tyro

import pyrocontrol as pc
from plots import plot_curves
from pyrocontrol.envs.experts import EXPERTS, demonstrations
from pyrocontrol.guides import BeliefPolicy
from pyrocontrol.models.policies.level import from_box

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
    """one of walker-walk, cheetah-run, cartpole-swingup, reacher-easy, baoding, sawyer-peg (vectors alone)"""
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
    """environment steps; one has two frames on DM Control"""
    start: int = 1_000
    """environment steps before the first update"""
    batch: int = 12
    """sequences of the replay in a batch, of vmil and observed; four demonstrated ones are added to twelve"""
    updates_per_step: float = 1.0
    """updates of everything an environment step"""
    judged: Literal["observations", "features"] | None = None
    """what the discriminator reads; by default vectors as observed or decoded, of pixels the features"""
    judge: Literal["discriminator", "penalty", "density"] = "discriminator"
    """the evidence of optimality: a discriminator; one with a gradient penalty of 5, not spectral normalisation; or
    coupled random networks, which need no adversary"""
    evaluate_every: int = 2_500
    """environment steps between evaluations"""
    episodes: int = 10
    """episodes of each evaluation"""
    tests: int = 50
    """episodes of the test at the end"""
    seed: int = 0
    """of the initial weights, the episodes and all noise; demonstrations are the same for all seeds"""
    device: str = "cpu"
    """where to learn"""
    data: Path | None = None
    """folder of the demonstrations of all tasks, which several runs may share; by default OUT/demonstrations"""
    out: Path = Path("out/vmil")
    """folder for results; a run that was stopped goes on from its checkpoint"""


def main(arguments: Arguments) -> None:
    """Learn, evaluate, draw."""
    check(arguments)
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)
    data = arguments.data or arguments.out / "demonstrations"
    shown = demonstrations(
        arguments.task, arguments.demos, folder=data / arguments.task, observations=arguments.observations
    )
    env = environment(arguments)
    torch.manual_seed(arguments.seed)
    curve: list[tuple[int, dict[str, float]]]
    trained: list[tuple[int, float]] = []
    if arguments.method == "bc":
        policy, curve, seconds = cloned(arguments, shown, env)
    else:
        learner = learner_of(arguments, shown, env)
        policy = learner.policy
        evaluate = pc.inference.evaluation(
            policy,
            lambda: environment(arguments),
            episodes=arguments.episodes,
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
        curve, trained, seconds = result.evaluations, result.returns, result.seconds
    policy.save(arguments.out / "policy.pt")
    found: dict[str, list[float]] = {}
    for suffix, deterministic in {"": False, "_of_mode": True}.items():
        torch.manual_seed(EVALUATION_SEED)
        test = pc.envs.evaluate_policy(
            environment(arguments), policy, arguments.tests, seed=2 * EVALUATION_SEED, deterministic=deterministic
        )
        found |= {f"test_{name}{suffix}": test[name] for name in ("return", "success") if name in test}
    write(arguments, shown, policy, curve, trained, found, seconds, getattr(env.unwrapped, "action_repeat", 1))


def check(arguments: Arguments) -> None:
    """Refuse what does not go together, before anything is made."""
    if arguments.task not in EXPERTS:
        raise SystemExit(f"--task must be one of {', '.join(EXPERTS)}, not {arguments.task}")
    if arguments.observations not in EXPERTS[arguments.task].observations:
        raise SystemExit(f"{arguments.task} has no {arguments.observations}")
    if arguments.observations == "pixels" and arguments.method in ("observed", "dac"):
        raise SystemExit(f"--method {arguments.method} takes vectors, not pixels")


def model_based(arguments: Arguments) -> bool:
    """Whether a world model is learnt."""
    return arguments.method in ("vmil", "observed")


def environment(arguments: Arguments) -> gymnasium.Env[Any, Any]:
    """Return the task."""
    env: gymnasium.Env[Any, Any] = EXPERTS[arguments.task].make(arguments.observations)
    return env


def learner_of(arguments: Arguments, shown: pc.envs.Demonstrations, env: gymnasium.Env[Any, Any]) -> Any:
    """Return the learner of a method."""
    memory, latents, hidden, depth = SIZES[arguments.size]
    seen: Any = env.observation_space
    acted: Any = env.action_space
    if arguments.method == "sqil" and arguments.observations == "pixels":
        layers = (1024, 1024) if arguments.size == "paper" else (hidden, hidden)
        image_policy = pc.guides.ImagePolicy(seen, acted, depth=depth, hidden=layers)
        return pc.inference.SQILDrQ(image_policy, shown, lr=1e-3, hidden=layers)
    if arguments.method in ("dac", "sqil"):
        policy = pc.guides.GaussianPolicy(seen.shape[0], acted.shape[0], hidden=(hidden, hidden))
        if arguments.method == "sqil":
            return pc.inference.SQIL(policy, shown, lr=5e-4, hidden=(hidden, hidden))
        judge = judge_of(arguments)(2 * seen.shape[0])
        return pc.inference.DAC(policy, shown, evidence=judge, lr=5e-4, hidden=(hidden, hidden))
    if arguments.method == "observed":
        belief = BeliefPolicy.observed(seen, acted, hidden=(hidden, hidden))
    else:
        belief = BeliefPolicy.latent(seen, acted, memory_size=memory, latent_size=latents, hidden=hidden, depth=depth)
    return pc.inference.VMIL(belief, shown, judge_of(arguments), judged=arguments.judged, hidden=(hidden, hidden))


def judge_of(arguments: Arguments) -> Any:
    """Return what makes the evidence of its number of inputs."""
    if arguments.judge == "density":
        return pc.inference.CoupledRandomNetworks
    if arguments.judge == "penalty":
        return partial(pc.inference.Discriminator, spectral_norm=False, gradient_penalty=5.0)
    return pc.inference.Discriminator


def cloned(
    arguments: Arguments, shown: pc.envs.Demonstrations, env: gymnasium.Env[Any, Any]
) -> tuple[Any, list[tuple[int, dict[str, float]]], float]:
    """Clone the demonstrations; return the policy, one evaluation, and the seconds that it took."""
    policy = pc.models.ReactivePolicy(env.observation_space, env.action_space, hidden=(SIZES[arguments.size][2],) * 2)
    policy.normalize(shown)
    guide: Any = policy.guide
    loss = pyro.infer.Trace_ELBO()(policy, guide)
    result = pc.inference.fit(
        (loss, torch.optim.Adam(loss.parameters(), lr=1e-3)),
        shown.transitions(),
        steps=1 if arguments.size == "debug" else 5_000,
        batch_size=128,
        seed=arguments.seed,
        out=arguments.out,
        device=arguments.device,
    )
    found = pc.envs.evaluate_policy(env, policy, arguments.episodes, seed=EVALUATION_SEED, deterministic=False)
    return policy, [(0, {"return": float(np.mean(found["return"]))})], result.seconds


def foreseen(policy: Any, shown: pc.envs.Demonstrations) -> tuple[dict[int, tuple[float, float]], Any, Any]:
    """Let a world model predict the demonstrations, given the first observations of a part and all actions.

    Returns:
        The mean squared error of what is predicted so many steps ahead, and of the last observation that was given in
        its place, in the units of the world model; what was real ``[B, T, ...]``, and what was predicted
        ``[B, T - SEEN, ...]``.
    """
    ahead = [count for count in AHEAD if SEEN + count <= shown.lengths[0]]
    steps = SEEN + max(ahead, default=1)
    starts = range(0, int(shown.lengths[0]) - steps + 1, steps)
    parts = torch.stack([shown.observations[0, t : t + steps] for t in starts])
    actions = torch.stack([shown.actions[0, t : t + steps] for t in starts])
    normalised = torch.as_tensor(from_box(actions.numpy(), policy.action_space), dtype=torch.float32)
    policy = policy.cpu()
    real = policy.readings(policy.readings.unflatten(parts))
    found = policy.foresee(policy.readings.unflatten(parts), normalised, SEEN)
    if isinstance(real, dict):  # of several observations, the first
        real, found = next(iter(real.values())), next(iter(found.values()))
    errors = {}
    for count in ahead:
        at = real[:, SEEN + count - 1]
        model, copied = ((what - at).square().mean() for what in (found[:, count - 1], real[:, SEEN - 1]))
        errors[count] = float(model), float(copied)
    return errors, real, found


def write(
    arguments: Arguments,
    shown: pc.envs.Demonstrations,
    policy: Any,
    curve: list[tuple[int, dict[str, float]]],
    trained: list[tuple[int, float]],
    found: dict[str, list[float]],
    seconds: float,
    repeat: int,
) -> None:
    """Write the results and the pictures; a step has ``repeat`` frames."""
    assert shown.rewards is not None
    expert = float(shown.rewards.sum(1).mean())
    setting = {name: getattr(arguments, name) for name in ("observations", "demos", "size", "judge")}
    common = {"seed": arguments.seed, "seconds": seconds, **setting}
    row = pc.inference.row
    rows = [row(arguments.method, arguments.task, "expert", expert, **common)]
    for step, values in curve:
        rows.append(row(arguments.method, arguments.task, "return", values["return"], frames=repeat * step, **common))
    for step, value in trained:
        rows.append(row(arguments.method, arguments.task, "training_return", value, frames=repeat * step, **common))
    for metric, each in found.items():
        rows += [
            row(arguments.method, arguments.task, metric, value, episode=n, **common) for n, value in enumerate(each)
        ]
    if model_based(arguments):
        errors, real, imagined = foreseen(policy, shown)
        for ahead, (model, copied) in errors.items():
            rows.append(row(arguments.method, arguments.task, "foreseen", model, ahead=ahead, **common))
            rows.append(row(arguments.method, arguments.task, "foreseen_by_copying", copied, ahead=ahead, **common))
        picture(arguments, policy, real, imagined)
    pc.inference.write_results(arguments.out / "result.json", "vmil", rows)
    points = {"evaluated": [(repeat * step, values["return"]) for step, values in curve]}
    points |= {"in training": [(repeat * step, value) for step, value in trained]} if trained else {}
    print(f"return {points['evaluated'][-1][1]:.0f}, the expert's {expert:.0f}")
    plot_curves(
        arguments.out / "learning_curve.png",
        {"return": points},
        {"return": {"the expert": expert}},
        along="frame",
        log=False,
    )


def picture(arguments: Arguments, policy: Any, real: torch.Tensor, found: torch.Tensor) -> None:
    """Draw what was real beside what was imagined: of pixels a film, of vectors four numbers over time."""
    if arguments.observations == "pixels":
        imagined = torch.cat([real[0, :SEEN], found[0]])
        frames = np.concatenate([policy.readings.picture(each) for each in (real[0], imagined)], 1)
        pc.envs.save_video(arguments.out / "foreseen.gif", frames.repeat(3, 1).repeat(3, 2), fps=20)
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 5), sharex=True, layout="constrained")
    for number, place in enumerate(real[0].std(0).argsort(descending=True)[:4].tolist()):
        axis = axes.flat[number]
        axis.plot(real[0, :, place], color="0.5", label="real")
        axis.plot(range(SEEN, real.shape[1]), found[0, :, place], label="imagined")
        axis.axvline(SEEN - 1, color="0.8", linewidth=1)
        axis.set_title(f"number {place} of the observation", loc="left", fontsize=10)
    axes[0, 0].legend()
    figure.supxlabel(f"environment steps; the first {SEEN} observations are given")
    figure.savefig(arguments.out / "foreseen.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
