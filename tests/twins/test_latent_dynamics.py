"""The twins of world models in NumPyro against the torch modules that they mirror."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro.distributions as pdist
import pytest
import torch
from torch import Tensor

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")

import jax.numpy as jnp  # noqa: E402
from numpyro.infer import SVI, Predictive  # noqa: E402

import pyrocontrol as pc  # noqa: E402
from pyrocontrol.inference import twins  # noqa: E402
from pyrocontrol.models.process_numpyro import walks_kept  # noqa: E402

B, T, O, A, Z = 3, 5, 4, 2, 3  # noqa: E741
KEY = jax.random.PRNGKey(7)
Pair = tuple[pc.models.WorldModel, pc.guides.FilteringGuide]


def latent_pair(trace: str | None = None, **options: Any) -> Pair:
    dynamics = pc.models.LatentDynamics(A, memory_size=7, latent_size=Z, hidden=8, **options)
    world = pc.models.WorldModel(dynamics, pc.models.VectorDecoder(dynamics.feature_size, O, hidden=8))
    return world, pc.guides.FilteringGuide(world, pc.models.VectorEncoder(O, 5), 5, hidden=8, trace=trace, trace_size=4)


def drawn_data(rows: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, T, O), torch.rand(rows, T, A) * 2 - 1


def arrays(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(jnp.asarray(tensor.numpy()) for tensor in tensors)


def parameters(**parts: Any) -> dict[str, Any]:
    return {f"{name}$$${key}": w for name, twin in parts.items() for key, w in twin.weights.items()}


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every walk draws with the same noise, in both engines."""
    taken = iter(range(1000))
    sample = twins.Sequence.sample

    def rsample(self: Any, shape: Any = ()) -> Tensor:
        noise = jax.random.normal(jax.random.fold_in(KEY, next(taken) % T), self.loc.shape)
        return self.loc + self.scale * torch.from_numpy(np.array(noise))

    monkeypatch.setattr(pdist.Normal, "rsample", rsample)
    monkeypatch.setattr(pdist.Normal, "sample", lambda self, shape=(): rsample(self).detach())
    monkeypatch.setattr(twins.Sequence, "sample", lambda self, key, sample_shape=(): sample(self, KEY, sample_shape))
    yield


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[float]:
    """The tolerance of double or single precision, which both engines are set to."""
    double, default = request.param, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    with jax.enable_x64(double):
        yield 1e-10 if double else 1e-5
    torch.set_default_dtype(default)


double, both = (pytest.mark.parametrize("precision", kinds, indirect=True) for kinds in ([True], [True, False]))


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    theirs = theirs.detach().numpy() if isinstance(theirs, Tensor) else theirs
    assert np.shape(ours) == np.shape(theirs)
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * max(1, np.abs(theirs).max())


def check(
    world: Any, guide: Any, data: tuple[Tensor, Tensor], tolerance: float, options: Any = (), torch_options: Any = ()
) -> None:
    """ELBO and every gradient, both engines: the guide may be None where the latents are observed."""
    for module in (world, guide):
        if module is not None:
            module.zero_grad()
    elbo = pc.inference.StepwiseKL_ELBO(max_plate_nesting=1, **dict(torch_options or options))
    loss = elbo.differentiable_loss(world.model, guide or (lambda *_: None), *data)
    loss.backward()
    parts = {"world": world} if guide is None else {"world": world, "guide": guide}
    twin = {name: twins.to_numpyro(module) for name, module in parts.items()}
    of_twins = twins.StepwiseKL_ELBO(**dict(options))

    def objective(params: Any) -> Any:
        return of_twins.loss(KEY, params, twin["world"].model, twin.get("guide", lambda *_: None), *arrays(*data))

    value, gradients = jax.jit(jax.value_and_grad(objective))(parameters(**twin))
    close(value, loss, tolerance)
    count = 0
    for name, module in parts.items():
        for key, weight in module.named_parameters():
            right = torch.zeros_like(weight) if weight.grad is None else weight.grad
            close(gradients[f"{name}$$${key}"], right, tolerance)
            count += 1
    assert count == len(gradients)


