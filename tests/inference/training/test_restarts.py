"""Several starts of a training: the best by its own objective goes on, and a stopped run does as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrocontrol.inference import BestFit, fit_best


class Well(nn.Module):
    """A loss with two minima, of depth 0 at -1 and 1/2 at 1, and a start near one of them."""

    def __init__(self, start: float):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start))

    def forward(self, batch: Tensor) -> Tensor:
        return ((self.x**2 - 1) ** 2 + 0.25 * (self.x + 1)) * len(batch)


def made(seed: int) -> Any:
    well = Well([0.9, -0.8, 1.1][seed % 3])
    return well, torch.optim.SGD(well.parameters(), lr=1e-2)


def best(**given: Any) -> BestFit:
    options: Any = {"starts": 3, "trial_steps": 5, "steps": 20, "batch_size": 2, "progress": False}
    return fit_best(made, torch.zeros(4, 1), **options | given)


def test_the_start_of_the_least_loss_goes_on() -> None:
    found = best()
    assert found.start == 1
    assert found.losses[1] < min(found.losses[0], found.losses[2])
    assert float(found.trained[0].x.detach()) == pytest.approx(-1, abs=0.05)  # type: ignore[index]
    assert found.result.step == 20


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = best(out=tmp_path / "whole")
    best(out=tmp_path / "stopped", steps=10)
    again = best(out=tmp_path / "stopped")
    assert torch.equal(again.trained[0].x, whole.trained[0].x)  # type: ignore[index]
    assert again.losses == whole.losses
    assert sorted(path.name for path in tmp_path.glob("whole/trial-*")) == ["trial-0", "trial-1", "trial-2"]


def test_trials_may_have_data_of_their_own() -> None:
    assert best(trial_data=torch.zeros(2, 1)).start == 1
    with pytest.raises(ValueError, match="starts must be at least 1"):
        best(starts=0)
