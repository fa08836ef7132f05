"""Latent dynamics driven by actions: the generative part of a POMDP, its latents inferred or seen.

An :class:`ActionDriven` process carries a memory ``h_t`` of what came before step t:

    h_{t+1} = f(h_t, z_t, a_t),    z_t ~ p(z_t | h_t).

:class:`LatentDynamics` is the recurrent state-space model, whose latents a guide infers; :class:`ObservedDynamics` has
the observations for latents. A :class:`WorldModel` is a process and the decoders of what is observed.

Shapes: ``...`` a batch of any shape, B sequences, T steps, D memory, Z latent numbers, A action numbers, O observation
numbers, F = D + Z numbers of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .._saved import Saved
from .._verify import verify_least, verify_positive
from .process import Emission, Process, Sequence, at_step, same_tensors
from .registration import register

__all__ = ["ActionDriven", "Belief", "Driven", "LatentDynamics", "ObservedDynamics", "VectorDecoder", "WorldModel"]


class Driven(NamedTuple):
    """The context of a process driven by actions.

    Attributes:
        actions: ``[B, T, A]``; ``a_t`` leads from ``z_t`` to ``z_{t+1}``, and the last one nowhere.
    """

    actions: Tensor


class Belief(NamedTuple):
    """What is known before step t.

    Attributes:
        memory: ``h_t`` ``[..., D]``.
        step: t, long ``[...]``.
    """

    memory: Tensor
    step: Tensor


class ActionDriven(Process):
    """A process whose memory is moved by its own steps and by given actions.

    A subclass has :meth:`transition` and :meth:`prior`. What infers the latents shares the memory: a posterior over the
    same values whose ``dynamics`` is this process has the same states, so that one unrolling serves both.

    Attributes:
        memory_size: D.
        latent_size: Z, the numbers of ``z_t`` in one row.
        feature_size: F, what policies, critics and decoders read.
        action_size: A.
    """

    has_rsample = True
    memory_size: int
    latent_size: int
    action_size: int

    @property
    def feature_size(self) -> int:
        """F."""
        return self.memory_size + self.latent_size

    def transition(self, memory: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """Return ``h_{t+1} = f(h_t, z_t, a_t)`` ``[..., D]``."""
        raise NotImplementedError

    def prior(self, memory: Tensor) -> TorchDistribution:
        """Return ``p(z_t | h_t)``, batch shape ``[...]``."""
        raise NotImplementedError

    def features(self, memory: Tensor, z: Tensor) -> Tensor:
        """Return what is read of a state ``(h_t, z_t)``, ``[..., F]``."""
        return torch.cat([memory, self.flat(z)], -1)

    def flat(self, z: Tensor) -> Tensor:
        """Return latents ``[..., *event_shape]`` in one row, ``[..., Z]``."""
        return z.flatten(-len(self.event_shape))

    def shaped(self, z: Tensor) -> Tensor:
        """Return latents ``[..., Z]`` in their own shape ``[..., *event_shape]``."""
        return z.unflatten(-1, self.event_shape)

    def initial(self, context: Any) -> Belief:
        """Return a memory of zeros."""
        rows = context.actions.new_zeros(len(context.actions), self.memory_size)
        return Belief(rows, torch.zeros(len(rows), dtype=torch.long, device=rows.device))

    def conditional(self, state: Belief, context: Any) -> TorchDistribution:
        """Return ``p(z_t | h_t)``."""
        return self.prior(state.memory)

    def advance(self, state: Belief, z: Tensor, context: Any) -> Belief:
        """Return the memory after ``z_t`` and ``a_t``."""
        action = at_step(context.actions, state.step)
        return Belief(self.transition(state.memory, z, action), state.step + 1)

    def same_states(self, other: Process, context: Any, theirs: Any) -> bool:
        """Whether ``other`` is this process, or a posterior over its latents, driven by the same actions."""
        return _dynamics(self) is _dynamics(other) and same_tensors(context.actions, theirs.actions)


def _dynamics(process: Process) -> Any:
    return getattr(process, "dynamics", process)


class LatentDynamics(ActionDriven):
    """The recurrent state-space model: a GRU remembers, and latents are drawn from what it remembers.

        x = elu(W [z_t, a_t]),  h_{t+1} = GRU(x, h_t),  z_t ~ N(mu(h_t), (softplus(s(h_t)) + least)^2),

    or, with ``classes``, Z / classes one-hot vectors, with straight-through gradients, which are biased (D. Hafner et
    al., "Learning Latent Dynamics for Planning from Pixels", 2019, eq. (4), and "Mastering Atari with Discrete World
    Models", 2021). It is p(z_{t+1} | z_t, a_t) of eq. (1) in R. Rafailov et al. (2021), whose z_t is (h_t, z_t) here.

    Args:
        action_size: A.
        memory_size: D.
        latent_size: Z of normal latents; the number of one-hot vectors, with ``classes``.
        hidden: units of every hidden layer.
        classes: of each one-hot vector; None for normal latents.
        least_std: of normal latents.

    Raises:
        ValueError: for sizes or a standard deviation that are not positive, or fewer than 2 classes.

    Example:
        >>> dynamics = LatentDynamics(action_size=2, memory_size=8, latent_size=3, hidden=8)
        >>> Sequence(dynamics, Driven(torch.zeros(5, 10, 2)), 10).rsample().shape
        torch.Size([5, 10, 3])
    """

    def __init__(
        self,
        action_size: int,
        *,
        memory_size: int = 200,
        latent_size: int = 30,
        hidden: int = 200,
        classes: int | None = None,
        least_std: float = 0.1,
    ):
        super().__init__()
        verify_least(1, action_size=action_size, memory_size=memory_size, latent_size=latent_size, hidden=hidden)
        verify_positive(least_std=least_std)
        if classes is not None:
            verify_least(2, classes=classes)
        self.action_size, self.memory_size, self.hidden = action_size, memory_size, hidden
        self.classes, self.least_std = classes, least_std
        self.event_shape = torch.Size([latent_size] if classes is None else [latent_size, classes])
        self.latent_size = self.event_shape.numel()
        self.inputs = nn.Linear(self.latent_size + action_size, hidden)
        self.cell = nn.GRUCell(hidden, memory_size)
        self.head = nn.Sequential(
            nn.Linear(memory_size, hidden), nn.ELU(), nn.Linear(hidden, latent_outputs(self.event_shape))
        )

    def transition(self, memory: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """Return the GRU's next state."""
        inputs = F.elu(self.inputs(torch.cat([self.flat(z), action], -1)))
        return self.cell(inputs.flatten(0, -2), memory.flatten(0, -2)).reshape(memory.shape)

    def prior(self, memory: Tensor) -> TorchDistribution:
        """Return ``p(z_t | h_t)``."""
        return latents_of(self.head(memory), self.event_shape, self.least_std)


def latent_outputs(event_shape: torch.Size) -> int:
    """Return how many numbers :func:`latents_of` takes."""
    return 2 * event_shape[0] if len(event_shape) == 1 else event_shape.numel()


def latents_of(outputs: Tensor, event_shape: torch.Size, least_std: float) -> TorchDistribution:
    """Return a distribution of latents, batch shape ``[...]``, by a network's outputs ``[..., latent_outputs]``.

    Args:
        outputs: of the network.
        event_shape: ``(Z,)`` of normal latents, ``(groups, classes)`` of one-hot ones, 1% of which is uniform.
        least_std: of normal latents.
    """
    if len(event_shape) == 1:
        mean, std = outputs.chunk(2, -1)
        return dist.Normal(mean, F.softplus(std) + least_std).to_event(1)
    probs = outputs.unflatten(-1, event_shape).softmax(-1)
    return dist.OneHotCategoricalStraightThrough(probs=0.99 * probs + 0.01 / event_shape[-1]).to_event(1)


class ObservedDynamics(ActionDriven):
    """An MDP: the latents are the observations, and what moves them is an ensemble of networks.

        h_{t+1} = (x_t, a_t),    x_t ~ N(x_{t-1} + mu_k(h_t), sigma_k(h_t)^2),    x_0 ~ N(0, I),

    with ``k = b mod K`` for row b of a batch: in training each member learns from its own share of the rows, and a
    policy imagined over many rows meets all of them (the ensembles of K. Chua et al., "Deep Reinforcement Learning in a
    Handful of Trials", 2018). Give observations of about unit scale.

    Args:
        observation_size: O, which is Z.
        action_size: A.
        hidden: sizes of the hidden layers, with SiLU.
        members: K.
        least_std: bounds of sigma.
        most_std: as before.

    Raises:
        ValueError: for sizes that are not positive, or bounds of which the first is not below the second.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        hidden: tuple[int, ...] = (256, 256),
        members: int = 4,
        least_std: float = 0.01,
        most_std: float = 1.0,
    ):
        super().__init__()
        verify_least(1, observation_size=observation_size, action_size=action_size, members=members, layers=len(hidden))
        verify_positive(least_std=least_std)
        if not least_std < most_std:
            raise ValueError(f"least_std must be below most_std, got {least_std} and {most_std}")
        self.action_size, self.latent_size, self.members = action_size, observation_size, members
        self.hidden, self.bounds = tuple(hidden), (math.log(least_std), math.log(most_std))
        self.memory_size = observation_size + action_size
        self.event_shape = torch.Size([observation_size])
        sizes = [self.memory_size, *hidden, 2 * observation_size]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in zip(sizes, sizes[1:], strict=False):
            bound = 1 / math.sqrt(inputs)  # nn.Linear's
            self.weights.append(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
            self.biases.append(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    @property
    def feature_size(self) -> int:
        """O: nothing else is to be known of a state."""
        return self.latent_size

    def features(self, memory: Tensor, z: Tensor) -> Tensor:
        """Return the observation."""
        return z

    def transition(self, memory: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """Return ``(x_t, a_t)``."""
        return torch.cat([z, action], -1)

    def prior(self, memory: Tensor) -> TorchDistribution:
        """Return ``p(x_t | x_{t-1}, a_{t-1})`` by the member of each row."""
        mean, log_std = self._outputs(memory).chunk(2, -1)
        low, high = self.bounds
        std = (low + (high - low) * log_std.sigmoid()).exp()
        return dist.Normal(memory[..., : self.latent_size] + mean, std).to_event(1)

    def _outputs(self, memory: Tensor) -> Tensor:
        """The last layer of each row's member, ``[B, ..., 2 O]``: rows are dealt out in turn."""
        rows, rest = len(memory), memory.shape[1:-1]
        padded = -rows % self.members
        hidden = F.pad(memory.reshape(rows, -1, self.memory_size), (0, 0, 0, 0, 0, padded))
        inner = hidden.shape[1]
        hidden = hidden.unflatten(0, (-1, self.members)).transpose(0, 1).flatten(1, 2)  # [K, B / K * inner, D]
        layers: list[tuple[Tensor, Tensor]] = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            hidden = F.silu(torch.baddbmm(bias, hidden, weight))
        hidden = torch.baddbmm(layers[-1][1], hidden, layers[-1][0])
        outputs = hidden.unflatten(1, (-1, inner)).transpose(0, 1).flatten(0, 1)[:rows]
        return outputs.reshape(rows, *rest, -1)

    def conditional(self, state: Belief, context: Any) -> TorchDistribution:
        """Return ``p(x_t | x_{t-1}, a_{t-1})``, and a standard normal at the first step."""
        later = self.prior(state.memory).base_dist
        first = (state.step == 0).unsqueeze(-1)
        return dist.Normal(later.loc.masked_fill(first, 0.0), later.scale.masked_fill(first, 1.0)).to_event(1)

    def unroll(self, z: Tensor, context: Any) -> tuple[Belief, Tensor]:
        """Return all states at once: they are the observations and actions, a step later."""
        rows, steps = z.shape[:2]
        before = self.transition(z, z, context.actions[:, :steps])[:, :-1]
        memory = F.pad(before, (0, 0, 1, 0))
        step = torch.arange(steps, device=z.device).expand(rows, steps)
        return Belief(memory, step), torch.ones_like(step, dtype=torch.bool)


class VectorDecoder(Saved, nn.Module):
    """p(x_t | h_t, z_t) of vectors: a normal of unit variance around a network's output.

    Args:
        inputs: F.
        size: O.
        hidden: units of the two hidden layers, with ELU.
    """

    def __init__(self, inputs: int, size: int, hidden: int = 200):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, size)
        )

    def forward(self, features: Tensor) -> TorchDistribution:
        """Return the distribution at features ``[..., F]``, batch shape ``[...]``."""
        mean = self.mean(features)
        return dist.Normal(mean, torch.ones_like(mean)).to_event(1)

    def mean(self, features: Tensor) -> Tensor:
        """Return the vectors ``[..., O]`` at features ``[..., F]``."""
        return self.layers(features)


