"""Mutual information of a sum and what it generates: Gaussian toys with known I, and the factor in a linear model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from pyro.distributions import TorchDistribution
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyrocontrol.envs import Demonstrations
from pyrocontrol.guides import TrajectoryGuide
from pyrocontrol.inference import KLWeight, MutualInformation, StepwiseKL_ELBO, fit, load_checkpoint
from pyrocontrol.inference.objectives.mutual_information import (
    entropy_of_sum,
    infonce,
    leave_one_out,
    literal,
    nonvariational,
    sum_of_parts,
    variational_bound,
)
from pyrocontrol.models import Process, Sequence, TrajectoryCVAE
from pyrocontrol.models.registration import register

pytestmark = pytest.mark.usefixtures("float64")

LOG_2_PI_E = 1 + math.log(2 * math.pi)


def z_score(samples: Tensor, expected: float) -> float:
    """How many standard errors the mean of ``samples`` lies above ``expected``."""
    return float((samples.mean() - expected) / (samples.std() / math.sqrt(samples.numel())))


# Gaussian toys: z_i ~ N(mu_i, s^2 I), V = sum_i z_i, tau~ ~ N(V, r^2 I)


class Toy(NamedTuple):
    """The toy's numbers; d dimensions, m parts."""

    s: float
    r: float
    d: int = 1
    m: int = 2
    mean: float = 0.0

    @property
    def information(self) -> float:
        return 0.5 * self.d * math.log(1 + self.m * self.s**2 / self.r**2)

    @property
    def gain(self) -> float:
        """Of the best estimate of V from tau~."""
        return self.m * self.s**2 / (self.m * self.s**2 + self.r**2)

    @property
    def entropy(self) -> Tensor:
        return torch.tensor(0.5 * self.d * (LOG_2_PI_E + math.log(self.m * self.s**2)))

    @property
    def part_variance(self) -> float:
        """Var(z_i | tau~)."""
        return self.s**2 - self.s**4 / (self.m * self.s**2 + self.r**2)

    def draw(self, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
        """z ``[..., M, D]``, V and tau~ ``[..., D]``."""
        z = self.mean + self.s * torch.randn(*shape, self.m, self.d)
        v = z.sum(-2)
        return z, v, v + self.r * torch.randn_like(v)

    def posterior_of_sum(self, tau: Tensor) -> TorchDistribution:
        prior = self.m * self.mean
        scale = math.sqrt((1 - self.gain) * self.m) * self.s
        return dist.Normal(prior + self.gain * (tau - prior), scale).to_event(1)

    def posterior_of_part(self, tau: Tensor) -> TorchDistribution:
        mean = self.mean + self.gain / self.m * (tau - self.m * self.mean)
        return dist.Normal(mean, math.sqrt(self.part_variance)).to_event(1)

    @property
    def expected_nonvariational(self) -> float:
        """With the exact posteriors: -sum_i H(z_i | tau~) + H(V)."""
        return float(self.entropy) - 0.5 * self.m * self.d * (LOG_2_PI_E + math.log(self.part_variance))

    def scores(self, count: int, samples: int) -> Tensor:
        """log p(tau~_j | V_k) ``[count, K, K]``."""
        _, v, tau = self.draw(count, samples)
        return dist.Normal(v.unsqueeze(2), self.r).to_event(1).log_prob(tau.unsqueeze(1))


TOYS = [Toy(1.0, 0.1), Toy(0.1, 0.1, mean=2.0), Toy(1.0, 2.0, d=4, m=3, mean=-1.0), Toy(0.3, 0.05, d=8, m=3)]


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_the_tied_bound_is_tight_with_the_exact_posterior(toy: Toy) -> None:
    _, v, tau = toy.draw(20_000)
    assert abs(z_score(variational_bound(v, toy.posterior_of_sum(tau), toy.entropy), toy.information)) < 3.5


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_a_wrong_q_is_below_by_its_expected_kl(toy: Toy) -> None:
    _, v, tau = toy.draw(20_000)
    exact = toy.posterior_of_sum(tau)
    for shift, stretch in ((0.3, 1.0), (0.0, 1.7), (-0.2, 0.6)):
        wrong = dist.Normal(exact.mean + shift * exact.stddev, stretch * exact.stddev).to_event(1)
        gap = kl_divergence(exact, wrong)
        assert torch.allclose(gap, gap[0])  # the same whatever tau~ is: no Monte-Carlo error in it
        bound = variational_bound(v, wrong, toy.entropy)
        assert abs(z_score(bound, toy.information - float(gap[0]))) < 3.5
        assert z_score(bound, toy.information) < -5


@pytest.mark.parametrize(("r", "d", "m"), [(0.03, 1, 2), (0.3, 8, 3), (1.0, 8, 2), (1.0, 1, 3), (3.0, 8, 3)])
def test_the_sandwich_holds_the_truth(r: float, d: int, m: int) -> None:
    toy, samples = Toy(1.0, r, d=d, m=m), 16
    scores = toy.scores(1000, samples)
    lower, upper = infonce(scores), leave_one_out(scores)
    assert (lower <= math.log(samples)).all()
    assert z_score(lower, toy.information) < 3
    assert z_score(upper, toy.information) > -3
    if toy.information > math.log(samples):
        assert z_score(lower, toy.information) < -20
        assert z_score(upper, toy.information) > 5
    assert lower.mean() < upper.mean()


def test_the_sandwich_closes_with_the_number_of_samples() -> None:
    toy = Toy(1.0, 1.0)
    gaps = []
    for samples in (4, 32):
        scores = toy.scores(1000, samples)
        gaps.append(float((leave_one_out(scores) - infonce(scores)).mean()))
    assert gaps[1] < 0.2 * gaps[0]


def test_sums_of_scores_by_hand() -> None:
    scores = torch.tensor([[0.5, -1.0, 0.2], [-2.0, 0.1, 0.3], [0.4, -0.7, 1.0]])
    lower, upper = [], []
    for j in range(3):
        every = scores[:, j].exp()
        lower.append(scores[j, j] - (every.sum() / 3).log())
        upper.append(scores[j, j] - ((every.sum() - every[j]) / 2).log())
    torch.testing.assert_close(infonce(scores), torch.stack(lower).mean())
    torch.testing.assert_close(leave_one_out(scores), torch.stack(upper).mean())
    # The other way round they would compare trajectories for one V.
    assert not torch.allclose(infonce(scores.T), infonce(scores))


@pytest.mark.parametrize("bound", [infonce, leave_one_out])
def test_scores_must_be_square(bound: Callable[[Tensor], Tensor]) -> None:
    for shape in ((3,), (3, 2), (1, 1), (4, 1, 1)):
        with pytest.raises(ValueError, match=r"shape \[..., K, K\] with K of at least 2"):
            bound(torch.zeros(shape))


# nonvariational


@pytest.mark.parametrize(("s", "expected"), [(0.1, 1.636), (0.03, 2.840)])
def test_nonvariational_is_no_bound(s: float, expected: float) -> None:
    toy = Toy(s, s)
    assert toy.information == pytest.approx(0.549, abs=5e-4)
    assert toy.expected_nonvariational == pytest.approx(expected, abs=5e-4)
    z, _, tau = toy.draw(50_000)
    values = nonvariational(z, toy.posterior_of_part(tau), toy.entropy)
    assert abs(z_score(values, toy.expected_nonvariational)) < 3.5
    assert z_score(values, toy.information) > 100


def test_nonvariational_is_below_where_parts_are_known_poorly() -> None:
    toy = Toy(10.0, 10.0)
    assert toy.expected_nonvariational < 0 < toy.information  # so it is not an upper bound either


@pytest.mark.parametrize(
    ("m", "per_demonstration", "noise"),
    [(2, False, "shrinks"), (3, True, "shrinks"), (5, False, "stays"), (2, True, "stays")],
)
def test_the_weight_that_keeps_shrinking_bounded(m: int, per_demonstration: bool, noise: str) -> None:
    # The ELBO's KLs of one tuple's demonstrations, and one term for it or one for each of them, as in eq. (5).
    limit = 1 / (m - 1) if per_demonstration else m / (m - 1)

    def objective(s: float, weight: float) -> float:
        toy = Toy(s, s if noise == "shrinks" else 1.0, m=m)
        kl = m * float(kl_divergence(Normal(0.0, s), Normal(0.0, 1.0)))
        return weight * (m if per_demonstration else 1) * toy.expected_nonvariational - kl

    scales = [10.0**-k for k in range(2, 9)]
    for weight, grows in ((0.9 * limit, False), (1.1 * limit, True)):
        steps = [objective(b, weight) - objective(a, weight) for a, b in itertools.pairwise(scales)]
        assert all((step > 0) == grows for step in steps)
        # By the same amount for every factor of ten: there is no bound.
        terms = m if per_demonstration else 1
        expected = math.log(10) * (weight * terms * (m - 1) - m)
        assert steps[-1] == pytest.approx(expected, abs=1e-6)
    assert objective(1e-8, limit) == pytest.approx(objective(1e-4, limit), abs=1e-4)


def best_gain(objective: Callable[[TorchDistribution], Tensor], tau: Tensor) -> float:
    """The a of the q = N(a tau~ + b, sigma^2) that maximises an objective."""
    a, b, log_scale = (torch.zeros((), requires_grad=True) for _ in range(3))
    optimizer = torch.optim.LBFGS([a, b, log_scale], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -objective(dist.Normal(a * tau + b, log_scale.exp()).to_event(1)).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return a.item()


@pytest.mark.parametrize("m", [2, 3])
def test_one_head_for_all_parts_encodes_a_rollout_as_a_part_of_the_sum(m: int) -> None:
    toy = Toy(1.0, 0.2, m=m)
    z, v, tau = toy.draw(20_000)
    joint = best_gain(lambda q: nonvariational(z, q, toy.entropy), tau)
    tied = best_gain(lambda q: variational_bound(v, q, toy.entropy), tau)
    assert tied == pytest.approx(toy.gain, abs=0.01) and toy.gain > 0.97  # V
    assert joint == pytest.approx(toy.gain / m, abs=0.01)  # V / M


# literal


def test_literal_is_unbounded_and_holds_no_v() -> None:
    toy = Toy(1.0, 1.0, d=3)
    v = torch.randn(5, 3, requires_grad=True)
    tau = v + torch.randn(5, 3)
    values = []
    for scale in (1e-1, 1e-3, 1e-5):
        deviation = torch.tensor(scale, requires_grad=True)
        value = literal(dist.Normal(tau, deviation).to_event(1), toy.m, toy.entropy)
        torch.testing.assert_close(value, (toy.entropy - toy.m * 3 * (0.5 * LOG_2_PI_E + math.log(scale))).expand(5))
        by_v, by_deviation = torch.autograd.grad(value[0], (v, deviation), allow_unused=True, materialize_grads=True)
        assert not by_v.any() and float(by_deviation) == pytest.approx(-toy.m * 3 / scale)
        values.append(float(value.detach()[0]))
    assert values[0] > toy.information and values[2] - values[1] == pytest.approx(2 * 3 * math.log(100))
    # The sampled term of eq. (6) says no more: through a pathwise z_i the mean of q drops out.
    q = dist.Normal(tau, 0.1).to_event(1)
    z = q.rsample(torch.Size((2,))).movedim(0, -2)
    (gradient,) = torch.autograd.grad(nonvariational(z, q, toy.entropy).sum(), v)
    assert gradient.abs().max() < 1e-9


def test_literal_is_the_expectation_of_eq_6() -> None:
    toy = Toy(1.0, 1.0, d=3)
    q = dist.Normal(torch.zeros(3), 0.2).to_event(1)
    sampled = nonvariational(q.sample(torch.Size((20_000, 2))), q, toy.entropy)
    assert abs(z_score(sampled, float(literal(q, 2, toy.entropy)))) < 3.5


# Entropies


def normals(*batch: int, size: int) -> TorchDistribution:
    return dist.Normal(torch.randn(*batch, size), torch.rand(*batch, size) + 0.1).to_event(1)


def test_entropy_of_a_sum() -> None:
    parts = normals(4, 3, size=5)
    found, entropy = sum_of_parts(parts), entropy_of_sum(parts)
    assert entropy.shape == (4,) == found.batch_shape and found.event_shape == (5,)
    torch.testing.assert_close(entropy, found.entropy())
    full = MultivariateNormal(parts.mean.sum(1), torch.diag_embed(parts.variance.sum(1)))
    torch.testing.assert_close(entropy, full.entropy())
    v = parts.sample(torch.Size((20_000,))).sum(-2)
    for row in range(4):
        assert abs(z_score(-full.log_prob(v)[:, row], float(entropy[row]))) < 3.5
    torch.testing.assert_close(found.log_prob(v), full.log_prob(v))


def test_eq_7_as_printed_counts_one_dimension() -> None:
    def printed(parts: TorchDistribution) -> Tensor:
        return 0.5 * (1 + (math.log(2 * math.pi) + parts.variance.sum(-2).log().sum(-1)))

    one, three = normals(2, size=1), normals(2, size=3)
    torch.testing.assert_close(printed(one), entropy_of_sum(one))
    assert float(entropy_of_sum(three) - printed(three)) == pytest.approx(LOG_2_PI_E)


@pytest.mark.parametrize("function", [sum_of_parts, entropy_of_sum])
def test_parts_must_be_normals_in_a_batch(function: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"batch shape \[..., M\]"):
        function(normals(size=3))
    for other in (dist.Normal(torch.zeros(2, 3), 1.0), dist.Laplace(torch.zeros(2, 3), 1.0).to_event(1)):
        with pytest.raises(TypeError, match="diagonal normals"):
            function(other)


# A linear-Gaussian model of skills: s_{t+1} ~ N(W z, r^2 I), encoded by the mean of what follows the first state


class Context(NamedTuple):
    z: Tensor
    first: Tensor


class LinearDynamics(Process):
    has_rsample = True

    def __init__(self, size: int, noise: float):
        super().__init__()
        self.event_shape = torch.Size((size,))
        self.weight = nn.Parameter(torch.eye(size))
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise)))

    def initial(self, context: Context) -> Tensor:
        return torch.zeros(len(context.z))

    def conditional(self, state: Tensor, context: Context) -> TorchDistribution:
        mean = context.z @ self.weight.T
        mean = mean if state.dim() == 1 else mean.unsqueeze(1).expand(*state.shape, -1)
        return dist.Normal(mean, self.log_noise.exp()).to_event(1)

    def advance(self, state: Tensor, z: Tensor, context: Context) -> Tensor:
        return state + 1


