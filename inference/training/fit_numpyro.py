"""Training in NumPyro: whole runs of updates in one compiled call, and several seeds at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import SVI

from ..._progress import ProgressBar
from ..._verify import verify_least
from ...models.programs.call_stack_numpyro import scored_rows
from ...models.twin_numpyro import Array

__all__ = ["Fitted", "fit"]


class Fitted(NamedTuple):
    """What came of a training.

    Attributes:
        params: by name, of every seed; see :func:`~pyrocontrol.models.twin_numpyro.from_numpyro`.
        losses: ``[S, steps]``, of every seed and update.
        states: of the optimiser, leading with ``[S]``: :func:`fit` goes on from them.
        seconds: that it took, compiling included.
    """

    params: list[dict[str, Array]]
    losses: np.ndarray
    states: Any
    seconds: float


def fit(
    svi: SVI,
    data: Any,
    *,
    steps: int,
    batch_size: int,
    seeds: Sequence[int] = (0,),
    initial: Callable[[int], Mapping[str, Array]] | None = None,
    per_call: int = 100,
    start: Fitted | None = None,
    progress: bool = True,
) -> Fitted:
    """Take updates on batches of examples, ``per_call`` of them in each compiled call, of all seeds at once.

    The batches are those of :func:`pyrocontrol.inference.fit` with the same seed.

    Args:
        svi: a model, a guide, an optimiser and a loss of NumPyro.
        data: a pytree of arrays that lead with the examples, such as
            :func:`~pyrocontrol.models.programs.traces_numpyro.as_arrays` makes of demonstrations.
        steps: updates.
        batch_size: examples in each.
        seeds: of batches and noise; each is a training of its own.
        initial: parameters of a seed by name; None for those that model and guide have, alike for all.
        per_call: updates between two looks at the loss.
        start: what came of an earlier training of the same seeds, to go on from: ``steps`` more are taken.
        progress: show a bar.

    Raises:
        TypeError: for numbers that are not whole.
        ValueError: for numbers below 1, no seed, fewer examples than a batch, or a loss that is not finite: it names
            seed and step.
    """
    verify_least(1, steps=steps, batch_size=batch_size, per_call=per_call, seeds=len(seeds))
    leaves = jax.tree.leaves(data)
    if len({len(leaf) for leaf in leaves}) != 1 or len(leaves[0]) < batch_size:
        found = sorted({len(leaf) for leaf in leaves})
        raise ValueError(f"data must have one number of examples, at least the {batch_size} of a batch, not {found}")
    began, examples = time.perf_counter(), len(leaves[0])
    done = 0 if start is None else start.losses.shape[1]

    def batch(indices: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[indices], data)

    if start is None:
        made = []
        for seed in seeds:
            given = None if initial is None else dict(initial(seed))
            made.append(svi.init(jax.random.key(seed), batch(jnp.arange(batch_size)), init_params=given))
        states = jax.tree.map(lambda *parts: jnp.stack(parts), *made)
    else:
        states = start.states
        if len(start.losses) != len(seeds):
            raise ValueError(f"the earlier training had {len(start.losses)} seeds, not {len(seeds)}")

    def run(states: Any, indices: Array, data: Any) -> Any:
        def update(state: Any, rows: Array) -> Any:
            return svi.update(state, jax.tree.map(lambda leaf: leaf[rows], data))

        def of_seed(state: Any, indices: Array) -> Any:
            return lax.scan(update, state, indices)

        if len(seeds) > 1:
            return jax.vmap(of_seed)(states, indices)
        return jax.tree.map(lambda x: x[None], of_seed(jax.tree.map(lambda x: x[0], states), indices[0]))

    rows: int | None = 256 * batch_size
    compiled = jax.jit(run)
    streams = [_batches(seed, examples, batch_size, done) for seed in seeds]
    losses = [np.zeros((len(seeds), 0)) if start is None else start.losses]
    with ProgressBar("update", done + steps, progress, done) as bar:
        for first in range(0, steps, per_call):
            count = min(per_call, steps - first)
            indices = jnp.asarray([[next(stream) for _ in range(count)] for stream in streams])
            while True:
                with scored_rows(rows):
                    after, found = compiled(states, indices, data)
                loss = np.asarray(found)
                bad = ~np.isfinite(loss)
                if not bad.any():
                    break
                if rows is None:
                    seed, step = np.argwhere(bad)[0]
                    raise ValueError(
                        f"the loss of seed {seeds[seed]} is {loss[seed, step]} at step {done + first + step + 1}: the "
                        "training diverges, or a sequence did not end at its horizon"
                    )
                # Perhaps for want of rows: once more with more of them, from where the call began.
                rows, compiled = (2 * rows if 2 * rows < _MOST_ROWS * batch_size else None), jax.jit(run)
            states = after
            losses.append(loss)
            mean = float(loss[:, -1].mean())
            bar.show(done + first + count, lambda mean=mean: f"loss {mean:.4g}")
    params = [svi.get_params(jax.tree.map(lambda x, s=s: x[s], states)) for s in range(len(seeds))]
    return Fitted(params, np.concatenate(losses, 1), states, time.perf_counter() - began)


_MOST_ROWS = 4096  # of an example, on average, before all of them are scored


def _batches(seed: int, examples: int, size: int, start: int) -> Iterator[np.ndarray]:
    """Indices ``[size]`` of each batch from an update on, cut from endless shuffled epochs."""

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(examples)

    epoch, offset = divmod(start * size, examples)
    pool = order(epoch)[offset:]
    while True:
        if len(pool) < size:
            epoch += 1
            pool = np.concatenate([pool, order(epoch)])
        yield pool[:size]
        pool = pool[size:]
