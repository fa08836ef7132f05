"""World models and their guides: against a loss by hand, and against the Kalman filter."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn import functional

from pyrocontrol.guides import FilteringGuide
from pyrocontrol.inference import BalancedKL, StepwiseKL_ELBO
from pyrocontrol.models import (
    ActionDriven,
    Driven,
    LatentDynamics,
    ObservedDynamics,
    Process,
    Sequence,
    VectorDecoder,
    VectorEncoder,
    WorldModel,
)

pytestmark = pytest.mark.usefixtures("float64")

B, T, X, A = 3, 6, 4, 2


class Pair(NamedTuple):
    world: WorldModel
    guide: FilteringGuide
    observations: Tensor
    actions: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.world.parameters(), *self.guide.parameters()]


def pair(trace: str | None = None, **options: Any) -> Pair:
    dynamics = LatentDynamics(A, memory_size=7, latent_size=3, hidden=8, **options)
    world = WorldModel(dynamics, VectorDecoder(dynamics.feature_size, X, hidden=8))
    guide = FilteringGuide(world, VectorEncoder(X, 5), 5, hidden=8, trace=trace, trace_size=4)
    return Pair(world, guide, torch.randn(B, T, X), torch.rand(B, T, A) * 2 - 1)


def by_hand(given: Pair, prior: float = 1.0, posterior: float = 1.0, free: float = 0.0) -> Tensor:
    """The loss of a recurrent state-space model, as a loop over its networks, with the noise that `rsample` draws."""
    world, guide, x, actions = given
    dynamics: Any = world.dynamics
    embeddings = guide.embedding_layer(guide.embed(x))
    h, memories, latents, means, stds = x.new_zeros(B, 7), [], [], [], []
    for t in range(T):
        mean, std = guide.process.head(guide.process.memory_layer(h) + embeddings[:, t]).chunk(2, -1)
        std = functional.softplus(std) + 0.1
        z = torch.normal(torch.zeros_like(mean), torch.ones_like(std)) * std + mean
        for values, value in zip((memories, latents, means, stds), (h, z, mean, std), strict=True):
            values.append(value)
        h = dynamics.cell(functional.elu(dynamics.inputs(torch.cat([z, actions[:, t]], -1))), h)
    h, z, mean, std = (torch.stack(values, 1) for values in (memories, latents, means, stds))
    prior_mean, prior_std = dynamics.head(h).chunk(2, -1)
    p = dist.Normal(prior_mean, functional.softplus(prior_std) + 0.1)
    q = dist.Normal(mean, std)
    held_q, held_p = dist.Normal(mean.detach(), std.detach()), dist.Normal(p.loc.detach(), p.scale.detach())
    kl = (prior * kl_divergence(held_q, p) + posterior * kl_divergence(q, held_p)).sum(-1)
    if prior == posterior == 1.0:
        kl = kl_divergence(q, p).sum(-1)
    error = world.decoders["observations"].layers(torch.cat([h, z], -1)) - x
    likelihood = dist.Normal(torch.zeros(()), 1.0).log_prob(error).sum(-1)
    return torch.maximum(kl.mean(), torch.tensor(free)) * kl.numel() - likelihood.sum()


@pytest.mark.parametrize(
    ("elbo", "options"),
    [
        (StepwiseKL_ELBO(), {}),
        (StepwiseKL_ELBO(kl=BalancedKL(0.8, 0.2)), {"prior": 0.8, "posterior": 0.2}),
        (StepwiseKL_ELBO(free_nats=0.3), {"free": 0.3}),
        (StepwiseKL_ELBO(free_nats=30.0), {"free": 30.0}),
    ],
    ids=["elbo", "balanced", "few free nats", "many free nats"],
)
def test_the_elbo_is_the_loss_by_hand_in_value_and_gradient(elbo: StepwiseKL_ELBO, options: dict[str, float]) -> None:
    given = pair()
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(given.world.model, given.guide, given.observations, given.actions)
    torch.manual_seed(1)
    expected = by_hand(given, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(loss, given.parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, given.parameters, allow_unused=True)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-10)


def test_model_and_guide_share_one_unrolling(monkeypatch: pytest.MonkeyPatch) -> None:
    given, calls = pair(), 0
    transition = LatentDynamics.transition

    def counted(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return transition(*arguments)

    monkeypatch.setattr(LatentDynamics, "transition", counted)
    StepwiseKL_ELBO(max_plate_nesting=1).differentiable_loss(
        given.world.model, given.guide, given.observations, given.actions
    )
    assert calls == T


def test_a_walks_states_are_used_again_only_while_they_are_right() -> None:
    given = pair()
    path = given.world.path(given.actions)
    z = path.rsample()
    fresh = path.states(z.detach().clone()).memory
    assert path.states(z).memory is not fresh and torch.equal(path.states(z).memory, fresh)
    # A density as a function of z is no matter of the walk that drew z.
    leaf = z.detach().requires_grad_()
    (expected,) = torch.autograd.grad(path.log_prob(leaf).sum(), leaf)
    (found,) = torch.autograd.grad(path.log_prob(z).sum(), z)
    assert torch.equal(found, expected)
    # Other actions, parameters changed in place, values changed in place: other states.
    assert not torch.equal(given.world.path(given.actions + 1).states(z).memory, fresh)
    with torch.no_grad():
        given.world.dynamics.inputs.bias += 1  # type: ignore[operator, union-attr]
    changed = path.states(z).memory
    assert torch.equal(changed, path.states(z.detach().clone()).memory) and not torch.equal(changed, fresh)
    z = path.rsample()
    with torch.no_grad():
        z += 1
    assert torch.equal(path.states(z).memory, path.states(z.detach().clone()).memory)


@pytest.mark.parametrize("options", [{}, {"classes": 3}], ids=["normal", "one-hot"])
@pytest.mark.parametrize("trace", [None, "bilstm"], ids=["filtering", "smoothing"])
def test_every_parameter_learns(options: dict[str, Any], trace: str | None) -> None:
    given = pair(trace, **options)
    StepwiseKL_ELBO().differentiable_loss(given.world.model, given.guide, given.observations, given.actions).backward()
    silent = [name for name, p in given.world.named_parameters() if p.grad is None or not p.grad.any()]
    silent += [name for name, p in given.guide.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_filtering_looks_back_and_smoothing_ahead() -> None:
    for trace, blind in ((None, True), ("bilstm", False)):
        given = pair(trace)
        changed = given.observations.clone()
        changed[:, 3:] += 1
        z = torch.zeros(B, T, 3)
        one, other = (
            given.guide.posterior(x, given.actions)._scored(z).conditional.mean for x in (given.observations, changed)
        )
        assert torch.equal(one[:, :3], other[:, :3]) == blind
        assert not torch.equal(one[:, 3:], other[:, 3:])


def test_two_guides_of_one_world_train_in_turn() -> None:
    given = pair()
    other = FilteringGuide(given.world, VectorEncoder(X, 5), 5, hidden=8)
    adam = pyro.optim.Adam({"lr": 1e-3})
    for guide in (given.guide, other, given.guide):
        pyro.infer.SVI(given.world.model, guide, adam, StepwiseKL_ELBO()).step(given.observations, given.actions)


def test_observed_dynamics_score_what_an_unrolling_does() -> None:
    dynamics = ObservedDynamics(X, A, hidden=(8,), members=2)
    x, actions = torch.randn(B, T, X), torch.rand(B, T, A)
    path = Sequence(dynamics, Driven(actions), T)
    at_once = path.step_log_prob(x)
    states, live = ActionDriven.unroll(dynamics, x, Driven(actions))
    step_by_step = dynamics.conditional(states, Driven(actions)).log_prob(x)
    torch.testing.assert_close(at_once, step_by_step)
    assert live.all()
    torch.testing.assert_close(at_once[:, 0], dist.Normal(0.0, 1.0).log_prob(x[:, 0]).sum(-1))
    # Row b is of member b mod K: another member's weights do not matter to it.
    with torch.no_grad():
        for weight in dynamics.weights:
            weight[1] += 1
    changed = path.step_log_prob(x)
    assert torch.equal(changed[[0, 2]], at_once[[0, 2]])
    assert not torch.equal(changed[1], at_once[1])


def test_a_posteriors_walk_is_not_used_again_where_dynamics_or_context_have_changed() -> None:
    given = pair()
    path = given.guide.posterior(given.observations, given.actions)
    z = path.rsample()
    for change in (given.world.dynamics.inputs.bias, given.actions):  # type: ignore[union-attr]
        with torch.no_grad():
            change += 0.5  # type: ignore[operator]
        for each in (path, given.world.path(given.actions)):
            assert torch.equal(each.states(z).memory, each.states(z.detach().clone()).memory)
        z = path.rsample()


class Steady(Process):
    """Normal steps; whether they are reparametrised is what is tested."""

    def __init__(self, reparametrised: bool):
        super().__init__()
        self.has_rsample = reparametrised
        self.mean = nn.Parameter(torch.tensor(0.3))

    def initial(self, context: Any) -> Tensor:
        return torch.zeros(len(context))

    def conditional(self, state: Tensor, context: Any) -> TorchDistribution:
        return dist.Normal(self.mean + 0.5 * state, torch.ones_like(state))

    def advance(self, state: Tensor, z: Tensor, context: Any) -> Tensor:
        return z


def test_normal_steps_without_a_graph_have_their_score() -> None:
    found = []
    for reparametrised in (True, False):
        q, p = Steady(reparametrised), Steady(True)

        def sites(process: Process, observed: bool) -> None:
            with pyro.plate("rows", 40_000, dim=-1):
                z = pyro.sample("z", Sequence(process, torch.zeros(40_000, 0), 3))
                if observed:
                    pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(1.0))

        torch.manual_seed(0)
        elbo = StepwiseKL_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(lambda p=p: sites(p, True), lambda q=q: sites(q, False))
        found.append(float(torch.autograd.grad(loss, q.mean)[0]) / 40_000)
    assert found[0] == pytest.approx(found[1], abs=0.1)
    assert abs(found[0]) > 1


@pytest.mark.parametrize("what", ["scale", "mask", "score", "shape", "sampled"])
def test_a_divergence_that_cannot_be_applied_is_refused(what: str) -> None:
    def sites(p: float) -> None:
        fn = dist.Bernoulli(torch.tensor(p)) if what == "score" else dist.Normal(torch.tensor(p), 1.0)
        if what == "sampled":
            fn = dist.Cauchy(torch.tensor(p), 1.0) if p == 0.1 else dist.Normal(torch.tensor(p), 1.0)
        with pyro.poutine.scale(scale=0.5 if what == "scale" else 1.0):
            with pyro.poutine.mask(mask=torch.tensor(False)) if what == "mask" else nullcontext():
                pyro.sample("z", fn)

    elbo = StepwiseKL_ELBO(kl=lambda q, p: torch.zeros(7)) if what == "shape" else StepwiseKL_ELBO(free_nats=1.0)
    with pytest.raises(ValueError, match="free nats|free_nats|kl must return"):
        elbo.loss(lambda: sites(0.1), lambda: sites(0.2))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="least 1"):
        LatentDynamics(0)
    with pytest.raises(ValueError, match="classes"):
        LatentDynamics(2, classes=1)
    with pytest.raises(ValueError, match="below most_std"):
        ObservedDynamics(3, 2, least_std=2.0)
    with pytest.raises(TypeError, match="ActionDriven"):
        WorldModel(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nothing to infer"):
        FilteringGuide(WorldModel(ObservedDynamics(3, 2)), VectorEncoder(3, 2), 2)
    with pytest.raises(ValueError, match="free_nats"):
        StepwiseKL_ELBO(free_nats=-1.0)
    with pytest.raises(ValueError, match="prior"):
        BalancedKL(prior=-1.0)