class MeanEncoder(nn.Module):
    def __init__(self, input_size: int, latent: int, scale: float):
        super().__init__()
        self.input_size = input_size
        self.linear = nn.Linear(input_size, latent)
        self.log_scale = nn.Parameter(torch.full((latent,), math.log(scale)))

    def forward(self, inputs: Tensor, lengths: Tensor) -> TorchDistribution:
        steps = torch.arange(inputs.shape[1])
        there = ((steps > 0) & (steps < lengths.unsqueeze(1))).unsqueeze(-1)
        mean = self.linear((inputs * there).sum(1) / (lengths - 1).unsqueeze(-1))
        return dist.Normal(mean, self.log_scale.exp().expand_as(mean)).to_event(1)


SIZE, ACTIONS, STEPS, NAMES = 2, 1, 3, ("kick", "spin", "jump")
NOISE, SCALE, GAIN, SHIFT = 0.4, 0.7, 0.6, 0.3


class LinearSkills(nn.Module):
    def __init__(self, noise: float = NOISE):
        super().__init__()
        self.dynamics = LinearDynamics(SIZE, noise)
        self.policy = nn.Linear(2 * SIZE, ACTIONS)
        self.firsts: list[Tensor] = []

    def check(self, data: Any) -> None:
        if data.observations.shape[-1] != SIZE:
            raise ValueError("not of this problem")

    def signature(self) -> str:
        return "LinearSkills()"

    def scaled(self, inputs: Tensor) -> Tensor:
        return inputs / 2

    def dynamics_of(self, z: Tensor, first: Tensor, steps: int) -> Sequence:
        self.firsts.append(first)
        return Sequence(self.dynamics, Context(z, first), steps, batch_shape=z.shape[:-1])

    def actions_of(self, states: Tensor, z: Tensor) -> TorchDistribution:
        return dist.Normal(self.policy(torch.cat([states, z.unsqueeze(-2).expand_as(states)], -1)), 0.5).to_event(1)

    def model(self, batch: Any) -> None:
        register("skills", self)
        states = self.scaled(batch.observations)
        with pyro.plate("batch", len(states), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(states), SIZE), 1.0).to_event(1))
            states = states.expand(*z.shape[:-1], -1, -1)  # particles
            actions = self.actions_of(states, z)
            pyro.sample("actions", actions.mask(batch.acted).to_event(1), obs=batch.actions)
            pyro.sample("states", self.dynamics_of(z, states[..., 0, :], states.shape[-2] - 1), obs=states[..., 1:, :])


