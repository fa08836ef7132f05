"""How states follow each other, given a trajectory embedding: the state decoders of a trajectory CVAE.

Each is a process whose step is a state, so that a `Sequence` of it scores a whole trajectory at once and generates one
state after the other. States are scaled: mean 0 and deviation 1 or so.

Shapes: B trajectories, I transitions, S state numbers, D latent numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from .additive import Additive
from .causal import Causal
from .heads import AdditiveHead, GaussianHead, MixtureHead
from .networks import mlp
from .process import Process, Sequence
from .wavenet import WaveNet

__all__ = [
    "AdditiveDynamics",
    "ComponentDynamics",
    "Dynamics",
    "DynamicsContext",
    "DynamicsState",
    "MLPDynamics",
    "ScalarMixture",
    "WaveNetDynamics",
    "make_dynamics",
]


class DynamicsContext(NamedTuple):
    """What a trajectory is conditioned on.

    Attributes:
        z: its embedding, ``[B, D]``.
        first: its first state, ``[B, S]``.
        steps: how many states follow the first, long ``[B]``; what comes after is padding.
    """

    z: Tensor
    first: Tensor
    steps: Tensor


class DynamicsState(NamedTuple):
    """What the next state depends on.

    Attributes:
        last: the state before, ``[B, S]`` or ``[B, I, S]``.
        features: what is known beside it, ``[B, F]`` or ``[B, I, F]``.
        cache: what a walk needs to go on; ``()`` along given states.
    """

    last: Tensor
    features: Tensor
    cache: Any = ()


class Dynamics(Process):
    """p(s_{t+1} | s_1..s_t, z), the states after the first.

    Subclasses give ``net`` and :meth:`conditional`.

    Args:
        state_size: S.
        latent_size: D.

    Attributes:
        net: what is known at a state, ``[B, F]``, of the states up to it, the embedding being its condition.
    """

    has_rsample = True
    support = constraints.real_vector
    net: Causal

    def __init__(self, state_size: int, latent_size: int):
        super().__init__()
        self.state_size, self.latent_size = state_size, latent_size
        self.event_shape = torch.Size([state_size])

    def settings(self) -> dict[str, Any]:
        """What two of a kind share exactly when they can share weights, sizes apart that the weights show."""
        return {}

    def initial(self, context: DynamicsContext) -> DynamicsState:
        """Return what the second state depends on."""
        return DynamicsState(context.first, *self.net.step(context.first, self.net.begin(len(context.z), context.z)))

    def advance(self, state: DynamicsState, z: Tensor, context: DynamicsContext) -> DynamicsState:
        """Return what the state after ``z`` depends on."""
        return DynamicsState(z, *self.net.step(z, state.cache))

    def unroll(self, z: Tensor, context: DynamicsContext) -> tuple[DynamicsState, Tensor]:
        """Return what each given state ``[B, I, S]`` depends on, in parallel, and which are no padding."""
        before = torch.cat([context.first.unsqueeze(1), z[:, :-1]], 1)
        live = torch.arange(z.shape[1], device=z.device) < context.steps.unsqueeze(1)
        return DynamicsState(before, self.net(before, context.z)), live


class _NormalDynamics(Dynamics):
    """A diagonal normal over the next state, or over its change.

    Subclasses give ``head``, too.

    Attributes:
        residual: whether the change of the state is predicted.
    """

    head: GaussianHead
    residual: bool

    def settings(self) -> dict[str, Any]:
        """What two of a kind share exactly when they can share weights, sizes apart that the weights show."""
        return {"residual": self.residual, **self.head.settings()}

    def conditional(self, state: DynamicsState, context: DynamicsContext) -> TorchDistribution:
        """Return a diagonal normal."""
        normal = self.head(state.features)
        if not self.residual:
            return normal
        return dist.Normal(state.last + normal.mean, normal.base_dist.scale).to_event(1)

    def stepper(self, context: DynamicsContext, horizon: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return what maps states ``[B, S]``, in turn, to mean and deviation of the next one, or of its change."""
        read, evaluate = self.net.reader(len(context.z), context.z), self.head.evaluator()
        return lambda s: evaluate(read(s))

    def walk(self, context: DynamicsContext, horizon: int, draw: str) -> tuple[Tensor, Tensor]:
        """Take a whole walk without a distribution object a step, with all noise drawn at once."""
        # Without gradients, without what keeps account of them; a copy leaves that mode.
        with torch.inference_mode(not torch.is_grad_enabled()):
            s, states = context.first, []
            follow = self.stepper(context, horizon)
            steps: Any = [None] * horizon
            if draw != "mode":
                steps = torch.randn(horizon, *s.shape, dtype=s.dtype, device=s.device)
            for noise in steps:
                mean, scale = follow(s)
                s = s + mean if self.residual else mean
                if noise is not None:
                    s = torch.addcmul(s, scale, noise)
                states.append(s)
            walked = torch.stack(states, 1)
        if walked.is_inference():
            walked = walked.clone()
        return walked, context.steps.new_full(context.steps.shape, horizon)


