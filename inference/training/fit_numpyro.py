"""Training in NumPyro: whole runs of updates in one compiled call, and several seeds at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.infer import SVI

from ..._files import writing
from ..._progress import ProgressBar
from ..._verify import verify_folder, verify_least
from ...models.programs.call_stack_numpyro import scored_rows
from ...models.twin_numpyro import Array, Twin
from .fit import batches
from .run import lock_of

__all__ = ["Fitted", "fit"]


class Fitted(NamedTuple):
    """What came of a training.

    Attributes:
        params: by name, of every seed; see :func:`~pyrocontrol.models.twin_numpyro.from_numpyro`.
        losses: ``[S, steps]``, of every seed and update.
        seconds: that it took, compiling included.
    """

    params: list[dict[str, Array]]
    losses: np.ndarray
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
    out: Path | None = None,
    progress: bool = True,
) -> Fitted:
    """Take updates on batches of examples, ``per_call`` of them in each compiled call, of all seeds at once.

    The batches are those of :func:`pyrocontrol.inference.fit` with the same seed.

    Args:
        svi: a model, a guide, an optimiser and a loss of NumPyro.
        data: a pytree of arrays that lead with the examples, such as
            :func:`~pyrocontrol.models.programs.traces_numpyro.as_arrays` makes of demonstrations. A twin behind the
            model or guide that has a method ``check(data)`` is asked to check it before anything starts.
        steps: updates.
        batch_size: examples in each.
        seeds: of batches and noise; each is a training of its own.
        initial: parameters of a seed by name; None for those that model and guide have, alike for all.
        per_call: updates between two looks at the loss.
        out: folder of ``checkpoint.npz``, which is written after every call; a training that was stopped goes on
            from it to the same result, one of more steps too.
        progress: show a bar.

    Raises:
        TypeError: for numbers that are not whole, or data that is not of arrays.
        ValueError: for numbers below 1, no seed, fewer examples than a batch, data that the model refuses, an ``out``
            that is a file, a checkpoint that is damaged, of another training or beyond ``steps``, or a loss that is
            not finite: it names seed and step.
        BlockingIOError: another run writes to ``out``; says which process, where and since when.
    """
    verify_least(1, steps=steps, batch_size=batch_size, per_call=per_call, seeds=len(seeds))
    verify_folder(out)
    for leaf in jax.tree.leaves(data):
        if not hasattr(leaf, "shape"):
            raise TypeError(f"data must be arrays, such as twins.as_arrays(demonstrations), not {type(leaf).__name__}")
    for part in (svi.model, svi.guide):
        while not isinstance(part, Twin) and hasattr(part, "fn"):  # a handler
            part = part.fn
        if isinstance(owner := getattr(part, "__self__", part), Twin) and hasattr(owner, "check"):
            owner.check(data)
    leaves = jax.tree.leaves(data)
    if len({len(leaf) for leaf in leaves}) != 1 or len(leaves[0]) < batch_size:
        found = sorted({len(leaf) for leaf in leaves})
        raise ValueError(f"data must have one number of examples, at least the {batch_size} of a batch, not {found}")
    began, examples = time.perf_counter(), len(leaves[0])
    made = []
    for seed in seeds:
        given = None if initial is None else dict(initial(seed))
        first = jax.tree.map(lambda leaf: leaf[:batch_size], data)
        made.append(svi.init(jax.random.PRNGKey(seed), first, init_params=given))
    states = jax.tree.map(lambda *parts: jnp.stack(parts), *made)
    losses = [np.zeros((len(seeds), 0), np.float32)]
    path = None if out is None else Path(out) / "checkpoint.npz"
    told = _fingerprint((states, data), [*seeds], batch_size)

    def run(rows: int | None, states: Any, indices: Array, data: Any) -> Any:
        def update(state: Any, rows: Array) -> Any:
            return svi.update(state, jax.tree.map(lambda leaf: leaf[rows], data))

        def of_seed(state: Any, indices: Array) -> Any:
            return lax.scan(update, state, indices)

        with scored_rows(rows):
            if len(seeds) > 1 and jax.default_backend() == "cpu":  # where what is batched takes longer
                return lax.map(lambda each: of_seed(*each), (states, indices))
            if len(seeds) > 1:
                return jax.vmap(of_seed)(states, indices)
            return jax.tree.map(lambda x: x[None], of_seed(jax.tree.map(lambda x: x[0], states), indices[0]))

    rows: int | None = 256 * batch_size
    compiled = jax.jit(run, static_argnums=0)
    with ExitStack() as stack:
        if path is not None:
            stack.enter_context(lock_of(path.parent))
            if path.exists():
                states, losses[0] = _kept(path, states, told, steps)
        done = losses[0].shape[1]
        streams = [batches(seed, examples, batch_size, done) for seed in seeds]
        bar = stack.enter_context(ProgressBar("update", steps, progress, done))
        while done < steps:
            count = min(per_call, steps - done)
            indices = jnp.asarray([[next(stream) for _ in range(count)] for stream in streams])
            while True:
                after, found = compiled(rows, states, indices, data)
                loss = np.asarray(found)
                bad = ~np.isfinite(loss)
                if not bad.any():
                    break
                if rows is None:
                    seed, step = np.argwhere(bad)[0]
                    raise ValueError(
                        f"the loss of seed {seeds[seed]} is {loss[seed, step]} at step {done + step + 1}: the "
                        "training diverges, or a sequence did not end at its horizon"
                    )
                # Perhaps for want of rows: once more with more of them, from where the call began.
                rows = 4 * rows if 4 * rows < _MOST_ROWS * batch_size else None
            states = after
            losses.append(loss)
            done += count
            if path is not None:
                _keep(path, states, np.concatenate(losses, 1), told)
            text = f"loss {loss[:, -1].mean():.4g}"
            bar.show(done, partial(str, text))
    params = [svi.get_params(jax.tree.map(lambda x, s=s: x[s], states)) for s in range(len(seeds))]
    return Fitted(params, np.concatenate(losses, 1), time.perf_counter() - began)


def _fingerprint(start: Any, seeds: list[int], batch_size: int) -> str:
    """What two trainings share exactly when one can go on from the other's checkpoint: all that it starts from."""
    found = hashlib.sha256(repr((seeds, batch_size, str(jax.tree.structure(start)))).encode())
    for leaf in jax.tree.leaves(start):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def _keep(path: Path, states: Any, losses: np.ndarray, told: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(states))}
    with writing(path) as file:
        np.savez(file, allow_pickle=False, told=np.array(told), losses=losses, **leaves)