class LinearGuide(nn.Module):
    def __init__(self, skills: LinearSkills):
        super().__init__()
        self.encoder = MeanEncoder(SIZE, SIZE, SCALE)
        with torch.no_grad():
            self.encoder.linear.weight.copy_(GAIN * torch.eye(SIZE))
            self.encoder.linear.bias.fill_(SHIFT)
        self._skills = (skills,)
        self.tasks: list[Tensor] = []

    def posterior(self, batch: Any) -> TorchDistribution:
        self.tasks.append(batch.task)
        return self.encode(self._skills[0].scaled(batch.observations), batch.lengths)

    def encode(self, states: Tensor, lengths: Tensor) -> TorchDistribution:
        return self.encoder(states, lengths)

    def fresh_encoder(self, extra: int = 0) -> MeanEncoder:
        return MeanEncoder(SIZE + extra, SIZE, 1.0)

    def forward(self, batch: Any) -> Tensor:
        register("guide", self)
        with pyro.plate("batch", len(batch.observations), dim=-1):
            return pyro.sample("z", self.posterior(batch))


def demonstrations(count: int = 2, steps: int = STEPS, task: Tensor | None = None) -> Demonstrations:
    """``count`` demonstrations of each of the three skills, one skill after the other."""
    rows = 3 * count
    actions = torch.rand(rows, steps + 1, ACTIONS) - 0.5
    actions[:, -1] = 0
    return Demonstrations(
        torch.randn(rows, steps + 1, SIZE),
        actions,
        torch.full((rows,), steps + 1),
        spaces.Box(-1, 1, (ACTIONS,)),
        task=torch.eye(3).repeat_interleave(count, 0) if task is None else task,
    )


