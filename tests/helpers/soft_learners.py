"""One soft learner of each kind, of 3 observation and 2 action numbers, and transitions for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyrocontrol.guides import FlowPolicy, GaussianPolicy, MixturePolicy, ZukoPolicy
from pyrocontrol.inference import FirstSoftActorCritic, Pathwise, ReplayBatch, Score, SoftActorCritic, SoftQLearning
from pyrocontrol.models import GaussianPrior

SMALL: dict[str, Any] = {"hidden": (8,)}


def flow(make: Any, **options: Any) -> Any:
    return make(FlowPolicy(3, 2, **SMALL), 3, 2, **SMALL | options)


LEARNERS: dict[str, Callable[[], Any]] = {
    "flow": lambda: flow(SoftActorCritic, hidden=(8, 8)),
    "flow, 4 draws": lambda: flow(SoftActorCritic, gradient=Pathwise(4)),
    "splines": lambda: SoftActorCritic(ZukoPolicy(3, 2, **SMALL), 3, 2, **SMALL),
    "upper level": lambda: SoftActorCritic(
        GaussianPolicy(3, 2, squash=False, **SMALL), 3, 2, prior=GaussianPrior(2), temperature=0.5, **SMALL
    ),
    "mixture of one": lambda: SoftActorCritic(MixturePolicy(3, 2, components=1, **SMALL), 3, 2, **SMALL),
    "mixture": lambda: SoftActorCritic(MixturePolicy(3, 2, **SMALL), 3, 2, target_every=3, smoothing=1.0, **SMALL),
    "first form": lambda: flow(FirstSoftActorCritic, reward_scale=3.0),
    "likelihood ratio": lambda: flow(SoftActorCritic, gradient=Score()),
    "soft Q-learning": lambda: flow(SoftQLearning, target_every=4),
}


def learner_of(kind: str, seed: int = 0) -> Any:
    """Return one, made of a seed; skips the test where what it needs is not installed."""
    if kind == "splines":
        pytest.importorskip("zuko")
    torch.manual_seed(seed)
    return LEARNERS[kind]()


def transitions(*count: int, sizes: tuple[int, int] = (3, 2), generator: torch.Generator | None = None) -> ReplayBatch:
    """Return random transitions ``[count, ...]``, three in ten the end of the task."""

    def normal(size: int) -> torch.Tensor:
        return torch.normal(torch.zeros(*count, size), 1.0, generator=generator)

    actions = 2 * torch.rand(*count, sizes[1], generator=generator) - 1
    ended = torch.rand(count, generator=generator) < 0.3
    return ReplayBatch(normal(sizes[0]), actions, actions.sum(-1), normal(sizes[0]), ended.to(actions.dtype))


def part(batch: ReplayBatch, number: int) -> ReplayBatch:
    """Return what belongs to one of several learners."""
    return ReplayBatch(*(field[number] for field in batch))


def tensors(learner: Any) -> list[torch.Tensor]:
    """Return all tensors of a learner, or of a batch of them: weights, and what their optimisers hold."""
    if hasattr(learner, "learners"):
        return [tensor for one in learner.learners for tensor in tensors(one)]
    states = [learner.optimizer.state.get(parameter, {}) for parameter in learner.learnt]
    return [*learner.parameters(), *learner.buffers(), *(state[name] for state in states for name in sorted(state))]


def assert_alike(one: Any, other: Any, **tolerance: float) -> None:
    """Compare two learners, or batches."""
    for mine, theirs in zip(tensors(one), tensors(other), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