class WorldModel(Saved, nn.Module):
    """The Pyro model of what is observed: latents driven by actions, and decoders of every observation.

        z_t ~ p(z_t | h_t),    x_t ~ p(x_t | h_t, z_t).

    With a :class:`~pyrocontrol.guides.FilteringGuide` its ELBO is the second sum of eq. (1) in R. Rafailov et al.,
    "Variational Model-Based Imitation Learning" (2021), the model's objective. Without a decoder the latents are what
    is observed, and the guide is empty.

    Args:
        dynamics: such as :class:`LatentDynamics`.
        decoder: from features to a distribution of observations, batch shape ``[B, T]``; or one for each of several
            observations, by name; None where the latents are observed.

    Raises:
        TypeError: for dynamics of another kind.

    Example:
        >>> dynamics = LatentDynamics(action_size=2, memory_size=8, latent_size=3, hidden=8)
        >>> world = WorldModel(dynamics, VectorDecoder(dynamics.feature_size, 4, hidden=8))
    """

    def __init__(self, dynamics: ActionDriven, decoder: nn.Module | Mapping[str, nn.Module] | None = None):
        super().__init__()
        if not isinstance(dynamics, ActionDriven):
            raise TypeError(f"dynamics must be ActionDriven, such as LatentDynamics, not {type(dynamics).__name__}")
        self.dynamics = dynamics
        named = decoder if isinstance(decoder, Mapping) else {} if decoder is None else {"observations": decoder}
        self.decoders = nn.ModuleDict(named)

    def path(self, actions: Tensor) -> Sequence:
        """Return the prior over latents ``[B, T, ...]`` given actions ``[B, T, A]``."""
        return Sequence(self.dynamics, Driven(actions), actions.shape[1])

    def model(self, observations: Tensor | Mapping[str, Tensor], actions: Tensor) -> Tensor:
        """Pyro model: site ``latents``, and one for each decoder, ``observations`` if there is one, in plate ``batch``.

        Args:
            observations: ``[B, T, ...]``, as the decoders have them; several by name.
            actions: ``[B, T, A]``.

        Returns:
            The latents ``[B, T, ...]``.
        """
        register("world", self)
        path = self.path(actions)
        with pyro.plate("batch", len(actions), dim=-1):
            seen: Any = observations if isinstance(observations, Mapping) else {"observations": observations}
            if not self.decoders:
                return pyro.sample("latents", path, obs=seen["observations"])
            z = pyro.sample("latents", path)
            features = self.dynamics.features(path.states(z).memory, z)
            for name, decoder in self.decoders.items():
                pyro.sample(name, Emission(decoder(features), along="latents"), obs=seen[name])
        return z

    def forward(self, observations: Tensor | Mapping[str, Tensor], actions: Tensor) -> Tensor:
        """Run :meth:`model`, so that the module itself can be given to an ELBO."""
        return self.model(observations, actions)
