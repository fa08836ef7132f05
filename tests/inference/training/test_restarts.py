"""Several starts of a training: the best by its own objective goes on, and a stopped run does as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrocontrol.inference import BestFit, fit, fit_best


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


def test_a_folder_is_of_one_description(tmp_path: Path) -> None:
    best(out=tmp_path)
    before = (tmp_path / "trial-0" / "checkpoint.pt").read_bytes()
    digest = "[0-9a-f]{16}"
    for given, unlike in (
        ({"starts": 1}, "starts=3, not 1"),
        ({"trial_steps": 6}, "trial_steps=5, not 6"),
        ({"trial_data": torch.ones(4, 1)}, f"trial_data={digest}, not {digest}"),
    ):
        with pytest.raises(ValueError, match=rf"checkpoint.pt was made with {unlike}"):
            best(out=tmp_path, **given)
    assert (tmp_path / "trial-0" / "checkpoint.pt").read_bytes() == before  # nothing was tried
    with pytest.raises(ValueError, match="was made with starts=3, not None"):
        fit(made(1), torch.zeros(4, 1), steps=20, batch_size=2, out=tmp_path, progress=False)
    (tmp_path / "trial-0" / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="was made with start=1, not 0"):  # the first start is another one now
        fit_best(
            lambda seed: made(1 - seed % 2),
            torch.zeros(4, 1),
            starts=3,
            trial_steps=5,
            steps=20,
            batch_size=2,
            out=tmp_path,
            progress=False,
        )


def test_a_folder_belongs_to_the_whole_call(tmp_path: Path) -> None:
    def make(seed: int) -> Any:
        with pytest.raises(BlockingIOError, match="in use by process"):
            fit(made(0), torch.zeros(4, 1), steps=1, batch_size=2, out=tmp_path, progress=False)
        return made(seed)

    fit_best(make, torch.zeros(4, 1), starts=2, trial_steps=1, steps=1, batch_size=2, out=tmp_path, progress=False)
    fit(made(0), torch.zeros(4, 1), steps=1, batch_size=2, out=tmp_path, progress=False, resume=False)  # free again


class Rounded:
    """Numbers of single precision that say so, and whose batches must be moved."""

    def __init__(self, numbers: Tensor, moved: bool = False):
        self.numbers, self.moved = numbers, moved
        self.observation_dtype = numbers.dtype

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, indices: Tensor) -> Rounded:
        return Rounded(self.numbers[indices])

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Rounded:
        return Rounded(self.numbers.to(dtype=dtype), moved=device is not None)


class Noisy(nn.Module):
    """The square of a distance in double precision, with noise of the size of what tells starts apart."""

    def __init__(self, start: float, noise: float):
        super().__init__()
        self.x, self.noise = nn.Parameter(torch.tensor(start, dtype=torch.float64)), noise

    def forward(self, batch: Rounded) -> Tensor:
        assert batch.moved and batch.numbers.dtype == torch.float64
        return (self.x - batch.numbers).square().sum() + self.noise * torch.randn(())


def test_losses_are_computed_as_in_training_and_of_several_samples() -> None:
    numbers = Rounded(torch.arange(5.0))

    def run(noise: float) -> BestFit:
        def make(seed: int) -> Any:
            well = Noisy([0.0, 2.5][seed], noise)
            return well, torch.optim.SGD(well.parameters(), lr=1e-9)

        options: Any = {"starts": 2, "trial_steps": 1, "steps": 1, "batch_size": 2, "device": "cpu", "progress": False}
        return fit_best(make, numbers, **options)

    exact, noisy = run(0.0).losses, run(10.0).losses
    # Of the numbers 0 to 4, the mean squares of the distances from 0 and from 2.5.
    assert exact == pytest.approx([30 / 5, 11.25 / 5], abs=1e-6)
    assert noisy == run(10.0).losses
    # The same noise for both starts, of three batches: sqrt(3) 10 / 5, over sqrt(8) for as many samples.
    assert noisy[0] - noisy[1] == pytest.approx(exact[0] - exact[1], abs=1e-5)
    assert 0 < abs(noisy[0] - exact[0]) < 4 * 1.23


def test_ctrl_c_while_the_loss_is_computed_ends_the_call_and_loses_nothing(tmp_path: Path) -> None:
    class Interrupted(Well):
        def forward(self, batch: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise KeyboardInterrupt
            return super().forward(batch)

    def make(seed: int) -> Any:
        well = (Interrupted if seed == 1 else Well)(0.0)
        return well, torch.optim.SGD(well.parameters(), lr=1e-2)

    given: Any = {"starts": 3, "trial_steps": 5, "steps": 20, "batch_size": 2, "out": tmp_path, "progress": False}
    found = fit_best(make, torch.zeros(4, 1), **given)
    assert found.result.interrupted and found.result.step == 5 and len(found.losses) == found.start == 1
    assert (tmp_path / "trial-1" / "checkpoint.pt").exists() and not (tmp_path / "trial-2").exists()
