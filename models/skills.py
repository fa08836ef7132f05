"""Skill embeddings: a conditional VAE of trajectories, whose latent variable is the skill.

"Complex Skill Acquisition through Simple Skill Imitation Learning", eq. (1), with its sign corrected:

    z ~ N(0, I),   a_t ~ pi(. | s_t, z),   s_{t+1} ~ P(. | s_1..s_t, z),

    log p(tau | s_1) >= E_q(z | s_1..s_T)[ sum_t log pi(a_t | s_t, z) + log P(s_{t+1} | s_1..s_t, z) ] - KL(q, p).

Where the skills have names, p(z | task) = N(W task, I) instead: two skills at once are the sum of their embeddings, and
no skill is z = 0, observed.

Shapes: B trajectories, T states (of which the last has no action), S state numbers, A action numbers, D latent
numbers, U skills.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Several
from numbers import Real
from typing import Any

import gymnasium
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .causal import Causal
from .dynamics import AdditiveDynamics, Dynamics, DynamicsContext, make_dynamics
from .heads import AdditiveHead, Head, make_head
from .networks import mlp
from .policies.policy import Acting, Policy
from .process import Sequence
from .registration import register

__all__ = ["Skill", "TrajectoryCVAE", "shows_nothing", "shows_only"]


class TrajectoryCVAE(Policy):
    """A Gaussian policy and a dynamics model that share one embedding z of the whole trajectory.

    As a policy it acts by ``predict(observation, state=z)``: what it remembers is which skill it follows. Without a
    state it draws one from the prior; :meth:`acting` fixes it.

    Args:
        observation_space: of the environment, or of the demonstrations. Observations are the states, which the dynamics
            predict number by number: images are read flat, and scaled by their bounds.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        latent: D.
        hidden: sizes of the policy's hidden layers; by default two of 256, or, with additive dynamics, none.
        activation: of the policy, ``"tanh"`` or ``"relu"``.
        head: of the policy; by default ``"gaussian"`` for `Box`, as in the paper, ``"categorical"`` otherwise.
        axis: what the dynamics' WaveNet is causal along, ``"time"`` (default) or ``"components"`` of the state;
            ``"additive"``; or any :class:`~pyrocontrol.models.Dynamics`. With
            :class:`~pyrocontrol.models.AdditiveDynamics` the mean action is linear in z, too, with gains of the time
            since the start alone.
        names: of the U skills, in the order of the task of the demonstrations. Each then has an embedding, a column of
            W, which :meth:`compose` sums. A demonstration of several at once has a task of several ones. One of doing
            nothing, the origin, has a task of zeros: its z is 0.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for sizes that are not positive, an unknown axis or head, or a name that is given twice.
    """

    #: Column u is W's, the embedding of skill u, ``[D, U]``.
    embeddings: Tensor
    #: Whether it was trained on doing nothing, bool.
    grounded: Tensor
    #: Whether W was set by :meth:`settle` after the last training, bool.
    settled: Tensor
    remembers = True

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        latent: int = 16,
        hidden: Several[int] | None = None,
        activation: str = "relu",
        head: str | Head | None = None,
        axis: str | Dynamics = "time",
        names: Several[str] = (),
    ):
        super().__init__(observation_space, action_space, encoder="flat")
        if latent < 1:
            raise ValueError(f"latent must be positive, got {latent}")
        if isinstance(names, str) or len(set(names)) < len(names):
            raise ValueError(f"names must be those of the skills, each once, got {names!r}")
        self.latent, self.activation, self.names = latent, activation, tuple(names)
        dynamics = make_dynamics(axis, self.input_size, latent)
        additive = isinstance(dynamics, AdditiveDynamics)
        self.hidden = tuple(hidden) if hidden is not None else () if additive else (256, 256)
        box = isinstance(action_space, gymnasium.spaces.Box)
        self.net: Causal
        features = self.hidden[-1] if self.hidden else self.input_size + (0 if additive else latent)
        if isinstance(dynamics, AdditiveDynamics):
            net = dynamics.network(mlp(self.input_size, self.hidden, activation), features)
            self.net, features = net, net.features
            if head is None and box:
                head = AdditiveHead(features, math.prod(action_space.shape or ()), common=net.basis)
        else:
            self.net = mlp(self.input_size + latent, self.hidden, activation)
        self.head = make_head(head or ("gaussian" if box else "auto"), features, action_space)
        self.dynamics = dynamics
        if self.names:
            self.embeddings = torch.nn.Parameter(torch.zeros(latent, len(self.names)))
            self.register_buffer("grounded", torch.tensor(False))
            self.register_buffer("settled", torch.tensor(False))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if self.names:  # files from before there was such a flag
            state_dict.setdefault(f"{prefix}settled", torch.tensor(False))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def check(self, data: Any) -> None:
        """Refuse data of another problem, before any training.

        Raises:
            ValueError: see :meth:`Policy.check`; or if the task has not one number for each name, or a demonstration
                has more steps than additive dynamics have gains for.
        """
        super().check(data)
        if isinstance(self.dynamics, AdditiveDynamics):
            horizon, longest = self.dynamics.horizon, int(data.lengths.max()) - 1
            if longest > horizon:
                raise ValueError(
                    f"the gains of additive dynamics change for {horizon} steps, but a demonstration has {longest}: "
                    f"give axis=AdditiveDynamics(..., horizon={longest})"
                )
        if self.names and data.task.shape[-1] != len(self.names):
            raise ValueError(
                f"there are {len(self.names)} names of skills, but the demonstrations' task has "
                f"{data.task.shape[-1]} numbers"
            )

    # -- the model --------------------------------------------------------------------------------------------------

    def prior(self, rows: int, task: Tensor | None = None) -> TorchDistribution:
        """Return p(z) = N(0, I), batch shape ``[rows]``, event shape ``[D]``; or p(z | task) = N(W task, I)."""
        loc = self.factor.new_zeros(rows, self.latent)
        if task is not None and self.names:
            loc = task.to(loc.dtype) @ self.embeddings.T
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)

    def actions_of(self, states: Tensor, z: Tensor) -> TorchDistribution:
        """Return pi(a | s, z) along scaled states ``[..., T, S]`` with embeddings ``[..., D]``."""
        return self.head(self.net(states, z))

    def dynamics_of(self, z: Tensor, first: Tensor, steps: int, each: Tensor | None = None) -> Sequence:
        """Return P(s_2.. | s_1, z), the distribution of the scaled states that follow the first.

        Args:
            z: ``[..., D]``.
            first: scaled, ``[..., S]``, broadcast with z.
            steps: how many states follow, the padding included.
            each: how many do of each trajectory, long, broadcast with z; by default all.
        """
        batch = z.shape[:-1]
        each = z.new_full(batch, steps, dtype=torch.long) if each is None else each.expand(batch)
        return Sequence(self.dynamics, DynamicsContext(z, first.expand(*batch, -1), each), steps, batch_shape=batch)

    def model(self, batch: Any) -> Tensor:
        """Pyro model: latent ``z``, observed ``actions`` and ``states``, in plate ``batch``.

        Returns:
            z ``[B, D]``.
        """
        register("skills", self)
        states, actions = self.scaled(batch.observations), self.labels(batch)
        with pyro.plate("batch", len(states), dim=-1):
            z = pyro.sample("z", self.prior(len(states), batch.task if self.names else None))
            if self.names:
                # Observed to be 0: what is drawn for these rows has no part in what follows, and its posterior is p.
                idle = shows_nothing(batch.task)
                z = z.masked_fill(idle.unsqueeze(-1), 0.0)
                if self.training and torch.is_grad_enabled():
                    self.grounded.logical_or_(idle.any())
                    self.settled.zero_()
            policy = self.actions_of(states, z).mask(batch.acted)
            pyro.sample("actions", policy.to_event(1), obs=actions)
            following = states[:, 1:]
            dynamics = self.dynamics_of(z, states[:, 0], following.shape[1], batch.lengths - 1)
            pyro.sample("states", dynamics, obs=following)
        return z

    def forward(self, batch: Any) -> Tensor:
        """Run :meth:`model`, so that the policy itself can be given to an ELBO as a module."""
        return self.model(batch)

    # -- composing --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self, z: Tensor, task: Tensor) -> None:
        """Set W to the best there is for embeddings ``[B, D]`` of demonstrations with a ``task`` ``[B, U]``.

        ``skills.settle(guide.posterior(demos).mean, demos.task)`` after the training, in which W lags behind: least
        squares, the maximum of the bound over W. Where each demonstration shows one skill, these are the means.
        :meth:`compose` needs it, and further training undoes it. A checkpoint is written before: save what is settled.

        Raises:
            ValueError: if the skills have no names, the sizes differ, a number is not finite, or a skill cannot be told
                from the others: it was not shown, or with the same others at the same strengths only.
        """
        if not self.names:
            raise ValueError("skills without names have no embeddings of their own")
        if z.shape[1:] != (self.latent,) or task.shape != (len(z), len(self.names)):
            raise ValueError(
                f"embeddings of {self.latent} numbers and a task of {len(self.names)} for each are needed, got shapes "
                f"{tuple(z.shape)} and {tuple(task.shape)}"
            )
        if not (z.isfinite().all() and task.isfinite().all()):
            raise ValueError("an embedding or a task is not finite")
        shown = ~shows_nothing(task)
        given = task[shown].to(torch.float64)
        inverse = torch.linalg.pinv(given)
        told = (inverse @ given).diagonal() > 1 - 1e-6
        if not told.all():
            lacking = ", ".join(name for name, known in zip(self.names, told.tolist(), strict=True) if not known)
            raise ValueError(f"the demonstrations do not tell the embeddings of {lacking}: show each apart from others")
        self.embeddings.copy_((inverse @ z[shown].to(torch.float64)).T)
        self.settled.fill_(True)

    @property
    def adds(self) -> bool:
        """Whether what a sum of embeddings does is the sum of what each does: all means are linear in state and z."""
        dynamics = self.dynamics
        linear = isinstance(dynamics, AdditiveDynamics) and dynamics.adds
        return linear and not self.hidden and isinstance(self.head, AdditiveHead)

    @torch.no_grad()
    def compose(self, weights: Mapping[str, float], *, anyway: bool = False) -> Tensor:
        """Return the embedding of several skills at once, ``[D]``: the sum of theirs, each times its weight.

        ``skills.acting(skills.compose({"kick": 1.0, "spin": 0.5}))`` is a policy that kicks and turns half as far. Of
        nothing, ``compose({})``, it is the origin.

        Args:
            weights: of the skills, by name.
            anyway: sum also where the model does not add, see :attr:`adds`: to compare decoders.

        Raises:
            TypeError: for weights that are no mapping of names to numbers.
            ValueError: for a skill that is not among the ``names``, a weight that is not finite, a model that does not
                add, or is not settled; or if no origin was shown: then what every skill does, whatever it is, would be
                summed as often as there are skills.
        """
        given: Any = weights
        if not isinstance(given, Mapping):
            raise TypeError(f"weights must map names of skills to numbers, got {weights!r}")
        for name, weight in given.items():
            if name not in self.names:
                raise ValueError(f"there is no skill {name!r}; there are {', '.join(self.names) or 'no names'}")
            if not isinstance(weight, Real | Tensor):
                raise TypeError(f"the weight of {name!r} must be a number, got {weight!r}")
            if not self.embeddings.new_tensor(float(weight)).isfinite():
                raise ValueError(f"the weight of {name!r} must be finite, got {weight}")
        if not (self.names and self.grounded):
            raise ValueError(
                "no origin was shown: z = 0 means nothing yet, so embeddings cannot be summed. Give the model names, "
                "and train it on demonstrations of which some show doing nothing, with a task of zeros"
            )
        if not self.settled:
            raise ValueError(
                "the embeddings are not settled, and lag behind: after the training, call "
                "skills.settle(guide.posterior(demos).mean, demos.task)"
            )
        if not (anyway or self.adds):
            raise ValueError(
                "sums mean nothing to this model: it takes AdditiveDynamics with gains of time and a base apart or "
                "linear, no hidden layers and an AdditiveHead. To sum embeddings anyway: compose(..., anyway=True)"
            )
        return self.embeddings @ self.embeddings.new_tensor([float(weights.get(name, 0)) for name in self.names])

    # -- generating -------------------------------------------------------------------------------------------------

    def unscaled(self, states: Tensor) -> Tensor:
        """Return states in the observations' own units: the inverse of :meth:`scaled`."""
        return (states - self.offset) / self.factor

    @torch.no_grad()
    def generate(self, z: Tensor, first: Tensor, steps: int, *, deterministic: bool = True) -> Tensor:
        """Return trajectories that the dynamics generate, ``[..., steps + 1, S]``, in the observations' units.

        Args:
            z: embeddings ``[..., D]``.
            first: first observations ``[..., S]``, broadcast with ``z``.
            steps: how many states follow.
            deterministic: the mode of every step in turn, instead of a random one.

        Raises:
            ValueError: if sizes differ from the model's, a number is not finite, or steps is not positive.
        """
        given = z.shape[-1], first.shape[-1]
        if given != (self.latent, self.input_size):
            raise ValueError(f"embedding and state have {self.latent} and {self.input_size} numbers, got {given}")
        if not (z.isfinite().all() and first.isfinite().all()):
            raise ValueError("an embedding or a first state is not finite")
        batch = torch.broadcast_shapes(z.shape[:-1], first.shape[:-1])
        z, start = z.expand(*batch, -1), self.scaled(first).expand(*batch, -1)
        sequence = self.dynamics_of(z, start, steps)
        states = sequence.greedy() if deterministic else sequence.sample()
        return self.unscaled(torch.cat([start.unsqueeze(-2), states], -2))

    # -- acting -----------------------------------------------------------------------------------------------------

    def begin(self, rows: int) -> Any:
        """Return the state of episodes with embeddings from N(0, I): these, ``[B, D]``, or with the time beside."""
        return self.net.begin(rows, self.prior(rows).sample())

    def step(self, inputs: Tensor, state: Any, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return pi(a | s, z) at scaled inputs ``[B, S]``, and the state after the step."""
        features, state = self.net.step(inputs, state)
        return self.head(features), state

    def acting(self, z: Tensor) -> Skill:
        """Return the policy that follows one embedding, ``[D]`` or ``[1, D]``, in all episodes."""
        return Skill(self, z)

    def settings(self) -> dict[str, Any]:
        """What two models share exactly when they can share weights, the spaces apart."""
        kind = f"{type(self.dynamics).__name__}{self.dynamics.settings()}"
        own = {"latent": self.latent, "hidden": self.hidden, "activation": self.activation}
        own |= {"names": self.names} if self.names else {}
        return own | {"head": self.head.signature(), "dynamics": kind}


class Skill(Acting):
    """A :class:`TrajectoryCVAE` that acts with one embedding.

    Args:
        skills: the model.
        z: ``[D]`` or ``[1, D]``.

    Raises:
        ValueError: if the embedding has another size, or is not finite.
    """

    z: Tensor

    def __init__(self, skills: TrajectoryCVAE, z: Tensor):
        super().__init__()
        if z.numel() != skills.latent or z.shape[-1] != skills.latent:
            raise ValueError(f"one embedding of {skills.latent} numbers is needed, got shape {tuple(z.shape)}")
        if not z.isfinite().all():
            raise ValueError("the embedding is not finite")
        self.skills = skills
        self.observation_space, self.action_space = skills.observation_space, skills.action_space
        self.register_buffer("z", z.detach().reshape(1, -1))

    def encoded(self, inputs: Tensor) -> Tensor:
        """Return scaled states."""
        return self.skills.scaled(inputs)

    def begin(self, rows: int) -> Any:
        """Return the state of episodes with this embedding."""
        return self.skills.net.begin(rows, self.z.expand(rows, -1))

    def step(self, inputs: Tensor, state: Any, deterministic: bool) -> tuple[TorchDistribution, Any]:
        """Return pi(a | s, z) at scaled inputs ``[B, S]``, and the state after the step."""
        return self.skills.step(inputs, state, deterministic)

    def choose(self, distribution: TorchDistribution, deterministic: bool) -> Tensor:
        """Return stored actions, the likeliest or random ones."""
        return self.skills.choose(distribution, deterministic)


def shows_nothing(task: Tensor) -> Tensor:
    """Return which demonstrations are of doing nothing, bool ``[B]``."""
    return (task == 0).all(-1)


def shows_only(task: Tensor, skill: int) -> Tensor:
    """Return which demonstrations show one skill, once, and no other, bool ``[B]``."""
    return (task[:, skill] == 1) & ((task != 0).sum(-1) == 1)
