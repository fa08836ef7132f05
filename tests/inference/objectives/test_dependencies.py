"""What reads what: the order of a guide, plates that rows leave, and what stands in for a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn, tensor

import enumeration
from pyrocontrol.inference import InexactKLError, StepwiseKL_ELBO
from pyrocontrol.models import register

pytestmark = pytest.mark.usefixtures("float64")

Channel = Callable[[Tensor], Any]


def reversed_pair(channel: Channel, **infer: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """A model that draws b, then a given b; a guide that draws a, then b given what the channel makes of a."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(tensor(0.5)))
        pyro.sample("a", dist.Bernoulli(0.2 + 0.6 * b))
        pyro.sample("x", dist.Normal(b, 1.0), obs=tensor(1.0))

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(tensor(0.4)), infer=infer)
        pyro.sample("b", dist.Bernoulli(torch.as_tensor(channel(a))))

    return model, guide


LOSING: dict[str, Channel] = {
    "item": lambda a: 0.05 + 0.9 * a.item(),
    "vmap": lambda a: torch.func.vmap(lambda value: 0.05 + 0.9 * value)(a.reshape(1))[0],
    "a mask": lambda a: 0.05 + 0.9 * len(torch.ones(1)[a.reshape(1) > 0]),
    "nonzero": lambda a: 0.05 + 0.9 * len(a.reshape(1).nonzero()),
    "text": lambda a: 0.95 if "1" in f"{a}" else 0.05,
    "another library": lambda a: 0.05 + 0.9 * torch.from_dlpack(a.clone()),
    "a branch": lambda a: 0.95 if a > 0 else 0.05,
}


@pytest.mark.parametrize("name", LOSING)
def test_what_leaves_tensors_is_still_a_dependency(name: str) -> None:
    model, guide = reversed_pair(LOSING[name])
    with pytest.raises(InexactKLError, match="the KL of 'a' would be biased"):
        StepwiseKL_ELBO().loss(model, guide)


@pytest.mark.parametrize("name", ["vmap", "a mask", "nonzero"])
def test_of_many_values_what_leaves_tensors_counts_as_a_dependency(name: str) -> None:
    """A Poisson number has too many values to try: all that follows a loss may depend on it."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(tensor(0.5)))
        pyro.sample("a", dist.Poisson(1.0 + b))

    def guide() -> None:
        a = pyro.sample("a", dist.Poisson(tensor(2.0)))
        pyro.sample("b", dist.Bernoulli(torch.as_tensor(LOSING[name]((a > 1).to(a)))))

    with pytest.raises(InexactKLError, match="the KL of 'a' would be biased"):
        StepwiseKL_ELBO().loss(model, guide)


def test_a_value_that_is_only_looked_at_is_no_dependency() -> None:
    seen: list[float] = []
    model, guide = reversed_pair(lambda a: seen.append(a.item()) or 0.3)  # type: ignore[func-returns-value]
    found = list(enumeration.runs(model, guide))
    elbo, loss = StepwiseKL_ELBO(), torch.zeros(())
    for run in found:
        loss = loss + run.log_weight.exp() * elbo.loss(model, enumeration.Force(run.choices)(guide))
    torch.testing.assert_close(loss, -enumeration.exact_elbo(found))


def test_a_users_word_is_taken() -> None:
    """Dependencies through a Poisson number's Python value are suspected only."""

    def pair(**infer: Any) -> tuple[Callable[[], None], Callable[[], None]]:
        def model() -> None:
            b = pyro.sample("b", dist.Bernoulli(tensor(0.5)))
            pyro.sample("a", dist.Poisson(1.0 + b))

        def guide() -> None:
            a = pyro.sample("a", dist.Poisson(tensor(2.0)), infer=infer)
            a.item()
            pyro.sample("b", dist.Bernoulli(tensor(0.3)))

        return model, guide

    with pytest.raises(InexactKLError, match="exact_kl_checked"):
        StepwiseKL_ELBO().loss(*pair())
    StepwiseKL_ELBO().loss(*pair(exact_kl_checked=True))


# -- plates that a row leaves -----------------------------------------------------------------------------------------


