"""Imagined steps: the ELBO of `ImaginedOptimality` against a loop by hand, and against exact integrals."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrocontrol.guides import GaussianPolicy
from pyrocontrol.inference import Critics, StepwiseKL_ELBO
from pyrocontrol.models import (
    ActionDriven,
    GaussianPrior,
    Imagination,
    ImaginedOptimality,
    LatentDynamics,
    ObservedDynamics,
    Sequence,
    Start,
    UniformPrior,
    soft_lambda_returns,
)
from pyrocontrol.models.imagination import trajectory

pytestmark = pytest.mark.usefixtures("float64")

B, H, A, ALPHA = 4, 5, 2, 0.3


class Case(NamedTuple):
    dynamics: ActionDriven
    optimality: ImaginedOptimality
    policy: GaussianPolicy
    start: Start
    evidence: Any
    value: Critics


def case(kind: str, horizon: int = H) -> Case:
    dynamics = (
        LatentDynamics(A, memory_size=6, latent_size=3, hidden=8)
        if kind == "latent"
        else ObservedDynamics(3, A, hidden=(8,), members=2)
    )
    network, value = nn.Linear(2 * dynamics.feature_size + A, 1), Critics(dynamics.feature_size, 0, (8,), 2)

    def evidence(before: Tensor, action: Tensor, after: Tensor) -> Tensor:
        return network(torch.cat([before, action, after], -1)).squeeze(-1).tanh()

    optimality = ImaginedOptimality(
        dynamics, evidence, value.minimum, prior=UniformPrior(A), horizon=horizon, alpha=ALPHA
    )
    policy = GaussianPolicy(dynamics.feature_size, A, hidden=(8,))
    start = Start(torch.randn(B, dynamics.memory_size), torch.randn(B, *dynamics.event_shape))
    return Case(dynamics, optimality, policy, start, evidence, value)


def by_hand(given: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, log-ratios and values of H steps ``[B, H]``, and the negative ELBO, by the noise that a walk draws."""
    (h, z), rewards, ratios, values = given.start, [], [], []
    features = given.dynamics.features(h, z)
    for _ in range(H):
        action, log_prob = given.policy.draw(features)
        h = given.dynamics.transition(h, z, action)
        prior: Any = given.dynamics.prior(h)
        z = prior.rsample()
        following = given.dynamics.features(h, z)
        rewards.append(given.evidence(features, action, following))
        ratios.append(log_prob - given.optimality.prior.log_prob(action))
        values.append(given.value.minimum(following))
        features = following
    r, ratio, v = (torch.stack(each, 1) for each in (rewards, ratios, values))
    return r, ratio, v, -((r.sum(1) + v[:, -1]) / ALPHA - ratio.sum(1)).sum()


@pytest.mark.parametrize("kind", ["latent", "observed"])
def test_the_elbo_is_the_loop_by_hand_in_value_and_gradient(kind: str) -> None:
    given = case(kind)
    torch.manual_seed(1)
    loss = StepwiseKL_ELBO(max_plate_nesting=1).differentiable_loss(
        given.optimality.model, given.optimality.guide_of(given.policy), given.start
    )
    torch.manual_seed(1)
    expected = by_hand(given)[-1]
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    parameters = [*given.policy.parameters()]
    pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["latent", "observed"])
def test_the_lambda_return_of_lambda_1_without_discount_is_the_elbo(kind: str) -> None:
    given = case(kind)
    r, ratio, v, loss = by_hand(given)
    returns = soft_lambda_returns(r, ratio, v, ALPHA, 1.0, 1.0)
    torch.testing.assert_close(-returns[:, 0].sum() / ALPHA, loss)


@pytest.mark.parametrize("kind", ["latent", "observed"])
def test_particles_are_runs_of_their_own(kind: str) -> None:
    given = case(kind, horizon=B)  # so that a mixed-up dimension would fit
    path = given.optimality.path(given.start, given.policy)
    steps = path.rsample(torch.Size([3]))
    together = given.optimality.soft_evidence(path, steps)
    alone = torch.stack([given.optimality.soft_evidence(path, each) for each in steps.detach()])
    torch.testing.assert_close(together, alone)
    loss = StepwiseKL_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1).loss(
        given.optimality.model, given.optimality.guide_of(given.policy), given.start
    )
    assert torch.isfinite(torch.tensor(loss))


def test_other_starts_are_other_distributions() -> None:
    given = case("latent")
    other = Start(given.start.memory + 1, given.start.z)
    q, p = (given.optimality.path(start, given.policy) for start in (given.start, other))
    steps = q.sample()
    torch.testing.assert_close(q.step_log_ratio(p, steps), q.step_log_prob(steps) - p.step_log_prob(steps))
    with pytest.raises(NotImplementedError):
        q.step_kl(p, steps)


def test_a_walk_is_not_used_again_where_the_world_has_changed() -> None:
    given = case("latent")
    path = given.optimality.path(given.start, given.policy)
    steps = path.rsample()
    for change in (given.dynamics.inputs.bias, given.policy.network[-1].bias, given.start.memory):  # type: ignore[union-attr]
        with torch.no_grad():
            change += 0.1  # type: ignore[operator]
        again = trajectory(path, steps.detach().clone())
        torch.testing.assert_close(trajectory(path, steps), again)
        steps = path.rsample()


