"""Stacked critics against separate networks: values, gradients, what is frozen, and target networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pyrocontrol.inference.control.critics import Critics, TargetCopy

pytestmark = pytest.mark.usefixtures("float64")


def separate(critics: Critics) -> list[nn.Sequential]:
    """The same networks, one by one."""
    networks = []
    for index in range(critics.count):
        layers: list[nn.Module] = []
        for weight, bias in zip(critics.weights, critics.biases, strict=True):
            linear = nn.Linear(*weight.shape[1:])
            linear.load_state_dict({"weight": weight[index].T, "bias": bias[index, 0]})
            norm = [nn.LayerNorm(weight.shape[-1], elementwise_affine=False)] if critics.normalized else []
            layers += [linear, *norm, nn.ReLU()]
        networks.append(nn.Sequential(*layers[: layers.index(linear) + 1]))
    return networks


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("hidden", [(), (7,), (8, 5)], ids=str)
@pytest.mark.parametrize("normalized", [False, True])
def test_stacked_critics_equal_separate_networks(count: int, hidden: tuple[int, ...], normalized: bool) -> None:
    critics = Critics(3, 2, hidden, count, normalized=normalized)
    networks = separate(critics)
    observations, actions = torch.randn(6, 3), torch.randn(6, 2, requires_grad=True)
    weights = torch.randn(count, 6)  # any gradient that comes from above
    values = critics(observations, actions)
    expected = torch.stack([network(torch.cat([observations, actions], -1)).squeeze(-1) for network in networks])
    torch.testing.assert_close(values, expected)
    gradients = torch.autograd.grad((values * weights).sum(), [actions, *critics.weights, *critics.biases])
    inner: list[Any] = [p for network in networks for p in network.parameters()]
    expected_gradients = torch.autograd.grad((expected * weights).sum(), [actions, *inner])
    torch.testing.assert_close(gradients[0], expected_gradients[0])
    layers = len(hidden) + 1
    for index in range(count):
        own = expected_gradients[1 + 2 * layers * index :]
        for layer in range(layers):
            torch.testing.assert_close(gradients[1 + layer][index], own[2 * layer].T)
            torch.testing.assert_close(gradients[1 + layers + layer][index, 0], own[2 * layer + 1])
    torch.testing.assert_close(critics.minimum(observations, actions), expected.amin(0))


@pytest.mark.parametrize("frozen", [False, True])
def test_actions_are_read_in_other_coordinates(frozen: bool) -> None:
    critics = Critics(3, 2, coordinates=torch.tanh)
    plain = Critics(3, 2)
    plain.load_state_dict(critics.state_dict())
    observations, actions = torch.randn(6, 3), torch.randn(6, 2, requires_grad=True)
    values, expected = critics(observations, actions, frozen=frozen), plain(observations, actions.tanh())
    torch.testing.assert_close(values, expected)
    gradients = [torch.autograd.grad(found.sum(), actions)[0] for found in (values, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 5)], ids=str)
@pytest.mark.parametrize("shapes", [((6,), (4, 6)), ((6,), ()), ((), (6,)), ((1, 6), (4, 1)), ((), ())], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_leading_dimensions_broadcast(
    hidden: tuple[int, ...], shapes: tuple[tuple[int, ...], tuple[int, ...]], frozen: bool
) -> None:
    critics = Critics(3, 2, hidden, normalized=frozen)
    observations, actions = torch.randn(*shapes[0], 3), torch.randn(*shapes[1], 2, requires_grad=True)
    batch = torch.broadcast_shapes(*shapes)
    values = critics(observations, actions, frozen=frozen)
    expected = critics(observations.expand(*batch, 3), actions.expand(*batch, 2))
    assert values.shape == (2, *batch)
    torch.testing.assert_close(values, expected)
    inputs = [actions] if frozen else [actions, *critics.parameters()]
    weights = torch.randn(2, *batch)
    found = [torch.autograd.grad((of * weights).sum(), inputs) for of in (values, expected)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_critic_gives_the_actions_the_same_gradient_and_its_weights_none() -> None:
    critics = Critics(3, 2)
    observations, actions = torch.randn(6, 3), torch.randn(6, 2, requires_grad=True)
    (expected,) = torch.autograd.grad(critics.minimum(observations, actions).sum(), actions)
    critics.value_of_frozen(observations, actions).sum().backward()
    torch.testing.assert_close(actions.grad, expected)
    assert all(parameter.grad is None for parameter in critics.parameters())


def test_state_values_take_no_action() -> None:
    values = Critics(3, 0, count=1)
    assert values.minimum(torch.randn(5, 3)).shape == (5,)


def test_critics_start_as_linear_layers_do_and_apart() -> None:
    critics = Critics(16, 9, (200,))
    assert 0.19 < critics.weights[0].abs().max() <= 0.2  # 1 / sqrt(25)
    assert not torch.equal(critics.weights[0][0], critics.weights[0][1])


@pytest.mark.parametrize(("smoothing", "every"), [(0.1, 1), (1.0, 3), (0.5, 2)])
def test_targets_move_when_due(smoothing: float, every: int) -> None:
    source, target = [torch.randn(3), torch.randn(2)], [torch.zeros(3), torch.zeros(2)]
    move = TargetCopy(smoothing, every)
    expected = [torch.zeros(3), torch.zeros(2)]
    for update in range(1, 8):
        source = [tensor + 1 for tensor in source]
        move(target, source, update)
        if update % every == 0:
            expected = [(1 - smoothing) * old + smoothing * new for old, new in zip(expected, source, strict=True)]
        torch.testing.assert_close(target, expected)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no critic of 0 observation and 2 action numbers"):
        Critics(0, 2)
    with pytest.raises(ValueError, match=r"hidden layers must have positive sizes, got \(3, 0\)"):
        Critics(1, 2, (3, 0))
    with pytest.raises(ValueError, match="count must be at least 1, not 0"):
        Critics(1, 2, count=0)
    for smoothing in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"smoothing must be in \(0, 1\]"):
            TargetCopy(smoothing, 1)
    with pytest.raises(ValueError, match="target_every must be at least 1, not 0"):
        TargetCopy(0.5, 0)
