"""Hindsight goals: which observations become goals, of which steps, how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.stats import chisquare

from pyrocontrol.envs import Demonstrations, Episode, Transitions
from pyrocontrol.inference import hindsight


def traces(counts: list[int], space: Any = None) -> Demonstrations:
    """Traces of so many actions; observation t of trace b is (100 b + t, -t), action t is t mod 3."""
    episodes = []
    for trace, count in enumerate(counts):
        steps = np.arange(count + 1, dtype=np.float32)
        episodes.append(Episode(np.stack([100 * trace + steps, -steps], 1), np.arange(count) % 3))
    return Demonstrations.from_episodes(episodes, 3, space)


def points(found: Transitions) -> list[tuple[float, ...]]:
    """(s, g, a) of each data point, by the first number of the observation."""
    assert found.goals is not None
    columns = found.observations[:, 0], found.goals[:, 0], found.actions
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_final_goals_of_small_traces() -> None:
    found = hindsight(traces([3, 1]), slice(0, 1), strategy="final")
    assert isinstance(found, Transitions)
    assert points(found) == [(0, 3, 0), (1, 3, 1), (2, 3, 2), (100, 101, 0)]
    assert found.goals is not None and found.goals.dtype == torch.float32 and found.goals.shape == (4, 1)


def test_fixed_goals_of_small_traces() -> None:
    found = hindsight(traces([4, 1]), slice(0, 1), strategy="fixed", horizon=2)
    assert points(found) == [(0, 2, 0), (1, 3, 1), (2, 4, 2), (3, 4, 0), (100, 101, 0)]


def test_future_goals_of_small_traces_are_all_that_lie_ahead() -> None:
    found = hindsight(traces([3, 1]), slice(0, 1), strategy="future", per_step=60, seed=1)
    assert len(found) == 240
    expected = {(t, later, t % 3) for t in range(3) for later in range(t + 1, 4)} | {(100, 101, 0)}
    assert set(points(found)) == expected
    assert found.observations[:, 0].tolist() == [0] * 60 + [1] * 60 + [2] * 60 + [100] * 60  # a step's points together
    near = hindsight(traces([6, 1]), slice(0, 1), per_step=60, seed=1, horizon=2)
    expected = {(t, later, t % 3) for t in range(6) for later in (t + 1, t + 2) if later <= 6} | {(100, 101, 0)}
    assert set(points(near)) == expected


@pytest.mark.parametrize("horizon", [None, 3])
def test_future_goals_are_uniform(horizon: int | None) -> None:
    found = hindsight(traces([7, 7]), slice(0, 1), per_step=2000, seed=3, horizon=horizon)
    assert found.goals is not None
    for start in (0, 100):
        for step in range(7):
            last = 7 if horizon is None else min(7, step + horizon)
            drawn = found.goals[found.observations[:, 0] == start + step, 0] - start
            counts = np.bincount(drawn.long().numpy(), minlength=8)
            assert counts[: step + 1].sum() == counts[last + 1 :].sum() == 0
            assert counts.sum() == 2000
            if last > step + 1:
                assert chisquare(counts[step + 1 : last + 1]).pvalue > 1e-3


def test_draws_of_a_step_are_independent() -> None:
    found = [hindsight(traces([10]), slice(0, 1), per_step=2, seed=seed) for seed in range(1000)]
    many = torch.cat([one.goals for one in found if one.goals is not None])
    pairs = many.reshape(1000, 10, 2)[:, 0]  # the first step, uniform over 1..10
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 4 / np.sqrt(1000)
    assert abs(float((pairs[:, 0] == pairs[:, 1]).float().mean()) - 0.1) < 4 * np.sqrt(0.09 / 1000)


def test_goals_never_come_from_another_trace_or_from_padding() -> None:
    counts = [1, 9, 2, 5]
    for strategy, horizon in (("future", None), ("future", 4), ("final", None), ("fixed", 4)):
        found = hindsight(traces(counts), lambda seen: seen, strategy=strategy, horizon=horizon)  # type: ignore[arg-type]
        assert found.goals is not None
        trace = torch.div(found.observations[:, 0], 100, rounding_mode="floor")
        assert torch.equal(trace, torch.div(found.goals[:, 0], 100, rounding_mode="floor"))
        step, later = -found.observations[:, 1], -found.goals[:, 1]
        last = torch.tensor(counts)[trace.long()]
        assert (later > step).all() and (later <= last).all()


def test_one_seed_gives_the_same_goals() -> None:
    demos = traces([5, 8])
    before = torch.get_rng_state()
    first = hindsight(demos, slice(0, 1), seed=4)
    assert first.fingerprint() == hindsight(demos, slice(0, 1), seed=4).fingerprint()
    assert first.fingerprint() != hindsight(demos, slice(0, 1), seed=5).fingerprint()
    assert torch.equal(before, torch.get_rng_state())


def test_goals_are_parts_or_functions_of_observations() -> None:
    space = spaces.Dict(achieved_goal=spaces.Box(-1e3, 1e3, (1,)), observation=spaces.Box(-1e3, 1e3, (1,)))
    demos = traces([3, 1], space)
    by_name = hindsight(demos, "achieved_goal", strategy="final")
    by_slice = hindsight(demos, slice(0, 1), strategy="final")
    by_function = hindsight(demos, lambda seen: seen[..., :1], strategy="final")
    assert by_name.fingerprint() == by_slice.fingerprint() == by_function.fingerprint()
    assert by_name.observation_space == space
    doubled = hindsight(demos, lambda seen: torch.cat([2 * seen, seen**2], -1), strategy="final").goals
    assert doubled is not None and doubled[0].tolist() == [6, -6, 9, 9]
    with pytest.raises(ValueError, match="no part 'goal', they have 'achieved_goal', 'observation'"):
        hindsight(demos, "goal")


def test_box_actions_keep_their_precision() -> None:
    space = spaces.Box(-1.0, 1.0, (2,), np.float64)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2))
    demos = Demonstrations.from_episodes([Episode(np.arange(5.0)[:, None], actions)], space)
    found = hindsight(demos, slice(0, 1), per_step=3)
    assert torch.equal(found.actions, torch.from_numpy(actions).repeat_interleave(3, 0))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "past"}, "strategy must be"),
    ({"per_step": 0}, "must be at least 1"),
    ({"horizon": 0}, "must be at least 1"),
    ({"strategy": "fixed"}, "needs a horizon"),
    ({"strategy": "final", "horizon": 2}, "takes no horizon"),
    ({"achieved": slice(2, 2)}, "G positive"),
    ({"achieved": lambda seen: seen[:, 0]}, r"must be a tensor \[6, G\]"),
    ({"achieved": lambda seen: seen[:2]}, r"must be a tensor \[6, G\]"),
    ({"achieved": lambda seen: seen.numpy()}, "got ndarray"),
    ({"achieved": lambda seen: seen.long()}, "goals must be floating point"),
    ({"achieved": lambda seen: seen / 0}, "NaN or an infinite number"),
]


def test_what_makes_no_sense_is_refused() -> None:
    for arguments, message in BAD:
        with pytest.raises(ValueError, match=message):
            hindsight(traces([3, 1]), **{"achieved": slice(0, 1)} | arguments)  # type: ignore[arg-type]
            pytest.fail(f"not refused: {message}")


def test_goals_take_part_in_all_that_transitions_do() -> None:
    plain = traces([3, 1]).transitions()
    goals = torch.arange(8.0).reshape(4, 2)
    found = plain.with_goals(goals)
    chosen = found[torch.tensor([2, 0])].goals
    assert plain.goals is None and chosen is not None and torch.equal(chosen, goals[[2, 0]])
    assert found.fingerprint() != plain.fingerprint()
    with pytest.raises(ValueError, match=r"goals must have shape \[4, G\]"):
        plain.with_goals(goals[:3])


def test_demonstrations_may_be_on_disk(tmp_path: Path) -> None:
    data = traces([3, 1])
    data.save(tmp_path / "a.npz", compressed=False)
    stored = Demonstrations.load(tmp_path / "a.npz", memory=False)
    assert points(hindsight(stored, slice(0, 1))) == points(hindsight(data, slice(0, 1)))
    wrong: Any = data.transitions()
    with pytest.raises(TypeError, match="goals are found in whole traces, such as Demonstrations, got Transitions"):
        hindsight(wrong, slice(0, 1))