class Parts(NamedTuple):
    skills: LinearSkills
    guide: LinearGuide
    demos: Demonstrations


@pytest.fixture
def parts() -> Parts:
    skills = LinearSkills()
    return Parts(skills, LinearGuide(skills), demonstrations())


def make(parts: Parts, kind: str = "tied", subskills: tuple[str, ...] = ("kick", "jump"), **settings: Any) -> Any:
    return MutualInformation(parts.skills, parts.guide, parts.demos, subskills, names=NAMES, kind=kind, **settings)


KINDS = ("variational", "nonvariational", "literal", "tied", "infonce")


def exact(guide: LinearGuide, demos: Demonstrations, m: int) -> dict[str, float]:
    """I and the expected estimates, one demonstration a skill (the first m of them), D = SIZE and W = I."""
    mean = guide.posterior(demos).mean[:m].detach()
    entropy = 0.5 * SIZE * (LOG_2_PI_E + math.log(m * SCALE**2))
    error = NOISE**2 / STEPS  # variance of what the encoder reads, about V
    normalizer = -0.5 * SIZE * math.log(2 * math.pi * SCALE**2)
    total = mean.sum(0)
    off = ((1 - GAIN) * total - SHIFT).square().sum()
    spread = (1 - GAIN) ** 2 * m * SCALE**2 + GAIN**2 * error
    tied = normalizer - float(off + SIZE * spread) / (2 * SCALE**2)
    off = (mean - GAIN * total - SHIFT).square().sum()
    spread = (1 - GAIN) ** 2 * SCALE**2 + GAIN**2 * ((m - 1) * SCALE**2 + error)
    joint = m * normalizer - float(off + m * SIZE * spread) / (2 * SCALE**2)
    return {
        "information": 0.5 * SIZE * math.log(1 + m * SCALE**2 / error),
        "tied": tied + entropy,
        "variational": tied + entropy,  # with a critic that is the guide's encoder
        "nonvariational": joint + entropy,
        "literal": entropy - 0.5 * m * SIZE * (LOG_2_PI_E + math.log(SCALE**2)),
    }


