"""Sums over all states of a process, against the forward algorithm on tables and against lists of all sequences."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrocontrol.inference import chain_posterior, enumerate_states
from pyrocontrol.models import Process, Sequence

pytestmark = pytest.mark.usefixtures("float64")

STEPS, KINDS = 4, 3


class Chain(Process):
    """A Markov chain; the state is the last value, K before the first. The context is what was seen, ``[B, I]``."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(KINDS + 1, KINDS))

    def initial(self, context: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(len(context), dtype=torch.long)
        return zeros, zeros + KINDS

    def conditional(self, state: Any, context: Tensor) -> dist.Categorical:
        return dist.Categorical(logits=self.table[state[1]])

    def advance(self, state: Any, z: Tensor, context: Tensor) -> Any:
        return state[0] + 1, z

    def evidence(self, state: Any, z: Tensor, context: Tensor) -> Tensor:
        seen = context[torch.arange(len(z)), state[0]]
        return dist.Normal(z.double(), 1.0).log_prob(seen)


def test_a_chain_is_the_forward_algorithms() -> None:
    chain, seen = Chain(), torch.randn(2, STEPS)
    found = enumerate_states(Sequence(chain, seen, STEPS), chain.evidence)
    log_p = chain.table.log_softmax(-1)
    emission = dist.Normal(torch.arange(KINDS).double(), 1.0).log_prob(seen.unsqueeze(-1))
    exact = chain_posterior(log_p[KINDS].expand(2, -1), log_p[:KINDS], emission)
    torch.testing.assert_close(found.log_likelihood, exact.log_likelihood)
    mine = torch.autograd.grad(found.log_likelihood.sum(), chain.table, retain_graph=True)
    theirs = torch.autograd.grad(exact.log_likelihood.sum(), chain.table)
    torch.testing.assert_close(mine, theirs)
    for b in range(2):
        for step in range(1, STEPS):  # the state before a step is the value of the one before
            _, value = found.states[b][step]
            expected = exact.marginals[b, step - 1].exp().detach()[value]
            torch.testing.assert_close(found.marginals[b][step], expected)


class Tosses(Process):
    """Tosses of a coin up to the second head; the state is how many there were."""

    terminates = True
    support = dist.constraints.boolean

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(0.3))

    def initial(self, context: Tensor) -> Tensor:
        return torch.zeros(len(context))

    def conditional(self, state: Tensor, context: Tensor) -> dist.Bernoulli:
        return dist.Bernoulli(logits=self.logit + 0.5 * state)

    def advance(self, state: Tensor, z: Tensor, context: Tensor) -> Tensor:
        return state + z

    def live(self, state: Tensor, context: Tensor) -> Tensor:
        return state < 2


def test_a_process_that_ends_is_the_sum_of_all_ends() -> None:
    tosses = Tosses()
    sequence = Sequence(tosses, torch.zeros(1, 0), 5)
    found = enumerate_states(sequence, lambda state, z, context: torch.where(z == 1, -0.5, 0.1))
    total = []
    for length in range(2, 6):
        for bits in itertools.product([0.0, 1.0], repeat=length - 1):
            z = torch.tensor([*bits, 1.0])
            if z.sum() == 2:
                weight = torch.where(z == 1, -0.5, 0.1).sum()
                total.append(sequence.log_prob(z.unsqueeze(0))[0] + weight)
    torch.testing.assert_close(found.log_likelihood, torch.stack(total).logsumexp(0, keepdim=True))
    assert found.marginals[0][0].tolist() == pytest.approx([1.0])
    assert all(len(state) <= 2 for state in found.states[0])  # equal states are one


def test_what_cannot_be_summed_is_refused() -> None:
    chain, seen = Chain(), torch.randn(2, STEPS)
    sequence = Sequence(chain, seen, STEPS)

    def never(state: Any, z: Tensor, context: Tensor) -> Tensor:
        return torch.where(state[0] == 2, -torch.inf, 0.0)

    with pytest.raises(ValueError, match="row 0, step 2: the evidence has probability zero"):
        enumerate_states(sequence, never)
    with pytest.raises(ValueError, match="row 0, step 0: 3 states, more than most_states=2"):
        enumerate_states(sequence, chain.evidence, most_states=2)
    with pytest.raises(ValueError, match="row 0: no sequence ends within the horizon of 1 steps"):
        enumerate_states(Sequence(Tosses(), torch.zeros(1, 0), 1), lambda state, z, context: torch.zeros(len(z)))
