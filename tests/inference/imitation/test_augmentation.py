"""Augmented data: what the transforms change and leave, and that training resumes to the same bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from gymnasium import spaces

from pyrocontrol.envs import Demonstrations, Episode, Transitions
from pyrocontrol.inference import Augmented, compose, fit, jitter, shifted
from pyrocontrol.models import ReactivePolicy

BOX = spaces.Box(np.array([-1.0, -2.0], np.float32), np.array([1.0, 2.0], np.float32))


def traces(space: Any = BOX, counts: tuple[int, ...] = (40, 25, 30)) -> Demonstrations:
    rng = np.random.default_rng(0)
    episodes = []
    for count in counts:
        actions: Any = rng.integers(0, 3, count)
        if isinstance(space, spaces.Box):
            actions = rng.uniform(space.low, space.high, (count, 2)).astype(np.float32)
        episodes.append(Episode(rng.normal(size=(count + 1, 3)).astype(np.float32), actions))
    return Demonstrations.from_episodes(episodes, space)


# Jitter


def test_jitter_moves_observations_by_its_standard_deviation() -> None:
    data = traces(counts=(4000,)).transitions()
    moved = Augmented(data, jitter([0.1, 0.0, 2.0]))[torch.arange(4000)]
    assert isinstance(moved, Transitions)
    change = moved.observations - data.observations
    np.testing.assert_allclose(change.std(0), [0.1, 0.0, 2.0], rtol=0.05)
    assert (change.mean(0).abs() <= 4 * change.std(0) / 4000**0.5).all()
    assert abs(float(torch.corrcoef(change[:, [0, 2]].T)[0, 1])) < 4 / 4000**0.5
    assert torch.equal(moved.actions, data.actions)


@pytest.mark.parametrize("transform", [jitter(0.5), shifted([0.5, 0.5, 0.5], [0.5, 0.5])], ids=["jitter", "shifted"])
def test_padding_stays_and_a_batch_can_be_checked_again(transform: Any) -> None:
    data = traces()
    moved = Augmented(data, transform)[torch.tensor([1, 2])]
    plain = data[torch.tensor([1, 2])]
    assert isinstance(moved, Demonstrations) and moved is not plain
    assert torch.equal(moved.observations[~moved.mask], plain.observations[~plain.mask])
    assert (moved.observations != plain.observations)[moved.mask].all()
    assert not moved.actions[~moved.acted].any()
    for other in (moved, plain):  # goes through every check of the class
        Demonstrations(other.observations, other.actions, other.lengths, BOX)
    again = Augmented(data, transform)[torch.tensor([1, 2])]
    assert not torch.equal(moved.observations, again.observations)
    assert data.fingerprint() == traces().fingerprint()  # the data itself is left alone


def test_jitter_takes_discrete_data() -> None:
    data = traces(spaces.Discrete(3))
    moved = Augmented(data, jitter(0.1))[torch.arange(3)]
    assert torch.equal(moved.actions, data.actions) and not torch.equal(moved.observations, data.observations)


@pytest.mark.parametrize("std", [-0.1, [0.1, float("nan")], [[0.1]], float("inf")])
def test_impossible_jitter_is_refused(std: Any) -> None:
    with pytest.raises(ValueError, match="std must be"):
        jitter(std)


# Shifted


def test_a_shift_moves_observation_and_action_together() -> None:
    data = traces(counts=(500,)).transitions()
    shift, correction = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.3, 0.0])
    moved = Augmented(data, shifted(shift, correction, amount=0.5))[torch.arange(500)]
    change = moved.observations - data.observations
    u = change[:, 0]
    assert u.abs().max() <= 0.5 and u.abs().max() > 0.49 and abs(float(u.mean())) < 4 * 0.29 / 500**0.5
    torch.testing.assert_close(change, u[:, None] * shift, atol=1e-6, rtol=1e-5)
    expected = (data.actions + u[:, None] * correction).clamp(torch.tensor(BOX.low), torch.tensor(BOX.high))
    torch.testing.assert_close(moved.actions, expected, atol=1e-6, rtol=1e-5)
    assert (moved.actions[:, 0].abs() == 1).any()  # some are clipped
    assert torch.equal(moved.actions[:, 1], data.actions[:, 1])


def test_a_trace_is_shifted_as_a_whole() -> None:
    data = traces()
    moved = Augmented(data, shifted([1.0, 1.0, 1.0], [0.0, 0.0]))[torch.arange(3)]
    for index in range(3):
        change = (moved.observations - data.observations)[index][data.mask[index]]
        torch.testing.assert_close(change, change[:1, :1].expand_as(change), atol=1e-6, rtol=0)
    assert len({round(float(v), 4) for v in (moved.observations - data.observations)[:, 0, 0]}) == 3


def test_shift_and_correction_may_be_functions() -> None:
    data = traces(spaces.Discrete(3))

    def mirror(observations: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return observations * torch.sign(u)

    def swap(actions: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.where(u < 0, 2 - actions, actions)

    moved = Augmented(data, shifted(mirror, swap))[torch.tensor([0, 1, 2] * 4)]
    plain = data[torch.tensor([0, 1, 2] * 4)]
    mirrored = (moved.observations == -plain.observations).flatten(1).all(1)
    assert 0 < int(mirrored.sum()) < 12
    flipped = torch.where(plain.acted, 2 - plain.actions, plain.actions)
    assert torch.equal(moved.actions[mirrored], flipped[mirrored])
    assert torch.equal(moved.actions[~mirrored], plain.actions[~mirrored])


def test_impossible_shifts_are_refused() -> None:
    with pytest.raises(ValueError, match="amount must be"):
        shifted([1.0], [1.0], amount=-1)
    with pytest.raises(TypeError, match="numbers correct the actions of a Box, these are Discrete"):
        Augmented(traces(spaces.Discrete(3)), shifted([1.0] * 3, [1.0]))[torch.arange(2)]


# The data set


def test_transforms_are_applied_in_turn() -> None:
    def double(batch: Any) -> Any:
        return shifted(lambda seen, _: 2 * seen, lambda actions, _: actions)(batch)

    def increase(batch: Any) -> Any:
        return shifted(lambda seen, _: seen + 1, lambda actions, _: actions)(batch)

    data = traces().transitions()
    rows = torch.arange(5)
    assert torch.equal(Augmented(data, compose(double, increase))[rows].observations, 2 * data.observations[:5] + 1)
    assert torch.equal(Augmented(data, compose(increase, double))[rows].observations, 2 * (data.observations[:5] + 1))
    assert Augmented(data, compose())[rows].fingerprint() == data[rows].fingerprint()


def test_what_the_data_holds_can_be_read_but_not_got_around() -> None:
    data = traces()
    augmented = Augmented(data, jitter(0.1))
    assert len(augmented) == 3 and augmented.action_space is data.action_space
    assert augmented.observations is data.observations and augmented.lengths is data.lengths
    for method in ("transitions", "to_episodes", "save", "missing", "_replace"):
        with pytest.raises(AttributeError, match=f"'Augmented' object has no attribute '{method}'"):
            getattr(augmented, method)
    assert augmented.to(dtype=torch.float64).observations.dtype == torch.float64
    assert augmented.to(dtype=torch.float64)[torch.arange(2)].observations.dtype == torch.float64
    assert copy.copy(augmented).fingerprint() == augmented.fingerprint()
    assert "jitter(std=0.1)" in repr(augmented)


def test_fingerprints_tell_data_and_transforms_apart() -> None:
    def one(batch: Any) -> Any:
        return batch

    data, other = traces(), traces(counts=(3, 4))
    transforms = [
        jitter(0.1),
        jitter(0.2),
        jitter([0.1, 0.1, 0.1]),
        shifted([1.0, 0, 0], [0.0, 0]),
        shifted([1.0, 0, 0], [0.0, 0], amount=2),
        compose(jitter(0.1), jitter(0.2)),
        compose(jitter(0.2), jitter(0.1)),
        one,
    ]
    found = {Augmented(d, transform).fingerprint() for d in (data, other) for transform in transforms}
    assert len(found) == 16 and data.fingerprint() not in found
    assert Augmented(data, jitter(0.1)).fingerprint() == Augmented(traces(), jitter(0.1)).fingerprint()


def test_what_is_no_data_set_or_transform_is_refused() -> None:
    with pytest.raises(TypeError, match="data must be a data set"):
        Augmented([1, 2, 3], jitter(0.1))
    with pytest.raises(TypeError, match="a transform is a function"):
        Augmented(traces(), 0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a transform is a function"):
        compose(jitter(0.1), 0.1)  # type: ignore[arg-type]


# Training


def train(data: Any, steps: int, out: Path) -> dict[str, torch.Tensor]:
    pyro.set_rng_seed(11)
    policy = ReactivePolicy(data.observation_space, data.action_space, hidden=(8,))
    loss = pyro.infer.Trace_ELBO()(policy, policy.guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    fit((loss, optimizer), data, steps=steps, batch_size=7, out=out, checkpoint_every=0, progress=False)
    return {name: value.clone() for name, value in policy.state_dict().items()}


@pytest.mark.parametrize("form", ["transitions", "traces"])
def test_a_resumed_run_comes_to_the_same_bits(tmp_path: Path, form: str) -> None:
    plain = traces(counts=(3, 4, 5, 6, 7, 8, 9, 10))
    transform = compose(jitter(0.3), shifted([0.1, 0.0, 0.0], [0.1, 0.0]))
    data = Augmented(plain.transitions() if form == "transitions" else plain, transform)
    whole = train(data, 9, tmp_path / "whole")
    train(data, 4, tmp_path / "parts")
    resumed = train(data, 9, tmp_path / "parts")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    without = train(data.data, 9, tmp_path / "without")
    assert any(not torch.equal(whole[name], without[name]) for name in whole)
    with pytest.raises(ValueError, match="data_fingerprint"):
        train(Augmented(data.data, jitter(0.4)), 9, tmp_path / "parts")


def test_fit_says_what_the_data_lacks(tmp_path: Path) -> None:
    class Few(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def check(self, data: Any) -> None:
            data.goals  # noqa: B018

    few = Few()
    with pytest.raises(TypeError, match="Augmented has no attribute 'goals'"):
        fit((few, torch.optim.SGD(few.parameters())), Augmented(traces(), jitter(0.1)), steps=1, batch_size=1)
    double = Augmented(traces(counts=(3,) * 7), jitter(0.1)).to(dtype=torch.float64)
    with pytest.warns(UserWarning, match="the data is torch.float64, .* rounded to it"):
        train(double, 1, tmp_path)


@pytest.mark.parametrize("bad", [[float("nan")] * 3, [float("inf"), 0, 0], [[0.1, 0.1, 0.1]]])
def test_shifts_by_impossible_numbers_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="observation_shift must be finite numbers"):
        shifted(bad, [0.1, 0.1])
    with pytest.raises(ValueError, match="action_correction must be finite numbers"):
        shifted([0.1, 0.1, 0.1], bad)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (shifted([0.1], [0.1, 0.1]), "observation_shift has 1 numbers, the observations have 3"),
        (shifted([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]), "action_correction has 3 numbers, the actions have 2"),
        (jitter([0.1, 0.1]), "std has 2 numbers, the observations have 3"),
    ],
)
def test_numbers_of_another_width_are_refused(transform: Any, message: str) -> None:
    for data in (traces(), traces().transitions()):
        with pytest.raises(ValueError, match=message):
            Augmented(data, transform)[torch.arange(3)]
