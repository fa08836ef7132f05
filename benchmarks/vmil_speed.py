"""Remake results/vmil_speed.json: what world models and imagination cost as Pyro models, against bare loops.

    python benchmarks/vmil_speed.py                     # one minute on one idle core
    python benchmarks/vmil_speed.py --device cuda       # on a GPU

Both sides run in one process, round by round in turn, on equal networks and data. Each row ``ratio`` is one round,
processor seconds of the library over those of the loop (on a GPU: of the clock). `difference` is how far the two losses
are apart on equal noise in double precision, and `gradient_difference` how far the gradients are, relative to the
greatest one: a loop that computes something else would say nothing. The printed numbers are medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn import functional

import pyrocontrol as pc
from pyrocontrol.inference import row, write_results
from training_runs import command_line, verify_usable

HERE = Path(__file__).parent
OBSERVED, ACTIONS = 24, 6  # those of walker-walk
Loss = Callable[[], Tensor]


@dataclass
class Arguments:
    """Measure one forward and backward pass of each part."""

    rounds: int = 31
    """pairs of measurements"""
    sequences: int = 16
    """of a batch of the world model"""
    steps: int = 32
    """of each sequence"""
    starts: int = 256
    """states from which steps are imagined"""
    device: str = "cpu"
    """where to measure"""
    out: Path = HERE / "results" / "vmil_speed.json"
    """results file"""


@dataclass
class Part:
    """What is compared: two losses of the same parameters."""

    library: Loss
    bare: Loss
    parameters: list[nn.Parameter]


def world_model(arguments: Arguments) -> Part:
    """The ELBO of a recurrent state-space model of the paper's sizes, and a loop over its networks."""
    dynamics = pc.models.LatentDynamics(ACTIONS)
    world = pc.models.WorldModel(dynamics, pc.models.VectorDecoder(dynamics.feature_size, OBSERVED))
    guide = pc.guides.FilteringGuide(world, pc.models.VectorEncoder(OBSERVED), 200)
    world.to(arguments.device), guide.to(arguments.device)
    like = dynamics.inputs.weight
    x = like.new_empty(arguments.sequences, arguments.steps, OBSERVED).normal_()
    actions = like.new_empty(arguments.sequences, arguments.steps, ACTIONS).uniform_(-1, 1)
    elbo = pc.inference.StepwiseKL_ELBO(max_plate_nesting=1)

    def bare() -> Tensor:
        embeddings = guide.embedding_layer(guide.encoders["observations"](x))
        h, states = x.new_zeros(len(x), dynamics.memory_size), []
        for t in range(arguments.steps):
            outputs = guide.process.head(guide.process.memory_layer(h) + embeddings[:, t])
            mean, raw = outputs.chunk(2, -1)
            std = functional.softplus(raw) + dynamics.least_std
            z = mean + std * torch.normal(torch.zeros_like(mean), torch.ones_like(std))
            states.append((h, z, mean, std))
            h = dynamics.cell(functional.elu(dynamics.inputs(torch.cat([z, actions[:, t]], -1))), h)
        hs, zs, means, stds = (torch.stack(each, 1) for each in zip(*states, strict=True))
        prior_mean, prior_raw = dynamics.head(hs).chunk(2, -1)
        prior = dist.Normal(prior_mean, functional.softplus(prior_raw) + dynamics.least_std)
        decoder: Any = world.decoders["observations"]
        likelihood = dist.Normal(decoder.layers(torch.cat([hs, zs], -1)), 1.0).log_prob(x)
        return kl_divergence(dist.Normal(means, stds), prior).sum() - likelihood.sum()

    return Part(
        lambda: elbo.differentiable_loss(world.model, guide, x, actions),
        bare,
        [*world.parameters(), *guide.parameters()],
    )


