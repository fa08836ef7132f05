"""Policies over continuous actions: one set of tests for all of them, and what is special to each."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyrocontrol.guides.policies.action_policy import ActionPolicy, LatentPolicy, tanh_log_determinant
from pyrocontrol.guides.policies.flow_policy import FlowPolicy
from pyrocontrol.guides.policies.gaussian_policy import GaussianPolicy, MixturePolicy
from pyrocontrol.guides.policies.zuko_policy import ZukoPolicy

pytestmark = pytest.mark.usefixtures("float64")

O = 5  # noqa: E741
needs_zuko = pytest.mark.skipif(importlib.util.find_spec("zuko") is None, reason="zuko is not installed")

KINDS: dict[str, tuple[Callable[..., ActionPolicy], dict[str, Any]]] = {
    "flow": (FlowPolicy, {}),
    "flow-5": (FlowPolicy, {"couplings": 5, "units": 3}),
    "flow-linear": (FlowPolicy, {"hidden": (), "embedding_size": 7}),
    "flow-paper": (FlowPolicy.paper, {}),
    "gaussian": (GaussianPolicy, {}),
    "mixture": (MixturePolicy, {"components": 3}),
    "spline": (ZukoPolicy, {"transform": "spline"}),
    "spline-autoregressive": (ZukoPolicy, {"transform": "spline-autoregressive"}),
    "affine-autoregressive": (ZukoPolicy, {"transform": "affine-autoregressive", "layers": 3}),
}
# A class each: for what does not depend on how the numbers of an action depend on each other.
CLASSES = ["flow", "gaussian", "mixture", "spline"]
# Every kind at one number and at an odd count of them, squashed at one of the two and plain at the other, in turn.
CASES = [(name, (i + j) % 2 == 0, size) for i, name in enumerate(KINDS) for j, size in enumerate((1, 3))]


def params(rows: Any) -> list[Any]:
    """The rows, or names, each skipped where it needs zuko and there is none."""
    tuples = [row if isinstance(row, tuple) else (row,) for row in rows]
    return [pytest.param(*row, marks=needs_zuko if KINDS[row[0]][0] is ZukoPolicy else ()) for row in tuples]


def made(name: str, action_size: int, *, squash: bool = True, shaken: bool = True, **settings: Any) -> ActionPolicy:
    """A policy, moved away from how it starts, so that a scale that is 1 by chance hides nothing."""
    kind, given = KINDS[name]
    policy = kind(O, action_size, squash=squash, **{"hidden": (16,), **given, **settings})
    if shaken:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    return policy


def latent(name: str, action_size: int, **settings: Any) -> LatentPolicy:
    policy = made(name, action_size, **settings)
    assert isinstance(policy, LatentPolicy)
    return policy


every = pytest.mark.parametrize("name", params(KINDS))
each_class = pytest.mark.parametrize("name", params(CLASSES))
both = pytest.mark.parametrize("squash", [True, False], ids=["squashed", "plain"])
at_three = pytest.mark.parametrize(("name", "squash", "size"), params(CASES[1::2]))
cases = pytest.mark.parametrize(("name", "squash", "size"), params(CASES))
latent_cases = pytest.mark.parametrize(("name", "squash", "size"), params(c for c in CASES if c[0] != "mixture"))


# -- all policies -----------------------------------------------------------------------------------------------------


@cases
def test_draws_have_the_log_probability_of_the_distribution(name: str, squash: bool, size: int) -> None:
    policy, edge = made(name, size, squash=squash), 1 - 1e-6 if squash else math.inf
    for batch in ((), (4,), (2, 3)):
        observations = torch.randn(*batch, O)
        distribution = policy(observations)
        assert distribution.batch_shape == batch and distribution.event_shape == (size,)
        assert distribution.has_rsample is policy.has_rsample
        actions, log_prob = policy.draw(observations)
        assert actions.shape == batch + (size,) and log_prob.shape == batch
        assert not squash or bool((actions.abs() < 1).all())
        again = policy(observations).log_prob(actions)
        inside = actions.abs().amax(-1) < edge
        torch.testing.assert_close(log_prob[inside], again[inside], rtol=1e-7, atol=1e-7)
        # A draw of the distribution itself, and one of a given shape.
        pyro.set_rng_seed(1)
        own = distribution()
        pyro.set_rng_seed(1)
        assert torch.equal(own, policy.draw(observations)[0])
        pyro.set_rng_seed(2)
        several = distribution.sample((7,))
        pyro.set_rng_seed(2)
        drawn, their_log_prob = policy.draw(observations, sample_shape=(7,))
        assert torch.equal(several, drawn) and their_log_prob.shape == (7, *batch)
        assert several.shape == (7, *batch, size) and not several.requires_grad
        inside = several.abs().amax(-1) < edge
        assert inside.sum() > 3
        again = policy(observations).log_prob(several)
        torch.testing.assert_close(distribution.log_prob(several)[inside], again[inside], rtol=1e-7, atol=1e-7)
        assert policy.mode(observations).shape == batch + (size,)
        torch.testing.assert_close(policy.mode(observations), distribution.mode)


@at_three
def test_float32(name: str, squash: bool, size: int) -> None:
    policy = made(name, size, squash=squash).float()
    observations = torch.randn(64, O, dtype=torch.float32)
    actions, log_prob = policy.draw(observations)
    assert actions.dtype == log_prob.dtype == torch.float32
    inside = actions.abs().amax(-1) < (0.99 if squash else math.inf)
    assert inside.any()
    exact = policy.double()(observations.double()[inside]).log_prob(actions.double()[inside])
    torch.testing.assert_close(log_prob[inside].double(), exact, rtol=1e-4, atol=2e-4)


@cases
def test_density_integrates_to_one_and_is_that_of_the_draws(name: str, squash: bool, size: int) -> None:
    size = min(size, 2)
    policy = made(name, size, squash=squash)
    observation = torch.randn(O)
    # Where the mass is, in raw actions; squashed ones are integrated over a = tanh u, da = (1 - a^2) du.
    reach, count = (7.0, 2001) if size == 1 else (6.5, 131)
    line = torch.linspace(-reach, reach, count)
    raw = torch.cartesian_prod(*[line] * size).reshape(-1, size)
    points = raw.tanh() if squash else raw
    cell = ((1 - points.square()).prod(-1) if squash else 1.0) * (line[1] - line[0]) ** size
    with torch.no_grad():
        mass = policy(observation.expand(len(points), O)).log_prob(points).exp() * cell
        draws = policy.draw(observation.expand(20_000, O))[0]
    assert float(mass.sum()) == pytest.approx(1, abs=5e-3)
    # Kolmogorov-Smirnov in the last number: 1.95 is passed once in a thousand.
    marginal = mass.reshape(-1, count).sum(0)
    exact = marginal.cumsum(0) - marginal / 2  # up to the middle of each cell
    found = torch.searchsorted(draws[:, -1].sort().values, points[:count, -1].contiguous()) / len(draws)
    assert float((found - exact).abs().max()) < 1.95 / math.sqrt(len(draws)) + 2e-3


@cases
def test_gradients_reach_every_parameter(name: str, squash: bool, size: int) -> None:
    policy = made(name, size, squash=squash)
    actions, log_prob = policy.draw(torch.randn(32, O))
    assert actions.requires_grad is policy.has_rsample
    (log_prob * torch.randn(32) + actions.sum(-1)).sum().backward()
    for path, parameter in policy.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), path
        assert bool(parameter.grad.any()), path


@each_class
def test_act(name: str) -> None:
    policy = made(name, 3).float()
    one, several = np.random.default_rng(0).normal(size=(1, O))[0], np.ones((4, O), np.float32)
    for observation, shape in [(one, (3,)), (several, (4, 3))]:
        action = policy.act(observation)
        assert isinstance(action, np.ndarray) and action.shape == shape and action.dtype == np.float32
        likeliest = policy.act(observation, deterministic=True)
        np.testing.assert_array_equal(likeliest, policy.act(observation, deterministic=True))
        inputs = torch.as_tensor(observation, dtype=torch.float32)
        np.testing.assert_array_equal(likeliest, policy.mode(inputs).detach().numpy())
        assert (action != likeliest).all()


@every
def test_save_and_load(name: str) -> None:
    policy = made(name, 3)
    buffer = io.BytesIO()
    torch.save(policy.state_dict(), buffer)
    settings = json.loads(json.dumps(policy.settings()))
    other = type(policy)(**settings)
    assert other.signature() == policy.signature()
    assert type(policy)(**{**settings, "action_size": 2}).signature() != policy.signature()
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    observations = torch.randn(4, O)
    for ours, theirs in zip(
        policy.draw(observations, torch.Generator().manual_seed(1)),
        other.draw(observations, torch.Generator().manual_seed(1)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@each_class
@pytest.mark.parametrize(("particles", "squash"), [(1, False), (3, True)])
def test_gradient_at_a_pyro_site(name: str, particles: int, squash: bool) -> None:
    policy, observations = made(name, 2, squash=squash), torch.randn(4, O)
    target = torch.tensor([0.3, -0.2])

    def value(actions: Tensor) -> Tensor:
        return -(actions - target).square().sum(-1) / 0.2

    def model() -> None:
        with pyro.plate("batch", 4):
            prior = dist.Uniform(-1.0, 1.0) if squash else dist.Normal(0.0, 1.0)
            actions = pyro.sample("action", prior.expand([2]).to_event(1))
            pyro.factor("optimality", value(actions))

    def guide() -> None:
        with pyro.plate("batch", 4):
            pyro.sample("action", policy(observations))

    parameters = list(policy.parameters())
    pyro.set_rng_seed(3)
    loss = Trace_ELBO(particles, vectorize_particles=True, max_plate_nesting=1).differentiable_loss(model, guide)
    found = torch.autograd.grad(loss, parameters)
    # The same noise, without Pyro.
    pyro.set_rng_seed(3)
    shape = (particles, 4, O) if particles > 1 else (4, O)
    actions, log_prob = policy.draw(observations.expand(shape))
    prior = -2 * math.log(2) if squash else -0.5 * actions.square().sum(-1) - math.log(2 * math.pi)
    ours = log_prob - prior - value(actions)
    assert float(loss.detach()) == pytest.approx(float(ours.detach().sum() / particles))
    if not policy.has_rsample:
        ours = log_prob * ours.detach()
    for one, other in zip(found, torch.autograd.grad(ours.sum() / particles, parameters), strict=True):
        torch.testing.assert_close(one, other)


@each_class
def test_noise_comes_from_the_generator(name: str) -> None:
    policy, observations = made(name, 3), torch.randn(4, O)
    state = torch.get_rng_state()
    first, again, other = (policy.draw(observations, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@each_class
def test_no_rows(name: str) -> None:
    policy, observations = made(name, 3), torch.zeros(0, O)
    actions, log_prob = policy.draw(observations)
    assert actions.shape == (0, 3) and log_prob.shape == (0,)
    assert policy.mode(observations).shape == (0, 3)
    if isinstance(policy, LatentPolicy):
        assert policy.latents(policy.actions(torch.zeros(0, 3), observations), observations).shape == (0, 3)


@each_class
def test_distribution_takes_part_in_pyros_algebra(name: str) -> None:
    policy, observations = made(name, 2), torch.randn(3, O)
    distribution = policy(observations).expand([4, 3])
    assert distribution.batch_shape == (4, 3)
    actions = distribution.sample()
    masked = distribution.mask(torch.tensor([True, False, True])).to_event(1)
    expected = policy(observations).log_prob(actions)
    torch.testing.assert_close(masked.log_prob(actions), expected[:, 0] + expected[:, 2])
    assert policy(observations).log_prob(torch.zeros(2)).shape == (3,)


# -- squashing --------------------------------------------------------------------------------------------------------


def test_log_determinant_of_tanh() -> None:
    raw = torch.linspace(-6, 6, 24).reshape(8, 3).requires_grad_()
    (slope,) = torch.autograd.grad(raw.tanh().sum(), raw)
    torch.testing.assert_close(tanh_log_determinant(raw), slope.log().sum(-1), rtol=1e-9, atol=1e-9)
    far = torch.tensor([[-400.0, 400.0]])
    torch.testing.assert_close(tanh_log_determinant(far), torch.tensor([4 * math.log(2) - 1600]))


@pytest.mark.parametrize("grad", [True, False])
def test_draws_that_round_to_the_edge_have_their_exact_log_probability(grad: bool) -> None:
    policy = GaussianPolicy(O, 2, hidden=()).float()
    output = policy.network[-1]
    assert isinstance(output, nn.Linear)
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_(torch.tensor([30.0, -30.0, -1.0, -1.0]))
    distribution = policy(torch.zeros(6, O, dtype=torch.float32))
    actions = distribution.rsample() if grad else distribution.sample()
    assert actions.abs().eq(1).all()
    found = distribution.log_prob(actions)
    assert distribution._drawn is not None
    raw = distribution._drawn[1].detach().double()
    exact = dist.Normal(torch.tensor([30.0, -30.0]), math.exp(-1)).log_prob(raw) - 2 * (math.log(2) - raw.abs())
    torch.testing.assert_close(found.detach().double(), exact.sum(-1), rtol=1e-5, atol=1e-5)
    assert found.requires_grad
    # What is often written instead is bounded by its constant.
    wrong = dist.Normal(torch.tensor([30.0, -30.0]), math.exp(-1)).log_prob(raw) - (1e-6 + 1 - raw.tanh() ** 2).log()
    assert (wrong.sum(-1) - exact.sum(-1)).abs().min() > 10


@each_class
def test_actions_of_data_on_the_edge_have_a_density(name: str) -> None:
    policy, observations = made(name, 2), torch.randn(2, O)
    edge = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    found = policy(observations).log_prob(edge)
    assert found.isfinite().all()
    assert torch.equal(found, policy(observations).log_prob(edge * (1 - 1e-6)))
    with pytest.raises(ValueError, match="support"):
        policy(observations).log_prob(edge * 1.01)


# -- policies that move noise -----------------------------------------------------------------------------------------


@latent_cases
def test_inverse(name: str, squash: bool, size: int) -> None:
    policy, observations = latent(name, size, squash=squash), torch.randn(2, 3, O)
    latents = torch.randn(2, 3, size)
    actions = policy.actions(latents, observations)
    inside = actions.abs().amax(-1) < (1 - 1e-6 if squash else math.inf)
    assert inside.sum() > 3
    torch.testing.assert_close(policy.latents(actions, observations)[inside], latents[inside], rtol=1e-6, atol=1e-6)
    # The two batch shapes broadcast.
    several = policy.actions(torch.randn(4, 1, 1, size), observations)
    assert several.shape == (4, 2, 3, size)
    assert policy.latents(several, observations[0, 0]).shape == several.shape
    assert policy.actions(torch.zeros(size), observations).shape == (2, 3, size)
    torch.testing.assert_close(policy.actions(torch.zeros(size), observations), policy.mode(observations))


@latent_cases
def test_log_determinant_is_that_of_autograds_jacobian(name: str, squash: bool, size: int) -> None:
    policy, observation, h = latent(name, size, squash=squash), torch.randn(O), 0.5 * torch.randn(size)
    jacobian = torch.autograd.functional.jacobian(lambda latents: policy.actions(latents, observation), h)
    exact = dist.Normal(0.0, 1.0).log_prob(h).sum() - torch.linalg.slogdet(jacobian)[1]
    found = policy(observation).log_prob(policy.actions(h, observation))
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-7)
    condition = policy.condition(observation)
    raw, forth = policy.push(h, condition)
    torch.testing.assert_close(policy.pull(raw, condition)[1], forth)
    assert abs(float(forth.detach())) > 1e-5


@each_class
@both
def test_score_holds_the_action_fixed(name: str, squash: bool) -> None:
    # What was drawn with a graph has another gradient: that of the noise's own density, and of the determinant.
    policy, observations = made(name, 2, squash=squash), torch.randn(4, O)
    parameters = list(policy.parameters())
    distribution = policy(observations)
    actions = distribution.sample()
    found = torch.autograd.grad(distribution.log_prob(actions).sum(), parameters)
    exact = torch.autograd.grad(policy(observations).log_prob(actions.clone()).sum(), parameters)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    if policy.has_rsample:
        drawn = policy(observations)
        actions = drawn.rsample()
        pathwise = torch.autograd.grad(drawn.log_prob(actions).sum(), parameters[-1])[0]
        score = torch.autograd.grad(policy(observations).log_prob(actions.detach()).sum(), parameters[-1])[0]
        assert not torch.allclose(pathwise, score)


@pytest.mark.parametrize("name", params(["flow", "gaussian", "spline"]))
def test_entropy_gradient_is_that_of_finite_differences(name: str) -> None:
    # One parameter moved both ways under the same noise.
    policy, observations = made(name, 2), torch.randn(8, O)

    def loss() -> Tensor:
        actions, log_prob = policy.draw(observations, torch.Generator().manual_seed(0))
        return (log_prob + actions.square().sum(-1)).sum()

    loss().backward()
    parameter = next(iter(policy.parameters()))
    assert parameter.grad is not None
    step = 1e-5
    with torch.no_grad():
        parameter[0, 0] += step
        up = loss()
        parameter[0, 0] -= 2 * step
        down = loss()
    assert float((up - down) / (2 * step)) == pytest.approx(float(parameter.grad[0, 0]), rel=1e-4, abs=1e-6)


# -- the flow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "squash"), [(1, True), (3, False), (6, True)])
@pytest.mark.parametrize("name", ["flow", "flow-paper"])
def test_flow_is_two_couplings_with_separate_networks(name: str, size: int, squash: bool) -> None:
    policy, observations, h = latent(name, size, squash=squash), torch.randn(7, O), torch.randn(7, size)
    assert isinstance(policy, FlowPolicy)
    paper = name == "flow-paper"
    units = size if paper else 16
    embedding = policy.embedding(observations)
    assert embedding.shape == (7, 2 * size if paper else 16)  # 16 is the last hidden layer
    assert bool((embedding >= 0).all()) is (squash or not paper)
    half, numbers = size // 2, list(range(size))
    turns = [(numbers[:half], numbers[half:]), (numbers[half:], numbers[:half])] if size > 1 else [([], [0])] * 2
    # Of each coupling the scale's and the shift's, one after the other; then what is added to the shifts.
    rows = [units] * 4 + ([] if paper else [len(active) for _, active in turns])
    weight, bias = policy.conditioner.weight.split(rows), policy.conditioner.bias.split(rows)
    x = h.clone()
    for i, (passive, active) in enumerate(turns):
        layer, found = policy.layers[i], []
        for j in range(2):  # the scale, the shift
            inner = embedding @ weight[2 * i + j].T + bias[2 * i + j]
            if passive:
                inner = inner + x[:, passive] @ layer.inner[j]
            found.append(inner.tanh() @ layer.outer[j] + layer.bias[j])
        if not paper:
            found[1] = found[1] + embedding @ weight[4 + i].T + bias[4 + i]
        x = x.clone()
        x[:, active] = x[:, active] * found[0].exp() + found[1]
    torch.testing.assert_close(policy.actions(h, observations), x.tanh() if squash else x)


@pytest.mark.parametrize("name", ["flow", "flow-paper"])
def test_a_flow_begins_near_the_identity(name: str) -> None:
    policy, h = latent(name, 6, squash=False, shaken=False, hidden=(128, 128)), torch.randn(500, 6)
    moved = policy.actions(h, torch.randn(500, O)).detach() - h
    assert 0 < float(moved.abs().mean()) < 0.05


def test_one_coupling_leaves_half_of_the_latents() -> None:
    policy, h = latent("flow", 4, squash=False, couplings=1), torch.randn(3, 4)
    changed = policy.actions(h, torch.randn(3, O)) != h
    assert changed.tolist() == [[False, False, True, True]] * 3


# -- the mixture ------------------------------------------------------------------------------------------------------


def bounded(outputs: torch.Tensor, components: int, actions: int) -> list[torch.Tensor]:
    """Logits, means within [-5, 5] and log sigmas within [-5, 2], by tanh, as a mixture makes them of its outputs."""
    logits, means, scales = outputs.split([components, components * actions, components * actions], -1)
    return [logits, 5 * (means / 5).tanh(), -1.5 + 3.5 * ((scales + 1.5) / 3.5).tanh()]


def test_mixture_of_one_component_is_a_normal() -> None:
    mixture = MixturePolicy(O, 3, components=1, hidden=(8,))
    observations, actions = torch.randn(4, O), torch.rand(4, 3) * 2 - 1
    _, means, log_scales = bounded(mixture.condition(observations), 1, 3)
    exact = dist.TransformedDistribution(dist.Normal(means, log_scales.exp()), [dist.transforms.TanhTransform()])
    torch.testing.assert_close(mixture(observations).log_prob(actions), exact.to_event(1).log_prob(actions))
    torch.testing.assert_close(mixture.mode(observations), means.tanh())


def test_components_have_bounds_and_a_way_back() -> None:
    """A log sigma that is cut off has no gradient, and its component stays a point whatever the loss."""
    mixture = MixturePolicy(O, 2, components=2, hidden=())
    outputs = torch.tensor([0.0, 0.0, 9.0, -9.0, 9.0, -9.0, -9.0, -9.0, 9.0, 9.0]).requires_grad_()
    logits, means, log_scales = mixture._split(outputs)
    assert (means.abs() < 5).all() and (log_scales > -5).all() and (log_scales < 2).all()
    for values in (means, log_scales):
        (gradient,) = torch.autograd.grad(values.sum(), outputs, retain_graph=True)
        assert (gradient != 0).sum() == 4


def test_mixture_has_the_density_of_torchs() -> None:
    policy, observations, raw = made("mixture", 2, squash=False), torch.randn(4, O), torch.randn(6, 4, 2)
    logits, means, log_scales = bounded(policy.condition(observations), 3, 2)
    parts = dist.Normal(means.reshape(4, 3, 2), log_scales.reshape(4, 3, 2).exp()).to_event(1)
    exact = dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
    torch.testing.assert_close(policy(observations).log_prob(raw), exact.log_prob(raw))


def test_mixture_takes_the_mean_of_the_likeliest_component() -> None:
    policy, logits = MixturePolicy(O, 1, components=3, hidden=(), squash=False), torch.tensor([0.0, 1.0, 2.0])
    with torch.no_grad():
        policy.network[0].weight.zero_()
        policy.network[0].bias.copy_(torch.tensor([*logits, -3.0, 0.0, 3.0, -2.0, -2.0, -2.0]))
    assert math.isclose(float(policy.mode(torch.zeros(O)).detach()), 5 * math.tanh(3 / 5), rel_tol=1e-6)
    drawn = (policy.draw(torch.zeros(20_000, O))[0] / 3).round().long().clamp(-1, 1).flatten() + 1
    found, expected = drawn.bincount(minlength=3) / 20_000, logits.softmax(0)
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 20_000).sqrt()).all()


def test_mixture_is_not_reparametrised_nor_invertible() -> None:
    policy, observations = MixturePolicy(O, 2, hidden=(8,)), torch.randn(4, O)
    assert not policy.invertible and not policy.has_rsample
    with pytest.raises(NotImplementedError, match="the MixturePolicy cannot turn actions back into latents"):
        policy.latents(torch.zeros(4, 2), observations)
    with pytest.raises(NotImplementedError, match="the MixturePolicy is no map from latents to actions"):
        policy.actions(torch.zeros(4, 2), observations)
    with pytest.raises(NotImplementedError, match="the MixturePolicy cannot be reparametrised: use sample"):
        policy(observations).rsample()
    # The log-probability of a draw is differentiated with the action held fixed.
    actions, log_prob = policy.draw(observations)
    parameters = list(policy.parameters())
    found = torch.autograd.grad(log_prob.sum(), parameters)
    again = torch.autograd.grad(policy(observations).log_prob(actions).sum(), parameters)
    for one, other in zip(found, again, strict=True):
        torch.testing.assert_close(one, other)


# -- Zuko -------------------------------------------------------------------------------------------------------------


@needs_zuko
def test_zuko_leaves_validation_on() -> None:
    code = (
        "from torch.distributions import Distribution\n"
        "from pyrocontrol.guides.policies.zuko_policy import ZukoPolicy\n"
        "import sys; assert 'zuko' not in sys.modules\n"
        "before = Distribution._validate_args\n"
        "ZukoPolicy(3, 2); assert 'zuko' in sys.modules\n"
        "assert before and Distribution._validate_args\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def test_missing_zuko_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match="the ZukoPolicy needs the package zuko: pip install zuko"):
        ZukoPolicy(O, 2)


# -- bad input --------------------------------------------------------------------------------------------------------


BAD_SETTINGS: list[tuple[type[ActionPolicy], dict[str, Any], str]] = [
    (FlowPolicy, {"observation_size": 0}, "observation_size and action_size must be positive: 0, 2"),
    (GaussianPolicy, {"action_size": 0}, "observation_size and action_size must be positive: 5, 0"),
    (FlowPolicy, {"couplings": 0}, "couplings must be positive, got 0"),
    (FlowPolicy, {"embedding_size": 0}, "embedding_size must be positive, got 0"),
    (FlowPolicy, {"units": 0}, "units must be positive, got 0"),
    (FlowPolicy, {"hidden": (8, 0)}, "hidden layers must have positive sizes"),
    (MixturePolicy, {"components": 0}, "components must be positive, got 0"),
    (ZukoPolicy, {"transform": "nsf"}, "transform must be one of spline, .*, got 'nsf'"),
    (ZukoPolicy, {"layers": 0}, "there must be 1 layer and 2 bins at least, got 0 and 8"),
    (ZukoPolicy, {"bins": 1}, "there must be 1 layer and 2 bins at least, got 2 and 1"),
]


def test_settings_are_checked() -> None:
    for kind, settings, message in BAD_SETTINGS:
        with pytest.raises(ValueError, match=message):
            kind(**{"observation_size": O, "action_size": 2, **settings})
            pytest.fail(f"not refused: {message}")


def test_observations_of_another_size_are_refused() -> None:
    policy = latent("flow", 2)
    for call in (policy, policy.draw, policy.mode, lambda given: policy.actions(torch.zeros(2), given)):
        with pytest.raises(ValueError, match=r"the FlowPolicy takes observations \[\.\.\., 5\], got shape \[3, 4\]"):
            call(torch.zeros(3, 4))


def test_actions_of_another_size_are_refused() -> None:
    policy, observations = latent("flow", 2), torch.zeros(3, O)
    for call in (policy.actions, policy.latents):
        with pytest.raises(ValueError, match=r"takes actions or latents \[\.\.\., 2\], got shape \[3, 1\]"):
            call(torch.zeros(3, 1), observations)
    wrong = pytest.raises(ValueError, match=r"takes actions or latents \[\.\.\., 2\], got shape \[3, 3\]")
    with wrong, pyro.validation_enabled(False):
        policy(observations).log_prob(torch.zeros(3, 3))


def test_observations_to_act_on_are_checked() -> None:
    policy = made("gaussian", 2)
    with pytest.raises(ValueError, match="the observation of row 1 is not finite"):
        policy.act(np.array([[0.0] * O, [math.nan] * O]))
    with pytest.raises(ValueError, match=r"act takes one observation or a batch of them, got shape \(1, 2, 5\)"):
        policy.act(np.zeros((1, 2, O)))
    with pytest.raises(ValueError, match=r"takes observations \[\.\.\., 5\], got shape \[2\]"):
        policy.act(np.zeros(2))
