r"""Exact likelihoods of small discrete processes: all states enumerated, a sparse forward and backward pass over them.

For a process with states s, values z and evidence :math:`\log p(x_i | s_i, z_i)`,

.. math:: \alpha_{i+1}(s') = \sum_{s, z : f(s, z) = s'} \alpha_i(s)\, p(z | s)\, p(x_i | s, z).

Equal states are merged, so that the cost is what can be told apart, not how many sequences there are: a chain of K
states takes K a step. A control program has as many as there are stacks, which grows fast: use
:class:`~pyrocontrol.inference.ExactLikelihood` for those. This is the check of that one, and the way for processes of
one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...models.process import Sequence

__all__ = ["EnumeratedStates", "enumerate_states"]

Evidence = Callable[[Any, Tensor, Any, int], Tensor]


class _Layer(NamedTuple):
    """The moves of one step.

    Attributes:
        sources, targets: long ``[M]``, states before and after; -1 is the end.
        weights: ``[M]``, log-probabilities of the moves, the evidence included.
        states: how many states there are afterwards.
    """

    sources: Tensor
    targets: Tensor
    weights: Tensor
    states: int


class EnumeratedStates(NamedTuple):
    """What the sum over all sequences comes to.

    Attributes:
        log_likelihood: ``[B]`` in nats, with its gradient.
        states: states before every step of every row: ``states[b][i]`` is a state whose leaves lead with ``[K]``. A row
            that has ended before its first step has none.
        marginals: ``marginals[b][i]``, ``[K]``: the posterior probabilities of these states.
    """

    log_likelihood: Tensor
    states: list[list[Any]]
    marginals: list[list[Tensor]]


def enumerate_states(sequence: Sequence, evidence: Evidence, *, most_states: int = 100_000) -> EnumeratedStates:
    """Sum over all values of a sequence of discrete steps.

    Use this for a chain that you have as a process; for one that you have as tables, use
    :func:`~pyrocontrol.inference.forward_log_likelihood`.

    Args:
        sequence: with one batch dimension. Its steps' distributions have ``enumerate_support``. Gradients reach the
            parameters of its conditionals, and not those of its states: equal states are one.
        evidence: ``(states, z, context, step) -> log p(x | state, z)`` of a move, ``[M]``: of states whose leaves lead
            with ``[M]``, values ``[M, ...]``, the context of as many rows and the number of the step, from 0; minus
            infinity (or anything below -1e8) for what was not observed.
        most_states: of a step.

    Raises:
        ValueError: naming row and step: for more states than that, moves whose probability is NaN or infinite, evidence
            of probability zero, steps that cannot be enumerated, wrong shapes, or a state that carries a gradient.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyrocontrol.models.process import Process, Sequence
        >>> class Coins(Process):
        ...     def initial(self, context):
        ...         return context
        ...
        ...     def conditional(self, state, context):
        ...         return dist.Bernoulli(torch.full_like(state, 0.25))
        ...
        ...     def advance(self, state, z, context):
        ...         return state + z
        >>> def heads(state, z, context, step):
        ...     return torch.where(z == 1, 0.0, -float("inf"))
        >>> enumerate_states(Sequence(Coins(), torch.zeros(1), 3), heads).log_likelihood.exp()
        tensor([0.0156])
    """
    context = sequence._flat_context()
    rows = [
        _row(sequence, _picked(context, slice(row, row + 1)), evidence, most_states, row)
        for row in range(sequence._rows(context))
    ]
    log_likelihood = torch.stack([row[0] for row in rows]) if rows else torch.zeros(0, dtype=_dtype(context))
    return EnumeratedStates(log_likelihood, [row[1] for row in rows], [row[2] for row in rows])


def _row(
    sequence: Sequence, context: Any, evidence: Evidence, most: int, row: int
) -> tuple[Tensor, list[Any], list[Tensor]]:
    process = sequence.process
    state = process.initial(context)
    alpha = torch.zeros(1, dtype=_dtype(context))
    if process.terminates and not bool(process.live(state, context)):
        return alpha[0], [], []
    ended: list[Tensor] = []
    layers: list[_Layer] = []
    found, forward = [], []
    for step in range(sequence.horizon):
        where = f"row {row}, step {step}"
        found.append(state)
        forward.append(alpha)
        count = len(alpha)
        conditional = process.conditional(state, _expanded(context, count))
        try:
            values = conditional.enumerate_support(expand=True)  # [V, K, ...]
        except NotImplementedError as error:
            raise ValueError(f"{where}: {type(conditional).__name__} steps cannot be enumerated") from error
        log_p = conditional.log_prob(values)
        if log_p.shape != (len(values), count):
            raise ValueError(f"{where}: the distributions of {count} states have batch shape {[*log_p.shape[1:]]}")
        number = torch.arange(count).expand(len(values), count).flatten()
        z = values.flatten(0, 1)
        before, there = _picked(state, number), _expanded(context, len(number))
        seen = evidence(before, z, there, step)
        if seen.shape != number.shape:
            raise ValueError(f"{where}: the evidence of {len(number)} moves has shape {[*seen.shape]}")
        weight = log_p.flatten() + seen
        if bool((weight.isnan() | (weight == float("inf"))).any()):
            raise ValueError(f"{where}: the log-probability of a move is NaN or infinite")
        keep = (weight > _IMPOSSIBLE).nonzero()[:, 0]
        if not len(keep) and ended:  # all that is left here leads nowhere
            found.pop()
            forward.pop()
            break
        if not len(keep):
            raise ValueError(f"{where}: the evidence has probability zero from here on")
        number, weight, there = number[keep], weight[keep], _picked(there, keep)
        after = process.advance(_picked(before, keep), z[keep], there)
        live = process.live(after, there) if process.terminates else torch.ones_like(number, dtype=torch.bool)
        state, target = _merged(after, live, where)
        states = int(target.max()) + 1 if bool(live.any()) else 0
        if states > most:
            raise ValueError(
                f"{where}: {states} states, more than most_states={most}: an ELBO bounds what is too large to sum"
            )
        layers.append(_Layer(number, target, weight, states))
        moved = alpha[number] + weight
        if not bool(live.all()):
            ended.append(moved[~live])
        alpha = _scattered(moved[live], target[live], states)
        if not states:
            break
    # Sequences of a process that ends by itself and that have not ended are beyond the horizon.
    if process.terminates and not ended:
        raise ValueError(f"row {row}: no sequence ends within the horizon of {sequence.horizon} steps")
    final = torch.cat(ended) if process.terminates else alpha
    log_likelihood = final.logsumexp(0)
    beta = torch.zeros_like(alpha) if not process.terminates else torch.full_like(alpha, -float("inf"))
    marginals = []
    for layer, before in zip(reversed(layers), reversed(forward), strict=True):
        later = torch.where(layer.targets >= 0, torch.cat([beta, beta.new_zeros(1)])[layer.targets], 0.0)
        beta = _scattered(layer.weights.detach() + later.detach(), layer.sources, len(before))
        marginals.append((before.detach() + beta - log_likelihood.detach()).exp())
    return log_likelihood, found, marginals[::-1]


_IMPOSSIBLE = -1e8


def _picked(tree: Any, rows: Tensor | slice) -> Any:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[rows], tree)


def _expanded(tree: Any, rows: int) -> Any:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.expand(rows, *leaf.shape[1:]), tree)


def _dtype(context: Any) -> torch.dtype:
    """The floating-point type of a context."""
    kinds = [
        leaf.dtype for leaf in pytree.tree_leaves(context) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    return kinds[0] if kinds else torch.get_default_dtype()


def _merged(state: Any, live: Tensor, where: str) -> tuple[Any, Tensor]:
    """Return the different states among those that live, and which of them each is; -1 for ended ones.

    Raises:
        ValueError: a state carries a gradient, which would be lost where equal states have it from different moves.
    """
    leaves = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(state)[0] if isinstance(leaf, Tensor)]
    for path, leaf in leaves:
        if leaf.requires_grad:
            raise ValueError(
                f"{where}: the state{pytree.keystr(path)} carries a gradient, which merging equal states would lose: "
                "keep in the state what was chosen, as numbers, and compute in `conditional` what depends on "
                "parameters; or detach it"
            )
    # A number for each different value of a leaf, so that no type is converted: [N, leaves].
    numbers = [torch.unique(leaf[live], dim=0, return_inverse=True)[1] for _, leaf in leaves if leaf.numel()]
    unique, inverse = torch.unique(torch.stack([live[live].long(), *numbers], -1), dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(inverse)).scatter_reduce(0, inverse, torch.arange(len(inverse)), "amin")
    target = torch.full((len(live),), -1).masked_scatter(live, inverse)
    return _picked(_picked(state, live), first), target


def _scattered(values: Tensor, targets: Tensor, size: int) -> Tensor:
    """The logarithm of the sum of exponentials of the values with each target, ``[size]``."""
    top = values.detach().new_full((size,), -float("inf")).scatter_reduce(0, targets, values.detach(), "amax")
    top = torch.where(top.isfinite(), top, 0.0)
    return torch.zeros_like(top).index_add(0, targets, (values - top[targets]).exp()).log() + top
