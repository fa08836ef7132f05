"""Points drawn far from each other."""

import pytest
import torch

from pyrocontrol.models import spread


def test_every_cluster_gets_a_point() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (centres.repeat(50, 1) + 0.05 * torch.randn(200, 2))[torch.randperm(200)]
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = spread(points, 4)
        assert (drawn[:, None] == points).all(-1).any(-1).all()
        assert torch.cdist(drawn, centres).argmin(-1).unique().numel() == 4


def test_points_that_are_different_are_found_among_many_that_are_not() -> None:
    points = torch.zeros(1000, 1)
    points[7], points[8] = 1.0, 2.0
    assert spread(points, 3).flatten().sort().values.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("points", "count", "message"),
    [
        (torch.zeros(3), 1, r"\[N, D\], got \(3,\)"),
        (torch.tensor([[0.0], [torch.nan]]), 1, "finite"),
        (torch.zeros(3, 2), 0, "at least one point"),
        (torch.zeros(3, 2), 2, "2 different points are needed, there are 1"),
        (torch.zeros(0, 2), 1, "1 different points are needed, there are 0"),
    ],
)
def test_bad_points_are_refused(points: torch.Tensor, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spread(points, count)