@pytest.mark.parametrize("m", [2, 3])
def test_estimates_of_a_linear_model(m: int) -> None:
    skills = LinearSkills()
    parts = Parts(skills, LinearGuide(skills), demonstrations(1))
    # A critic that happens to be the guide's own: the two bounds are one then.
    mi = make(parts, "variational", NAMES[:m], critic=parts.guide.encoder)
    drawn = [mi.estimates(tuples=50, samples=8) for _ in range(40)]
    values = {name: torch.tensor([values[name] for values in drawn]) for name in drawn[0]}
    assert values.keys() == {*KINDS, "leave_one_out"}
    expected = exact(parts.guide, parts.demos, m)
    for name in ("tied", "variational", "nonvariational"):
        assert abs(z_score(values[name], expected[name])) < 3.5, name
    assert torch.equal(values["tied"], values["variational"])
    torch.testing.assert_close(values["literal"], torch.full((40,), expected["literal"]))
    truth = expected["information"]
    assert expected["tied"] < truth and z_score(values["infonce"], truth) < 0 < z_score(values["leave_one_out"], truth)
    assert values["infonce"].max() <= math.log(8)
    more = make(parts, subskills=NAMES[:m]).estimates(tuples=20, samples=128)
    assert values["infonce"].max() < more["infonce"] < more["leave_one_out"] < values["leave_one_out"].min()


@pytest.mark.parametrize("kind", ["tied", "variational", "nonvariational", "literal"])
def test_the_factor_has_the_expected_value(kind: str) -> None:
    skills = LinearSkills()
    parts = Parts(skills, LinearGuide(skills), demonstrations(1))
    critic = {"critic": parts.guide.encoder} if kind == "variational" else {}
    mi = make(parts, kind, NAMES[:2], tuples=200, **critic)
    values = torch.stack([mi.estimate().detach() for _ in range(30)])
    expected = exact(parts.guide, parts.demos, 2)[kind]
    assert values.std() == 0 if kind == "literal" else abs(z_score(values, expected)) < 3.5
    assert float(values.mean()) == pytest.approx(expected, abs=0.1)


