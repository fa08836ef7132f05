"""Dynamics beyond the laws of every process: exact densities, padding, pathwise gradients."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrocontrol.models import (
    AdditiveDynamics,
    ComponentDynamics,
    Dynamics,
    DynamicsContext,
    MLPDynamics,
    Process,
    ScalarMixture,
    Sequence,
    WaveNetDynamics,
    make_dynamics,
)

pytestmark = pytest.mark.usefixtures("float64")

MAKERS = {
    "time": lambda s=2: WaveNetDynamics(s, 3, channels=4, features=5, dilations=(1, 2)),
    "components": lambda s=2: ComponentDynamics(
        s, 3, hidden=(4,), channels=4, features=5, dilations=(1,), components=2
    ),
    "time-residual": lambda s=2: WaveNetDynamics(s, 3, channels=4, features=5, dilations=(1, 2), residual=True),
    "mlp": lambda s=2: MLPDynamics(s, 3, hidden=(4,)),
    "additive": lambda s=2: AdditiveDynamics(s, 3, horizon=4, basis=3),
    "additive-linear": lambda s=2: AdditiveDynamics(s, 3, horizon=4, basis=3, base="linear"),
    "additive-wavenet": lambda s=2: AdditiveDynamics(s, 3, horizon=4, basis=3, base="wavenet", size=4),
    "additive-state": lambda s=2: AdditiveDynamics(s, 3, horizon=4, basis=3, base="mlp", size=4, gains="state"),
    "mlp-residual": lambda s=2: MLPDynamics(s, 3, hidden=(4,), residual=True),
}
every = pytest.mark.parametrize("kind", MAKERS)


def sequence(dynamics: Dynamics, steps: tuple[int, ...] = (4, 2)) -> Sequence:
    b = len(steps)
    context = DynamicsContext(torch.randn(b, 3), torch.randn(b, dynamics.state_size), torch.tensor(steps))
    return Sequence(dynamics, context, max(steps))


@every
def test_all_at_once_is_one_after_the_other(kind: str) -> None:
    given = sequence(MAKERS[kind](), (5, 5))
    states = given.sample()
    state, terms = given.process.initial(given.context), []
    for i in range(5):
        terms.append(given.process.conditional(state, given.context).log_prob(states[:, i]))
        state = given.process.advance(state, states[:, i], given.context)
    torch.testing.assert_close(given.step_log_prob(states), torch.stack(terms, 1), rtol=0, atol=1e-12)


@every
def test_padding_counts_nothing(kind: str) -> None:
    given = sequence(MAKERS[kind](), (4, 2))
    states = given.sample().requires_grad_()
    each = given.step_log_prob(states)
    assert (each[1, 2:] == 0).all() and (each[0] != 0).all()
    (gradient,) = torch.autograd.grad(each.sum(), states)
    assert (gradient[1, 2:] == 0).all()
    alone = Sequence(given.process, DynamicsContext(*(leaf[1:] for leaf in given.context)), 2)
    torch.testing.assert_close(alone.log_prob(states[1:, :2]), each[1:].sum(1))


@every
def test_density_integrates_to_one(kind: str) -> None:
    torch.manual_seed(3)
    dynamics = MAKERS[kind]()
    given = sequence(dynamics, (1,))
    side = torch.linspace(-25, 25, 1201)
    grid = torch.cartesian_prod(side, side).unsqueeze(1) + given.context.first[0]
    total = given.expand([1]).log_prob(grid.unsqueeze(1)).exp().sum() * (side[1] - side[0]) ** 2
    assert abs(total - 1) < 1e-4


@every
def test_rollouts_carry_pathwise_gradients(kind: str) -> None:
    dynamics = MAKERS[kind]()
    given = sequence(dynamics, (3, 3))
    z = given.context.z.clone().requires_grad_()

    def end(z: torch.Tensor) -> torch.Tensor:
        # Around the same draws: they are quantiles of what the step before makes of z.
        state, total = dynamics.initial(given.context._replace(z=z)), torch.zeros(())
        torch.manual_seed(0)
        for _ in range(3):
            conditional = dynamics.conditional(state, given.context._replace(z=z))
            s = conditional.rsample()
            state, total = dynamics.advance(state, s, given.context._replace(z=z)), total + s.sum()
        return total

    (gradient,) = torch.autograd.grad(end(z), z)
    if kind == "components":  # its draws do not move with z one by one; see the test of ScalarMixture
        assert gradient.isfinite().all() and (gradient != 0).any()
        return
    step = torch.zeros_like(z)
    step[0, 1] = 1e-6
    with torch.no_grad():
        difference = (end(z + step) - end(z - step)) / 2e-6
    torch.testing.assert_close(gradient[0, 1], difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "kind", ["time", "time-residual", "mlp", "additive", "additive-linear", "additive-wavenet", "additive-state"]
)
def test_a_walk_at_once_is_the_walk_step_by_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = sequence(MAKERS[kind](), (4, 4))
    greedy, draws = given.greedy(), given.sample((20_000,))
    monkeypatch.setattr(type(given.process), "walk", Process.walk, raising=False)
    torch.testing.assert_close(given.greedy(), greedy)
    others = given.sample((20_000,))
    error = ((draws.var(0) + others.var(0)) / 20_000).sqrt()
    assert ((draws.mean(0) - others.mean(0)) / error).abs().max() < 4.5
    assert (draws.std(0) / others.std(0) - 1).abs().max() < 0.04


@pytest.mark.parametrize("kind", ["time", "time-residual"])
def test_a_walk_at_once_carries_pathwise_gradients(kind: str) -> None:
    given = sequence(MAKERS[kind](), (3, 3))

    def end(z: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return Sequence(given.process, given.context._replace(z=z), 3).rsample().sum()

    z = given.context.z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(end(z), z)
    step = torch.zeros_like(z)
    step[1, 2] = 1e-6
    with torch.no_grad():
        difference = (end(z + step) - end(z - step)) / 2e-6
    torch.testing.assert_close(gradient[1, 2], difference, rtol=1e-5, atol=1e-7)


def test_the_mode_draws_nothing() -> None:
    given = sequence(MAKERS["time"](), (3, 3))
    before = torch.get_rng_state()
    given.greedy()
    assert torch.equal(torch.get_rng_state(), before)


def test_residual_dynamics_predict_the_change() -> None:
    one, other = (MLPDynamics(2, 3, hidden=(4,), residual=residual) for residual in (False, True))
    other.load_state_dict(one.state_dict())
    given = sequence(one)
    states = [dynamics.initial(given.context) for dynamics in (one, other)]
    means = [d.conditional(s, given.context).mean for d, s in zip((one, other), states, strict=True)]
    torch.testing.assert_close(means[1], means[0] + given.context.first)


def test_components_come_in_order() -> None:
    dynamics = MAKERS["components"](3)
    given = sequence(dynamics, (1,))
    inner = dynamics.conditional(dynamics.initial(given.context), given.context)
    state = torch.randn(1, 3, requires_grad=True)
    for d in range(3):
        term = inner.step_log_prob(state)[0, d]
        (gradient,) = torch.autograd.grad(term, state)
        assert (gradient[0] != 0).tolist() == [place <= d for place in range(3)]


def mixture(shift: torch.Tensor) -> ScalarMixture:
    parts = dist.Normal(torch.tensor([-1.0, 0.5, 2.0]) + shift * torch.tensor([1.0, -1.0, 2.0]), 0.4 + shift**2)
    return ScalarMixture(dist.Categorical(logits=torch.tensor([0.1, 0.2, -0.3]) * (1 + shift)), parts)


def test_a_draw_of_a_mixture_moves_with_its_quantile() -> None:
    shift = torch.tensor(0.3, requires_grad=True)
    z = mixture(shift).rsample()
    (gradient,) = torch.autograd.grad(z, shift)
    share = mixture(shift).cdf(z.detach()).detach()

    def quantile(at: float) -> torch.Tensor:
        low, high = torch.tensor(-20.0), torch.tensor(20.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = mixture(torch.tensor(at)).cdf(middle) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low

    torch.testing.assert_close(gradient, (quantile(0.3 + 1e-5) - quantile(0.3 - 1e-5)) / 2e-5, rtol=1e-5, atol=1e-7)


def test_the_mode_of_a_mixture_is_its_likeliest_component() -> None:
    assert mixture(torch.tensor(0.0)).mode == 0.5


def test_dynamics_by_axis() -> None:
    assert isinstance(make_dynamics("time", 4, 3), WaveNetDynamics)
    assert isinstance(make_dynamics("components", 4, 3), ComponentDynamics)
    own = MAKERS["mlp"]()
    assert make_dynamics(own, 2, 3) is own
    assert isinstance(make_dynamics("additive", 4, 3), AdditiveDynamics)


@pytest.mark.parametrize("kind", ["additive", "additive-linear", "additive-wavenet"])
def test_the_mean_is_linear_in_the_embedding(kind: str) -> None:
    dynamics = MAKERS[kind]()
    one, other = torch.randn(2, 5, 3)
    context = DynamicsContext(one, torch.randn(5, 2), torch.full((5,), 6))
    states = torch.randn(5, 6, 2)  # two more than the horizon

    def conditional(z: torch.Tensor) -> dist.Normal:
        given = context._replace(z=z)
        return dynamics.conditional(dynamics.unroll(states, given)[0], given).base_dist

    means = [conditional(z).mean for z in (one + other, one, other, torch.zeros_like(one))]
    assert (means[0] - means[3]).abs().min() > 1e-6
    torch.testing.assert_close(means[0], means[1] + means[2] - means[3], rtol=0, atol=1e-12)
    torch.testing.assert_close(conditional(one).scale, conditional(other).scale, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["additive", "additive-linear"])
def test_what_a_sum_generates_is_the_sum_of_what_each_does(kind: str) -> None:
    dynamics = MAKERS[kind]()
    torch.nn.init.normal_(dynamics.head.loc.weight)
    one, other, first = torch.randn(3, 3), torch.randn(3, 3), torch.randn(3, 2)

    def walked(z: torch.Tensor) -> torch.Tensor:
        return Sequence(dynamics, DynamicsContext(z, first, torch.full((3,), 6)), 6).greedy()

    nothing = walked(torch.zeros_like(one))
    torch.testing.assert_close(
        walked(one + 0.5 * other) - nothing,
        (walked(one) - nothing) + 0.5 * (walked(other) - nothing),
        rtol=0,
        atol=1e-11,
    )
    dynamics = MAKERS["additive-state"]()
    torch.nn.init.normal_(dynamics.head.loc.weight)
    error = walked(one + other) - walked(one) - walked(other) + walked(torch.zeros_like(one))
    assert error.abs().max() > 1e-3


def test_as_many_cosines_as_steps_are_every_gain() -> None:
    table = AdditiveDynamics(2, 3, horizon=5, basis=5).net.table
    torch.testing.assert_close(torch.linalg.inv(table) @ table, torch.eye(5))
    assert torch.linalg.cond(table) < 2


def test_cosines_are_as_precise_as_the_weights() -> None:
    dynamics = AdditiveDynamics(2, 3, horizon=64, basis=16).double()
    time = np.arange(64)[:, None] + 0.5
    np.testing.assert_allclose(dynamics.net.table, np.cos(np.pi / 64 * time * np.arange(16)), rtol=0, atol=1e-14)
    assert dynamics.float().net.table.dtype == torch.float32


def test_bad_dynamics() -> None:
    with pytest.raises(ValueError, match="axis must be one of time, components, additive, or dynamics, got 'space'"):
        make_dynamics("space", 4, 3)
    with pytest.raises(ValueError, match="states of 2 numbers and embeddings of 3, the model 5 and 3"):
        make_dynamics(MAKERS["mlp"](), 5, 3)
    with pytest.raises(ValueError, match="hidden must name at least one layer"):
        MLPDynamics(2, 3, hidden=())
    with pytest.raises(ValueError, match=r"basis \(5\) at most horizon \(4\)"):
        AdditiveDynamics(2, 3, horizon=4, basis=5)
    with pytest.raises(ValueError, match="base must be one of apart, linear, mlp, wavenet, got 'lstm'"):
        AdditiveDynamics(2, 3, base="lstm")
    with pytest.raises(ValueError, match="gains must be those of time or state, got 'phase'"):
        AdditiveDynamics(2, 3, gains="phase")
    with pytest.raises(ValueError, match="min_scale must be positive, got -1"):
        WaveNetDynamics(2, 3, min_scale=-1)


def test_settings_tell_apart() -> None:
    one, other = (WaveNetDynamics(2, 3, dilations=d).settings() for d in ((1, 2), (2, 1)))
    assert one != other and MLPDynamics(2, 3, min_scale=0.1).settings()["min_scale"] == 0.1
