"""Sums over all states of a process, against the forward algorithm on tables and against lists of all sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
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
    """A Markov chain; the state tells the last value, K before the first. The context is what was seen, ``[B, I]``."""

    def __init__(self, encode: Callable[[Tensor], Any] = torch.clone, decode: Callable[[Any], Tensor] = torch.clone):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(KINDS + 1, KINDS))
        self.encode, self.decode = encode, decode

    def initial(self, context: Tensor) -> Any:
        return self.encode(torch.full((len(context),), KINDS))

    def conditional(self, state: Any, context: Tensor) -> Any:
        return dist.Categorical(logits=self.table[self.decode(state)], validate_args=False)

    def advance(self, state: Any, z: Tensor, context: Tensor) -> Any:
        return self.encode(z)

    def evidence(self, state: Any, z: Tensor, context: Tensor, step: int) -> Tensor:
        return dist.Normal(z.double(), 1.0).log_prob(context[:, step])


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
            expected = exact.marginals[b, step - 1].exp().detach()[found.states[b][step]]
            torch.testing.assert_close(found.marginals[b][step], expected)


class Tosses(Process):
    """Tosses of a coin up to the second head; the state is how many there were, the context how many at first."""

    terminates = True
    support = dist.constraints.boolean

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(0.3))

    def initial(self, context: Tensor) -> Tensor:
        return context

    def conditional(self, state: Tensor, context: Tensor) -> dist.Bernoulli:
        return dist.Bernoulli(logits=self.logit + 0.5 * state)

    def advance(self, state: Tensor, z: Tensor, context: Tensor) -> Tensor:
        return state + z

    def live(self, state: Tensor, context: Tensor) -> Tensor:
        return state < 2


def tossed(state: Tensor, z: Tensor, context: Tensor, step: int) -> Tensor:
    return torch.where(z == 1, -0.5, 0.1)


def test_a_process_that_ends_is_the_sum_of_all_ends() -> None:
    sequence = Sequence(Tosses(), torch.zeros(1), 5)
    found = enumerate_states(sequence, tossed)
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


def test_a_row_that_has_ended_before_its_first_step_explains_nothing() -> None:
    found = enumerate_states(Sequence(Tosses(), torch.tensor([2.0, 0.0, 1.0]), 5), tossed)
    alone = enumerate_states(Sequence(Tosses(), torch.tensor([0.0, 1.0]), 5), tossed)
    assert found.log_likelihood[0] == 0 and found.states[0] == found.marginals[0] == []
    torch.testing.assert_close(found.log_likelihood[1:], alone.log_likelihood)


def test_no_rows_have_no_likelihoods() -> None:
    chain = Chain()
    found = enumerate_states(Sequence(chain, torch.zeros(0, STEPS), STEPS), chain.evidence)
    assert found.log_likelihood.shape == (0,) and found.states == found.marginals == []


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        (lambda z: 2**53 + z, lambda state: state - 2**53),  # equal in double precision
        (
            lambda z: (torch.stack([z // 2, z % 2], -1), torch.zeros(len(z), 0)),
            lambda state: state[0] @ state[0].new_tensor([2, 1]),
        ),
        (lambda z: {"half": z / 2, "odd": z % 2 == 1}, lambda state: (2 * state["half"]).long()),
    ],
)
def test_states_are_one_if_they_are_equal_exactly(encode: Any, decode: Any) -> None:
    plain, seen = Chain(), torch.randn(1, STEPS)
    chain = Chain(encode, decode)
    chain.table = plain.table
    found, expected = (enumerate_states(Sequence(one, seen, STEPS), one.evidence) for one in (chain, plain))
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood)
    torch.testing.assert_close(found.marginals, expected.marginals)


def only(value: float, step: int) -> Any:
    """Evidence of that value for all moves of one step."""
    return lambda state, z, context, i: torch.full((len(z),), value if i == step else 0.0)


class Drift(Chain):
    """The state holds a sum of parameters."""

    def initial(self, context: Tensor) -> Any:
        return {"last": super().initial(context), "sum": torch.zeros(len(context))}

    def conditional(self, state: Any, context: Tensor) -> Any:
        return super().conditional(state["last"], context)

    def advance(self, state: Any, z: Tensor, context: Tensor) -> Any:
        return {"last": z, "sum": state["sum"] + self.table[0, 0]}


class Broken(Chain):
    """A row of its table is NaN."""

    def conditional(self, state: Any, context: Tensor) -> Any:
        logits = self.table[state].masked_fill((state == 1).unsqueeze(-1), torch.nan)
        return dist.Categorical(logits=logits, validate_args=False)


class Real(Chain):
    def conditional(self, state: Any, context: Tensor) -> Any:
        return dist.Normal(torch.zeros(len(state)), 1.0)


class Alike(Chain):
    """One distribution for all states."""

    def conditional(self, state: Any, context: Tensor) -> Any:
        return dist.Categorical(logits=self.table[:1])


@pytest.mark.parametrize(
    ("process", "evidence", "most", "message"),
    [
        (Chain, only(-torch.inf, 2), 9, "row 0, step 2: the evidence has probability zero"),
        (Chain, only(torch.nan, 1), 9, "row 0, step 1: the log-probability of a move is NaN or infinite"),
        (Chain, only(torch.inf, 1), 9, "row 0, step 1: the log-probability of a move is NaN or infinite"),
        (Broken, only(0.0, 0), 9, "row 0, step 1: the log-probability of a move is NaN or infinite"),
        (
            Chain,
            lambda state, z, context, i: torch.zeros(len(z), 1),
            9,
            r"step 0: the evidence of 3 moves has shape \[3, 1\]",
        ),
        (Alike, only(0.0, 0), 9, r"step 1: the distributions of 3 states have batch shape \[1\]"),
        (Chain, only(0.0, 0), 2, "row 0, step 0: 3 states, more than most_states=2"),
        (Real, only(0.0, 0), 9, "row 0, step 0: Normal steps cannot be enumerated"),
        (Drift, only(0.0, 0), 9, r"row 0, step 0: the state\['sum'\] carries a gradient, .* detach it"),
        (Tosses, only(0.0, 0), 9, "row 0: no sequence ends within the horizon of 1 steps"),
    ],
)
def test_what_cannot_be_summed_is_refused(process: Any, evidence: Any, most: int, message: str) -> None:
    made = process()
    sequence = Sequence(made, torch.zeros(1), 1) if process is Tosses else Sequence(made, torch.zeros(2, STEPS), STEPS)
    with pytest.raises(ValueError, match=message):
        enumerate_states(sequence, evidence, most_states=most)


def test_states_that_hold_parameters_are_summed_where_no_gradient_is_kept() -> None:
    drift, seen = Drift(), torch.randn(1, STEPS)
    with torch.no_grad():
        found = enumerate_states(Sequence(drift, seen, STEPS), drift.evidence)
    plain = Chain()
    plain.table = drift.table
    torch.testing.assert_close(
        found, enumerate_states(Sequence(plain, seen, STEPS), plain.evidence)._replace(states=found.states)
    )