def test_pathwise_gradients_are_those_of_the_expectation() -> None:
    # E of tied depends on the noise through the encoder's reading alone: -D GAIN^2 r^2 / (2 n SCALE^2).
    skills = LinearSkills()
    parts = Parts(skills, LinearGuide(skills), demonstrations(1))
    mi = make(parts, tuples=100)
    gradients = [torch.autograd.grad(mi.estimate(), skills.dynamics.log_noise)[0] for _ in range(100)]
    expected = -SIZE * GAIN**2 * NOISE**2 / (STEPS * SCALE**2)
    assert abs(z_score(torch.stack(gradients), expected)) < 3.5 < abs(z_score(torch.stack(gradients), 0.0))


def test_tuples_hold_one_demonstration_of_each_subskill(parts: Parts) -> None:
    mi = make(parts, subskills=("jump", "kick"), tuples=50)
    parts.guide.tasks.clear(), parts.skills.firsts.clear()
    mi.estimate()
    (task,) = parts.guide.tasks
    assert torch.equal(task.unflatten(0, (50, 2)), torch.eye(3)[[2, 0]].expand(50, 2, 3))
    # From the first state of any of the two skills' four demonstrations, and of no other.
    (first,) = parts.skills.firsts
    known = parts.skills.scaled(parts.demos.observations[:, 0])
    found = (first.flatten(0, 1).unsqueeze(1) == known).all(-1)
    assert found.any(0).tolist() == [True, True, False, False, True, True] and found.any(1).all()


def test_rollouts_are_as_long_as_the_longest_subskill(parts: Parts) -> None:
    assert make(parts).steps == STEPS and make(parts, steps=7).steps == 7


# The factor in an ELBO

ELBOS: dict[str, Callable[[], Any]] = {
    "Trace": Trace_ELBO,
    "TraceMeanField": TraceMeanField_ELBO,
    "StepwiseKL": StepwiseKL_ELBO,
    "Trace-2": lambda: Trace_ELBO(num_particles=2),
    "StepwiseKL-2": lambda: StepwiseKL_ELBO(num_particles=2),
    "Trace-2-vectorized": lambda: Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField-2-vectorized": lambda: TraceMeanField_ELBO(
        num_particles=2, vectorize_particles=True, max_plate_nesting=1
    ),
    "StepwiseKL-2-vectorized": lambda: StepwiseKL_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
}


class Aside:
    """Estimates that are remembered, and leave the random state as they found it."""

    def __init__(self, mi: Any):
        self.estimate, self.values = mi.estimate, []
        mi.estimate = self

    def __call__(self) -> Tensor:
        with torch.random.fork_rng():
            value = self.estimate()
        self.values.append(value.item())
        return value


@pytest.mark.parametrize(
    ("kind", "elbo"),
    [*(("tied", elbo) for elbo in ELBOS), *((kind, "StepwiseKL-2") for kind in KINDS if kind != "tied")],
)
def test_the_factor_adds_the_weighted_estimate_for_each_demonstration(parts: Parts, kind: str, elbo: str) -> None:
    mi = make(parts, kind, weight=0.7, tuples=3, samples=2)
    aside = Aside(mi)
    for gradients in (False, True):
        aside.values.clear()
        losses = []
        for model in (parts.skills.model, mi.model):
            pyro.set_rng_seed(1)
            method = ELBOS[elbo]().loss_and_grads if gradients else ELBOS[elbo]().loss
            losses.append(float(method(model, parts.guide, parts.demos)))
        assert len(aside.values) == (2 if elbo.endswith("-2") else 1)
        mean = sum(aside.values) / len(aside.values)
        assert losses[0] - losses[1] == pytest.approx(0.7 * 6 * mean, rel=1e-9)


