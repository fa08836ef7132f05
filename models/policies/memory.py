"""Latent memory: an agent's internal state m_t, drawn at every step from the one before and what is seen.

The same processes serve a policy, pi(m_t | m_{t-1}, o_t), and its guide, q(m_t | m_{t-1}, b_t) with contexts b_t of the
whole demonstration. They end with the trace: m_t exists where an action was taken.

Shapes: B traces, T steps of context, I steps of memory, O observation numbers, A action numbers, C context numbers, K
states, D numbers of a Gaussian memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Several
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ..heads import Head, make_head
from ..networks import mlp
from ..process import Emission, Process, Sequence, at_step, same_tensors
from ..registration import register
from .policy import Policy, Space

__all__ = [
    "DiscreteMemory",
    "GaussianMemory",
    "LatentMemoryPolicy",
    "Memory",
    "MemoryContext",
    "MemoryState",
    "make_memory",
]


# Standard deviation of the noise of a Gaussian memory at first, and the least that it can have.
_SCALE, _LEAST = 0.3, 1e-3


class MemoryContext(NamedTuple):
    """What memory is conditioned on.

    Attributes:
        features: ``[B, T, C]``, the observations, or a guide's contexts of the whole trace.
        steps: long ``[B]``, how many steps of memory each trace has, at most T.
    """

    features: Tensor
    steps: Tensor


class MemoryState(NamedTuple):
    """What memory carries from step to step.

    Attributes:
        previous: the memory before, long ``[B]`` (K, one past the last, before the first step) or ``[B, D]``
            (zeros before the first step).
        step: long ``[B]``, which step comes next.
    """

    previous: Tensor
    step: Tensor


class Memory(Process):
    """Memory of any kind.

    Args:
        context_size: C.
        size: K states, or D numbers.
        hidden: sizes of the hidden layers.
        keep: a logit by which memory stays as it is at first, so that what is put into it is not lost at once.

    Attributes:
        width: how many numbers :meth:`features` makes of a memory.
    """

    terminates = end_is_discrete = True
    width: int
    keep: float

    def __init__(self, context_size: int, size: int, hidden: Several[int] = (64,), *, keep: float = 6.0):
        super().__init__()
        if size < 1:
            raise ValueError(f"the size of a memory must be positive, got {size}")
        self.context_size, self.size, self.hidden, self.keep = context_size, size, tuple(hidden), keep

    def like(self, context_size: int) -> Memory:
        """Return memory of the same kind and size, over other contexts and with parameters of its own."""
        return type(self)(context_size, self.size, self.hidden, keep=self.keep)

    def signature(self) -> str:
        """Return in a line what two memories share exactly when they can share weights, the contexts apart."""
        return f"{type(self).__name__}({self.size}, hidden={self.hidden})"

    def blank(self, rows: int) -> Tensor:
        """Return what stands for the memory before the first step, ``[B]`` or ``[B, D]``."""
        raise NotImplementedError

    def features(self, memory: Tensor) -> Tensor:
        """Return memories as numbers for a network, ``[..., width]``."""
        raise NotImplementedError

    def initial(self, context: MemoryContext) -> MemoryState:
        """Return the state before the first step."""
        return MemoryState(self.blank(len(context.steps)), torch.zeros_like(context.steps))

    def advance(self, state: MemoryState, z: Tensor, context: MemoryContext) -> MemoryState:
        """Return the state after a step."""
        return MemoryState(z.to(state.previous.dtype), state.step + 1)

    def live(self, state: MemoryState, context: MemoryContext) -> Tensor:
        """Return which traces go on."""
        return state.step < context.steps

    def unroll(self, z: Tensor, context: MemoryContext) -> tuple[MemoryState, Tensor]:
        """Return the states before each step, which are the memories themselves, one step later."""
        step = torch.arange(z.shape[1], device=z.device).expand(z.shape[:2])
        live = step < context.steps.unsqueeze(1)
        blank = self.blank(len(z))
        there = live.reshape(live.shape + (1,) * (z.dim() - 2))
        filled = torch.where(there, z, self.padding).to(blank.dtype)
        return MemoryState(torch.cat([blank.unsqueeze(1), filled[:, :-1]], 1), step), live

    def same_states(self, other: Process, context: MemoryContext, theirs: MemoryContext) -> bool:
        """Whether the other is memory of the same kind, size and lengths: the states are the memories themselves."""
        same = type(other) is type(self) and other.size == self.size
        return same and same_tensors(context.steps, theirs.steps)

    def seen(self, state: MemoryState, context: MemoryContext) -> Tensor:
        """Return the context of the steps that come next, ``[B, C]`` or ``[B, I, C]``."""
        return at_step(context.features, state.step)


class DiscreteMemory(Memory):
    """One of K states: an input-output hidden Markov model, whose transitions are a function of the context.

    ``p(m_t = k | m_{t-1} = j, c_t) = softmax_k(f_jk(c_t))``, with one more j for the first step.

    Y. Bengio, P. Frasconi, "An Input Output HMM Architecture" (1995).

    Args:
        context_size: C.
        size: K.
        hidden: sizes of the hidden layers.
        keep: added at first to the logit of staying in a state.
        code: factor of the initial weights of the first step's logits. Well above 1, memory begins as a random code of
            what is seen first: what comes of it can be learnt at once. From weights near 0, nothing that happens later
            depends on memory at first, and learning may not leave that saddle.
    """

    def __init__(
        self, context_size: int, size: int, hidden: Several[int] = (64,), *, keep: float = 6.0, code: float = 8.0
    ):
        super().__init__(context_size, size, hidden, keep=keep)
        self.width = size
        self.support = constraints.integer_interval(0, size - 1)
        self.network = mlp(context_size, self.hidden)
        self.transition = nn.Linear(self.hidden[-1] if self.hidden else context_size, (size + 1) * size)
        with torch.no_grad():
            self.transition.bias.view(size + 1, size)[:size].diagonal().add_(keep)
            self.transition.weight.view(size + 1, size, -1)[size].mul_(code)

    def like(self, context_size: int) -> DiscreteMemory:
        """Return memory of the same size, over other contexts and with parameters of its own, for a posterior."""
        return DiscreteMemory(context_size, self.size, self.hidden, keep=self.keep, code=1.0)

    def blank(self, rows: int) -> Tensor:
        """Return K, which is none of the states, ``[B]``."""
        return torch.full((rows,), self.size, device=self.transition.bias.device)

    def features(self, memory: Tensor) -> Tensor:
        """Return memories one-hot, ``[..., K]``."""
        return F.one_hot(memory.long(), self.size).to(self.transition.bias.dtype)

    def logits(self, features: Tensor) -> Tensor:
        """Return unnormalised log p(m_t = k | m_{t-1} = j), ``[..., K + 1, K]``; j = K is before the first step."""
        output = self.transition(self.network(features))
        return output.reshape(output.shape[:-1] + (self.size + 1, self.size))

    def conditional(self, state: MemoryState, context: MemoryContext) -> TorchDistribution:
        """Return ``p(m_t | m_{t-1}, c_t)``, a categorical distribution."""
        logits = self.logits(self.seen(state, context))
        row = state.previous[..., None, None].expand(state.previous.shape + (1, self.size))
        return dist.Categorical(logits=logits.gather(-2, row).squeeze(-2))

    def walk(self, context: MemoryContext, horizon: int, draw: str) -> tuple[Tensor, Tensor]:
        """Walk a table: where each state would go at every step is drawn at once, for one noise a step serves all."""
        logits = self.logits(context.features[:, :horizon])
        if draw == "sample":
            uniform = torch.rand_like(logits[..., 0, :]).clamp_(min=torch.finfo(logits.dtype).tiny)
            logits = logits - (-uniform.log()).log().unsqueeze(-2)  # Gumbel noise
        following = logits.argmax(-1)  # [B, T, K + 1]
        memory, memories = self.blank(len(logits)).unsqueeze(1), []
        for table in following.unbind(1):
            memory = table.gather(1, memory)
            memories.append(memory)
        z = torch.cat(memories, 1)
        z = F.pad(z, (0, max(horizon - z.shape[1], 0)))
        live = torch.arange(horizon, device=z.device) < context.steps.unsqueeze(1)
        return torch.where(live, z, 0), context.steps.clamp(max=horizon + 1)


class GaussianMemory(Memory):
    """D numbers, each kept or overwritten by a gate, with noise.

    ``m_t ~ N(g m_{t-1} + (1 - g) c, s^2)``, the gate g (0 at the first step), the new content c and the scale s
    functions of m_{t-1} and the context. Reparametrised.

    Args:
        context_size: C.
        size: D.
        hidden: sizes of the hidden layers.
        keep: added at first to the logit of the gate.
    """

    has_rsample = True

    def __init__(self, context_size: int, size: int, hidden: Several[int] = (64,), *, keep: float = 6.0):
        super().__init__(context_size, size, hidden, keep=keep)
        self.width = size
        self.event_shape = torch.Size((size,))
        self.support = constraints.real_vector
        self.network = mlp(context_size + size, self.hidden)
        self.output = nn.Linear(self.hidden[-1] if self.hidden else context_size + size, 3 * size)
        with torch.no_grad():
            gate, _, raw = self.output.bias.split(size)
            gate.add_(keep)
            raw.add_(math.log(math.expm1(_SCALE)))

    def blank(self, rows: int) -> Tensor:
        """Return zeros, ``[B, D]``: the first step keeps nothing."""
        return self.output.bias.new_zeros(rows, self.size)

    def features(self, memory: Tensor) -> Tensor:
        """Return memories as they are, ``[..., D]``."""
        return memory

    def conditional(self, state: MemoryState, context: MemoryContext) -> TorchDistribution:
        """Return ``p(m_t | m_{t-1}, c_t)``, a diagonal normal."""
        output = self.output(self.network(torch.cat([self.seen(state, context), state.previous], -1)))
        gate, content, raw = output.split(self.size, -1)
        gate = torch.where((state.step > 0).unsqueeze(-1), gate.sigmoid(), 0.0)
        return dist.Normal(gate * state.previous + (1 - gate) * content, _LEAST + F.softplus(raw)).to_event(1)


_KINDS: dict[str, type[Memory]] = {"discrete": DiscreteMemory, "gaussian": GaussianMemory}


def make_memory(kind: str, context_size: int, size: int, hidden: Several[int]) -> Memory:
    """Return memory of a kind by name.

    Raises:
        ValueError: for an unknown kind, or sizes that are not positive.
    """
    if kind not in _KINDS:
        raise ValueError(f"memory must be one of {', '.join(_KINDS)}, got {kind!r}")
    return _KINDS[kind](context_size, size, hidden)


class LatentMemoryPolicy(Policy):
    """pi(m_t, a_t | m_{t-1}, o_t): memory as a latent variable, learnt from `Demonstrations` with a guide.

    ``m_t ~ pi(m_t | m_{t-1}, o_t)``, ``a_t ~ pi(a_t | m_t, o_t)``. What the teacher kept in mind is not in the data;
    :class:`~pyrocontrol.guides.MemoryGuide` infers it, and :class:`~pyrocontrol.inference.StepwiseKL_ELBO` bounds
    ``log p(a | o)``, which for discrete memory ``forward_log_likelihood(*policy.tables(demonstrations))`` has exactly.

    Args:
        observation_space: of the environment, or of the demonstrations.
        action_space: `Discrete`, `MultiDiscrete` of one dimension, or `Box` of floats.
        memory: ``"discrete"``, ``"gaussian"``, or a :class:`~pyrocontrol.models.Memory` of observations.
        size: states of a discrete memory, numbers of a Gaussian one.
        hidden: sizes of the hidden layers, of the memory and of the action.
        head: see :func:`~pyrocontrol.models.make_head`.
        normalize: data to :meth:`normalize` by.
        encoder: of the observation; see :class:`Policy`.

    Raises:
        TypeError: for spaces of other kinds.
        ValueError: for an unknown head, memory or encoder, or sizes that are not positive.
    """

    remembers = True

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        memory: str | Memory = "discrete",
        size: int = 8,
        hidden: Several[int] = (64,),
        head: str | Head = "auto",
        normalize: Any = None,
        encoder: str | nn.Module = "auto",
    ):
        super().__init__(observation_space, action_space, encoder=encoder)
        if not hidden:
            raise ValueError("hidden needs at least one layer, in which memory and observation meet")
        self.hidden = tuple(hidden)
        if isinstance(memory, str):
            memory = make_memory(memory, self.encoded_size, size, self.hidden)
        if memory.context_size != self.encoded_size:
            raise ValueError(f"the memory sees {memory.context_size} numbers, observations have {self.encoded_size}")
        self.memory = memory
        self.from_memory = nn.Linear(memory.width, self.hidden[0], bias=False)
        self.from_observation = nn.Linear(self.encoded_size, self.hidden[0])
        self.network = nn.Sequential(nn.Tanh(), mlp(self.hidden[0], self.hidden[1:]))
        self.head = make_head(head, self.hidden[-1], action_space)
        if normalize is not None:
            self.normalize(normalize)

    # -- the model --------------------------------------------------------------------------------------------------

    def model(self, batch: Any) -> Tensor:
        """Pyro model: ``memory`` from the prior, ``actions`` given it, in plate ``batch``.

        Returns:
            The actions.
        """
        register("policy", self)
        inputs = self.encoded(batch.observations)
        with pyro.plate("batch", len(inputs), dim=-1):
            memory = pyro.sample("memory", self._prior(inputs, batch.lengths))
            steps = memory.shape[memory.dim() - 1 - len(self.memory.event_shape)]
            distribution = self._emitted(memory, inputs[:, :steps])
            emission = Emission(distribution, "memory", mask=batch.acted[:, :steps])
            return pyro.sample("actions", emission, obs=self.labels(batch)[:, :steps])

    def forward(self, batch: Any) -> Tensor:
        """Run :meth:`model`, so that the policy itself can be given to an ELBO as a module."""
        return self.model(batch)

    def prior(self, batch: Any) -> Sequence:
        """Return ``p(m | o)``, the observations being the trace's own."""
        return self._prior(self.encoded(batch.observations), batch.lengths)

    def _prior(self, inputs: Tensor, lengths: Tensor) -> Sequence:
        return Sequence(self.memory, MemoryContext(inputs, lengths - 1), max(inputs.shape[1] - 1, 1))

    def distribution(self, observations: Tensor, memory: Tensor) -> TorchDistribution:
        """Return pi(a_t | m_t, o_t) at observations ``[..., O]`` and memories ``[...]`` or ``[..., D]``."""
        return self._emitted(memory, self.encoded(observations))

    def _emitted(self, memory: Tensor, inputs: Tensor) -> TorchDistribution:
        features = self.from_memory(self.memory.features(memory)) + self.from_observation(inputs)
        return self.head(self.network(features))

    def tables(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the model of a batch as a hidden Markov chain, for discrete memory: log-probabilities, nats.

        Returns:
            ``log p(m_0 | o_0)`` ``[B, K]``, ``log p(m_t = k | m_{t-1} = j, o_t)`` ``[B, I - 1, K, K]`` for steps 1 to
            I - 1, and ``log p(a_t | m_t, o_t)`` ``[B, I, K]``, 0 where a trace took no action.

        Raises:
            TypeError: for memory that is not discrete.
        """
        if not isinstance(self.memory, DiscreteMemory):
            raise TypeError(f"only discrete memory has tables, not {type(self.memory).__name__}")
        inputs = self.encoded(batch.observations[:, :-1])
        transitions = self.memory.logits(inputs).log_softmax(-1)
        actions = self.labels(batch)[:, :-1].unsqueeze(2)
        every = torch.arange(self.memory.size, device=inputs.device).expand(inputs.shape[:2] + (-1,))
        emission = self._emitted(every, inputs.unsqueeze(2)).log_prob(actions)
        emission = torch.where(batch.acted[:, :-1, None], emission, 0.0)
        return transitions[:, 0, -1], transitions[:, 1:, :-1], emission

    def exact_loss(self, batch: Any) -> Tensor:
        """Return ``-log p(a | o)``, nats, for discrete memory: what a bound bounds, summed over memories exactly.

        ``fit((policy.exact_loss, torch.optim.Adam(policy.parameters())), data, ...)`` is cloning without a guide.

        Raises:
            TypeError: for memory that is not discrete.
        """
        initial, transition, emission = self.tables(batch)
        # Pyro's chain takes a step before what it emits first: from anywhere, to where this one begins.
        first = initial[:, None, None].expand(-1, 1, self.memory.size, -1)
        chain = dist.DiscreteHMM(torch.zeros_like(initial), torch.cat([first, transition], 1), dist.Unit(emission))
        return -chain.log_prob(emission.new_empty(emission.shape[:2] + (0,))).sum()

    # -- acting -----------------------------------------------------------------------------------------------------

    def begin(self, rows: int) -> MemoryState:
        """Return the memory before an episode's first step."""
        return MemoryState(self.memory.blank(rows), torch.zeros(rows, dtype=torch.long, device=self.factor.device))

    def step(self, inputs: Tensor, state: MemoryState, deterministic: bool) -> tuple[TorchDistribution, MemoryState]:
        """Draw the memory (or take the likeliest one); return the distribution of the action, and the memory."""
        state = MemoryState(*state)  # what went through another's hands may be a plain tuple
        context = MemoryContext(inputs.unsqueeze(1), state.step + 1)
        conditional = self.memory.conditional(state, context)
        memory = conditional.mode if deterministic else conditional.sample()
        return self._emitted(memory, inputs), self.memory.advance(state, memory, context)

    def settings(self) -> dict[str, Any]:
        """What two policies share exactly when they can share weights, the spaces apart."""
        return {"memory": self.memory.signature(), "hidden": self.hidden, "head": self.head.signature()}