def _kept(path: Path, like: Any, told: str, steps: int) -> tuple[Any, np.ndarray]:
    """Return the states and losses of a checkpoint.

    Raises:
        ValueError: for what is no checkpoint, or one of another training or beyond the steps.
    """
    leaves, form = jax.tree.flatten(like)
    try:
        # Opened here, as numpy leaves a file that is damaged open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            found = {name: content[name] for name in content.files}
        other, losses = str(found["told"]) != told, found["losses"]
        held = leaves if other else [found[str(number)] for number in range(len(leaves))]
        for new, old in zip(held, leaves, strict=True):
            if new.shape != old.shape or new.dtype != old.dtype:
                raise ValueError(f"it holds {new.dtype} {[*new.shape]} in the place of {old.dtype} {[*old.shape]}")
    except Exception as error:  # what is damaged raises errors of every kind
        raise ValueError(f"{path} is no checkpoint: {type(error).__name__}: {error}") from None
    if other:
        raise ValueError(f"{path} is of another training: other data, first weights, seeds or batch size; {_ANEW}")
    if (done := losses.shape[-1]) > steps:
        raise ValueError(f"{path} is at step {done}, beyond steps={steps}; {_ANEW}")
    return jax.tree.unflatten(form, map(jnp.asarray, held)), losses


_ANEW = "pass another out to start anew"
_MOST_ROWS = 4096  # of an example, on average, before all of them are scored
