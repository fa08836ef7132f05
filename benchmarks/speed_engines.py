"""What the twins in NumPyro make of the updates that `speed.py` measures, and how far they agree; it calls this file.

The engines are interleaved in one process: repeat by repeat, one update each, on the same batch and weights, the
compiled one after a first that is not counted. `numpyro` trains one seed, and six at once by `vmap`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# One thread, as torch has here; XLA reads this when it starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import torch
from numpyro.infer import SVI
from torch import Tensor

import pyrocontrol as pc
from pyrocontrol.inference import twins
from pyrocontrol.models.programs.traces import split_annotated
from pyrocontrol.models.registration import register

SEEDS = 6


class Measured(NamedTuple):
    """A number, and what was measured."""

    method: str
    metric: str
    value: float
    seed: int
    seconds: float
    setting: dict[str, Any]


# -- parity ------------------------------------------------------------------------------------------------------------


class _Given(pc.models.Sequence):
    """A sequence whose draw is given."""

    def __init__(self, base: pc.models.Sequence, z: Tensor) -> None:
        super().__init__(base.process, base.context, base.horizon)
        self.z = z

    def sample(self, *_: Any, **__: Any) -> Tensor:
        """Return what is given."""
        return self.z

    rsample = sample

    def expand(self, *_: Any, **__: Any) -> Any:
        """Return the same: it has the plate's shape."""
        return self


class _GivenTwin(twins.Sequence):
    """The same in NumPyro."""

    def __init__(self, base: twins.Sequence, z: Any) -> None:
        super().__init__(base.process, base.context, base.horizon)
        self.z = z

    def sample(self, *_: Any, **__: Any) -> Any:
        """Return what is given."""
        return self.z


def parity(
    program: pc.models.ControlProgram, guide: pc.guides.CallStackGuide, traces: Any, rows: int | None = None
) -> tuple[float, dict[str, float]]:
    """Return how far the ELBO and every gradient differ between the engines, at the same weights, traces and calls.

    Args:
        program: of either precision; JAX must be set to it.
        guide: of the program.
        traces: a batch.
        rows: see :func:`~pyrocontrol.inference.twins.scored_rows`.

    Returns:
        The relative difference of the ELBO; that of each gradient by parameter, in units of its greatest entry.
    """
    latent, _ = split_annotated(traces)
    assert latent is not None, "traces whose calls are all annotated have no guide"
    calls = guide.posterior(latent).sample()

    def given(_: Any) -> None:
        register("guide", guide)
        with pyro.plate("traces", len(latent.lengths), dim=-1):
            pyro.sample("calls", _Given(guide.posterior(latent), calls))

    for module in (program, guide):
        module.zero_grad()
    loss = pc.inference.StepwiseKL_ELBO(max_plate_nesting=1).differentiable_loss(program.model, given, traces)
    loss.backward()
    named: dict[str, Any] = {"program": program, "guide": guide}
    theirs = {
        f"{name}$$${key}": p.grad.numpy()
        for name, module in named.items()
        for key, p in module.named_parameters()
        if p.grad is not None
    }
    twin, twin_guide = twins.to_numpyro(program), twins.to_numpyro(guide)
    elbo, arrays = twins.StepwiseKL_ELBO(), twins.as_arrays(traces)
    unknown: Any = True if arrays.calls is None else (arrays.calls[..., 0] < 0).all(-1)
    # Rows that are annotated return at once, which a mask leaves out.
    rows_of = jnp.arange(len(traces))[unknown].reshape(-1)
    drawn = jnp.zeros((len(traces), *calls.shape[1:])).at[..., 0].set(program.tree.null)
    drawn = drawn.at[rows_of].set(jnp.asarray(calls.numpy()))

    def given_twin(traces: twins.Traces) -> None:
        held = twin_guide.registered("guide")
        with numpyro.plate("traces", len(traces.lengths)), numpyro.handlers.mask(mask=unknown):
            numpyro.sample("calls", _GivenTwin(held.posterior(traces), drawn))

    params = parameters(twin, twin_guide)

    def objective(params: Any) -> Any:
        return elbo.loss(jax.random.PRNGKey(0), params, twin.model, given_twin, arrays)

    with twins.scored_rows(rows):
        value, gradients = jax.jit(jax.value_and_grad(objective))(params)
    held = float(loss.detach())
    differences = {
        name: float(np.abs(np.asarray(gradients[name]) - right).max() / max(np.abs(right).max(), 1.0))
        for name, right in theirs.items()
    }
    return abs(float(value) - held) / abs(held), differences


