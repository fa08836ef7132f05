"""The forward algorithm against sums over all paths, against Pyro's, and as the limit of the ELBO."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrocontrol.inference import StepwiseKL_ELBO, chain_posterior, forward_log_likelihood
from pyrocontrol.models import Emission, Process, Sequence

pytestmark = pytest.mark.usefixtures("float64")

B, STEPS, K = 3, 4, 3


class Chain(NamedTuple):
    """A hidden Markov chain as the forward algorithm takes it."""

    initial: Tensor
    transition: Tensor
    emission: Tensor


def chain(steps: int = STEPS) -> Chain:
    return Chain(
        torch.randn(B, K).log_softmax(-1),
        torch.randn(B, steps - 1, K, K).log_softmax(-1),
        torch.randn(B, steps, K),
    )


def paths(given: Chain) -> tuple[Tensor, Tensor]:
    """All paths ``[P, I]``, and the joint log-probability of each with the observations ``[B, P]``."""
    initial, transition, emission = given
    steps = emission.shape[1]
    every = torch.tensor(list(itertools.product(range(K), repeat=steps)))
    joint = initial[:, every[:, 0]] + emission[:, 0, every[:, 0]]
    for t in range(1, steps):
        joint = joint + transition[:, t - 1, every[:, t - 1], every[:, t]] + emission[:, t, every[:, t]]
    return every, joint


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_it_is_the_sum_over_all_paths(steps: int) -> None:
    given = chain(steps)
    torch.testing.assert_close(forward_log_likelihood(*given), paths(given)[1].logsumexp(-1))


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_the_posterior_is_that_of_all_paths(steps: int) -> None:
    given = chain(steps)
    found = chain_posterior(*given)
    every, joint = paths(given)
    weight = joint.softmax(-1)
    torch.testing.assert_close(found.log_likelihood, joint.logsumexp(-1))
    here = nn.functional.one_hot(every, K).double()  # [P, I, K]
    marginals = torch.einsum("bp,pik->bik", weight, here)
    torch.testing.assert_close(found.marginals.exp(), marginals)
    torch.testing.assert_close(found.initial.exp(), marginals[:, 0])
    pairs = torch.einsum("bp,pij,pik->bijk", weight, here[:, :-1], here[:, 1:])
    torch.testing.assert_close(found.transition.exp(), pairs / marginals[:, :-1].unsqueeze(-1))
    assert found.transition.shape == (B, steps - 1, K, K)


def test_it_agrees_with_pyro() -> None:
    initial, transition = torch.randn(B, K).log_softmax(-1), torch.randn(K, K).log_softmax(-1)
    loc, x = torch.randn(K), torch.randn(B, STEPS)
    # Pyro's chain takes a step from the initial state before the first observation.
    first = (initial.unsqueeze(-1) + transition).logsumexp(-2)
    emission = dist.Normal(loc, 1.0).log_prob(x.unsqueeze(-1))
    theirs = dist.DiscreteHMM(initial, transition, dist.Normal(loc, 1.0)).log_prob(x)
    torch.testing.assert_close(forward_log_likelihood(first, transition, emission), theirs)
    torch.testing.assert_close(chain_posterior(first, transition, emission).log_likelihood, theirs)


def test_the_gradient_is_the_expected_count() -> None:
    given = Chain(*(tensor.requires_grad_() for tensor in chain()))
    gradients = torch.autograd.grad(forward_log_likelihood(*given).sum(), given)
    weights, joint = paths(given)
    expected = torch.autograd.grad(joint.logsumexp(-1).sum(), given)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients[2], chain_posterior(*given).marginals.exp())
    assert weights.shape == (K**STEPS, STEPS)


def test_steps_past_the_end_add_nothing() -> None:
    short, long = chain(2), chain(STEPS)
    padded = Chain(
        short.initial,
        torch.cat([short.transition, long.transition[:, 1:]], 1),
        torch.cat([short.emission, torch.zeros(B, STEPS - 2, K)], 1),
    )
    torch.testing.assert_close(forward_log_likelihood(*padded), forward_log_likelihood(*short))
    torch.testing.assert_close(chain_posterior(*padded).marginals[:, :2], chain_posterior(*short).marginals)


def test_impossible_states_and_long_chains_stay_finite() -> None:
    steps = 2000
    never = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    initial = torch.tensor([[0.5, 0.5]]).log().requires_grad_()
    emission = torch.full((1, steps, 2), -50.0).requires_grad_()
    found = forward_log_likelihood(initial, never, emission)
    torch.testing.assert_close(found, torch.tensor([-50.0 * steps]))
    for gradient in torch.autograd.grad(found.sum(), (initial, emission)):
        assert gradient.isfinite().all()
    assert chain_posterior(initial, never, emission).marginals.isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((B, K), (K, K), (B, K)), r"emission must have shape \[B, I, K\]"),
        (((B, K + 1), (K, K), (B, STEPS, K)), r"needs initial \[3, 3\]"),
        (((B, K), (B, STEPS, K, K), (B, STEPS, K)), r"transition \[3, 3, 3, 3\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    for function in (forward_log_likelihood, chain_posterior):
        with pytest.raises(ValueError, match=message):
            function(*map(torch.zeros, shapes))


# The limit of the ELBO


class Table(Process):
    """A chain given by its tables."""

    def initial(self, context: Any) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(len(context[0]), dtype=torch.long)
        return zeros, zeros

    def conditional(self, state: tuple[Tensor, Tensor], context: Any) -> Any:
        previous, step = state
        initial, transition = context
        rows = torch.arange(len(initial)).reshape((-1,) + (1,) * (step.dim() - 1))
        later = transition[rows, (step - 1).clamp(min=0), previous]
        return dist.Categorical(logits=torch.where((step == 0).unsqueeze(-1), initial[rows], later))

    def advance(self, state: tuple[Tensor, Tensor], z: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        return z, state[1] + 1


def elbo(given: Chain, guide_tables: tuple[Tensor, Tensor], *, analytic: bool, particles: int) -> Tensor:
    """``[B]``-summed ELBOs of single particles, with the chain's emission as a factor of every step."""
    table = Table()

    def model() -> None:
        with pyro.plate("rows", B, dim=-1):
            z = pyro.sample("z", Sequence(table, given[:2], STEPS))
            steps = given.emission.expand(z.shape + (K,)).gather(-1, z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", Emission(dist.Delta(zeros := torch.zeros_like(steps), steps), "z"), obs=zeros)

    def guide() -> None:
        with pyro.plate("rows", B, dim=-1):
            pyro.sample("z", Sequence(table, guide_tables, STEPS), infer={"analytic_kl": analytic})

    loss = StepwiseKL_ELBO()
    return torch.tensor([-loss.loss(model, guide) for _ in range(particles)])


def test_the_elbo_is_below_and_the_exact_posterior_makes_it_tight() -> None:
    given = chain()
    exact = forward_log_likelihood(*given).sum()
    found = chain_posterior(*given)
    # Every sample of log p - log q is the likelihood itself; with analytic KLs, the mean is.
    tight = elbo(given, (found.initial, found.transition), analytic=False, particles=20)
    torch.testing.assert_close(tight, exact.expand(20))
    drawn = elbo(given, (found.initial, found.transition), analytic=True, particles=400)
    assert abs(float(drawn.mean() - exact)) < 4 * float(drawn.std()) / 20
    other = elbo(given, (given.initial, given.transition), analytic=False, particles=400)
    gap = exact - other.mean()
    assert float(gap) > 10 * float(other.std()) / 20