def imagination(arguments: Arguments, kind: str, horizon: int) -> Part:
    """The ELBO of imagined steps and their optimality, and a loop over its networks."""
    dynamics = pc.models.LatentDynamics(ACTIONS) if kind == "latent" else pc.models.ObservedDynamics(OBSERVED, ACTIONS)
    size = dynamics.feature_size
    judge = nn.Sequential(nn.Linear(2 * size, 200), nn.SiLU(), nn.Linear(200, 1))
    value, policy = (
        pc.inference.Critics(size, 0, (200, 200)),
        pc.guides.GaussianPolicy(size, ACTIONS, hidden=(200, 200)),
    )
    for module in (dynamics, judge, value, policy):
        module.to(arguments.device).requires_grad_(module is policy)
    prior, alpha = pc.models.UniformPrior(ACTIONS), 0.3

    def evidence(before: Tensor, action: Tensor, after: Tensor) -> Tensor:
        return judge(torch.cat([before, after], -1)).squeeze(-1)

    optimality = pc.models.ImaginedOptimality(
        dynamics, evidence, value.minimum, prior=prior, horizon=horizon, alpha=alpha
    )
    like, rows = next(policy.parameters()), arguments.starts
    start = pc.models.Start(
        like.new_empty(rows, dynamics.memory_size).normal_(), like.new_empty(rows, *dynamics.event_shape).normal_()
    )
    elbo, guide = pc.inference.StepwiseKL_ELBO(max_plate_nesting=1), optimality.guide_of(policy)

    def bare() -> Tensor:
        (h, z), features, log_ratios = start, [dynamics.features(*start)], []
        for _ in range(horizon):
            action, log_prob = policy.draw(features[-1])
            h = dynamics.transition(h, z, action)
            following: Any = dynamics.prior(h)
            mean, std = following.base_dist.loc, following.base_dist.scale
            z = mean + std * torch.normal(torch.zeros_like(mean), torch.ones_like(std))
            features.append(dynamics.features(h, z))
            log_ratios.append(log_prob - prior.log_prob(action))
        passed = torch.stack(features, 1)
        total = evidence(passed[:, :-1], action, passed[:, 1:]).sum(1) + value.minimum(passed[:, -1])
        return -(total / alpha - torch.stack(log_ratios, 1).sum(1)).sum()

    return Part(lambda: elbo.differentiable_loss(optimality.model, guide, start), bare, [*policy.parameters()])


def differences(part: Part) -> tuple[float, float]:
    """Return how far loss and gradient of the two are apart on equal noise, relative to the greatest."""
    found = []
    for loss in (part.library, part.bare):
        torch.manual_seed(1)
        value = loss()
        gradients = torch.autograd.grad(value, part.parameters, allow_unused=True)
        found.append((value.detach(), torch.cat([g.flatten() for g in gradients if g is not None])))
    (mine, my_gradient), (theirs, their_gradient) = found
    apart = (my_gradient - their_gradient).abs().max() / their_gradient.abs().max()
    return float((mine - theirs).abs() / theirs.abs()), float(apart)


def seconds(loss: Loss, parameters: list[nn.Parameter], device: str) -> float:
    """Return what a forward and backward pass takes."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    for parameter in parameters:
        parameter.grad = None
    if device != "cpu":
        torch.cuda.synchronize()
    began = clock()
    loss().backward()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def main(arguments: Arguments) -> None:
    """Measure, write, print."""
    verify_usable(arguments.device)
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)
    makers: dict[str, Callable[[], Part]] = {"world model": partial(world_model, arguments)}
    for kind in ("latent", "observed"):
        for horizon in (3, 15):
            makers[f"imagination, {kind}, {horizon} steps"] = partial(imagination, arguments, kind, horizon)
    began, rows = time.perf_counter(), []

    def add(task: str, metric: str, value: float, **setting: Any) -> None:
        spent = time.perf_counter() - began
        rows.append(row("library", task, metric, value, seed=0, seconds=spent, device=arguments.device, **setting))

    for task, maker in makers.items():
        pyro.clear_param_store()
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        apart = differences(maker())
        torch.set_default_dtype(torch.float32)
        pyro.clear_param_store()
        part, ratios = maker(), []
        for number in range(arguments.rounds + 3):
            taken = [seconds(loss, part.parameters, arguments.device) for loss in (part.library, part.bare)]
            if number < 3:  # the first ones warm up
                continue
            ratios.append(taken[0] / taken[1])
            add(task, "ratio", ratios[-1], round=number - 3)
            for name, value in zip(("library", "loop"), taken, strict=True):
                add(task, "milliseconds", 1000 * value, round=number - 3, of=name)
        for metric, value in zip(("difference", "gradient_difference"), apart, strict=True):
            add(task, metric, value)
        print(f"{task}: {statistics.median(ratios):.2f} times a loop; apart {apart[0]:.1e}, gradient {apart[1]:.1e}")
    write_results(arguments.out, "vmil_speed", rows, command="python benchmarks/vmil_speed.py")


if __name__ == "__main__":
    main(tyro.cli(Arguments, args=command_line()))