def parameters(program: twins.ControlProgram, guide: twins.CallStackGuide) -> dict[str, Any]:
    """Return the parameters of both by the names that they have in NumPyro."""
    parts = {"program": program.weights, "guide": guide.weights}
    return {f"{name}$$${key}": weight for name, weights in parts.items() for key, weight in weights.items()}


# -- time --------------------------------------------------------------------------------------------------------------


def updates(
    program: Any, guide: Any, others: dict[str, Callable[[Any, int], float]], batches: list[Any], seeds: int = 1
) -> Iterator[Measured]:
    """Yield the seconds of an update by each engine, batch by batch; of several seeds, the ratio to one.

    Args:
        program: the torch module.
        guide: the torch module.
        others: of the engines in torch by method, what takes an update of a batch and a seed, and returns its seconds.
        batches: of one size.
        seeds: that NumPyro trains at once.
    """
    size = len(batches[0])
    twin, twin_guide = twins.to_numpyro(program), twins.to_numpyro(guide)
    svi = SVI(twin.model, twin_guide, numpyro.optim.Adam(1e-3), twins.StepwiseKL_ELBO())
    arrays = [twins.as_arrays(batch) for batch in batches]
    states = [svi.init(jax.random.PRNGKey(seed), arrays[0]) for seed in range(seeds)]
    state = states[0] if seeds == 1 else jax.tree.map(lambda *parts: jnp.stack(parts), *states)
    rows = 256 * size
    while True:  # as many rows as the longest batch needs
        with twins.scored_rows(rows):
            alone = jax.jit(svi.update)
            step = alone if seeds == 1 else jax.jit(jax.vmap(svi.update, (0, None)))
            losses = [np.asarray(step(state, batch)[1]) for batch in arrays]
            jax.block_until_ready([alone(states[0], batch) for batch in arrays])
        if np.isfinite(losses).all():
            break
        rows = rows * 3 // 2

    def of(update: Any, state: Any) -> Callable[[Any, int], float]:
        def seconds(_: Any, number: int) -> float:
            start = time.perf_counter()
            jax.block_until_ready(update(state, arrays[number]))
            return time.perf_counter() - start

        return seconds

    setting = {"part": "engines", "batch": size, "seeds": seeds}
    if seeds > 1:
        others = {"one": of(alone, states[0])}
    for number, batch in enumerate(batches):
        found = {name: measure(batch, number) for name, measure in (others | {"numpyro": of(step, state)}).items()}
        one = found.pop("one", None)
        for method, value in found.items():
            yield Measured(method, "update_seconds", value, number, value, setting)
        if one is not None:
            ours = found["numpyro"]
            yield Measured("numpyro", "seeds_ratio", ours / one, number, ours + one, setting)


def agreement(make: Callable[[], tuple[Any, Any]], traces: Any) -> Iterator[Measured]:
    """Yield the greatest differences of the ELBO and of the gradients, in both precisions."""
    default = torch.get_default_dtype()
    for precision, dtype in {"double": torch.float64, "single": torch.float32}.items():
        start = time.perf_counter()
        torch.set_default_dtype(dtype)
        with jax.enable_x64(dtype == torch.float64):
            program, guide = make()
            value, gradients = parity(program, guide, traces.to(dtype=dtype))
        seconds, setting = time.perf_counter() - start, {"part": "engines", "precision": precision}
        yield Measured("numpyro", "elbo_difference", value, 0, seconds, setting)
        yield Measured("numpyro", "gradient_difference", max(gradients.values()), 0, seconds, setting)
    torch.set_default_dtype(default)
