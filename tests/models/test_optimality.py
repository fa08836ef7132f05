"""The optimality model: its evidence and posterior in closed form, its priors, and soft value iteration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyrocontrol.models.optimality import GaussianPrior, OneStepOptimality, UniformPrior, optimality_evidence

pytestmark = pytest.mark.usefixtures("float64")


class Gaussian(nn.Module):
    """A policy with one mean and scale in every state."""

    observation_size, squash, has_rsample = 1, False, True

    def __init__(self, mean: float, scale: float, action_size: int = 2):
        super().__init__()
        self.action_size = action_size
        self.mean = nn.Parameter(torch.full((action_size,), mean))
        self.log_scale = nn.Parameter(torch.full((action_size,), math.log(scale)))

    def forward(self, observations: Tensor) -> Any:
        mean = self.mean.expand(*observations.shape[:-1], -1)
        return dist.Normal(mean, self.log_scale.exp().expand_as(mean)).to_event(1)


class Quadratic(nn.Module):
    """Q(s, a) = -(a - s)^2 c / 2, with a parameter that nobody may train."""

    def __init__(self, curvature: float = 3.0):
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(curvature))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return -0.5 * self.curvature * (actions - observations).square().sum(-1)


# Priors


@pytest.mark.parametrize("prior", [UniformPrior(3), GaussianPrior(3)], ids=repr)
def test_a_prior_scores_as_its_distribution(prior: Any) -> None:
    distribution = prior.distribution((4, 5))
    assert distribution.batch_shape == (4, 5) and distribution.event_shape == (3,)
    actions = distribution.sample()
    assert actions.dtype == torch.float64
    torch.testing.assert_close(prior.log_prob(actions), distribution.log_prob(actions))
    assert prior.distribution((2,), like=torch.zeros(1, dtype=torch.float32)).sample().dtype == torch.float32
    wide = distribution.expand((6, 4, 5))
    assert wide.sample((2,)).shape == (2, 6, 4, 5, 3)
    assert wide.log_prob(actions).shape == (6, 4, 5)


@pytest.mark.parametrize("prior", [UniformPrior(3), GaussianPrior(3)], ids=repr)
def test_there_are_coordinates_in_which_a_prior_is_uniform(prior: Any) -> None:
    actions = prior.distribution((5,), torch.zeros((), dtype=torch.float64)).sample().requires_grad_()
    places = prior.coordinates(actions)
    assert (places.abs() < 1).all()
    (slopes,) = torch.autograd.grad(places.sum(), actions)
    uniform = -3 * math.log(2)  # the density of the coordinates
    torch.testing.assert_close(uniform + slopes.log().sum(-1), prior.log_prob(actions.detach()))


def test_the_uniform_prior_is_the_cubes_with_its_boundary() -> None:
    prior = UniformPrior(2)
    inside = torch.tensor([[0.3, -0.2], [1.0, -1.0]])  # tanh reaches 1 in single precision
    torch.testing.assert_close(prior.log_prob(inside), torch.full((2,), -2 * math.log(2)))
    assert prior.log_prob(torch.tensor([1.1, 0.0])) == -math.inf
    assert prior.distribution((2,)).support.check(inside).all()
    samples = prior.distribution((20000,)).sample()
    assert samples.abs().max() <= 1
    torch.testing.assert_close(samples.square().mean(0), torch.full((2,), 1 / 3), atol=0.01, rtol=0)


def test_the_gaussian_prior_in_closed_form() -> None:
    actions = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    expected = torch.tensor([0.0, -2.5]) - math.log(2 * math.pi)
    torch.testing.assert_close(GaussianPrior(2).log_prob(actions), expected)


# One step


@pytest.mark.parametrize("particles", [1, 7])
def test_the_exact_posterior_has_a_loss_without_variance(particles: int) -> None:
    """Q = -c (a - s)^2 / 2, prior N(0, 1): the posterior is N(s c/(c + alpha), alpha/(c + alpha))."""
    alpha, c = 0.5, 3.0
    observations = torch.full((5, 1), 0.8)
    optimality = OneStepOptimality(Quadratic(c), GaussianPrior(2), alpha)
    policy = Gaussian(0.8 * c / (c + alpha), math.sqrt(alpha / (c + alpha)))
    normal = dist.Normal(torch.zeros(2), math.sqrt(1 + alpha / c)).to_event(1)
    log_z = normal.log_prob(torch.full((2,), 0.8)) + math.log(2 * math.pi * alpha / c)
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1)
    for _ in range(3):
        loss = elbo.differentiable_loss(optimality.model, optimality.guide_of(policy), observations)
        torch.testing.assert_close(loss, -5 * log_z)
    policy = Gaussian(0.0, 1.0)  # any other has a greater loss
    loss = Trace_ELBO(1000, vectorize_particles=True).loss(optimality.model, optimality.guide_of(policy), observations)
    assert loss > -5 * log_z + 1


def test_svi_finds_the_posterior_and_leaves_the_critic_alone() -> None:
    alpha, c = 0.5, 3.0
    critic, policy = Quadratic(c), Gaussian(0.0, 1.0)
    optimality = OneStepOptimality(critic, GaussianPrior(2), torch.tensor(alpha))
    elbo = Trace_ELBO(16, vectorize_particles=True)
    svi = SVI(optimality.model, optimality.guide_of(policy), pyro.optim.Adam({"lr": 0.02}), elbo)
    for _ in range(250):
        svi.step(torch.full((4, 1), 0.8))
    torch.testing.assert_close(policy.mean.detach(), torch.full((2,), 0.8 * c / (c + alpha)), atol=0.05, rtol=0)
    scale = torch.full((2,), math.sqrt(alpha / (c + alpha)))
    torch.testing.assert_close(policy.log_scale.exp().detach(), scale, atol=0.03, rtol=0)
    assert critic.curvature == c and not list(optimality.parameters())
    assert set(pyro.get_param_store()) == {"policy$$$mean", "policy$$$log_scale"}


def test_a_prior_makes_its_model() -> None:
    for prior in (UniformPrior(2), GaussianPrior(2)):
        optimality = prior.optimality(Quadratic(), 0.3)
        assert optimality.prior is prior and optimality.alpha == 0.3
        trace = pyro.poutine.trace(optimality).get_trace(torch.zeros(3, 1))
        assert trace.nodes["action"]["value"].shape == (3, 2)
        expected = Quadratic()(torch.zeros(3, 1), trace.nodes["action"]["value"]) / 0.3
        torch.testing.assert_close(trace.nodes["optimality"]["fn"].log_prob(torch.empty(3, 0)), expected)


# Whole trajectories


def test_the_evidence_of_all_trajectories_is_the_soft_value() -> None:
    """With deterministic dynamics, log sum_tau p(tau) p(O | tau) = V_0 / alpha, V soft and not hard."""
    alpha, horizon, states, actions = 0.7, 4, 3, 2
    reward = torch.randn(states, actions)
    follows = torch.tensor([[1, 2], [2, 0], [0, 0]])
    rows = []
    for sequence in itertools.product(range(actions), repeat=horizon):
        state, rewards = 0, []
        for action in sequence:
            rewards.append(reward[state, action])
            state = int(follows[state, action])
        rows.append(torch.stack(rewards))
    evidence = torch.logsumexp(optimality_evidence(torch.stack(rows), alpha) - horizon * math.log(actions), 0)
    soft, hard = torch.zeros(states), torch.zeros(states)
    for _ in range(horizon):
        soft = alpha * (torch.logsumexp((reward + soft[follows]) / alpha, -1) - math.log(actions))
        hard = (reward + hard[follows]).amax(-1)
    torch.testing.assert_close(evidence, soft[0] / alpha)
    assert not torch.isclose(evidence, hard[0] / alpha)


# Bad input


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive and finite"):
        OneStepOptimality(Quadratic(), GaussianPrior(2), alpha)
    with pytest.raises(ValueError, match="alpha must be positive and finite"):
        optimality_evidence(torch.zeros(3), alpha)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="action_size must be at least 1, not 0"):
        UniformPrior(0)
    with pytest.raises(ValueError, match=r"actions must have shape \[\.\.\., 2\], not \[4, 3\]"):
        GaussianPrior(2).log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"actions must have shape \[\.\.\., 2\], not \[3\]"):
        UniformPrior(2).log_prob(torch.zeros(3))
    with pytest.raises(TypeError, match="critic must be a function of observations and actions, not int"):
        OneStepOptimality(3, GaussianPrior(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the policy has 3 action numbers, the prior 2"):
        OneStepOptimality(Quadratic(), GaussianPrior(2)).guide_of(Gaussian(0.0, 1.0, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rewards must have shape \[\.\.\., T\]"):
        optimality_evidence(torch.tensor(1.0))
