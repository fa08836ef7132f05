"""Action distributions against formulae written out, and what they do at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from pyrocontrol.models.heads import (
    GaussianHead,
    Head,
    MixtureHead,
    SquashedHead,
    action_features,
    action_features_size,
    make_head,
)

pytestmark = pytest.mark.usefixtures("float64")

FEATURES = 5
LINE = spaces.Box(-2.0, 3.0, (1,), np.float64)
PLANE = spaces.Box(np.array([-2.0, 0.5]), np.array([3.0, 0.6]), dtype=np.float64)
CHOICES = spaces.MultiDiscrete([2, 4, 3], start=[0, 5, -1])
BOX_HEADS = ["gaussian-shared", "gaussian", "deterministic", "mixture", "squashed"]
CASES = [
    pytest.param(name, space, id=f"{name}-{type(space).__name__}")
    for name, space in [
        ("auto", spaces.Discrete(4, start=2)),
        ("categorical", spaces.Discrete(1)),
        ("auto", CHOICES),
        ("auto", PLANE),
        *((name, PLANE) for name in BOX_HEADS),
    ]
]


def made(name: str, space: gymnasium.Space) -> Head:
    return make_head(name, FEATURES, space)


@pytest.mark.parametrize(("name", "space"), CASES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shapes(name: str, space: gymnasium.Space, batch: tuple[int, ...]) -> None:
    head = made(name, space)
    distribution = head(torch.randn(*batch, FEATURES))
    event = () if isinstance(space, spaces.Discrete) else space.shape
    assert distribution.batch_shape == batch and distribution.event_shape == event
    assert not head.draw(distribution).requires_grad
    for action in (head.mode(distribution), head.draw(distribution)):
        assert action.shape == batch + event
        assert action.dtype == (torch.get_default_dtype() if isinstance(space, spaces.Box) else torch.long)
        assert distribution.log_prob(action).shape == batch
    assert distribution.expand((7, *batch)).log_prob(head.draw(distribution)).shape == (7, *batch)


@pytest.mark.parametrize(("name", "space"), CASES)
def test_every_parameter_gets_a_gradient(name: str, space: gymnasium.Space) -> None:
    head = made(name, space)
    distribution = head(torch.randn(50, FEATURES))
    noisy = distribution.sample()
    (-distribution.log_prob(noisy).sum()).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        if space != spaces.Discrete(1):  # no choice, nothing to learn
            assert (parameter.grad != 0).all()


def test_categorical_is_the_softmax() -> None:
    head = made("categorical", spaces.Discrete(3))
    x, actions = torch.randn(6, FEATURES), torch.tensor([0, 1, 2, 2, 1, 0])
    logits = x @ head.logits.weight.T + head.logits.bias  # type: ignore[union-attr, operator]
    expected = logits.gather(1, actions[:, None])[:, 0] - logits.exp().sum(1).log()
    torch.testing.assert_close(head(x).log_prob(actions), expected)
    assert torch.equal(head.mode(head(x)), logits.argmax(1))


def test_choices_of_different_sizes_are_independent_softmaxes() -> None:
    head = made("categorical", CHOICES)
    x = torch.randn(6, FEATURES)
    actions = torch.stack([torch.randint(n, (6,)) for n in CHOICES.nvec.tolist()], 1)
    parts = head.logits(x).split(CHOICES.nvec.tolist(), 1)  # type: ignore[operator]
    expected = sum(-F.cross_entropy(part, actions[:, i], reduction="none") for i, part in enumerate(parts))
    torch.testing.assert_close(head(x).log_prob(actions), expected)
    assert torch.equal(head.mode(head(x)), torch.stack([part.argmax(1) for part in parts], 1))
    drawn = head(x).sample((2000,))
    assert (drawn < torch.as_tensor(CHOICES.nvec)).all() and (drawn.amax((0, 1)) + 1).tolist() == [2, 4, 3]


def normal(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -((x - loc) ** 2) / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("shared", [True, False])
def test_gaussian_is_the_normal_density(shared: bool) -> None:
    head = GaussianHead(FEATURES, 2, shared=shared)
    x, actions = torch.randn(6, FEATURES), torch.randn(6, 2)
    raw = head.scale if shared else head.scale(x)  # type: ignore[operator]
    scale = 1e-3 + (1 + (raw + math.log(math.e - 1)).exp()).log()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(head(x).log_prob(actions), normal(actions, head.loc(x), scale).sum(-1))
    assert torch.equal(head.mode(head(x)), head.loc(x))
    if shared:
        torch.testing.assert_close(scale, torch.full((2,), 1.001))


def test_deterministic_is_least_squares() -> None:
    head = made("deterministic", PLANE)
    x, actions = torch.randn(6, FEATURES), torch.randn(6, 2)
    squares = 0.5 * (head.loc(x) - actions).square().sum(-1)  # type: ignore[operator]
    constant = head(x).log_prob(actions) + squares
    torch.testing.assert_close(constant, torch.full((6,), -math.log(2 * math.pi)))
    assert torch.equal(head.draw(head(x)), head.mode(head(x)))


def test_mixture_is_the_weighted_sum_of_densities() -> None:
    head = MixtureHead(FEATURES, 2, components=3)
    x, actions = torch.randn(6, FEATURES), torch.randn(6, 2)
    output = head.output(x)
    weights = output[:, :3].softmax(-1)
    loc, raw = output[:, 3:9].reshape(6, 3, 2), output[:, 9:].reshape(6, 3, 2)
    scale = 1e-3 + F.softplus(raw + math.log(math.e - 1))
    densities = normal(actions[:, None], loc, scale).sum(-1).exp()
    torch.testing.assert_close(head(x).log_prob(actions).exp(), (weights * densities).sum(-1))
    assert torch.equal(head.mode(head(x)), loc[torch.arange(6), weights.argmax(-1)])


def test_squashed_is_the_density_of_the_transformed_normal() -> None:
    head = made("squashed", PLANE)
    assert isinstance(head, SquashedHead)
    x = torch.randn(6, FEATURES)
    low, high = torch.as_tensor(PLANE.low), torch.as_tensor(PLANE.high)
    share = torch.rand(6, 2) * 0.98 + 0.01
    actions = low + (high - low) * share
    u = 0.5 * (share / (1 - share)).log()  # atanh(2 s - 1)
    inner = head.gaussian(x).base_dist
    slope = (high - low) * 2 * share * (1 - share)  # d action / d u
    expected = (normal(u, inner.loc, inner.scale) - slope.log()).sum(-1)
    torch.testing.assert_close(head(x).log_prob(actions), expected)
    torch.testing.assert_close(head.mode(head(x)), low + (high - low) * (1 + inner.loc.tanh()) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squashed_actions_on_the_bounds_have_finite_density_and_gradient(dtype: torch.dtype) -> None:
    head = made("squashed", PLANE).to(dtype)
    low, high = torch.as_tensor(PLANE.low, dtype=dtype), torch.as_tensor(PLANE.high, dtype=dtype)
    x = torch.randn(1, FEATURES, dtype=dtype)
    nearly = 1 - 1e-6
    for value, inside in ((low, -nearly), (high, nearly), (high + 1e-7, nearly)):
        found = head(x).log_prob(value)
        clamped = (low + high) / 2 + (high - low) / 2 * inside
        torch.testing.assert_close(found, head(x).log_prob(clamped), rtol=2e-2, atol=0)
        found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_a_squashed_sample_stays_within_bounds_and_its_density_is_finite() -> None:
    head = made("squashed", PLANE).float()
    assert isinstance(head, SquashedHead)
    with torch.no_grad():
        head.gaussian.loc.bias.fill_(12.0)  # tanh is 1 in float32
    distribution = head(torch.zeros(1000, FEATURES, dtype=torch.float32))
    action = distribution.rsample()
    log_prob = distribution.log_prob(action)  # of the normal's own draw, kept by the transforms
    assert log_prob.isfinite().all()
    assert (action >= torch.as_tensor(PLANE.low) - 1e-6).all() and (action <= torch.as_tensor(PLANE.high) + 1e-6).all()


@pytest.mark.parametrize("name", BOX_HEADS)
def test_densities_integrate_to_one(name: str) -> None:
    head = made(name, LINE)
    x = torch.randn(FEATURES)
    low, high = (-2.0, 3.0) if name == "squashed" else (-40.0, 40.0)
    count = 400_001
    edges = torch.linspace(low, high, count)
    middles = (edges[1:] + edges[:-1]) / 2
    density = head(x).log_prob(middles.unsqueeze(-1)).exp().detach()
    assert float(density.sum() * (high - low) / (count - 1)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "gaussian-shared", "mixture"])
def test_the_density_is_bounded_however_little_noise_the_data_has(name: str) -> None:
    head = made(name, LINE)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(-1e4)
    distribution = head(torch.ones(FEATURES))
    peak = distribution.log_prob(head.mode(distribution))
    torch.testing.assert_close(peak, torch.tensor(math.log(1e3) - 0.5 * math.log(2 * math.pi)))


# Errors


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        ("gauss", PLANE, "one of auto, gaussian-shared, gaussian, deterministic, mixture, squashed, got 'gauss'"),
        ("gaussian", spaces.Discrete(3), "one of auto, categorical, got 'gaussian'"),
        ("squashed", spaces.Box(-np.inf, 1.0, (2,), np.float64), "finite bounds"),
        ("squashed", spaces.Box(1.0, 1.0, (2,), np.float64), "upper above the lower"),
    ],
)
def test_a_head_that_does_not_fit_the_space_is_refused(name: str, space: gymnasium.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, space)


@pytest.mark.parametrize(
    "space", [spaces.MultiBinary(3), spaces.MultiDiscrete([[2, 3]]), spaces.Box(0, 5, (2,), np.int64)]
)
def test_other_action_spaces_are_refused(space: gymnasium.Space) -> None:
    with pytest.raises(TypeError, match="a policy acts in Discrete, MultiDiscrete"):
        made("auto", space)


def test_a_head_of_ones_own_is_taken_if_its_features_fit() -> None:
    own: Callable[[int], Head] = lambda features: MixtureHead(features, 2, components=9)  # noqa: E731
    head = own(FEATURES)
    assert make_head(head, FEATURES, PLANE) is head
    with pytest.raises(ValueError, match="takes 4 features, the policy gives 5"):
        make_head(own(4), FEATURES, PLANE)


# Actions as inputs


def test_actions_as_inputs() -> None:
    assert action_features(spaces.Discrete(2), torch.tensor([0, 1, 2]), torch.float32).tolist() == [
        [1, 0],
        [0, 1],
        [0, 0],
    ]
    found = action_features(spaces.MultiDiscrete([2, 3]), torch.tensor([[1, 2]]), torch.float32)
    assert found.tolist() == [[0, 1, 0, 0, 1]]
    box = torch.randn(4, 3, 2)
    assert torch.equal(action_features(PLANE, box, torch.float64), box)
    for space, size in ((spaces.Discrete(2), 2), (spaces.MultiDiscrete([2, 3]), 5), (PLANE, 2)):
        assert action_features_size(space) == size


def test_signatures_tell_heads_apart() -> None:
    heads = [made(name, PLANE) for name in BOX_HEADS]
    heads += [MixtureHead(FEATURES, 2, components=2), GaussianHead(FEATURES, 2, min_scale=0.1)]
    heads += [made("squashed", LINE), made("auto", CHOICES), made("auto", spaces.Discrete(2))]
    signatures = [head.signature() for head in heads]
    assert len(set(signatures)) == len(heads) and not any("\n" in signature for signature in signatures)
    assert made("squashed", PLANE).signature() in signatures


@pytest.mark.parametrize("shared", [False, True])
def test_a_normal_evaluated_in_one_product(shared: bool) -> None:
    head, features = GaussianHead(4, 3, shared=shared), torch.randn(5, 4)
    mean, deviation = head.evaluator()(features)
    torch.testing.assert_close(mean, head(features).mean)
    torch.testing.assert_close(deviation.expand_as(mean), head(features).stddev)
