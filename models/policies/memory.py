"""Latent memory: an agent's internal state m_t, drawn at every step from the one before and what is seen.

The same processes serve a policy, pi(m_t | m_{t-1}, o_t), and its guide, q(m_t | m_{t-1}, b_t) with contexts b_t of the
whole demonstration. They end with the trace: m_t exists where an action was taken.

Shapes: B traces, T steps of context, I steps of memory, C context numbers, K states, D numbers of a Gaussian memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Several
from typing import NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ..networks import mlp
from ..process import Process, at_step

__all__ = ["DiscreteMemory", "GaussianMemory", "Memory", "MemoryContext", "MemoryState", "make_memory"]


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

    terminates = True
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

    def same_states(self, other: Process) -> bool:
        """Whether the other is memory of the same kind and size: the states are the memories themselves."""
        return type(other) is type(self) and other.size == self.size

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
