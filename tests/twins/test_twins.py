"""The twins in NumPyro against the torch modules that they mirror, in double precision."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as pdist
import pytest
import torch
from torch import Tensor, nn

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")

import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO  # noqa: E402

import pyrocontrol as pc  # noqa: E402
from pyrocontrol.envs import Demonstrations  # noqa: E402
from pyrocontrol.envs.bubble_sort import demonstrations  # noqa: E402
from pyrocontrol.inference import twins  # noqa: E402
from pyrocontrol.inference.training.run import lock_of  # noqa: E402
from scripts import load_script  # noqa: E402

engines = load_script("benchmarks/speed_engines.py")

MOVE = """
actions: move(direction: onehot[2], force: real[1]), stop
top counts -> sweep, stop
sweep(way: onehot[2], speed: real[2]) -> move returns (found: onehot[3])
"""


@pytest.fixture
def double(float64: None) -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def close(ours: Any, theirs: Tensor, tolerance: float = 1e-10) -> None:
    theirs = theirs.detach().numpy()
    assert np.shape(ours) == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max(initial=0) <= tolerance * max(1, np.abs(theirs).max(initial=0))


def bubble_sort(**kwargs: Any) -> tuple[Demonstrations, pc.models.ControlProgram]:
    traces = demonstrations(4, 0, max_length=4)
    traces = traces.to(dtype=torch.get_default_dtype())
    encoder = pc.models.FieldEncoder([("digit", 10), (None, 1), ("digit", 10), (None, 1)])
    return traces, pc.models.ControlProgram(pc.envs.BUBBLE_SORT_TREE, 22, encoder=encoder, **kwargs)


class Pair(NamedTuple):
    """A program and its guide, in torch and in NumPyro."""

    program: pc.models.ControlProgram
    guide: pc.guides.CallStackGuide
    twin: twins.ControlProgram
    twin_guide: twins.CallStackGuide

    @property
    def params(self) -> dict[str, Any]:
        parts = {"program": self.twin.weights, "guide": self.twin_guide.weights}
        return {f"{name}$$${key}": w for name, weights in parts.items() for key, w in weights.items()}


def pair_of(program: pc.models.ControlProgram, encoder: str = "bilstm") -> Pair:
    guide = pc.guides.CallStackGuide(program, encoder, encoder_size=5)
    return Pair(program, guide, twins.to_numpyro(program), twins.to_numpyro(guide))


@pytest.mark.parametrize(
    ("encoder", "rows", "precise", "tolerance", "annotated"),
    [
        ("bilstm", None, True, 1e-10, False),
        ("lstm", 400, True, 1e-10, False),
        ("bilstm", 400, False, 1e-5, False),
        ("bilstm", 400, True, 1e-10, True),
    ],
)
def test_elbo_and_every_gradient_are_those_of_pyro(
    encoder: str, rows: int | None, precise: bool, tolerance: float, annotated: bool
) -> None:
    torch.set_default_dtype(torch.float64 if precise else torch.float32)
    with jax.enable_x64(precise):
        check_elbo(encoder, rows, tolerance, annotated)


def check_elbo(encoder: str, rows: int | None, tolerance: float, annotated: bool) -> None:
    traces, program = bubble_sort(sparsity=0.1, num_traces=8, argument_hidden=(3,), activation="tanh")
    if annotated:
        shown = demonstrations(4, 0, max_length=4, annotate=True).to(dtype=torch.get_default_dtype()).calls
        assert shown is not None
        shown[2:] = torch.tensor([-1.0] + [0.0] * (shown.shape[-1] - 1))
        traces = traces.replace(calls=shown)
    guide = pc.guides.CallStackGuide(program, encoder, encoder_size=5)
    value, gradients = engines.parity(program, guide, traces, rows)
    count = sum(1 for module in (program, guide) for _ in module.parameters())
    assert value < tolerance and max(gradients.values()) < tolerance and len(gradients) == count


def test_steps_with_latent_and_observed_arguments_are_those_of_torch(double: None) -> None:
    tree = pc.models.ProcedureTree.parse(MOVE)
    rows, times = 3, 4
    actions = torch.tensor([[0, 0, 1, 2], [0, 2, 2, 2], [1, 2, 2, 2]])
    arguments = torch.zeros(rows, times, tree.arg_size)
    arguments[..., 0], arguments[..., 2] = 1, torch.randn(rows, times)
    task = torch.zeros(rows, tree.arg_size)
    prior = pc.models.CallStack(tree, 5)
    posterior = pc.models.CallStack(tree, 6, posterior=True)
    contexts = (
        pc.models.CallStackContext(torch.randn(rows, times, 5), task),
        pc.models.CallStackContext(torch.randn(rows, times, 6), task, actions, arguments),
    )
    p, q = (
        pc.models.Sequence(process, context, tree.max_steps(times))
        for process, context in zip((prior, posterior), contexts, strict=True)
    )
    z = q.sample()
    twin_p, twin_q = (
        twins.Sequence(
            twins.to_numpyro(process),
            twins.CallStackContext(*(None if leaf is None else jnp.asarray(leaf.numpy()) for leaf in context)),
            tree.max_steps(times),
        )
        for process, context in zip((prior, posterior), contexts, strict=True)
    )
    given = jnp.asarray(z.numpy())
    close(twin_q.step_log_prob(given), q.step_log_prob(z))
    close(twin_p.step_log_prob(given), p.step_log_prob(z))
    close(twin_q.step_kl(twin_p, given), q.step_kl(p, z))
    close(twin_q.step_score(given), q.step_score_parts(z).score_function)
    drawn = twin_q.sample(jax.random.PRNGKey(1), (50,))
    for one in np.asarray(drawn):  # every draw explains what was done
        assert torch.isfinite(q.log_prob(torch.from_numpy(one.copy()))).all()


def test_a_program_drawn_in_numpyro_is_distributed_as_in_torch(double: None) -> None:
    """Draws of short programs against the exact probabilities of all of them."""
    program = pc.models.ControlProgram("actions: a, b\ntop -> low, b\nlow -> a", 2, horizon=4)
    features, task = torch.zeros(1, 3, 2), torch.zeros(1, 0)
    torch_prior = pc.models.Sequence(program.process, pc.models.CallStackContext(features, task), 4)
    context = twins.CallStackContext(jnp.zeros((1, 3, 2)), jnp.zeros((1, 0)))
    prior = twins.Sequence(twins.to_numpyro(program.process), context, 4)
    count = 20_000
    z = np.asarray(jax.jit(lambda key: prior.sample(key, (count,)))(jax.random.PRNGKey(0)))[:, 0, :, 0]
    ended = ~np.isnan(z[:, 0])
    found: dict[tuple[float, ...], int] = {}
    for row in z[ended]:
        found[tuple(row)] = found.get(tuple(row), 0) + 1
    total = 0.0
    for row, times in found.items():
        probability = torch_prior.log_prob(torch.tensor(row).reshape(1, 4, 1)).exp().item()
        total += probability
        assert abs(times / count - probability) < 5 * np.sqrt(probability / count)
    assert abs(ended.mean() - total) < 0.02  # a row that had not ended is NaN


class Chain(pc.models.Process):
    """A Gaussian chain that adds what it drew."""

    event_shape = torch.Size([1])
    has_rsample = True

    def initial(self, context: Tensor) -> Tensor:
        return context[:, :1]

    def conditional(self, state: Tensor, context: Tensor) -> Any:
        return pdist.Normal(0.5 * state, torch.ones_like(state)).to_event(1)

    def advance(self, state: Tensor, z: Tensor, context: Tensor) -> Tensor:
        return state + z


class ChainTwin(twins.Process):
    event_shape = (1,)
    has_rsample = True

    def initial(self, context: Any) -> Any:
        return context[:, :1]

    def conditional(self, state: Any, context: Any) -> Any:
        return dist.Normal(0.5 * state, jnp.ones_like(state)).to_event(1)

    def advance(self, state: Any, z: Any, context: Any) -> Any:
        return state + z


def test_a_process_of_ones_own(double: None) -> None:
    context = torch.randn(3, 2)
    ours, theirs = pc.models.Sequence(Chain(), context, 4), twins.Sequence(ChainTwin(), jnp.asarray(context.numpy()), 4)
    z = theirs.sample(jax.random.PRNGKey(0))
    close(theirs.step_log_prob(z), ours.step_log_prob(torch.from_numpy(np.array(z))))
    # A walk that is reparametrised has a gradient, all the way.
    gradient = jax.grad(lambda c: twins.Sequence(ChainTwin(), c, 4).sample(jax.random.PRNGKey(0))[:, -1].sum())
    assert np.allclose(gradient(jnp.ones((2, 1))), 1.5**3 / 2)


class Countdown(twins.Process):
    """Whole numbers of 0, 1 and 2, each likelier than the one before, up to the first 2."""

    terminates = True

    def initial(self, context: Any) -> Any:
        return jnp.zeros(len(context), int)

    def conditional(self, state: Any, context: Any) -> Any:
        return dist.Categorical(jnp.broadcast_to(jnp.array([0.2, 0.3, 0.5]), (*state.shape, 3)))

    def advance(self, state: Any, z: Any, context: Any) -> Any:
        return z

    def live(self, state: Any, context: Any) -> Any:
        return state != 2


def test_a_process_of_whole_numbers_ends_by_itself(double: None) -> None:
    path = twins.Sequence(Countdown(), jnp.zeros((4000, 1)), 3)
    given = twins.Sequence(Countdown(), jnp.zeros((3, 1)), 3).log_prob(jnp.array([[0, 1, 2], [2, 0, 0], [1, 2, 1]]))
    assert np.allclose(given, np.log([0.2 * 0.3 * 0.5, 0.5, 0.3 * 0.5]))
    z = path.sample(jax.random.PRNGKey(0))
    assert jnp.issubdtype(z.dtype, jnp.integer)
    value = np.asarray(path.log_prob(z))
    assert abs(np.isnan(value).mean() - 0.5**3) < 0.03  # of a row that has not ended at the horizon
    assert set(np.unique(np.asarray(z)[~np.isnan(value)])) == {0, 1, 2}
    assert path.greedy()[0].tolist() == [2, 0, 0]  # and padding after the end


class Drift(ChainTwin):
    """A chain of plain numbers, each around half the sum of those before."""

    event_shape = ()

    def initial(self, context: Any) -> Any:
        return context[:, 0]

    def conditional(self, state: Any, context: Any) -> Any:
        return dist.Normal(0.5 * state, 1.0)


class Odd(Drift):
    def conditional(self, state: Any, context: Any) -> Any:
        return dist.Gumbel(0.5 * state, 1.0)


def test_the_likeliest_steps_follow_each_other() -> None:
    start = jnp.array([[1.0], [-2.0]])
    expected = np.outer(start[:, 0], [0.5, 0.75, 1.125])
    assert np.allclose(twins.Sequence(Drift(), start, 3).greedy(), expected)
    assert np.allclose(twins.Sequence(ChainTwin(), start, 3).greedy()[..., 0], expected)
    coins = twins.Sequence(Coins(jnp.array(-4.0)), start, 4).greedy()  # logits 2.3 after tails, -1.7 after heads
    assert np.array_equal(coins, [[1, 0, 1, 0]] * 2)
    with pytest.raises(NotImplementedError, match="the mode of a Gumbel is not known"):
        twins.Sequence(Odd(), start, 3).greedy()


def test_plates_and_draws_are_more_rows(double: None) -> None:
    start, key = jnp.array([[1.0], [-2.0]]), jax.random.PRNGKey(0)
    path = twins.Sequence(Drift(), start, 3)
    z = path.sample(key, (5,))
    assert np.allclose(path.log_prob(z), [path.log_prob(one) for one in z])
    assert path.expand((4, 2)).sample(key).shape == (4, 2, 3)

    def model(scale: float = 1.0) -> None:
        with numpyro.plate("outer", 4, dim=-2), numpyro.plate("rows", 2, dim=-1), numpyro.handlers.mask(mask=seen):
            z = numpyro.sample("z", twins.Sequence(Drift(), scale * start, 3))
            if scale == 1.0:
                numpyro.sample("x", twins.Emission(dist.Normal(z, 1.0), along="z"), obs=jnp.zeros((4, 2, 3)))

    seen = jnp.array([[True], [True], [False], [True]])
    terms = twins.StepwiseKL_ELBO().step_terms(key, {}, model, lambda: model(3.0))
    # Each step's mean is half of the state, and the states of both differ by what they began with, 2 start.
    assert np.allclose(terms["z"].value, jnp.where(seen, 0.5 * start[:, 0] ** 2, 0.0)[..., None])
    assert terms["x"].value.shape == (4, 2, 3) and (terms["x"].value[2] == 0).all()


class Stops(Drift):
    terminates = True


def test_what_torch_refuses_is_refused() -> None:
    start, elbo, key = jnp.zeros((2, 1)), twins.StepwiseKL_ELBO(), jax.random.PRNGKey(0)
    with pytest.raises(ValueError, match=r"a Stops are reparametrised and it ends by itself.*end_is_discrete = True"):
        twins.Sequence(Stops(), start, 3)
    with pytest.raises(TypeError, match=r"horizon must be a whole number, not 2\.5"):
        twins.Sequence(Drift(), start, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lead with the batch shape \(2,\), one has shape \(3, 1\)"):
        twins.Sequence(Drift(), (start, jnp.zeros((3, 1))), 3)
    path = twins.Sequence(Drift(), start, 3)
    assert path.log_prob(jnp.zeros(3)).shape == (2,)
    for shape in ((2, 4), (2, 2), (3, 3), (2, 3, 1), ()):
        with pytest.raises(ValueError, match=r"has shape \(2,\) \+ \[3\] \+ \(\), got"):
            path.log_prob(jnp.zeros(shape))
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        twins.StepwiseKL_ELBO(0)

    def model(along: int = 3) -> None:
        numpyro.sample("z", twins.Sequence(Drift(), start, 3))
        if along != 3:
            numpyro.sample("x", twins.Emission(dist.Normal(jnp.zeros((2, along)), 1.0), "z"), obs=jnp.zeros((2, along)))

    def guide() -> None:
        model()
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)

    with pytest.raises(ValueError, match="the guide observes 'y': a guide samples latent sites only"):
        elbo.loss(key, {}, model, guide)
    with pytest.raises(ValueError, match="'x' has 4 steps, 'z', along which it goes, has 3"):
        elbo.loss(key, {}, lambda: model(4), model)


# Estimators against enumeration: three binary sites, of which each reads the one before, and what is observed of each.


def _sites(params: Any, given: bool, sample: Any, bernoulli: Any, normal: Any, factor: float) -> None:
    before = 0.0
    for t in range(3):
        name = "q" if given else "p"
        z = sample(f"z{t}", bernoulli(params[name][t] + params["w"] * before * factor))
        if not given:
            sample(f"x{t}", normal(2.0 * z + params["w"] * before), 1.0)
        before = z


@pytest.mark.parametrize("score", ["sequential", "full"])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_gradient_of_plain_sites_is_that_of_enumeration(double: None, score: str, particles: int) -> None:
    params = {"q": jnp.array([0.3, -0.5, 0.8]), "p": jnp.array([-0.2, 0.4, 0.1]), "w": jnp.array(0.7)}
    values = (0.4, 1.1, 1.9)

    def site(name: str, fn: Any, value: float | None = None) -> Any:
        obs = None if value is None else values[int(name[1])]
        return numpyro.sample(name, fn, obs=obs, infer={} if obs is None else {})

    def model() -> None:
        held = {name: numpyro.param(name, value) for name, value in params.items()}
        _sites(held, False, site, lambda x: dist.Bernoulli(logits=x), lambda x: dist.Normal(x, 1.0), 1.0)

    def guide() -> None:
        held = {name: numpyro.param(name, value) for name, value in params.items()}
        _sites(held, True, site, lambda x: dist.Bernoulli(logits=x), None, -0.5)
        numpyro.factor("f", held["w"] ** 2)  # a part of log q; so is the next one, whose name the model has too
        with numpyro.handlers.scale(scale=2.0):
            numpyro.factor("x0", 0.3 * held["p"][0])

    def exact(params: Any) -> Any:
        total = 0.0
        for zs in itertools.product((0.0, 1.0), repeat=3):
            log_q, log_p, before = 0.0, 0.0, 0.0
            for t, z in enumerate(zs):
                log_q += dist.Bernoulli(logits=params["q"][t] - 0.5 * params["w"] * before).log_prob(z)
                log_p += dist.Bernoulli(logits=params["p"][t] + params["w"] * before).log_prob(z)
                log_p += dist.Normal(2.0 * z + params["w"] * before, 1.0).log_prob(values[t])
                before = z
            factors = params["w"] ** 2 + 0.6 * params["p"][0]
            total = total - jnp.exp(log_q) * (log_p - log_q - factors)
        return total

    elbo = twins.StepwiseKL_ELBO(particles, score=score)
    of = jax.value_and_grad(lambda p, key: elbo.loss(key, p, model, guide))
    draws = jax.jit(jax.vmap(of, (None, 0)))(params, jax.random.split(jax.random.PRNGKey(1), 8_000))
    value, gradient = jax.value_and_grad(exact)(params)
    for found, right in zip(jax.tree.leaves(draws), jax.tree.leaves((value, gradient)), strict=True):
        error = np.asarray(found).std(0) / np.sqrt(len(found))
        assert (np.abs(np.asarray(found).mean(0) - np.asarray(right)) < 4.5 * error + 1e-9).all()


class Coins(twins.Process):
    """Coins of which each is drawn given the one before."""

    def __init__(self, slope: Any) -> None:
        super().__init__()
        self.weights = {"slope": slope}

    def initial(self, context: Any) -> Any:
        return jnp.zeros(len(context))

    def conditional(self, state: Any, context: Any) -> Any:
        return dist.Bernoulli(logits=self.weights["slope"] * (state - 0.5) + 0.3)

    def advance(self, state: Any, z: Any, context: Any) -> Any:
        return z.astype(float)


def test_the_gradient_of_an_emission_along_a_sequence_is_that_of_enumeration(double: None) -> None:
    x, mask = jnp.array([[0.4, 1.2, -0.3], [1.0, 0.1, 0.2]]), jnp.array([[True, True, False], [True, True, True]])
    params, context = {"p": jnp.array(0.7), "q": jnp.array(-0.4)}, jnp.zeros((2, 1))
    choices = [jnp.array(rows) for rows in itertools.product(itertools.product((0, 1), repeat=3), repeat=2)]

    def model() -> None:
        slope = numpyro.param("p", params["p"])
        with numpyro.plate("rows", 2):
            z = numpyro.sample("z", twins.Sequence(Coins(slope), context, 3))
            seen = dist.Normal(z + 0.3 * slope, 1.0)
            numpyro.sample("x", twins.Emission(seen, along="z", mask=mask), obs=x)

    def guide(z: Any) -> None:
        path = twins.Sequence(Coins(numpyro.param("q", params["q"])), context, 3)
        with numpyro.plate("rows", 2):
            numpyro.sample("z", engines._GivenTwin(path, z))

    def exact(params: dict[str, Any]) -> Any:
        total = 0.0
        for z in choices:
            log_q, log_p = (twins.Sequence(Coins(params[name]), context, 3).log_prob(z).sum() for name in "qp")
            seen = jnp.where(mask, dist.Normal(z + 0.3 * params["p"], 1.0).log_prob(x), 0.0).sum()
            total = total - jnp.exp(log_q) * (log_p + seen - log_q)
        return total

    elbo, key = twins.StepwiseKL_ELBO(), jax.random.PRNGKey(0)
    given = jax.jit(jax.value_and_grad(lambda p, z: elbo.loss(key, p, model, lambda: guide(z))))
    path = twins.Sequence(Coins(params["q"]), context, 3)
    expected: Any = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    for z in choices:
        weight = jnp.exp(path.log_prob(z).sum())
        expected = jax.tree.map(lambda total, one, w=weight: total + w * one, expected, given(params, z))
    for found, right in zip(jax.tree.leaves(expected), jax.tree.leaves(jax.value_and_grad(exact)(params)), strict=True):
        assert np.allclose(found, right, rtol=1e-10)
    # Part by part: what a step cannot influence is not in its multiplier.
    terms = elbo.step_terms(key, params, model, lambda: guide(choices[5]))
    assert terms["x"].value.shape == (2, 3) and terms["x"].value[0, 2] == 0


def test_the_sequential_score_is_less_noisy_than_the_full_one() -> None:
    traces, program = bubble_sort()
    traces = traces[torch.tensor([0, 1])]
    pair, arrays = pair_of(program), twins.as_arrays(traces)

    def variance(score: str) -> float:
        elbo = twins.StepwiseKL_ELBO(score=score)
        of = jax.jit(jax.grad(lambda p, key: elbo.loss(key, p, pair.twin.model, pair.twin_guide, arrays)))
        names = [name for name in pair.params if "choose.biases" in name and "guide" in name]
        draws = [of(pair.params, jax.random.PRNGKey(n)) for n in range(40)]
        return float(sum(np.var([np.asarray(draw[name]) for draw in draws], 0).sum() for name in names))

    assert variance("sequential") < variance("full")


def test_sites_in_another_order_are_refused() -> None:
    def model() -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("b", dist.Normal(a, 1.0))

    def guide() -> None:
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("a", dist.Normal(b, 1.0))

    with pytest.raises(twins.InexactKLError, match="samples a, b in this order, the guide b, a"):
        twins.StepwiseKL_ELBO().loss(jax.random.PRNGKey(0), {}, model, guide)


def test_weights_come_back_and_nothing_else_is_taken() -> None:
    _, program = bubble_sort()
    twin = twins.to_numpyro(program)
    changed = {key: weight + 1 for key, weight in twin.weights.items()}
    before = {key: weight.clone() for key, weight in program.named_parameters()}
    with pytest.raises(ValueError, match=r"process\.choose\.weights\.0 must have shape"):
        twins.from_numpyro(changed | {"process.choose.weights.0": jnp.zeros(3)}, program)
    with pytest.raises(ValueError, match="not finite"):
        twins.from_numpyro({key: weight * jnp.nan for key, weight in changed.items()}, program)
    assert all(torch.equal(weight, before[key]) for key, weight in program.named_parameters())
    twins.from_numpyro({f"program$$${key}": weight for key, weight in changed.items()}, program, "program")
    assert all(torch.equal(weight, before[key] + 1) for key, weight in program.named_parameters())
    for given in (program, twin):  # what makes a guide makes its twin
        assert twins.CallStackGuide(given).program.tree == twins.CallStackGuide(program=given).program.tree
    with pytest.raises(TypeError, match="Linear has no twin in NumPyro"):
        twins.to_numpyro(nn.Linear(2, 2))


def test_training_goes_on_from_its_checkpoint_and_seeds_are_trainings_of_their_own(tmp_path: Path) -> None:
    traces, program = bubble_sort()
    pair, arrays = pair_of(program), twins.as_arrays(traces)
    svi = SVI(pair.twin.model, pair.twin_guide, numpyro.optim.Adam(1e-2), twins.StepwiseKL_ELBO())
    given: dict[str, Any] = {"batch_size": 2, "per_call": 3, "progress": False}
    whole = twins.fit(svi, arrays, steps=6, seeds=(0, 1), **given)
    assert whole.losses.shape == (2, 6) and np.isfinite(whole.losses).all()
    twins.fit(svi, arrays, steps=3, seeds=(0, 1), out=tmp_path, **given)
    resumed = twins.fit(svi, arrays, steps=6, seeds=(0, 1), out=tmp_path, **given)
    assert np.array_equal(whole.losses, resumed.losses)
    alone = twins.fit(svi, arrays, steps=6, seeds=(1,), **given)
    assert np.allclose(alone.losses[0], whole.losses[1], rtol=1e-4)
    with pytest.raises(ValueError, match="of another training"):
        twins.fit(svi, arrays, steps=6, seeds=(2, 1), out=tmp_path, **given)
    with pytest.raises(ValueError, match="at least the 9 of a batch"):
        twins.fit(svi, arrays, steps=6, batch_size=9, progress=False)
    # A checkpoint that cannot be gone on from, and a folder that is not free, are one error that names the file.
    again: Any = lambda steps, out=tmp_path: twins.fit(svi, arrays, steps=steps, seeds=(0, 1), out=out, **given)  # noqa: E731
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(ValueError, match=r"checkpoint\.npz is at step 6, beyond steps=2"):
        again(2)
    with pytest.raises(ValueError, match=r"checkpoint\.npz is a file, not a folder"):
        again(6, path)
    with lock_of(tmp_path), pytest.raises(BlockingIOError, match="in use by process"):
        again(6)
    whole_file, held = path.read_bytes(), dict(np.load(path))
    without = {name: value for name, value in held.items() if name != "0"}
    for content in (whole_file[:-90], b"", b"PK" + whole_file[2:90], without, held | {"1": np.zeros(3)}):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)
        with pytest.raises(ValueError, match=r"checkpoint\.npz is no checkpoint"):
            again(6)


def test_traces_that_a_program_cannot_have_produced_are_refused_at_once() -> None:
    traces, program = bubble_sort()
    small = pair_of(pc.models.ControlProgram("actions: a, b\ntop -> a, b", 22))
    svi = SVI(small.twin.model, small.twin_guide, numpyro.optim.Adam(1e-2), twins.StepwiseKL_ELBO())
    with pytest.raises(ValueError, match=f"the traces have {traces.num_actions} actions, the tree has 2"):
        twins.fit(svi, twins.as_arrays(traces), steps=1, batch_size=2, progress=False)
    with pytest.raises(TypeError, match="data must be arrays, such as twins.as_arrays"):
        twins.fit(svi, traces, steps=1, batch_size=2, progress=False)
    twins.to_numpyro(program).check(twins.as_arrays(traces))
    with pytest.warns(UserWarning, match="the traces are float64 and are rounded"):
        twins.as_arrays(traces.to(dtype=torch.float64))
    with pytest.raises(ValueError, match=r"encoder\.tables\.digit is float64, and JAX is in single precision"):
        twins.to_numpyro(program.double())


def test_a_horizon_that_is_too_short_is_one_error() -> None:
    traces, program = bubble_sort(horizon=5)
    pair = pair_of(program)
    model = lambda traces: pair.twin.model(traces)  # noqa: E731  # whose traces nobody checks
    svi = SVI(model, pair.twin_guide, numpyro.optim.Adam(1e-2), twins.StepwiseKL_ELBO())
    with pytest.raises(ValueError, match="loss of seed 0 is nan at step 1: .* did not end at its horizon"):
        twins.fit(svi, twins.as_arrays(traces), steps=2, batch_size=2, progress=False)


def test_numpyro_knows_that_calls_are_discrete() -> None:
    traces, program = bubble_sort()
    pair, arrays = pair_of(program), twins.as_arrays(traces)
    assert pair.twin.prior(arrays).is_discrete and not twins.Sequence(ChainTwin(), jnp.zeros((2, 1)), 3).is_discrete
    svi = SVI(pair.twin.model, pair.twin_guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    with pytest.warns(UserWarning, match="Currently, SVI with Trace_ELBO loss does not support models with discrete"):
        svi.init(jax.random.PRNGKey(0), arrays)
    with pytest.raises(RuntimeError, match="discrete sites with enumerate support. But the Sequence"):
        MCMC(NUTS(pair.twin.model), num_warmup=1, num_samples=1, progress_bar=False).run(jax.random.PRNGKey(0), arrays)


def test_predictive_draws_programs() -> None:
    traces, program = bubble_sort()
    twin = twins.to_numpyro(program)
    drawn = Predictive(twin.model, num_samples=2)(jax.random.PRNGKey(0), twins.as_arrays(traces))
    assert drawn["calls"].shape[:2] == (2, 4)
