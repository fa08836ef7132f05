"""A world model of which all is known: a linear-Gaussian system, its exact posterior, and its evidence.

    z_0 ~ N(0, 1),  z_t = 0.9 z_{t-1} + 0.5 a_{t-1} + N(0, 0.3),  x_t = 2 z_t + N(0, 0.5)

(variances). Shapes: B sequences, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrocontrol.models import ActionDriven, Belief, Sequence, WorldModel, at_step

DECAY, PUSH, NOISE, SCALE, ERROR = 0.9, 0.5, 0.3, 2.0, 0.5


class Linear(ActionDriven):
    """The dynamics; the memory is the mean of the next state, and whether there was one before."""

    memory_size, latent_size, action_size = 2, 1, 1
    event_shape = torch.Size([1])

    def transition(self, memory: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """Return the mean of the next state, and 1."""
        return torch.cat([DECAY * z + PUSH * action, torch.ones_like(z)], -1)

    def prior(self, memory: Tensor) -> TorchDistribution:
        """Return p(z_t | z_{t-1}, a_{t-1})."""
        mean, later = memory.split(1, -1)
        return dist.Normal(mean, (1 + (NOISE - 1) * later).sqrt()).to_event(1)


class Seen(nn.Module):
    """p(x_t | z_t)."""

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return the distribution at features ``[..., 3]``."""
        mean = SCALE * features[..., -1:]
        return dist.Normal(mean, torch.full_like(mean, ERROR).sqrt()).to_event(1)


class Messages(NamedTuple):
    """What observations say of z_t, ``exp(shift z - precision z^2 / 2)``; each ``[B, T, 1]``."""

    actions: Tensor
    precision: Tensor
    shift: Tensor


class Posterior(ActionDriven):
    """q(z_t | z_{t-1}): the prior times the message of a step."""

    memory_size, latent_size, action_size = 2, 1, 1
    event_shape = torch.Size([1])

    def __init__(self, dynamics: Linear) -> None:
        super().__init__()
        self.dynamics = dynamics

    def transition(self, memory: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """Return the memory of the dynamics."""
        return self.dynamics.transition(memory, z, action)

    def conditional(self, state: Belief, context: Messages) -> TorchDistribution:
        """Return the product of two normals."""
        p: Any = self.dynamics.prior(state.memory)
        p = p.base_dist
        precision = p.scale**-2 + at_step(context.precision, state.step)
        mean = (p.loc * p.scale**-2 + at_step(context.shift, state.step)) / precision
        return dist.Normal(mean, precision.rsqrt()).to_event(1)


def messages(x: Tensor, actions: Tensor, ahead: bool) -> Messages:
    """Return what the observations at t, or with ``ahead`` those at t and later, say of z_t."""
    precision, shift = torch.empty_like(x), torch.empty_like(x)
    later_precision = later_shift = torch.zeros_like(x[:, 0])
    for t in reversed(range(x.shape[1])):
        precision[:, t] = SCALE**2 / ERROR + later_precision
        shift[:, t] = SCALE * x[:, t] / ERROR + later_shift
        if ahead and t:  # integrate the transition to z_t times the message of z_t
            weight = 1 / (1 + NOISE * precision[:, t])
            later_precision = DECAY**2 * weight * precision[:, t]
            later_shift = DECAY * weight * (shift[:, t] - precision[:, t] * PUSH * actions[:, t - 1])
    return Messages(actions, precision, shift)


def evidence(x: Tensor, actions: Tensor) -> float:
    """Return log p(x | a) by the Kalman filter, nats, summed over the rows."""
    mean, variance, total = torch.zeros_like(x[:, 0]), torch.ones_like(x[:, 0]), 0.0
    for t in range(x.shape[1]):
        seen = SCALE**2 * variance + ERROR
        total += float(dist.Normal(SCALE * mean, seen.sqrt()).log_prob(x[:, t]).sum())
        gain = SCALE * variance / seen
        mean, variance = mean + gain * (x[:, t] - SCALE * mean), variance * (1 - SCALE * gain)
        mean, variance = DECAY * mean + PUSH * actions[:, t], DECAY**2 * variance + NOISE
    return total


def system(ahead: bool, analytic: bool = True) -> tuple[WorldModel, Callable[[Tensor, Tensor], None]]:
    """Return the world model and a guide: the exact posterior, which looks ahead, or the one that filters."""
    world = WorldModel(Linear(), Seen())
    posterior = Posterior(world.dynamics)  # type: ignore[arg-type]
    infer: Any = {"analytic_kl": analytic}

    def guide(x: Tensor, actions: Tensor) -> None:
        with pyro.plate("batch", len(x), dim=-1):
            path = Sequence(posterior, messages(x, actions, ahead), x.shape[1])
            pyro.sample("latents", path, infer=infer)

    return world, guide


def data(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return observations and actions ``[B, T, 1]`` of the system."""
    actions, z, seen = torch.randn(rows, steps, 1), torch.randn(rows, 1), []
    for t in range(steps):
        seen.append(SCALE * z + ERROR**0.5 * torch.randn(rows, 1))
        z = DECAY * z + PUSH * actions[:, t] + NOISE**0.5 * torch.randn(rows, 1)
    return torch.stack(seen, 1), actions
