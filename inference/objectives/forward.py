"""The forward algorithm: exact likelihoods and posteriors of discrete chains, where an ELBO gives a bound.

A chain of K states with ``log p(z_0)``, ``log p(z_t | z_{t-1})`` and ``log p(x_t | z_t)``, a row a sequence; all are
log-probabilities in nats, the observations already filled in. L. Rabiner, "A Tutorial on Hidden Markov Models" (1989).

Sequences of different lengths: past the end of a row, let its emission be 0 and its transitions any that sum to 1.

Shapes: B rows, I steps, K states.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ChainPosterior", "chain_posterior", "forward_log_likelihood"]


class ChainPosterior(NamedTuple):
    """What the observations tell about a chain.

    Attributes:
        log_likelihood: ``log p(x)``, ``[B]``.
        marginals: ``log p(z_t | x)``, ``[B, I, K]``.
        initial: ``log p(z_0 | x)``, ``[B, K]``.
        transition: ``log p(z_t = k | z_{t-1} = j, x)``, ``[B, I - 1, K, K]``: the posterior is itself a chain.
    """

    log_likelihood: Tensor
    marginals: Tensor
    initial: Tensor
    transition: Tensor


def forward_log_likelihood(initial: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
    r"""Return the exact ``log p(x)``, ``[B]``, by the forward algorithm, in O(I K^2).

    Use this for a chain that you have as tables; for one that you have as a process, use
    :func:`~pyrocontrol.inference.enumerate_states`.

    .. math:: \alpha_t(k) = p(x_t | k) \sum_j \alpha_{t-1}(j) p(z_t = k | z_{t-1} = j), \quad
        p(x) = \sum_k \alpha_{I-1}(k).

    Args:
        initial: ``log p(z_0)``, ``[B, K]``.
        transition: ``log p(z_t = k | z_{t-1} = j)`` of steps 1 to I - 1, ``[B, I - 1, K, K]``, broadcast in its first
            two dimensions; or ``[K, K]``, the same at every step.
        emission: ``log p(x_t | z_t)``, ``[B, I, K]``.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> half = torch.full((1, 2), 0.5).log()
        >>> emission = torch.tensor([[[0.1, 0.3], [0.2, 0.2]]]).log()
        >>> forward_log_likelihood(half, half.expand(2, 2), emission).exp()
        tensor([0.0400])
    """
    initial, transition, emission = _fitting(initial, transition, emission)
    alpha = initial + emission[:, 0]
    for step in range(emission.shape[1] - 1):
        alpha = (alpha.unsqueeze(-1) + transition[:, step]).logsumexp(-2) + emission[:, step + 1]
    return alpha.logsumexp(-1)


def chain_posterior(initial: Tensor, transition: Tensor, emission: Tensor) -> ChainPosterior:
    r"""Return the exact posterior of a chain, by the backward algorithm and one pass forward, in O(I K^2).

    .. math:: \beta_{t-1}(j) = \sum_k p(z_t = k | j) p(x_t | k) \beta_t(k), \quad
        p(z_t = k | z_{t-1} = j, x) = p(z_t = k | j) p(x_t | k) \beta_t(k) / \beta_{t-1}(j).

    Args:
        initial: ``log p(z_0)``, ``[B, K]``.
        transition: ``log p(z_t = k | z_{t-1} = j)``; see :func:`forward_log_likelihood`.
        emission: ``log p(x_t | z_t)``, ``[B, I, K]``.

    Raises:
        ValueError: if the shapes do not fit.
    """
    initial, transition, emission = _fitting(initial, transition, emission)
    beta = torch.zeros_like(initial)
    transitions = []
    for step in range(emission.shape[1] - 1, 0, -1):
        joint = transition[:, step - 1] + (emission[:, step] + beta).unsqueeze(-2)
        beta = joint.logsumexp(-1)
        transitions.append(joint - beta.unsqueeze(-1))
    joint = initial + emission[:, 0] + beta
    log_likelihood = joint.logsumexp(-1)
    first = joint - log_likelihood.unsqueeze(-1)
    transitions = transitions[::-1]
    marginals = [first]
    for conditional in transitions:
        marginals.append((marginals[-1].unsqueeze(-1) + conditional).logsumexp(-2))
    chain = torch.stack(transitions, 1) if transitions else transition[:, :0].expand(len(initial), -1, -1, -1)
    return ChainPosterior(log_likelihood, torch.stack(marginals, 1), first, chain)


def _fitting(initial: Tensor, transition: Tensor, emission: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three with all their dimensions, the batch and the steps of the transitions broadcast."""
    if emission.dim() != 3 or emission.shape[1] < 1:
        raise ValueError(f"emission must have shape [B, I, K], got {tuple(emission.shape)}")
    batch, steps, states = emission.shape
    try:
        initial = initial.expand(batch, states)
        transition = transition.expand(batch, steps - 1, states, states)
    except RuntimeError:
        raise ValueError(
            f"emission {tuple(emission.shape)} needs initial [{batch}, {states}] and transition "
            f"[{batch}, {steps - 1}, {states}, {states}], got {tuple(initial.shape)} and {tuple(transition.shape)}"
        ) from None
    return initial, transition, emission