class WaveNetDynamics(_NormalDynamics):
    """Causal over *time*: s_{t+1} ~ N(mu, sigma^2) with mu, sigma of a WaveNet over s_1..s_t, conditioned on z.

    The mean is a bounded function of the states before, so that a generated trajectory stays where states are. With
    ``residual`` it is the change from s_t: a little better one state ahead, a random walk over many.

    Args:
        state_size: S.
        latent_size: D.
        channels: width of the WaveNet's layers.
        features: F.
        dilations: of its layers; the default sees the last 64 states.
        min_scale: least standard deviation, in scaled units.
        residual: predict the change of the state.
    """

    net: WaveNet

    def __init__(
        self,
        state_size: int,
        latent_size: int,
        *,
        channels: int = 64,
        features: int = 128,
        dilations: Several[int] = (1, 2, 4, 8, 16, 32),
        min_scale: float = 1e-2,
        residual: bool = False,
    ):
        super().__init__(state_size, latent_size)
        self.residual = residual
        self.net = WaveNet(state_size, features, condition=latent_size, channels=channels, dilations=dilations)
        self.head = GaussianHead(features, state_size, min_scale=min_scale)

    def settings(self) -> dict[str, Any]:
        """What two of a kind share exactly when they can share weights, sizes apart that the weights show."""
        return {"dilations": self.net.dilations, **super().settings()}


class MLPDynamics(_NormalDynamics):
    """Markov: s_{t+1} ~ N(mu(s_t, z), sigma(s_t, z)^2) with an MLP; what a WaveNet is compared with.

    Args:
        state_size: S.
        latent_size: D.
        hidden: sizes of the hidden layers.
        min_scale: least standard deviation, in scaled units.
        residual: predict the change of the state.
    """

    def __init__(
        self,
        state_size: int,
        latent_size: int,
        *,
        hidden: Several[int] = (128, 128),
        min_scale: float = 1e-2,
        residual: bool = False,
    ):
        super().__init__(state_size, latent_size)
        self.residual = residual
        self.net = _layers(state_size + latent_size, hidden)
        self.head = GaussianHead(hidden[-1], state_size, min_scale=min_scale)


_BASES = ("apart", "linear", "mlp", "wavenet")