@pytest.mark.parametrize(
    ("precision", "trace"), [(True, None), (True, "bilstm"), (False, "bilstm")], indirect=["precision"]
)
def test_elbo_and_every_gradient_are_those_of_pyro(same_noise: None, precision: float, trace: str | None) -> None:
    check(*latent_pair(trace), drawn_data(), precision)


@double
@pytest.mark.parametrize(
    ("options", "torch_options"),
    [
        ({"free_nats": 0.3}, {}),
        ({"free_nats": 30.0}, {}),
        ({"kl": twins.BalancedKL(0.8, 0.3)}, {"kl": pc.inference.BalancedKL(0.8, 0.3)}),
    ],
    ids=["few free nats", "many free nats", "balanced"],
)
def test_free_nats_and_a_balanced_kl_are_those_of_pyro(
    same_noise: None, precision: float, options: dict[str, Any], torch_options: dict[str, Any]
) -> None:
    check(*latent_pair(), drawn_data(), precision, options, torch_options)


@both
def test_observed_dynamics_are_those_of_pyro(same_noise: None, precision: float) -> None:
    dynamics = pc.models.ObservedDynamics(O, A, hidden=(8, 6), members=2)  # three rows for two members
    world = pc.models.WorldModel(dynamics)
    data = drawn_data()
    check(world, None, data, precision)
    z = world.path(data[1]).rsample()
    close(twins.to_numpyro(world).path(*arrays(data[1])).sample(KEY), z, precision)


@double
def test_walks_and_steps_along_given_latents_are_those_of_pyro(same_noise: None, precision: float) -> None:
    world, guide = latent_pair()
    x, actions = drawn_data()
    p, q = world.path(actions), guide.posterior(x, actions)
    twin_p = twins.to_numpyro(world).path(*arrays(actions))
    twin_q = twins.to_numpyro(guide).posterior(*arrays(x, actions))
    for ours, theirs in ((twin_p, p), (twin_q, q)):
        z = torch.randn(B, T, Z)
        given, memory = arrays(z)[0], theirs.states(z).memory
        found = jax.jit(lambda s=ours, z=given: (s.sample(KEY), s.greedy(), s.step_log_prob(z), s.states(z).memory))()
        for mine, right in zip(
            found, (theirs.rsample(), theirs.greedy(), theirs.step_log_prob(z), memory), strict=True
        ):
            close(mine, right, precision)
    close(jax.jit(lambda: twin_q.step_kl(twin_p, given))(), q.step_kl(p, z), precision)


class Pushed(twins.ActionDriven):
    """A point that actions push, seen with noise; it mirrors nothing."""

    event_shape = (1,)
    memory_size = latent_size = action_size = 1

    def transition(self, memory: Any, z: Any, action: Any) -> Any:
        return memory + action

    def prior(self, memory: Any) -> Any:
        return numpyro.distributions.Normal(memory, 1.0).to_event(1)


def test_dynamics_of_ones_own() -> None:
    path = twins.Sequence(Pushed(), twins.Driven(jnp.ones((2, 4, 1))), 4)
    z = path.sample(KEY)
    close(path.states(z).memory[..., 0], np.arange(4.0) * np.ones((2, 1)), 1e-6)
    close(path.step_log_prob(z), -0.5 * (z[..., 0] - jnp.arange(4)) ** 2 - 0.5 * np.log(2 * np.pi), 1e-5)


def loops(jaxpr: Any) -> int:
    return str(jaxpr).count("scan[")


