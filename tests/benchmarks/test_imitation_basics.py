"""What the imitation benchmark computes from its rows, and the bound that it computes without sampling."""

from pathlib import Path
from types import ModuleType

import gymnasium
import pytest
import torch

import pyrocontrol as pc

ROOT = Path(__file__).resolve().parents[2]


def test_exponents(benchmark: ModuleType) -> None:
    assert benchmark.slope([3.0 * horizon**2 for horizon in benchmark.HORIZONS]) == pytest.approx(2)
    rows = [
        pc.inference.row(
            "bc", "lane", "imitation_loss", (seed + 1) * horizon**1.5, seed=seed, seconds=0, horizon=horizon
        )
        for seed in range(4)
        for horizon in benchmark.HORIZONS
    ]
    assert benchmark.pooled_exponent(rows, "bc") == pytest.approx((1.5, 1.5, 1.5))


def test_the_bound_without_sampling(benchmark: ModuleType, float64: None) -> None:
    env = gymnasium.make("pyrocontrol/TMaze-v0", length=3)
    walks = pc.envs.collect(env, pc.envs.TMazeTeacher(), 6, seed=0, progress=False).to(dtype=torch.float64)
    policy = pc.models.LatentMemoryPolicy(walks.observation_space, walks.action_space, size=3, hidden=(4,))
    guide = pc.guides.MemoryGuide(policy, encoder_size=4)
    with torch.no_grad():
        bound = benchmark.expected_elbo(policy, guide, walks)
        exact = pc.inference.forward_log_likelihood(*policy.tables(walks))
    assert bound.shape == exact.shape == (6,) and (bound < exact).all()
    elbo = pc.inference.StepwiseKL_ELBO(num_particles=2_000, vectorize_particles=True, max_plate_nesting=1)
    assert -elbo.loss(policy, guide, walks) == pytest.approx(bound.sum().item(), rel=0.01)


def test_unknown_parts_are_refused(benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no part lunch"):
        benchmark.main(benchmark.Arguments(parts=("lunch",)))