def crossing(through: str) -> tuple[Callable[[], None], Callable[[], None], list[Tensor]]:
    """A coin a row, and observations of every row that all coins influence: through a site, or a sum."""
    phi = tensor([0.3, -0.4], requires_grad=True)

    def guide() -> None:
        with pyro.plate("rows", 2):
            z = pyro.sample("z", dist.Bernoulli(logits=phi))
        if through == "a site":
            pyro.sample("g", dist.Bernoulli(logits=0.7 * (z.sum(-1, keepdim=True) - 1)))

    def model() -> None:
        rows = pyro.plate("rows", 2)
        with rows:
            z = pyro.sample("z", dist.Bernoulli(tensor(0.4)))
        total = z.sum(-1, keepdim=True)
        g = pyro.sample("g", dist.Bernoulli(logits=total - 1)) if through == "a site" else total
        with rows:
            own = z + 2 * (g if through != "nothing" else 0)
            pyro.sample("x", dist.Normal(own, 0.7), obs=tensor([1.0, 0.0]))

    return model, guide, [phi]


@pytest.mark.parametrize("score", ["sequential", "full"])
@pytest.mark.parametrize("through", ["a site", "a sum", "nothing"])
def test_rows_that_influence_each_other_share_their_costs(through: str, score: str) -> None:
    model, guide, parameters = crossing(through)
    found = list(enumeration.runs(model, guide))
    exact = enumeration.gradient(-enumeration.exact_elbo(found), parameters)
    weights, _, gradients = enumeration.estimates(StepwiseKL_ELBO(score=score), model, guide, (), parameters, found)
    torch.testing.assert_close(weights @ gradients, exact)
    # So do those of two particles, which are baselines for each other.
    both, two = pyro.plate("num_particles_vectorized", 2, dim=-2), StepwiseKL_ELBO(2, 1, True, score=score)
    pairs = [run._replace(choices=enumeration.constant(run)) for run in enumeration.runs(both(model), both(guide))]
    weights, _, gradients = enumeration.estimates(two, model, guide, (), parameters, pairs)
    torch.testing.assert_close(weights @ gradients, exact)
    # Pyro's own takes the plate's word.
    weights, _, theirs = enumeration.estimates(Trace_ELBO(), model, guide, (), parameters, found)
    assert torch.allclose(weights @ theirs, exact) is (through == "nothing")
    if through == "nothing":  # and nothing is added up that need not be
        elbo = StepwiseKL_ELBO()
        elbo.differentiable_loss(model, guide)
        assert [*elbo._kept.values()] == [{}]


# -- factors, deltas, shared parameters -------------------------------------------------------------------------------


def test_a_factor_in_a_guide_is_a_part_of_its_density() -> None:
    p = tensor(0.1, requires_grad=True)

    def guide(has_rsample: bool | None = True) -> None:
        pyro.sample("z", dist.Normal(p, 1.0))
        pyro.factor("f", 2 * p, has_rsample=has_rsample)

    loss = StepwiseKL_ELBO().differentiable_loss(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), guide)
    torch.testing.assert_close(loss.detach(), p.detach().square() / 2 + 2 * p.detach())
    torch.testing.assert_close(torch.autograd.grad(loss, p)[0], tensor(2.1))
    with pytest.raises(ValueError, match="say has_rsample=True if they are pathwise"):
        StepwiseKL_ELBO().differentiable_loss(
            lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), lambda: guide(has_rsample=False)
        )


def test_a_delta_keeps_its_density_inside_an_independent() -> None:
    value = tensor([0.3, 0.4])

    def guide() -> None:
        pyro.sample("z", dist.Delta(value, log_density=tensor([-3.0, -5.0])).to_event(1))

    def model() -> None:
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), 2 * torch.eye(2)))

    assert StepwiseKL_ELBO().loss(model, guide) == pytest.approx(Trace_ELBO().loss(model, guide))


class Part(nn.Module):
    """A model or a guide of one normal, whose mean a shared layer gives."""

    def __init__(self, name: str, shared: nn.Linear):
        super().__init__()
        self.name, self.shared, self.own = name, shared, nn.Parameter(torch.zeros(()))

    def forward(self) -> None:
        register(self.name, self)
        pyro.sample("z", dist.Normal(self.own + self.shared.weight.sum(), 1.0))


def test_models_and_guides_that_share_parameters_can_be_trained_in_turn() -> None:
    def svi(shared: nn.Linear) -> SVI:
        return SVI(Part("m", shared), Part("g", shared), pyro.optim.Adam({"lr": 0.1}), StepwiseKL_ELBO())

    first, second = svi(nn.Linear(1, 1)), svi(nn.Linear(1, 1))
    for _ in range(2):
        for one in (first, second):
            before = one.guide.own.detach().clone()
            one.model.own.data.add_(1.0)
            one.step()
            assert not torch.equal(one.guide.own, before)
