"""Evidence of optimality: optima, penalties and rewards with known values, gradients, resumed to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrocontrol
from pyrocontrol.inference import Annealed, CoupledRandomNetworks, Discriminator

pytestmark = pytest.mark.usefixtures("float64")

KINDS: dict[str, Any] = {
    "discriminator": lambda size=3, **given: Discriminator(
        size, hidden=(6, 5), **({"spectral_norm": False, "lr": 1e-2} | given)
    ),
    "spectral norm": lambda size=3, **given: Discriminator(size, hidden=(6, 5), spectral_norm=True, lr=1e-2, **given),
    "random networks": lambda size=3, **given: CoupledRandomNetworks(
        size, hidden=(6,), embedding=4, targets=3, **given
    ),
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def pairs(count: int, size: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expert, agent = torch.randn(2, count, size, generator=generator)
    return expert, 2 * agent + 1


def test_the_optimum_is_the_share_of_the_expert() -> None:
    """Four inputs, a logit for each: D = p_E / (p_E + p_A), as the logit is any function of these."""
    counts = torch.tensor([[5, 3, 1, 1], [1, 3, 4, 2]])
    rows = [torch.eye(4).repeat_interleave(count, 0) for count in counts]
    evidence = Discriminator(4, hidden=(), noise=0.0, spectral_norm=False, lr=0.3, standardize=False, clip=None)
    for _ in range(300):
        evidence.update(*rows)
    expected = counts[0] / counts.sum(0)
    torch.testing.assert_close(evidence.logit(torch.eye(4)).sigmoid(), expected, atol=1e-4, rtol=0)
    for link, value in {"logit": torch.logit(expected), "log_d": expected.log(), "probability": expected}.items():
        evidence.link = link  # type: ignore[assignment]
        torch.testing.assert_close(evidence.reward(torch.eye(4)), 0.2 * value, atol=1e-3, rtol=0)
    # At exactly this D the gradient is 0. It is not at 1 - D, the optimum where the labels are exchanged.
    network: Any = evidence.network
    for sign, gradient in ((1, 0.0), (-1, 0.1)):
        network[0].weight.data, network[0].bias.data = sign * torch.logit(expected)[None], torch.zeros(1)
        evidence.zero_grad()
        evidence.loss(*rows)[0].backward()
        found = float(network[0].weight.grad.abs().max())
        assert found < 1e-15 if sign == 1 else found > gradient


def test_penalties_of_a_linear_logit_are_known() -> None:
    expert, agent = pairs(40_000)
    for length in (0.4, 2.5):
        values = {}
        for penalty in ("two-sided", "one-sided", "parameters"):
            given: dict[str, Any] = {"noise": 0.0, "penalty": penalty, "gradient_penalty": 5.0, "spectral_norm": False}
            evidence = Discriminator(3, hidden=(), standardize=False, **given)
            network: Any = evidence.network
            network[0].weight.data = length * torch.tensor([[0.6, 0.0, -0.8]])
            values[penalty] = float(evidence.loss(expert, agent)[1]["penalty"])
        assert values["two-sided"] == pytest.approx((length - 1) ** 2)
        assert values["one-sided"] == pytest.approx(max(length - 1, 0) ** 2)
        between = (expert.mean(0) + agent.mean(0)) / 2  # the gradient in the weights, beside 1 in the bias
        expected = float((between.square().sum() + 1).sqrt()) - 1
        assert values["parameters"] ** 0.5 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "penalty"),
    [
        ("discriminator", "two-sided"),
        ("discriminator", "one-sided"),
        ("discriminator", "parameters"),
        ("spectral norm", "two-sided"),
    ],
)
def test_the_gradient_of_the_loss_is_that_of_finite_differences(kind: str, penalty: str) -> None:
    batch = pairs(7)
    evidence = KINDS[kind](penalty=penalty, gradient_penalty=3.0, noise=0.3)
    for parameter in evidence.learnt:
        parameter.data *= 3  # far from flat
    evidence.prepare()
    for _ in range(200):  # the power iteration has come to its end
        evidence.loss(*batch)
    evidence.eval()

    def loss() -> Tensor:
        torch.manual_seed(5)
        value: Tensor = evidence.loss(*batch)[0]
        return value

    loss().backward()
    for parameter in evidence.learnt:
        direction = torch.randn_like(parameter)
        with_penalty = float((parameter.grad * direction).sum())
        values = []
        for step in (1e-5, -2e-5):
            parameter.data += step * direction
            values.append(float(loss().detach()))
        parameter.data += 1e-5 * direction
        assert with_penalty == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7)
    evidence.gradient_penalty = 0.0  # which would pass for a penalty without a graph
    before = evidence.learnt[0].grad.clone()
    evidence.zero_grad()
    loss().backward()
    assert (before - evidence.learnt[0].grad).abs().max() > 0.01


def test_rewards_have_gradients_in_inputs_alone_and_change_nothing(make: Any) -> None:
    evidence = make()
    for _ in range(3):
        evidence.update(*pairs(7))
    before = copy.deepcopy(evidence.state_dict())
    x = torch.randn(2, 5, 3, requires_grad=True)
    assert evidence.reward(x).shape == (2, 5)
    assert torch.autograd.gradcheck(evidence.reward, x)
    (gradient,) = torch.autograd.grad(evidence.reward(x).sum(), x)
    assert gradient.abs().min() > 0
    evidence.zero_grad()
    evidence.reward(x).sum().backward()
    assert all(parameter.grad is None for parameter in evidence.parameters())
    assert evidence.training and not evidence.reward(x.detach()).requires_grad
    torch.testing.assert_close(evidence.state_dict(), before, rtol=0, atol=0)
    evidence.clip, evidence.weight = 1e-6, 3.0
    torch.testing.assert_close(evidence.reward(x).abs(), torch.full((2, 5), 3e-6))


def test_units_of_the_inputs_do_not_matter(make: Any) -> None:
    """Noise, penalty and weights alike are of standardised inputs."""
    unit, offset, x = torch.tensor([1e-3, 1.0, 50.0]), torch.tensor([4.0, 0.0, -7.0]), torch.randn(6, 3)
    rewards = []
    for a, b in ((torch.ones(3), torch.zeros(3)), (unit, offset)):
        torch.manual_seed(1)
        evidence = make()
        for n in range(5):
            numbers = evidence.update(*(a * rows + b for rows in pairs(7, seed=n)))
        rewards.append(torch.cat([evidence.reward(a * x + b), torch.stack([*numbers.values()])]))
    torch.testing.assert_close(*rewards)


def test_moments_are_those_of_all_batches(make: Any) -> None:
    evidence, batches = make(), [pairs(7, seed=n) for n in range(5)]
    constant = torch.tensor([1.0, 1.0, 0.0])  # which the last input of the expert is
    for expert, agent in batches:
        evidence.update(constant * expert, agent)
    expert, agent = constant * torch.cat([pair[0] for pair in batches]), torch.cat([pair[1] for pair in batches])
    torch.testing.assert_close(evidence.mean, expert.mean(0))
    torch.testing.assert_close(evidence.variance, expert.var(0, correction=0))
    scaled = evidence.scaled(agent)[:, 2]
    torch.testing.assert_close(scaled.square().mean().sqrt(), torch.tensor(10.0), rtol=0.01, atol=0)


def test_a_run_goes_on_to_the_same_bits(make: Any, tmp_path: Path) -> None:
    noise = {} if make is KINDS["random networks"] else {"noise": Annealed(0.5, 0.1, 4)}
    one, other = make(**noise), make(**noise)
    for n in range(3):
        one.update(*pairs(7, seed=n))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    numbers = []
    for evidence in (one, other):
        torch.manual_seed(9)
        numbers.append([evidence.update(*pairs(7, seed=n)) for n in range(3, 6)])
    torch.testing.assert_close(*numbers, rtol=0, atol=0)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert one.updates == 6 and one.signature() == other.signature() != make(weight=0.7).signature()
    one.save(tmp_path / "evidence.pt")
    loaded = pyrocontrol.load(tmp_path / "evidence.pt")
    torch.testing.assert_close(loaded.reward(pairs(7)[1]), one.reward(pairs(7)[1]), rtol=0, atol=0)
    assert loaded.updates == 6 and loaded.signature() == one.signature()


def test_noise_is_annealed() -> None:
    evidence = Discriminator(3, hidden=(4,), noise=Annealed(0.4, 0.1, 3))
    seen = []
    for _ in range(5):
        evidence.update(*pairs(7))
        seen.append(float(evidence.sigma))
    assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.1])
    evidence.noise = lambda updates: -1.0
    with pytest.raises(ValueError, match="noise must be at least 0"):
        evidence.update(*pairs(7))


def test_random_networks_tell_whose_the_inputs_are() -> None:
    """Four inputs: the expert knows 0 and 1, the agent 1 and 2; each predictor is right there, and 0 elsewhere."""
    evidence = CoupledRandomNetworks(4, hidden=(), embedding=16, targets=5, lr=0.02, standardize=False, clip=None)
    seen = {"expert": [0, 1], "agent": [1, 2]}
    aims = torch.stack([torch.eye(4) @ target[0].weight.T for target in evidence.targets])  # type: ignore[index]
    mean, spread = aims.mean(0), aims.var(0, correction=0)
    bonus = {}
    for name, known in seen.items():
        network: Any = getattr(evidence, name)
        network[0].weight.data.zero_()
        network[0].weight.data[:, known] = mean[known].T
        said = torch.zeros(4, 16)
        said[known] = mean[known]
        visits = (((said**2 - mean**2).abs()) / (spread + 1e-6) + 1e-6).sqrt().mean(1)
        bonus[name] = 0.9 * (said - mean).square().sum(1) + 0.1 * visits
    reward = evidence.reward(torch.eye(4))
    torch.testing.assert_close(reward, 0.2 * bonus["agent"] - 0.8 * bonus["expert"])
    assert reward[0] > 0.05 > reward[1].abs() and max(reward[2], reward[3]) < -0.2
    # That is where learning leads.
    learning = CoupledRandomNetworks(4, hidden=(), embedding=16, targets=5, lr=0.02, standardize=False, clip=None)
    rows = [torch.eye(4)[known].repeat(50, 1) for known in seen.values()]
    for _ in range(300):
        learning.update(*rows)
    found = learning.reward(torch.eye(4))
    assert found[0] > 0.05 > found[1].abs() and max(found[2], found[3]) < -0.2


def test_bad_input_is_refused() -> None:
    for wrong, message in {
        ("reward", "odds"): "reward must be one of logit, log_d, probability, not 'odds'",
        ("penalty", "none"): "penalty must be one of two-sided",
        ("noise", -0.1): "noise must be at least 0.0, not -0.1",
        ("clip", 0.0): "clip must be positive",
        ("hidden", (4, 0)): "hidden must be at least 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            Discriminator(3, **{wrong[0]: wrong[1]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expert_share must be at most 1"):
        CoupledRandomNetworks(3, expert_share=2)
    evidence = Discriminator(3)
    for expert, agent in ((4, 5), (0, 0)):
        with pytest.raises(ValueError, match=r"shape \[N, 3\], N positive, not"):
            evidence.update(torch.zeros(expert, 3), torch.zeros(agent, 3))
    with pytest.raises(ValueError, match=r"not \[4, 2\] and \[4, 2\]"):
        evidence.update(torch.zeros(4, 2), torch.zeros(4, 2))