def test_lambda_returns_are_averages_of_returns_of_all_lengths() -> None:
    r, ratio, v = torch.randn(3, B, H).unbind(0)
    gamma, mixing = 0.9, 0.7
    soft = r - ALPHA * ratio
    for t in range(H):
        of_length = [
            sum(gamma**k * soft[:, t + k] for k in range(n)) + gamma**n * v[:, t + n - 1] for n in range(1, H - t + 1)
        ]
        weights = [(1 - mixing) * mixing ** (n - 1) for n in range(1, H - t)] + [mixing ** (H - t - 1)]
        expected = sum(weight * value for weight, value in zip(weights, of_length, strict=True))
        found = soft_lambda_returns(r, ratio, v, ALPHA, gamma, mixing)[:, t]
        torch.testing.assert_close(found, expected)


def test_a_trajectory_passes_the_states_that_its_steps_lead_to() -> None:
    given = case("latent")
    path = given.optimality.path(given.start, given.policy)
    steps = path.rsample()
    features, actions, log_probs = trajectory(path, steps)
    again = trajectory(path, steps.detach())  # which is no walk's own: everything is unrolled
    torch.testing.assert_close(features, again.features)
    torch.testing.assert_close(log_probs, again.log_probs)
    torch.testing.assert_close(log_probs, given.policy(features[:, :-1]).log_prob(actions))
    assert features.shape == (B, H + 1, given.dynamics.feature_size) and actions.shape == (B, H, A)
    assert torch.equal(features[:, 0], given.dynamics.features(*given.start))


def test_an_action_that_tanh_rounds_to_1_keeps_its_density() -> None:
    given = case("latent")
    torch.nn.init.constant_(given.policy.network[-1].bias[:A], 30.0)  # type: ignore[union-attr, arg-type]
    torch.nn.init.constant_(given.policy.network[-1].bias[A:], -12.0)  # type: ignore[union-attr, arg-type]
    path = given.optimality.path(given.start, given.policy)
    _, actions, log_probs = trajectory(path, path.rsample())
    assert (actions == 1).all()
    # log sigma is about -12, and the density of tanh rises by 2 u - 2 log 2 at u = 30.
    assert ((log_probs > 50) & (log_probs < 200)).all()


class Plain(nn.Module):
    """A normal policy whose KL from a normal prior is known."""

    action_size = A

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, A)

    def forward(self, features: Tensor) -> TorchDistribution:
        mean = self.layer(features)
        return dist.Normal(mean, torch.full_like(mean, 0.5)).to_event(1)


def test_where_it_is_known_the_kl_of_a_step_is_that_of_the_action() -> None:
    given = case("latent")
    policy: Any = Plain(given.dynamics.feature_size)
    optimality = ImaginedOptimality(
        given.dynamics, given.evidence, given.value.minimum, prior=GaussianPrior(A), horizon=H
    )
    terms = StepwiseKL_ELBO(max_plate_nesting=1).step_terms(optimality.model, optimality.guide_of(policy), given.start)
    assert terms[0]["imagined"].kind == "kl" and terms[0]["imagined"].value.shape == (B, H)
    q = optimality.path(given.start, policy)
    p = optimality.path(given.start)
    steps = q.sample()
    features = trajectory(q, steps).features
    prior = dist.Normal(torch.zeros(B, H, A), 1.0).to_event(1)
    torch.testing.assert_close(q.step_kl(p, steps), kl_divergence(policy(features[:, :-1]), prior))
    # Both worlds agree on what follows: the log-ratio of a step is that of its action, too.
    torch.testing.assert_close(q.step_log_ratio(p, steps), q.step_log_prob(steps) - p.step_log_prob(steps))


def test_worlds_that_differ_have_no_closed_form() -> None:
    one, other = case("latent"), case("latent")
    q, p = (Sequence(Imagination(each.dynamics, one.policy), one.start, H) for each in (one, other))
    steps = q.sample()
    with pytest.raises(NotImplementedError):
        q.step_kl(p, steps)
    torch.testing.assert_close(q.step_log_ratio(p, steps), q.step_log_prob(steps) - p.step_log_prob(steps))


def test_bad_input_is_refused() -> None:
    given = case("latent")
    with pytest.raises(TypeError, match="evidence"):
        ImaginedOptimality(given.dynamics, 1, prior=UniformPrior(A), horizon=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="action numbers"):
        ImaginedOptimality(given.dynamics, given.evidence, prior=UniformPrior(A + 1), horizon=1)
    with pytest.raises(ValueError, match="horizon"):
        ImaginedOptimality(given.dynamics, given.evidence, prior=UniformPrior(A), horizon=0)
    with pytest.raises(ValueError, match="alpha"):
        ImaginedOptimality(given.dynamics, given.evidence, prior=UniformPrior(A), horizon=1, alpha=0.0)
    with pytest.raises(ValueError, match="action numbers"):
        given.optimality.guide_of(GaussianPolicy(given.dynamics.feature_size, A + 1))