@pytest.mark.parametrize("elbo", ["Trace", "StepwiseKL-2", "TraceMeanField-2-vectorized"])
def test_off_is_the_model_alone(parts: Parts, elbo: str) -> None:
    mi = make(parts, "off")
    found = []
    for model in (parts.skills.model, mi.model):
        pyro.set_rng_seed(1)
        parts.skills.zero_grad(), parts.guide.zero_grad()
        loss = ELBOS[elbo]().loss_and_grads(model, parts.guide, parts.demos)
        gradients = [p.grad.clone() for p in (*parts.skills.parameters(), *parts.guide.parameters())]
        found.append((float(loss), gradients, torch.get_rng_state()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert torch.equal(found[0][2], found[1][2])
    with pytest.raises(ValueError, match="has no estimate"):
        mi.estimate()


def reached(mi: Any, parts: Parts) -> set[str]:
    """Which parts the gradient of an estimate reaches."""
    modules: dict[str, Any] = {
        "dynamics": parts.skills.dynamics,
        "policy": parts.skills.policy,
        "guide": parts.guide,
        "critic": mi.critic,
    }
    parameters = {name: list(m.parameters()) if m is not None else [] for name, m in modules.items()}
    flat = [p for group in parameters.values() for p in group]
    found = dict(zip(flat, torch.autograd.grad(mi.estimate(), flat, allow_unused=True), strict=True))
    return {
        name
        for name, group in parameters.items()
        if any(found[p] is not None and found[p].abs().max() > 0 for p in group)
    }


@pytest.mark.parametrize(
    ("kind", "stop_gradient", "expected"),
    [
        ("variational", False, {"guide", "dynamics", "critic"}),
        ("variational", True, {"guide", "critic"}),
        ("nonvariational", False, {"guide", "dynamics"}),
        ("nonvariational", True, {"guide"}),
        ("tied", False, {"guide", "dynamics"}),
        ("tied", True, {"guide"}),
        ("literal", False, {"guide"}),
        ("literal", True, {"guide"}),
        ("infonce", False, {"guide", "dynamics"}),
        ("infonce", True, {"guide", "dynamics"}),  # it scores by the dynamics' density
    ],
)
def test_what_gradients_reach(parts: Parts, kind: str, stop_gradient: bool, expected: set[str]) -> None:
    assert reached(make(parts, kind, stop_gradient=stop_gradient), parts) == expected


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_only_a_critic_that_reads_actions_reaches_the_policy(parts: Parts, stop_gradient: bool) -> None:
    mi = make(parts, "variational", critic=parts.guide.fresh_encoder(ACTIONS), stop_gradient=stop_gradient)
    expected = {"guide", "critic"} if stop_gradient else {"guide", "critic", "policy", "dynamics"}
    assert reached(mi, parts) == expected


def test_fit_trains_the_critic_and_a_checkpoint_holds_the_skills(parts: Parts, tmp_path: Path) -> None:
    def run(steps: int, out: Path) -> tuple[Any, ...]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        skills = LinearSkills()
        guide = LinearGuide(skills)
        mi = make(Parts(skills, guide, parts.demos), "variational", tuples=3)
        before = [p.detach().clone() for p in mi.critic.parameters()]
        svi = SVI(mi.model, guide, pyro.optim.Adam({"lr": 0.01}), StepwiseKL_ELBO())
        fit(svi, parts.demos, steps=steps, batch_size=4, out=out, progress=False)
        assert not any(torch.equal(a, b) for a, b in zip(before, mi.critic.parameters(), strict=True))
        return skills, guide, mi

    run(3, tmp_path / "stopped")
    resumed = run(6, tmp_path / "stopped")
    whole = run(6, tmp_path / "whole")
    for a, b in zip(resumed, whole, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    skills = LinearSkills()
    guide = LinearGuide(skills)
    assert load_checkpoint(tmp_path / "whole" / "checkpoint.pt", skills, guide) == 6
    assert torch.equal(skills.dynamics.weight, whole[0].dynamics.weight)
    assert torch.equal(guide.encoder.linear.weight, whole[1].encoder.linear.weight)


def test_as_a_module_it_holds_what_is_to_be_trained(parts: Parts) -> None:
    mi = make(parts, "variational")
    loss = StepwiseKL_ELBO()(mi, parts.guide)
    assert {*mi.critic.parameters(), *parts.skills.parameters(), *parts.guide.parameters()} == {*loss.parameters()}
    fit((loss, torch.optim.Adam(loss.parameters())), parts.demos, steps=2, batch_size=3, progress=False)


def test_check_and_signature_are_of_the_skills(parts: Parts) -> None:
    mi = make(parts)
    mi.check(parts.demos)
    other = Demonstrations(
        torch.zeros(1, 2, 5), torch.zeros(1, 2, ACTIONS), torch.tensor([2]), spaces.Box(-1, 1, (ACTIONS,))
    )
    with pytest.raises(ValueError, match="not of this problem"):
        mi.check(other)
    assert "tied, kick + jump, weight=0.1" in mi.signature() and mi.signature().endswith("of LinearSkills()")
    assert mi.signature() != make(parts, weight=0.2).signature()


# Bad input


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "nce"}, "kind must be one of off, variational, nonvariational, literal, tied, infonce, got 'nce'"),
    ({"subskills": ("kick", "flip")}, "names no skill 'flip'; there are kick, spin, jump"),
    ({"subskills": ("kick",)}, "at least two sub-skills, got 1"),
    ({"weight": -0.1}, "weight must be finite and not negative"),
    ({"weight": math.nan}, "weight must be finite and not negative"),
    ({"weight": math.inf}, "weight must be finite and not negative"),
    ({"tuples": 0}, "tuples must be at least 1, got 0"),
    ({"samples": 1}, "samples must be at least 2, got 1"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
]


def test_bad_settings_are_refused(parts: Parts) -> None:
    for settings, message in BAD_SETTINGS:
        with pytest.raises(ValueError, match=message):
            make(parts, **settings)
            pytest.fail(f"not refused: {message}")


@pytest.mark.parametrize("names", [("kick", "jump"), ("kick", "kick", "jump"), ()])
def test_names_that_do_not_fit_the_task_are_refused(parts: Parts, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="one for each of the 3 numbers of the demonstrations' task"):
        MutualInformation(*parts, ("kick", "jump"), names=names)


@pytest.mark.parametrize("row", [(0.5, 0.5, 0.0), (2.0, -1.0, 0.0), (2.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.0)])
def test_demonstrations_of_more_or_less_than_one_skill_are_not_drawn(parts: Parts, row: tuple[float, ...]) -> None:
    task = torch.eye(3).repeat_interleave(2, 0)
    task[3] = torch.tensor(row)
    made = make(parts._replace(demos=demonstrations(task=task)), subskills=NAMES)
    assert [rows.tolist() for rows in made._members] == [[0, 1], [2], [4, 5]]


def test_a_skill_without_demonstrations_is_refused(parts: Parts) -> None:
    demos = demonstrations(task=torch.eye(3)[[0, 0, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match="no demonstration of the sub-skill 'jump'"):
        make(parts._replace(demos=demos))


def test_a_trajectory_of_one_state_is_refused(parts: Parts) -> None:
    assert len(parts.demos.lengths) == 6  # read, and kept: others can take its place, which no data set would have
    vars(parts.demos).update(lengths=torch.tensor([4, 4, 1, 4, 4, 1]))
    with pytest.raises(ValueError, match="demonstration 5 of 'jump' is a single state"):
        make(parts)


@pytest.mark.parametrize("kind", ["off", "tied", "infonce"])
def test_a_critic_that_is_not_called_for_is_refused(parts: Parts, kind: str) -> None:
    with pytest.raises(ValueError, match=f"a critic is for kind=\"variational\", not '{kind}'"):
        make(parts, kind, critic=parts.guide.fresh_encoder())


def test_a_critic_of_another_size_is_refused(parts: Parts) -> None:
    with pytest.raises(ValueError, match=r"reads 4 numbers a step: it takes 2 \(states\) or 3 \(states and actions\)"):
        make(parts, "variational", critic=parts.guide.fresh_encoder(2))
    with pytest.raises(TypeError, match="a critic is an encoder with an input_size, got Linear"):
        make(parts, "variational", critic=nn.Linear(2, 2))


def test_rollouts_without_a_pathwise_gradient_ask_for_stop_gradient(parts: Parts) -> None:
    parts.skills.dynamics.has_rsample = False
    with pytest.raises(ValueError, match="the rollouts of this LinearSkills have no pathwise gradient: pass stop_grad"):
        make(parts)
    assert make(parts, stop_gradient=True).estimate().isfinite()


def test_actions_without_a_pathwise_gradient_ask_for_stop_gradient(parts: Parts) -> None:
    parts.skills.actions_of = lambda states, z: dist.Poisson(torch.ones(*states.shape[:-1], 1)).to_event(1)  # type: ignore[method-assign]
    critic = parts.guide.fresh_encoder(ACTIONS)
    with pytest.raises(ValueError, match="the actions of this LinearSkills have no pathwise gradient"):
        make(parts, "variational", critic=critic)
    assert make(parts, "variational", critic=critic, stop_gradient=True).estimate().isfinite()


# With the models that it is for


@pytest.mark.parametrize(("kind", "axis"), [*zip(KINDS, itertools.cycle(("time", "components")))])
def test_a_trajectory_cvae_is_trained_with_it(kind: str, axis: str) -> None:
    demos = demonstrations()
    skills = TrajectoryCVAE(demos.observation_space, demos.action_space, latent=2, hidden=(8,), axis=axis)
    guide = TrajectoryGuide(skills, encoder_size=4)
    reading = {"critic": guide.fresh_encoder(ACTIONS)} if kind == "variational" else {}
    mi = MutualInformation(
        skills, guide, demos, ("kick", "jump"), names=NAMES, kind=kind, tuples=2, samples=2, **reading
    )
    before = [p.detach().clone() for p in mi.parameters()]
    elbo = KLWeight("z", StepwiseKL_ELBO(), warmup=2, free_bits=0.1)
    svi = SVI(mi.model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    fit(svi, demos, steps=2, batch_size=4, progress=False)
    assert all(p.isfinite().all() for p in (*mi.parameters(), *guide.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(before, mi.parameters(), strict=True))
    values = mi.estimates(tuples=3, samples=4)
    assert values["infonce"] <= math.log(4) and all(map(math.isfinite, values.values()))
