"""The exact likelihood and posterior of call stacks, against sums over all stacks and against sampling."""

from __future__ import annotations

import os
from typing import Any

import pyro
import pytest
import torch
from small_programs import random_case
from torch import Tensor

import pyrocontrol as pc
from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, demonstrations
from pyrocontrol.inference.objectives import call_spans_kernel

TREES = int(os.environ.get("SMALL_PROGRAMS", "24"))


def gradients(value: Tensor, module: torch.nn.Module) -> Tensor:
    found = torch.autograd.grad(value, [*module.parameters()], allow_unused=True)
    given = [torch.zeros_like(p) if g is None else g for g, p in zip(found, module.parameters(), strict=True)]
    return torch.cat([g.flatten() for g in given])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(TREES))
def test_it_is_the_sum_over_all_stacks(seed: int) -> None:
    case = random_case(seed, longest=2 + seed % 2, traces=1)
    exact, found = case.enumerated().log_likelihood, case.spans().log_prob()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    theirs, mine = gradients(exact.sum(), case.process), gradients(found.sum(), case.process)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(TREES))
def test_without_a_compiler_it_is_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(seed, longest=5)
    spans = case.spans()
    values, counts, _ = spans._sum(counts=True)
    best, likeliest = spans.likeliest()
    monkeypatch.setattr(call_spans_kernel, "library", lambda source: None)
    again, recounted, _ = spans._sum(counts=True)
    torch.testing.assert_close(again, values, rtol=0, atol=1e-10)
    for one, other in zip(counts, recounted, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-10)
    same_best, same = spans.likeliest()
    torch.testing.assert_close(same_best, best, rtol=0, atol=1e-10)
    assert all((one == other).all() for one, other in zip(likeliest, same, strict=True))
