"""Soft actor-critic and soft Q-learning: gradients three ways, exact backups, posteriors in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import Tensor, nn

from pyrocontrol.guides.policies.flow_policy import FlowPolicy
from pyrocontrol.guides.policies.gaussian_policy import GaussianPolicy, MixturePolicy
from pyrocontrol.inference.control.critics import Critics
from pyrocontrol.inference.control.first_form import FirstSoftActorCritic
from pyrocontrol.inference.control.policy_gradient import Pathwise, Score
from pyrocontrol.inference.control.replay import ReplayBatch
from pyrocontrol.inference.control.soft_control import SoftActorCritic
from pyrocontrol.inference.control.soft_q_learning import SoftQLearning, stein_direction
from pyrocontrol.inference.control.temperature import Temperature
from pyrocontrol.inference.objectives.stepwise import StepwiseKL_ELBO
from pyrocontrol.models.optimality import GaussianPrior, UniformPrior
from soft_learners import transitions
from tanh_gaussian import ScoreTanhGaussian, TanhGaussian

pytestmark = pytest.mark.usefixtures("float64")


PRIORS: dict[str, Callable[[int], Any]] = {"uniform": UniformPrior, "gaussian": GaussianPrior}
POLICIES: dict[str, Callable[[], Any]] = {
    "gaussian": lambda: TanhGaussian(3, 2, hidden=8),
    "flow": lambda: FlowPolicy(3, 2, hidden=(8,)),
    "flow, no tanh": lambda: FlowPolicy(3, 2, hidden=(8,), squash=False),
}


def gradients(policy: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.parameters()]


# The step of the policy


def test_q_does_not_grow_with_latents_that_the_prior_does_not_reach() -> None:
    learner = SoftActorCritic(FlowPolicy(3, 2, squash=False), 3, 2, prior=GaussianPrior(2))
    observations, latents = torch.randn(5, 3), torch.randn(5, 2)
    far, further = (learner.critics(observations, scale * latents) for scale in (1e4, 1e6))
    torch.testing.assert_close(far, further)
    assert not torch.allclose(far, learner.critics(observations, latents))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_policy_step_is_an_svi_step_and_that_of_the_paper(name: str, prior: str) -> None:
    policy = POLICIES[name]()
    if prior == "uniform" and not policy.squash:
        pytest.skip("unbounded actions have no uniform prior")
    learner = SoftActorCritic(policy, 3, 2, prior=PRIORS[prior](2), hidden=(16,), temperature=0.3)
    by_elbo = SoftActorCritic(
        policy, 3, 2, prior=PRIORS[prior](2), hidden=(16,), temperature=0.3, gradient=Trace_ELBO()
    )
    by_elbo.critics.load_state_dict(learner.critics.state_dict())
    observations = torch.randn(5, 3)

    policy.zero_grad()
    torch.manual_seed(1)
    loss, report, ratio = learner.policy_loss(observations, learner.alpha)
    assert loss is not None
    loss.backward()
    direct = gradients(policy)
    assert max(float(g.abs().max()) for g in direct) > 1e-3

    policy.zero_grad()
    torch.manual_seed(1)
    none, value, _ = by_elbo.policy_loss(observations, by_elbo.alpha)
    assert none is None
    torch.testing.assert_close(value, report)
    torch.testing.assert_close(gradients(policy), direct)

    # alpha grad_phi log pi(a) + (alpha grad_a log pi(a) - alpha grad_a log p(a) - grad_a Q) grad_phi f(epsilon)
    torch.manual_seed(1)
    actions, _ = policy.draw(observations)
    fixed = actions.detach().requires_grad_()
    log_pi = policy(observations).log_prob(fixed)
    cost = 0.3 * (log_pi - PRIORS[prior](2).log_prob(fixed)) - learner.critics(observations, fixed).amin(0)
    (by_action,) = torch.autograd.grad(cost.sum(), fixed, retain_graph=True)
    policy.zero_grad()
    torch.autograd.backward([0.3 * log_pi.mean(), actions], [torch.ones(()), by_action / 5])
    torch.testing.assert_close(gradients(policy), direct, rtol=1e-6, atol=1e-9)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in by_elbo.critics.parameters())
    torch.testing.assert_close(ratio, (log_pi - PRIORS[prior](2).log_prob(fixed)).detach(), rtol=1e-6, atol=1e-9)


ELBOS = [
    Trace_ELBO(),
    TraceGraph_ELBO(),
    TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    TraceMeanField_ELBO(),
    StepwiseKL_ELBO(),
]


@pytest.mark.parametrize("given", ELBOS, ids=lambda elbo: type(elbo).__name__)
def test_whole_updates_are_the_same_by_pyro(given: Any) -> None:
    learners = []
    for elbo in (None, given):
        pyro.set_rng_seed(3)
        policy = TanhGaussian(3, 2, hidden=8)
        learner = SoftActorCritic(policy, 3, 2, prior=UniformPrior(2), hidden=(16,), temperature=0.2, gradient=elbo)
        for _ in range(3):
            torch.manual_seed(learner.updates)
            learner.update(transitions(6))
        learners.append(learner)
    for name, value in learners[0].policy.state_dict().items():
        torch.testing.assert_close(learners[1].policy.state_dict()[name], value)
    torch.testing.assert_close(learners[1].critics.state_dict(), learners[0].critics.state_dict())
    report = SoftActorCritic(TanhGaussian(3, 2), 3, 2, prior=UniformPrior(2), gradient=given).update(transitions(6))
    assert all(value.isfinite() and not value.requires_grad for value in report.values())


def rows(kind: type[nn.Module], count: int) -> Any:
    """A policy with parameters for each row of a batch: the rows' gradients are independent samples."""

    class Rows(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.table = nn.Parameter(torch.tensor([0.3, -0.4]).repeat(count, 1))
            self.net = nn.Identity()

        def base(self, observations: Tensor) -> Any:
            return super().base(self.table.expand(*observations.shape[:-1], 2))

    return Rows()


def quadrature(learner: Any, observation: Tensor, alpha: float) -> Tensor:
    """The exact gradient at one state: Gauss-Hermite quadrature of the objective over the noise, 80 nodes."""
    nodes, weights = map(torch.tensor, np.polynomial.hermite_e.hermegauss(80))
    parameters = torch.tensor([0.3, -0.4], requires_grad=True)
    raw = parameters[0] + parameters[1].exp() * nodes
    log_pi = -0.5 * nodes**2 - 0.5 * math.log(2 * math.pi) - parameters[1]
    log_pi = log_pi - 2 * (math.log(2) - raw - nn.functional.softplus(-2 * raw))
    q = learner.critics(observation.expand(80, -1), raw.tanh().unsqueeze(-1)).amin(0)
    objective = ((alpha * log_pi - q) * weights / weights.sum()).sum()
    return torch.autograd.grad(objective, parameters)[0]


def z_scores(samples: Tensor, exact: Tensor) -> Tensor:
    return (samples.mean(0) - exact) / (samples.std(0) / math.sqrt(len(samples)))


ESTIMATES: dict[str, dict[str, Any]] = {
    "path": {},
    "path, three draws": {"gradient": Pathwise(3)},
    "score": {},
    "score, one draw": {"gradient": Score(1)},
    "by the ratio where a path is": {"gradient": Score()},
    "score by Pyro": {"gradient": Trace_ELBO(), "prior": UniformPrior(1)},
    "first form": {},
    "first form, score": {"draws": 2},
}


@pytest.mark.parametrize("kind", ESTIMATES)
def test_every_estimate_of_the_gradient_is_the_exact_one_in_expectation(kind: str) -> None:
    count = 20_000
    policy = rows(ScoreTanhGaussian if "score" in kind else TanhGaussian, count)
    make = FirstSoftActorCritic if "first" in kind else SoftActorCritic
    learner = make(policy, 2, 1, hidden=(16,), temperature=0.4, **ESTIMATES[kind])
    observation = torch.randn(2)
    exact = quadrature(learner, observation, 0.4)
    assert exact.abs().min() > 0.02
    loss, _, _ = learner.policy_loss(observation.expand(count, 2), learner.alpha)
    if loss is not None:
        loss.backward()
    found = policy.table.grad * count
    assert z_scores(found, exact).abs().max() < 4
    # What goes wrong when the baseline is the mean of two draws, the own one among them: half the gradient is left.
    assert z_scores(0.5 * found, exact).abs().max() > 6


def test_a_baseline_from_other_draws_leaves_less_variance() -> None:
    deviations = []
    for draws in (1, 4):
        policy = rows(ScoreTanhGaussian, 4000)
        torch.manual_seed(1)
        learner = SoftActorCritic(policy, 2, 1, hidden=(16,), temperature=0.4, gradient=Score(draws))
        for bias in learner.critics.biases:
            bias.data += 3  # a large value that all actions share
        learner.policy_loss(torch.ones(4000, 2), learner.alpha)[0].backward()  # type: ignore[union-attr]
        deviations.append(policy.table.grad.std(0))
    assert (deviations[1] < 0.25 * deviations[0]).all()  # four draws alone would give 0.5


# Soft value iteration


# The reward is r(s, a) = c_s + b_s a.
LINEAR = torch.tensor([[0.8], [-0.5], [0.3]], dtype=torch.float64)
BONUS = torch.tensor([0.1, -0.2, 1.0], dtype=torch.float64)


def soft_values(alpha: float, discount: float, scale: float, log_mean_exp: Callable[[Tensor], Tensor]) -> Tensor:
    """Soft value iteration: states 0 and 1 lead to each other, 2 to the end."""
    values = torch.zeros(3)
    for _ in range(2000):
        following = torch.stack([values[1], values[0], torch.zeros(())])  # 0 -> 1, 1 -> 0, 2 -> end
        values = scale * BONUS + discount * following + alpha * log_mean_exp(scale * LINEAR[:, 0] / alpha)
    return values


def exact_critic(learner: Any, values: Tensor, discount: float, scale: float) -> None:
    """Set the target critics to Q*(s, a) = scale (c_s + b_s a) + gamma V(s')."""
    following = torch.stack([values[1], values[0], torch.zeros(())])
    constant = scale * BONUS + discount * following

    def forward(observations: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        q = observations @ constant + scale * (observations @ LINEAR * actions).sum(-1)
        return q.expand(learner.critics.count, *q.shape)

    learner.target.forward = forward


def chain() -> ReplayBatch:
    """Every state with two actions; the last state ends the task."""
    states = torch.eye(3).repeat(2, 1)
    following = torch.eye(3)[torch.tensor([1, 0, 2, 1, 0, 2])]
    actions = torch.tensor([0.3, -0.4, 0.9, -0.8, 0.2, 0.0]).unsqueeze(-1)
    rewards = states @ BONUS + (states @ LINEAR * actions).sum(-1)
    return ReplayBatch(states, actions, rewards, following, states[:, 2])


class Exact(TanhGaussian):  # type: ignore[misc, valid-type]
    """pi*(a | s), the normal prior times exp(b_s a / alpha): N(b_s / alpha, 1)."""

    def __init__(self, alpha: float, scale: float):
        super().__init__(3, 1, squash=False)
        with torch.no_grad():
            self.net[0].bias.zero_()
            self.net[0].weight.copy_(torch.stack([scale * LINEAR[:, 0] / alpha, torch.zeros(3)]))


def test_the_critics_target_is_the_soft_bellman_backup() -> None:
    """With the best policy every sample of the backup is exact: Q* of soft value iteration is its fixed point."""
    alpha, discount, scale = 0.7, 0.9, 2.5
    values = soft_values(alpha, discount, scale, lambda t: 0.5 * t**2)  # log E_{N(0, 1)} exp(t a)
    learner = SoftActorCritic(
        Exact(alpha, scale), 3, 1, prior=GaussianPrior(1), discount=discount, temperature=alpha, reward_scale=scale
    )
    exact_critic(learner, values, discount, scale)
    batch = chain()
    expected = learner.target(batch.observations, batch.actions)[0]
    torch.testing.assert_close(learner.soft_target(batch), expected)
    # Time running out is no end: taking it for one gives other values, and so does leaving the prior out.
    truncated = batch._replace(terminated=torch.tensor([1.0, 0, 1, 0, 0, 1]))
    assert not torch.allclose(learner.soft_target(truncated), expected, atol=0.1)
    learner.prior = None
    assert not torch.allclose(learner.soft_target(batch), expected, atol=0.1)


def test_a_range_of_values_keeps_what_is_within_and_bounds_what_follows() -> None:
    alpha, discount, scale = 0.7, 0.9, 2.5
    values = soft_values(alpha, discount, scale, lambda t: 0.5 * t**2)
    batch = chain()
    given: dict[str, Any] = {"prior": GaussianPrior(1), "discount": discount, "temperature": alpha}
    given["reward_scale"] = scale
    wide = (float(values.min()) / scale - 0.1, float(values.max()) / scale + 0.1)  # before the scale, as rewards are
    narrow = (wide[0], float(values.median()) / scale)
    for bounds in (wide, narrow):
        learner = SoftActorCritic(Exact(alpha, scale), 3, 1, value_range=bounds, **given)
        exact_critic(learner, values, discount, scale)
        following = (batch.next_observations @ values).clamp(max=scale * bounds[1])
        expected = scale * batch.rewards + discount * (1 - batch.terminated) * following
        torch.testing.assert_close(learner.soft_target(batch), expected)
        exact = learner.target(batch.observations, batch.actions)[0]
        assert torch.allclose(expected, exact) == (bounds is wide)
    sql = SoftQLearning(Exact(alpha, scale), 3, 1, value_range=narrow, **given)
    exact_critic(sql, values, discount, scale)  # one draw of the best policy is enough for a value without error
    torch.testing.assert_close(sql.soft_target(batch), expected)


@pytest.mark.parametrize("prior", ["none", "gaussian"])
def test_soft_q_learning_needs_no_best_policy_for_the_backup(prior: str) -> None:
    """By importance sampling from any policy V(s') = alpha log int p(a) exp(Q / alpha) da, here in closed form."""
    alpha, discount = 0.7, 0.9
    if prior == "gaussian":
        values = soft_values(alpha, discount, 1.0, lambda t: 0.5 * t**2)
        policy = TanhGaussian(3, 1, squash=False)
    else:  # int_{-1}^{1} exp(t a) da
        values = soft_values(alpha, discount, 1.0, lambda t: (2 * torch.sinh(t) / t).log())
        policy = TanhGaussian(3, 1)
    learner = SoftQLearning(
        policy,
        3,
        1,
        prior=GaussianPrior(1) if prior == "gaussian" else None,
        discount=discount,
        temperature=alpha,
        particles=200_000,
    )
    with torch.no_grad():
        policy.net[0].weight.mul_(0.3)
        policy.net[0].bias.zero_()
    exact_critic(learner, values, discount, 1.0)
    batch = chain()
    expected = learner.target(batch.observations, batch.actions)[0]
    torch.testing.assert_close(learner.soft_target(batch), expected, atol=0.01, rtol=0)
    ended = batch._replace(terminated=torch.ones(6))
    assert not torch.allclose(learner.soft_target(ended), expected, atol=0.1)


def test_the_first_form_follows_a_state_value() -> None:
    learner = FirstSoftActorCritic(TanhGaussian(3, 2), 3, 2, hidden=(8,), reward_scale=3.0)
    assert learner.critics.count == 1 and float(learner.alpha) == 1 and not learner.temperature.is_learned
    batch = transitions(6)
    expected = 3 * batch.rewards + 0.99 * (1 - batch.terminated) * learner.target(batch.next_observations)[0]
    torch.testing.assert_close(learner.soft_target(batch), expected)
    observations = batch.observations
    torch.manual_seed(0)
    loss, report, ratio = learner.policy_loss(observations, learner.alpha)
    torch.manual_seed(0)
    actions, log_prob = learner.policy.draw(observations)
    target = learner.critics(observations, actions)[0] - log_prob
    assert loss is not None
    loss.backward()
    found = [p.grad for p in learner.values.parameters()]
    expected_loss = 0.5 * (learner.values(observations)[0] - target.detach()).square().mean()
    torch.testing.assert_close(found, list(torch.autograd.grad(expected_loss, list(learner.values.parameters()))))
    torch.testing.assert_close(report, -target.mean().detach())


# Posteriors in closed form


class Quadratic(nn.Module):
    """Q(s, a) = -c |a - s|^2 / 2, in the place of the critics."""

    count = 1

    def __init__(self, curvature: float):
        super().__init__()
        self.curvature = curvature

    def forward(self, observations: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        return (-0.5 * self.curvature * (actions - observations).square().sum(-1)).unsqueeze(0)

    def minimum(self, observations: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        return self(observations, actions)[0]

    value_of_frozen = minimum


@pytest.mark.parametrize("kind", ["path", "score", "stein"])
@pytest.mark.parametrize("prior", ["none", "gaussian"])
def test_the_policy_becomes_the_posterior(kind: str, prior: str) -> None:
    """exp(Q / alpha) alone is N(s, alpha / c); with the prior N(0, 1), N(s c / (c + alpha), alpha / (c + alpha))."""
    alpha, c = 0.5, 2.0
    policy = (ScoreTanhGaussian if kind == "score" else TanhGaussian)(1, 1, squash=False)
    learner: Any
    if kind == "stein":
        learner = SoftQLearning(policy, 1, 1, prior=GaussianPrior(1), temperature=alpha, particles=32)
    else:
        learner = SoftActorCritic(policy, 1, 1, prior=GaussianPrior(1), temperature=alpha)
        learner.gradient = Score(8) if kind == "score" else Pathwise(8)
    learner.critics = Quadratic(c)
    if prior == "none":
        learner.prior = None  # exp(Q / alpha) is a density here without one
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    steps = 300
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        observations = 2 * torch.rand(32, 1) - 1
        args = () if kind == "stein" else (learner.alpha,)
        learner.policy_loss(observations, *args)[0].backward()
        optimizer.step()
        schedule.step()
    total = c + (alpha if prior == "gaussian" else 0.0)
    states = torch.tensor([[-0.7], [0.2], [0.9]])
    found = policy.base(states)
    torch.testing.assert_close(found.mean.detach(), states * c / total, atol=0.06, rtol=0)
    # Stein's particles are a little too narrow when they are few.
    wide = 0.12 if kind == "stein" else 0.04
    torch.testing.assert_close(found.stddev.detach(), torch.full((3, 1), math.sqrt(alpha / total)), atol=wide, rtol=0)


def test_steins_direction_vanishes_on_average_at_the_target_and_points_home_elsewhere() -> None:
    points = torch.randn(400, 1, 1)
    other = torch.randn(400, 1, 1)
    assert stein_direction(points, -points, other).mean().abs() < 0.05
    away = points + 2
    assert (stein_direction(away, -away, other + 2).mean() < -0.3).all()
    # Without the repulsion of the kernel the particles would collapse onto the mode.
    narrow = 0.2 * points
    pushed = stein_direction(narrow, -narrow, 0.2 * other)
    assert (pushed * other).mean() > 0
    width = (narrow.unsqueeze(1) - 0.2 * other.unsqueeze(0)).square()
    kernel = (-width / 0.01).exp()
    assert ((kernel * -narrow.unsqueeze(1)).mean(0) * other).mean() < 0


def test_stein_draws_are_moved_before_the_squashing() -> None:
    """The density of u is that of tanh(u) times its derivative: integrated over a grid, both give one number."""
    learner = SoftQLearning(TanhGaussian(1, 1), 1, 1, temperature=0.5)
    learner.critics = Quadratic(1.0)  # type: ignore[assignment]
    raw = torch.linspace(-12, 12, 20001).view(-1, 1, 1)
    density = learner.raw_log_density(torch.full((1, 1), 0.4), raw).exp().squeeze()
    by_raw = torch.trapezoid(density, raw.squeeze())
    actions = torch.linspace(-1, 1, 20001)
    torch.testing.assert_close(by_raw, torch.trapezoid((-((actions - 0.4) ** 2)).exp(), actions), rtol=1e-6, atol=0)


# The temperature


def test_the_temperature_falls_while_the_policy_is_too_random_and_rises_otherwise() -> None:
    for scale, sign in ((1.0, -1), (0.01, 1)):
        policy = TanhGaussian(3, 2)
        with torch.no_grad():
            policy.net[0].bias[2:] = math.log(scale)
        learner = SoftActorCritic(policy, 3, 2, lr=1e-3)
        learner.update(transitions(64))
        assert math.copysign(1, float(learner.alpha) - 1) == sign


def test_the_temperatures_gradient_is_that_of_its_bound() -> None:
    temperature = Temperature.learned(0.5, target_entropy=-1.5)
    for prior, shift in ((None, 0.0), (UniformPrior(2), 2 * math.log(2))):
        learner = SoftActorCritic(TanhGaussian(3, 2), 3, 2, prior=prior, temperature=temperature)
        assert float(learner.alpha) == pytest.approx(0.5)
        learner.update(transitions(64))
        torch.manual_seed(5)
        batch = transitions(64)
        state = torch.get_rng_state()
        report = learner.update(batch)
        torch.set_rng_state(state)
        assert learner.log_alpha.grad is not None
        torch.testing.assert_close(-learner.log_alpha.grad, report["divergence"] - shift - 1.5)


# State


def test_soft_q_learning_moves_actions_that_are_at_their_bounds() -> None:
    policy = GaussianPolicy(1, 1, hidden=(4,))
    with torch.no_grad():
        policy.network[-1].weight.zero_()
        policy.network[-1].bias.copy_(torch.tensor([12.0, -3.0]))  # tanh is 1 in single precision
    learner = SoftQLearning(policy.float(), 1, 1)
    loss, _ = learner.policy_loss(torch.zeros(8, 1, dtype=torch.float32))
    loss.backward()
    assert policy.network[-1].bias.grad[0] > 0.1  # back to where the density of u is not 0


@pytest.mark.parametrize("make", [SoftActorCritic, SoftQLearning], ids=lambda make: make.__name__)
def test_a_learner_goes_on_from_its_state(make: Any, tmp_path: Path) -> None:
    batches = [transitions(8) for _ in range(6)]
    learner = make(FlowPolicy(3, 2, hidden=(8,)), 3, 2, hidden=(8,), smoothing=0.3, target_every=2)
    for batch in batches[:3]:
        learner.update(batch)
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    other = make(FlowPolicy(3, 2, hidden=(8,)), 3, 2, hidden=(8,), smoothing=0.3, target_every=2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (learner, other):
        torch.manual_seed(7)
        for batch in batches[3:]:
            each.update(batch)
    assert learner.updates == other.updates == 6
    for name, value in learner.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize(("make", "squash"), [(SoftActorCritic, True), (SoftQLearning, False)])
def test_single_precision_and_acting(make: Any, squash: bool) -> None:
    torch.set_default_dtype(torch.float32)
    policy = FlowPolicy(3, 2, hidden=(8,), squash=squash)
    learner = make(policy, 3, 2, prior=None if squash else GaussianPrior(2))
    batch = ReplayBatch(*(part.float() for part in transitions(8)))
    for _ in range(3):
        report = learner.update(batch)
    assert all(value.isfinite() and not value.requires_grad for value in report.values())
    assert {p.dtype for p in learner.parameters()} == {torch.float32}
    action = learner.act(np.zeros(3))
    assert action.shape == (2,) and action.dtype == np.float32
    assert not np.array_equal(action, learner.act(np.zeros(3)))
    assert np.array_equal(learner.act(np.zeros(3), deterministic=True), learner.act(np.zeros(3), True))
    assert learner.act(np.zeros((4, 3))).shape == (4, 2)


def test_critics_targets_and_policy_learn_and_the_target_follows() -> None:
    learner = SoftActorCritic(TanhGaussian(3, 2), 3, 2, hidden=(8,), smoothing=0.25)
    before = {name: value.clone() for name, value in learner.state_dict().items() if isinstance(value, Tensor)}
    learner.update(transitions(8))
    after = learner.state_dict()
    for name, value in before.items():
        assert not torch.equal(after[name], value) or (name.startswith("target") and "bias" in name), name
    torch.testing.assert_close(
        after["target.weights.0"], 0.75 * before["target.weights.0"] + 0.25 * after["critics.weights.0"]
    )


# Bad input


def sac(policy: Any = None, sizes: tuple[int, int] = (3, 2), **options: Any) -> SoftActorCritic:
    return SoftActorCritic(TanhGaussian(3, 2) if policy is None else policy, *sizes, **options)


UNIFORM, NORMAL = UniformPrior(2), GaussianPrior(2)
BAD: list[tuple[type[Exception], str, Any]] = [
    (ValueError, r"discount must be in \[0, 1\), not 1", {"discount": 1}),
    (ValueError, "lr must be positive and finite, not 0", {"lr": 0}),
    (TypeError, "lr must be a number, not '1e-3'", {"lr": "1e-3"}),
    (ValueError, "reward_scale must be positive and finite, not inf", {"reward_scale": math.inf}),
    (ValueError, r"smoothing must be in \(0, 1\], not 0", {"smoothing": 0}),
    (TypeError, "target_every must be a whole number, not 1.5", {"target_every": 1.5}),
    (ValueError, "temperature must be positive and finite, not 0", {"temperature": 0}),
    (ValueError, "temperature must be a Temperature, a number or 'learned', not 'auto'", {"temperature": "auto"}),
    (TypeError, "temperature must be a number, not None", {"temperature": None}),
    (ValueError, "target_entropy must be finite, not nan", lambda: Temperature.learned(target_entropy=math.nan)),
    (TypeError, r"no target_entropy: use temperature=Temperature.learned\(target", {"target_entropy": -1.0}),
    (TypeError, "has no first: use FirstSoftActorCritic", {"first": True}),
    (TypeError, "unexpected keyword argument 'target_evry'", {"target_evry": 1}),
    (ValueError, r"value_range must be the least and the greatest return, not \(1, 0\)", {"value_range": (1, 0)}),
    (ValueError, r"value_range must be .*, not \(0, inf\)", {"value_range": (0, math.inf)}),
    (ValueError, "value_range must be .*, not 1000", {"value_range": 1000}),
    (ValueError, r"value_range must be .*, not \('a', 'b'\)", {"value_range": ("a", "b")}),
    (ValueError, "value_range needs a prior with its density", {"value_range": (0, 1)}),
    (ValueError, "value_range .* normalised within .* which a GaussianPrior", {"value_range": (0, 1), "prior": NORMAL}),
    (TypeError, "prior must be one of actions, such as GaussianPrior.*, not 'gaussian'", {"prior": "gaussian"}),
    (ValueError, "the prior has 3 action numbers, the learner 2", {"prior": GaussianPrior(3)}),
    (ValueError, "a TanhGaussian has no latent that could be fixed for an episode", {"fixed_latent": True}),
    (TypeError, r"gradient must be a Pathwise\(\), a Score\(\) or an ELBO .*, not str", {"gradient": "score"}),
    (TypeError, "an elbo must be linear in the log joint and .*, not RenyiELBO", {"gradient": RenyiELBO()}),
    (TypeError, "an elbo must be linear .* not JitTrace_ELBO", {"gradient": JitTrace_ELBO()}),
    (ValueError, "an elbo needs the prior that makes its model", {"gradient": Trace_ELBO()}),
    (ValueError, "waits for the device: no capture", {"gradient": Trace_ELBO(), "prior": UNIFORM, "capture": True}),
    (ValueError, "a TraceMeanField_ELBO needs a policy that can be reparam.* a Mixture", lambda: sac(
        MixturePolicy(3, 2), prior=UNIFORM, gradient=TraceMeanField_ELBO()
    )),
    (ValueError, "cannot be reparam.*: gradient must be", lambda: sac(ScoreTanhGaussian(3, 2), gradient=Pathwise())),
    (ValueError, "draws must be at least 1, not 0", lambda: Score(0)),
    (TypeError, "draws must be a whole number, not 1.5", lambda: Pathwise(1.5)),  # type: ignore[arg-type]
    (ValueError, "the policy has 3 observation and 2 action numbers, the learner 4 and 2", lambda: sac(sizes=(4, 2))),
    (TypeError, "policy must be a module such as FlowPolicy, not function", lambda: sac(lambda: None)),
    (TypeError, "a Linear is no policy to learn: it has no observation_size", lambda: sac(nn.Linear(3, 2))),
    (ValueError, "the TanhGaussian is frozen", lambda: sac(TanhGaussian(3, 2).requires_grad_(False))),
    (ValueError, "no function of its parameters", lambda: SoftQLearning(ScoreTanhGaussian(3, 2), 3, 2)),
    (ValueError, "particles must be at least 4", lambda: SoftQLearning(TanhGaussian(3, 2), 3, 2, particles=3)),
    (TypeError, "not 'learned'", lambda: SoftQLearning(TanhGaussian(3, 2), 3, 2, temperature="learned")),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "given"), BAD)
def test_bad_arguments_are_refused(error: type[Exception], message: str, given: Any) -> None:
    with pytest.raises(error, match=message):
        given() if callable(given) else sac(**given)


class Narrow(GaussianPrior):
    """A prior with a number of its own, which its repr does not show."""

    __repr__ = object.__repr__

    def __init__(self, action_size: int, scale: float) -> None:
        super().__init__(action_size)
        self.scale = scale


def test_a_prior_with_weights_moves_as_one() -> None:
    class Weighted(nn.Module):
        action_size = 2

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def log_prob(self, actions: Tensor) -> Tensor:
            return -actions.square().sum(-1)

        def coordinates(self, actions: Tensor) -> Tensor:
            return torch.erf(actions / self.scale)

    prior: Any = Weighted()
    learner = SoftActorCritic(FlowPolicy(3, 2, squash=False), 3, 2, prior=prior).to(torch.float32)
    for critics in (learner.critics, learner.target):
        assert critics.coordinates(torch.ones(2, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("make", [SoftActorCritic, SoftQLearning], ids=lambda make: make.__name__)
def test_unbounded_actions_need_a_prior_over_them(make: Any) -> None:
    for prior in (None, UniformPrior(2)):
        with pytest.raises(ValueError, match="the TanhGaussian acts with any real numbers: it needs a prior over them"):
            make(TanhGaussian(3, 2, squash=False), 3, 2, prior=prior)
        make(TanhGaussian(3, 2), 3, 2, prior=prior)
    for squash in (True, False):  # on (-1, 1) the normal density is a preference like any other
        make(TanhGaussian(3, 2, squash=squash), 3, 2, prior=GaussianPrior(2))


def test_without_a_prior_going_on_earns_more_than_under_the_uniform_one() -> None:
    batch = transitions(6)
    for make in (SoftActorCritic, SoftQLearning):
        targets = []
        for prior in (None, UniformPrior(2)):
            torch.manual_seed(1)
            learner: Any = make(FlowPolicy(3, 2, hidden=(8,)), 3, 2, prior=prior, hidden=(8,), temperature=0.3)
            targets.append(learner.soft_target(batch))
        bonus = 0.99 * 0.3 * 2 * math.log(2) * (1 - batch.terminated)
        torch.testing.assert_close(targets[0] - targets[1], bonus)


def test_signatures_tell_learners_apart() -> None:
    def make(**options: Any) -> str:
        return sac(**options).signature()

    elbos = [Trace_ELBO(num_particles=count) for count in (1, 4)]
    different: list[dict[str, Any]] = [
        {},
        {"lr": 1e-3},
        {"hidden": (4,)},
        {"temperature": 1.0},
        {"temperature": Temperature.learned(0.5)},
        {"temperature": Temperature.learned(target_entropy=-3.0)},
        {"gradient": Pathwise(2)},
        {"gradient": Score()},
        *({"prior": Narrow(2, scale)} for scale in (1.0, 0.1)),
        *({"prior": UNIFORM, "value_range": bounds} for bounds in (None, (0, 1), (0, 2))),
        *({"prior": UNIFORM, "gradient": elbo} for elbo in elbos),
    ]
    assert len({make(**options) for options in different}) == len(different)
    first = FirstSoftActorCritic(TanhGaussian(3, 2), 3, 2).signature()
    assert first.removeprefix("First") != make(temperature=1.0)
    assert make() == make(temperature=Temperature.learned(), gradient=Pathwise())
    assert make(prior=Narrow(2, 1.0)) == make(prior=Narrow(2, 1.0))
    assert make(prior=UNIFORM, value_range=(0.0, 1.0)) == make(prior=UNIFORM, value_range=(0, 1))
    assert Critics(3, 2).signature() == "Critics(3, 2, hidden=(128, 128), count=2)"
