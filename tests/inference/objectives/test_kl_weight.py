"""The weighed KL of a site: closed forms by latent dimension, enumeration, warm-up, and what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from pyrocontrol.inference import KLWeight, StepwiseKL_ELBO, fit
from pyrocontrol.models.registration import register

pytestmark = pytest.mark.usefixtures("float64")

ROWS, SIZE = 4, 3


class Batch(NamedTuple):
    x: Tensor

    def __len__(self) -> int:
        return len(self.x)


class Rows:
    """A data set of rows."""

    def __init__(self, x: Tensor):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Batch:
        return Batch(self.x[index])


class Model(nn.Module):
    """z ~ N(0, I), x ~ N(W z, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIZE, SIZE))

    def likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        return dist.Normal(z @ self.weight.T, 1.0).to_event(1).log_prob(x)

    def forward(self, batch: Batch) -> None:
        register("model", self)
        with pyro.plate("batch", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(SIZE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, 1.0).to_event(1), obs=batch.x)


class Guide(nn.Module):
    """q(z | x) = N(V x, s^2), dimensions near and far from the prior."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.05, 0.4, 1.0]).diag() + 0.02)
        self.log_scale = nn.Parameter(torch.tensor([-0.02, -0.3, -2.0]))

    def posterior(self, x: Tensor) -> Normal:
        return dist.Normal(x @ self.weight.T, self.log_scale.exp())

    def kl(self, x: Tensor) -> Tensor:
        """By row and dimension."""
        q = self.posterior(x)
        return kl_divergence(q, Normal(torch.zeros_like(q.mean), 1.0))

    def forward(self, batch: Batch) -> Tensor:
        register("guide", self)
        with pyro.plate("batch", len(batch), dim=-1):
            return pyro.sample("z", self.posterior(batch.x).to_event(1))


class Problem(NamedTuple):
    model: Model
    guide: Guide
    batch: Batch


@pytest.fixture
def problem() -> Problem:
    return Problem(Model(), Guide(), Batch(torch.randn(ROWS, SIZE)))


ANALYTIC: dict[str, Callable[[], Any]] = {"TraceMeanField": TraceMeanField_ELBO, "StepwiseKL": StepwiseKL_ELBO}
ELBOS = ANALYTIC | {"Trace": Trace_ELBO}


def gradients(problem: Problem) -> Iterator[Tensor]:
    for parameter in (*problem.model.parameters(), *problem.guide.parameters()):
        yield parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


# The value


@pytest.mark.parametrize("elbo", ANALYTIC)
@pytest.mark.parametrize(("beta", "free_bits"), [(0.0, 0.3), (0.25, 0.0), (1.0, 0.02), (1.0, 10.0), (4.0, 0.3)])
def test_loss_and_gradient_by_hand(problem: Problem, elbo: str, beta: float, free_bits: float) -> None:
    weighed = KLWeight("z", ANALYTIC[elbo](), beta=beta, free_bits=free_bits)
    pyro.set_rng_seed(5)
    loss = weighed.loss_and_grads(problem.model, problem.guide, problem.batch)
    found = list(gradients(problem))

    pyro.set_rng_seed(5)
    problem.model.zero_grad(), problem.guide.zero_grad()
    x = problem.batch.x
    z = problem.guide.posterior(x).rsample()
    kl = problem.guide.kl(x).mean(0)
    expected = -problem.model.likelihood(z, x).sum() + beta * ROWS * kl.clamp(min=free_bits).sum()
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(found, gradients(problem), strict=True):
        torch.testing.assert_close(one, other)
    assert weighed.loss(problem.model, problem.guide, problem.batch) != 0.0


@pytest.mark.parametrize("free_bits", [0.0, 0.3])
def test_a_sampled_kl_has_the_same_expectation(problem: Problem, free_bits: float) -> None:
    weighed = KLWeight("z", Trace_ELBO(), beta=0.5, free_bits=free_bits)
    x, (model, guide, batch) = problem.batch.x, problem
    differences = []
    for _ in range(300):
        trace = poutine.trace(guide).get_trace(batch)
        fixed = poutine.replay(guide, trace=trace)
        likelihood = model.likelihood(trace.nodes["z"]["value"], x).sum()
        differences.append(weighed.loss(model, fixed, batch) + likelihood.item())
    values = torch.tensor(differences)
    expected = 0.5 * ROWS * guide.kl(x).mean(0).clamp(min=free_bits).sum().item()
    assert abs(values.mean() - expected) < 3.5 * values.std() / math.sqrt(len(values))


def test_a_dimension_below_delta_has_no_gradient(problem: Problem) -> None:
    x = problem.batch.x
    kl = problem.guide.kl(x).mean(0).detach()
    delta = float(kl.sort().values[1]) + 1e-3  # two dimensions below, one above
    with torch.no_grad():
        problem.model.weight.zero_()  # so that the likelihood says nothing of z
    weighed = KLWeight("z", StepwiseKL_ELBO(), free_bits=delta)
    weighed.loss_and_grads(problem.model, problem.guide, problem.batch)
    gradient = problem.guide.log_scale.grad
    assert gradient is not None
    below = kl < delta
    assert below.sum() == 2 and gradient[below].abs().max() < 1e-12 < gradient[~below].abs().min()
    # Free bits of every row instead of the mean would be another objective.
    assert not torch.allclose(problem.guide.kl(x).clamp(min=delta).mean(0), kl.clamp(min=delta))


@pytest.mark.parametrize("elbo", ELBOS)
def test_weight_1_is_the_elbo_alone(problem: Problem, elbo: str) -> None:
    found = []
    for method in (ELBOS[elbo]().loss_and_grads, KLWeight("z", ELBOS[elbo]()).loss_and_grads):
        problem.model.zero_grad(), problem.guide.zero_grad()
        pyro.set_rng_seed(2)
        found.append((method(problem.model, problem.guide, problem.batch), list(gradients(problem))))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, StepwiseKL_ELBO])
def test_particles_share_the_weight(problem: Problem, elbo: Callable[..., Any]) -> None:
    x = problem.batch.x
    kl = 0.5 * ROWS * problem.guide.kl(x).mean(0).clamp(min=0.3).sum().item()
    with torch.no_grad():
        problem.model.weight.zero_()
        expected = kl - problem.model.likelihood(torch.zeros_like(x), x).sum().item()
    for vectorize in (False, True):
        inner = elbo(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=1)
        weighed = KLWeight("z", inner, beta=0.5, free_bits=0.3)
        loss = float(weighed.loss_and_grads(problem.model, problem.guide, problem.batch))
        assert loss == pytest.approx(expected, rel=1e-12)
        assert weighed.updates == 1  # however many particles


@pytest.mark.parametrize("elbo", ANALYTIC)
def test_subsampled_and_masked_rows(elbo: str) -> None:
    # 3 of 12 rows, of which one is masked.
    mean, there = torch.tensor([0.1, 1.0, 5.0]), torch.tensor([True, True, False])

    def sites(loc: Tensor) -> None:
        with pyro.plate("batch", 12, subsample=torch.arange(3), dim=-1), poutine.mask(mask=there):
            pyro.sample("z", dist.Normal(loc.unsqueeze(-1), 1.0).to_event(1))

    weighed = KLWeight("z", ANALYTIC[elbo](), beta=2.0, free_bits=0.3)
    loss = weighed.loss(lambda: sites(torch.zeros(3)), lambda: sites(mean))
    assert float(loss) == pytest.approx(2.0 * 4 * 2 * max((0.005 + 0.5) / 2, 0.3))
    weighed = KLWeight("z", ANALYTIC[elbo](), beta=2.0, free_bits=0.2)
    loss = weighed.loss(lambda: sites(torch.zeros(3)), lambda: sites(mean))
    assert float(loss) == pytest.approx(2.0 * 4 * 2 * (0.005 + 0.5) / 2)


# Discrete


@pytest.mark.parametrize("free_bits", [0.0, 2.0])
def test_a_discrete_site_against_enumeration(free_bits: float) -> None:
    prior, means = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-1.0, 0.5, 2.0])
    x = torch.tensor([0.3, -0.8, 1.9])
    logits = torch.randn(3, 3, requires_grad=True)
    beta = 0.7

    def model() -> None:
        with pyro.plate("batch", 3, dim=-1):
            z = pyro.sample("z", dist.Categorical(prior))
            pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)

    def guide() -> None:
        pyro.param("registered", torch.zeros(()))
        with pyro.plate("batch", 3, dim=-1):
            pyro.sample("z", dist.Categorical(logits=logits))

    q = Categorical(logits=logits)
    kl = kl_divergence(q, Categorical(prior)).mean()
    likelihood = (q.probs * Normal(means, 1.0).log_prob(x.unsqueeze(1))).sum()
    exact = -likelihood + beta * 3 * kl.clamp(min=free_bits)
    (gradient,) = torch.autograd.grad(exact, logits)
    for elbo in (StepwiseKL_ELBO(), Trace_ELBO()):
        weighed = KLWeight("z", elbo, beta=beta, free_bits=free_bits)
        losses, found = [], []
        for _ in range(300):
            logits.grad = None
            losses.append(float(weighed.loss_and_grads(model, guide)))
            found.append(logits.grad.clone())  # type: ignore[attr-defined]  # just made
        loss, estimates = torch.tensor(losses), torch.stack(found)
        assert abs(loss.mean() - exact.item()) < 3.5 * loss.std() / math.sqrt(300)
        z_scores = (estimates.mean(0) - gradient) / (estimates.std(0) / math.sqrt(300))
        assert z_scores.abs().max() < 4


def test_two_sites_by_nested_weights() -> None:
    def sites(a: float, b: float) -> None:
        pyro.sample("a", dist.Normal(torch.tensor(a), 1.0))
        pyro.sample("b", dist.Normal(torch.tensor(b), 1.0))

    elbo = KLWeight("a", KLWeight("b", StepwiseKL_ELBO(), beta=3.0, free_bits=1.0), beta=0.5)
    loss = elbo.loss_and_grads(lambda: sites(0.0, 0.0), lambda: (pyro.param("p", torch.zeros(())), sites(2.0, 1.0)))
    assert float(loss) == pytest.approx(0.5 * 2.0 + 3.0 * 1.0)
    assert set(elbo.state_dict()) == {"updates", "elbo.updates"} and elbo.elbo.updates == 1


# Warm-up


def test_warm_up_is_linear_in_updates(problem: Problem) -> None:
    weighed = KLWeight("z", StepwiseKL_ELBO(), beta=2.0, warmup=4, free_bits=0.3)
    x = problem.batch.x
    kl = ROWS * problem.guide.kl(x).mean(0).clamp(min=0.3).sum().item()
    with torch.no_grad():
        problem.model.weight.zero_()
        constant = -problem.model.likelihood(torch.zeros_like(x), x).sum().item()
    for step in range(7):
        weight = 2.0 * min(1, step / 4)
        assert float(weighed.weight()) == pytest.approx(weight)
        # Evaluation does not count.
        for _ in range(2):
            loss = weighed.loss(problem.model, problem.guide, problem.batch)
            with torch.no_grad():
                weighed.differentiable_loss(problem.model, problem.guide, problem.batch)
            assert float(loss) == pytest.approx(constant + weight * kl)
        if step % 2:
            weighed.loss_and_grads(problem.model, problem.guide, problem.batch)
        else:
            loss = weighed(problem.model, problem.guide)(problem.batch)
            assert loss.item() == pytest.approx(constant + weight * kl)
            loss.backward()
        assert weighed.updates == step + 1


def test_without_warm_up_the_weight_is_a_number() -> None:
    assert KLWeight("z", Trace_ELBO(), beta=0.3).weight() == 0.3


@pytest.mark.parametrize("form", ["svi", "module"])
def test_a_stopped_run_is_resumed_bit_by_bit(tmp_path: Path, form: str) -> None:
    data = Rows(torch.randn(12, SIZE))

    def run(steps: int, out: Path | None, warmup: int = 8, evaluate: bool = False) -> tuple[list[Tensor], KLWeight]:
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        model, guide = Model(), Guide()
        elbo = KLWeight("z", StepwiseKL_ELBO(), beta=0.5, warmup=warmup, free_bits=0.1)
        svi: Any
        if form == "svi":
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        else:
            loss = elbo(model, guide)
            svi = loss, torch.optim.Adam(loss.parameters(), lr=0.05)

        def evaluation(step: int) -> dict[str, float]:
            return {"loss": elbo.loss(model, guide, data[:4])}

        extra: dict[str, Any] = {"evaluate": evaluation, "evaluate_every": 2} if evaluate else {}
        fit(svi, data, steps=steps, batch_size=4, out=out, progress=False, **extra)
        return [p.detach() for p in (*model.parameters(), *guide.parameters())], elbo

    whole, elbo = run(6, None)
    assert elbo.updates == 6
    run(3, tmp_path / "run", evaluate=True)
    resumed, elbo = run(6, tmp_path / "run")
    assert elbo.updates == 6
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    without, _ = run(6, None, warmup=0)
    assert not any(torch.equal(a, b) for a, b in zip(whole[1:], without[1:], strict=True))
    with pytest.raises(ValueError, match="made with loss.warmup=8, not 9"):
        run(9, tmp_path / "run", warmup=9)


# Bad input


@pytest.mark.parametrize("name", ["beta", "warmup", "free_bits"])
def test_bad_numbers_are_refused(name: str) -> None:
    for value in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
            KLWeight("z", Trace_ELBO(), **{name: value})  # type: ignore[arg-type]


def test_what_is_no_elbo_is_refused() -> None:
    with pytest.raises(TypeError, match="elbo must be an ELBO such as StepwiseKL_ELBO"):
        KLWeight("z", Trace_ELBO)  # type: ignore[arg-type]


@pytest.mark.parametrize("elbo", ELBOS)
def test_a_site_that_is_not_there_is_refused(problem: Problem, elbo: str) -> None:
    with pytest.raises(ValueError, match="the guide has no latent site 'y' to weigh; there are: z"):
        KLWeight("y", ELBOS[elbo]()).loss(problem.model, problem.guide, problem.batch)
    with pytest.raises(ValueError, match="the model has no latent site 'z' to weigh; there are: none"):
        KLWeight("z", ELBOS[elbo]()).loss(
            poutine.condition(problem.model, {"z": torch.zeros(ROWS, SIZE)}), *problem[1:]
        )


def test_free_bits_need_a_closed_form() -> None:
    def sites(fn: Any) -> None:
        pyro.sample("z", fn)

    with pytest.raises(ValueError, match="free bits need the KL of 'z' in closed form, there is none for Cauchy"):
        KLWeight("z", StepwiseKL_ELBO(), free_bits=0.1).loss(
            lambda: sites(dist.StudentT(torch.tensor(3.0))), lambda: sites(dist.Cauchy(torch.tensor(0.0), 1.0))
        )