class AdditiveDynamics(_NormalDynamics):
    """Embeddings add: s_{t+1} ~ N(f_0(s, t) + F(t) z, sigma(t)^2).

    The mean of the next state, and so of its change, is linear in z, with gains F that know the time since the start
    alone; see :class:`~pyrocontrol.models.Additive`. With a base that is linear in the state, and demonstrations of
    doing nothing at z = 0, what a sum of embeddings generates is the sum of what each does.

    Args:
        state_size: S.
        latent_size: D.
        horizon: for how many steps the gains change; give the steps of a demonstration.
        basis: how many functions of time they are made of, at most ``horizon``.
        base: what f_0 knows of the states, beside the time. ``"apart"``: each number of the last one times one of its
            own, which stays where states are however long it is followed; ``"linear"``: a matrix times the last one;
            ``"mlp"``: of the last one; ``"wavenet"``: of all. Only with the first two do embeddings add.
        size: width of the base's layers, unless it has none.
        gains: ``"time"``; ``"state"``, those of the whole state, is what they are compared with.
        min_scale: least standard deviation, in scaled units.
    """

    net: Additive
    head: AdditiveHead
    residual = False

    def __init__(
        self,
        state_size: int,
        latent_size: int,
        *,
        horizon: int = 64,
        basis: int = 16,
        base: str = "apart",
        size: int = 64,
        gains: str = "time",
        min_scale: float = 1e-2,
    ):
        super().__init__(state_size, latent_size)
        if base not in _BASES:
            raise ValueError(f"base must be one of {', '.join(_BASES)}, got {base!r}")
        if gains not in ("time", "state"):
            raise ValueError(f"gains must be those of time or state, got {gains!r}")
        self.base, self.gains, self.size, self.horizon, self.basis = base, gains, size, horizon, basis
        if base == "wavenet":
            self.net = self.network(WaveNet(state_size, size, channels=size), size)
        elif base == "mlp":
            self.net = self.network(mlp(state_size, (size, size), "relu"), size)
        else:
            self.net = self.network(mlp(state_size, ()), state_size)
        self.head = AdditiveHead(
            self.net.features, state_size, common=basis, apart=base == "apart", min_scale=min_scale
        )
        # At first the state before has no influence: linear maps at random, one after the other, grow without bound.
        torch.nn.init.zeros_(self.head.loc.weight[:, basis : basis + self.net.size])

    @property
    def adds(self) -> bool:
        """Whether what a sum of embeddings generates is the sum of what each does."""
        return self.gains == "time" and self.base in ("apart", "linear")

    def network(self, base: Causal, size: int) -> Additive:
        """Return a network with a base of ``size`` features of states, and with gains like those of these dynamics."""
        gains = (mlp(self.state_size, (self.size,)), self.size) if self.gains == "state" else None
        return Additive(base, size, self.latent_size, horizon=self.horizon, basis=self.basis, gains=gains)

    def stepper(self, context: DynamicsContext, horizon: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return what maps states ``[B, S]``, in turn, to mean and deviation of the next one.

        What does not depend on the state is computed for all steps at once.
        """
        if self.gains == "state":
            return super().stepper(context, horizon)
        weights, bias = self.head.joint()
        of_base = weights[:, self.basis : self.basis + self.net.size].T
        known = F.linear(self.net.timed(horizon, context.z), weights, bias).unbind(1)
        read, steps = self.net.base.reader(len(context.z)), iter(known)

        def follow(s: Tensor) -> tuple[Tensor, Tensor]:
            mean, raw = torch.addmm(next(steps), read(s), of_base).chunk(2, -1)
            return mean, F.softplus(raw).add(self.head.min_scale)

        return follow

    def settings(self) -> dict[str, Any]:
        """What two of a kind share exactly when they can share weights, sizes apart that the weights show."""
        own: dict[str, Any] = {"horizon": self.horizon, "basis": self.basis, "base": self.base, "gains": self.gains}
        return own | super().settings()


class ComponentDynamics(Dynamics):
    """Autoregressive over the *components* of the next state.

        p(s_{t+1} | s_t, z) = prod_d p(s_{t+1,d} | s_{t+1,1}..s_{t+1,d-1}, s_t, z),

    as in Z. Wang et al., "Robust Imitation of Diverse Behaviors" (2017): a WaveNet along the components, and a mixture
    of normals for each. Exact as the other is, and not bound to one mode; a generated state takes S passes.

    Args:
        state_size: S.
        latent_size: D.
        hidden: sizes of the layers from (s_t, z) to the WaveNet's condition.
        channels: width of the WaveNet's layers.
        features: width of its output.
        dilations: of its layers; the default sees 256 components.
        components: of the mixture.
        min_scale: least standard deviation, in scaled units.
    """

    def __init__(
        self,
        state_size: int,
        latent_size: int,
        *,
        hidden: Several[int] = (128,),
        channels: int = 32,
        features: int = 32,
        dilations: Several[int] = (1, 2, 4, 8, 16, 32, 64, 128),
        components: int = 5,
        min_scale: float = 1e-2,
    ):
        super().__init__(state_size, latent_size)
        self.net = _layers(state_size + latent_size, hidden)
        self.components = _Components(
            state_size,
            hidden[-1],
            channels=channels,
            features=features,
            dilations=dilations,
            components=components,
            min_scale=min_scale,
        )

    def settings(self) -> dict[str, Any]:
        """What two of a kind share exactly when they can share weights, sizes apart that the weights show."""
        return {"dilations": self.components.net.dilations, **self.components.head.settings()}

    def conditional(self, state: DynamicsState, context: DynamicsContext) -> TorchDistribution:
        """Return the sequence of the components, event shape ``(S,)``."""
        given = _ComponentContext(state.last, state.features)
        return Sequence(self.components, given, self.state_size, batch_shape=state.last.shape[:-1])


class _ComponentContext(NamedTuple):
    last: Tensor  # the state before, [B, S]
    condition: Tensor  # [B, F]


class _ComponentState(NamedTuple):
    features: Tensor  # [B, F] or [B, S, F]
    cache: Any = ()
    place: int = 0


class _Components(Process):
    """The components of one state, in order.

    The WaveNet reads the component before, this one's value in the state before, and which one it is.
    """

    has_rsample = True

    def __init__(
        self,
        size: int,
        condition: int,
        *,
        channels: int,
        features: int,
        dilations: Several[int],
        components: int,
        min_scale: float,
    ):
        super().__init__()
        self.which = nn.Parameter(torch.randn(size, channels) / channels**0.5)
        self.net = WaveNet(2 + channels, features, condition=condition, channels=channels, dilations=dilations)
        self.head = MixtureHead(features, 1, components=components, min_scale=min_scale)

    def initial(self, context: _ComponentContext) -> _ComponentState:
        cache = self.net.begin(len(context.last), context.condition)
        return self._at(0, torch.zeros_like(context.last[:, 0]), cache, context)

    def advance(self, state: _ComponentState, z: Tensor, context: _ComponentContext) -> _ComponentState:
        following = state.place + 1
        return state if following == context.last.shape[-1] else self._at(following, z, state.cache, context)

    def _at(self, index: int, before: Tensor, cache: Any, context: _ComponentContext) -> _ComponentState:
        last = context.last[:, index]
        which = self.which[index].expand(len(last), -1)
        features, cache = self.net.step(torch.cat([before.unsqueeze(-1), last.unsqueeze(-1), which], -1), cache)
        return _ComponentState(features, cache, index)

    def unroll(self, z: Tensor, context: _ComponentContext) -> tuple[_ComponentState, Tensor]:
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        which = self.which.expand(len(z), -1, -1)
        inputs = torch.cat([before.unsqueeze(-1), context.last.unsqueeze(-1), which], -1)
        live = torch.ones(z.shape, dtype=torch.bool, device=z.device)
        return _ComponentState(self.net(inputs, context.condition)), live

    def conditional(self, state: _ComponentState, context: _ComponentContext) -> TorchDistribution:
        return ScalarMixture.of(self.head(state.features))


class ScalarMixture(dist.MixtureSameFamily):
    """A mixture of normals over one number, with pathwise gradients and a mode to act on.

    A sample z moves with the parameters so that its distribution function F(z) stays, dz = -dF / p(z): implicit
    reparametrisation (M. Figurnov et al., 2018).
    """

    has_rsample = True

    @classmethod
    def of(cls, mixture: TorchDistribution) -> ScalarMixture:
        """Return the mixture of a :class:`MixtureHead` over vectors of one number as one over numbers."""
        assert isinstance(mixture, dist.MixtureSameFamily)
        normal = mixture.component_distribution.base_dist
        return cls(mixture.mixture_distribution, dist.Normal(normal.loc.squeeze(-1), normal.scale.squeeze(-1)))

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """Draw with pathwise gradients."""
        z = self.sample(torch.Size(sample_shape))
        difference = self.cdf(z)
        return z - (difference - difference.detach()) / self.log_prob(z).exp().detach()

    @property
    def mode(self) -> Tensor:
        """The mean of the likeliest component."""
        likeliest = self.mixture_distribution.logits.argmax(-1, keepdim=True)
        return self.component_distribution.mean.gather(-1, likeliest).squeeze(-1)


_AXES = {"time": WaveNetDynamics, "components": ComponentDynamics, "additive": AdditiveDynamics}


def make_dynamics(axis: str | Dynamics, state_size: int, latent_size: int) -> Dynamics:
    """Return dynamics by name: ``"time"`` or ``"components"`` (of a WaveNet), or ``"additive"``; or those given.

    Raises:
        ValueError: for another axis, or dynamics of other sizes.
    """
    if isinstance(axis, Dynamics):
        if (axis.state_size, axis.latent_size) != (state_size, latent_size):
            raise ValueError(
                f"the dynamics have states of {axis.state_size} numbers and embeddings of {axis.latent_size}, "
                f"the model {state_size} and {latent_size}"
            )
        return axis
    if axis not in _AXES:
        raise ValueError(f"axis must be one of {', '.join(_AXES)}, or dynamics, got {axis!r}")
    return _AXES[axis](state_size, latent_size)


def _layers(inputs: int, hidden: Several[int]) -> Causal:
    if not hidden:
        raise ValueError("hidden must name at least one layer")
    return mlp(inputs, hidden, "relu")