def test_an_update_has_one_recurrence() -> None:
    world, guide = (twins.to_numpyro(module) for module in latent_pair())
    data = arrays(*drawn_data())

    def objective(params: Any) -> Any:
        return twins.StepwiseKL_ELBO().loss(KEY, params, world.model, guide, *data)

    params = parameters(world=world, guide=guide)
    assert loops(jax.make_jaxpr(objective)(params)) == 1
    assert loops(jax.make_jaxpr(jax.grad(objective))(params)) == 2  # there and back
    # Other actions are other states, and so are other weights.
    posterior, key = guide.posterior(*data), jax.random.PRNGKey(1)
    moved = world.with_weights({name: weight + 0.1 for name, weight in world.weights.items()})
    with walks_kept():
        z = posterior.sample(key)
        for path in (world.path(data[1] + 0), moved.path(data[1])):
            assert np.array_equal(path.states(z).memory, path.process.unroll(z, path.context)[0].memory)
        shared = jax.make_jaxpr(lambda: guide.posterior(*data).step_kl(world.path(data[1]), posterior.sample(key)))()
    assert loops(shared) == 2


def test_training_lowers_the_loss_and_the_weights_come_back() -> None:
    world, guide = latent_pair()
    x, actions = torch.randn(16, 1, O).repeat(1, T, 1), torch.rand(16, T, A)
    twin, twin_guide = twins.to_numpyro(world), twins.to_numpyro(guide)
    svi = SVI(
        lambda data: twin.model(*data),
        lambda data: twin_guide(*data),
        numpyro.optim.Adam(2e-2),
        twins.StepwiseKL_ELBO(2, free_nats=0.1),
    )
    elbo = pc.inference.StepwiseKL_ELBO(max_plate_nesting=1)
    before = elbo.loss(world.model, guide, x, actions)
    found = twins.fit(svi, arrays(x, actions), steps=100, batch_size=8, progress=False)
    losses = found.losses[0]
    assert losses[-10:].mean() < losses[:10].mean() - 5
    twins.from_numpyro(found.params[0], world, "world")
    twins.from_numpyro(found.params[0], guide, "guide")
    assert elbo.loss(world.model, guide, x, actions) < before - 10
    held = parameters(world=twins.to_numpyro(world), guide=twins.to_numpyro(guide))
    assert set(held) == set(found.params[0])
    assert all(np.array_equal(held[name], value) for name, value in found.params[0].items())
    predictive = Predictive(twin.model, params=found.params[0], num_samples=2)
    drawn = jax.jit(lambda actions: predictive(KEY, None, actions))(*arrays(actions))
    assert drawn["latents"].shape == (2, 16, T, Z) and drawn["observations"].shape == (2, 16, T, O)


def test_bad_input_is_one_error() -> None:
    world, guide = latent_pair()
    twin, twin_guide = twins.to_numpyro(world), twins.to_numpyro(guide)
    x, actions = arrays(*drawn_data())
    for call in (twin.model, twin_guide):
        with numpyro.handlers.seed(rng_seed=0), pytest.raises(ValueError, match=r"actions must be floats \[B, T, 2\]"):
            call(x, jnp.zeros((B, T, A + 1)))
    with pytest.raises(ValueError, match=r"observations must be floats \[B, T, 4\], not uint8 \[3, 5, 64, 64, 3\]"):
        twin_guide.posterior(jnp.zeros((B, T, 64, 64, 3), np.uint8), actions)
    dynamics = world.dynamics
    images = pc.models.WorldModel(dynamics, pc.models.readings.ImageDecoder(dynamics.feature_size, depth=1))
    with pytest.raises(TypeError, match="ImageDecoder has no twin in NumPyro"):
        twins.to_numpyro(images)
    encoder = pc.models.readings.ImageEncoder(depth=1)
    with pytest.raises(TypeError, match="ImageEncoder has no twin in NumPyro"):
        twins.to_numpyro(pc.guides.FilteringGuide(images, encoder, encoder.size))
    with pytest.raises(ValueError, match="latents with classes have no twin"):
        twins.to_numpyro(latent_pair(classes=4)[1])
    with pytest.raises(ValueError, match="free_nats must be at least 0"):
        twins.StepwiseKL_ELBO(free_nats=-1.0)
