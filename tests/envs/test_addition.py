"""Long-hand addition: sums, lengths of traces, a trace by hand, renders."""

from __future__ import annotations

import numpy as np
import pytest

from pyrocontrol.envs import ADDITION_ACTIONS, AdditionEnv
from pyrocontrol.envs.addition import demonstrations, teacher


def numbers(count: int) -> list[np.ndarray]:
    """Pairs of every length up to 12, and some that carry at every column or never."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, 10, (2, int(generator.integers(1, 13)))) for _ in range(count)]
    return [*drawn, np.array([[9] * 8] * 2), np.array([[0] * 3] * 2), np.array([[9, 9, 9], [0, 0, 1]])]


def value(digits: np.ndarray) -> int:
    """The number that digits, most significant first, stand for."""
    return int("".join(map(str, digits)))


def test_the_teacher_adds_in_the_environment() -> None:
    env = AdditionEnv()
    for pair in numbers(50):
        episode = teacher(pair)
        observation, info = env.reset(options={"numbers": pair})
        for action, seen in zip(episode.actions, episode.observations, strict=False):
            assert np.array_equal(observation, seen)
            observation, reward, terminated, _, info = env.step(np.int64(action))
            assert reward == 0 and not terminated
        assert np.array_equal(observation, episode.observations[-1])
        observation, reward, terminated, truncated, info = env.step(np.int64(48))
        assert reward == 1 and terminated and not truncated
        written = info["tapes"][3][info["tapes"][3] < 10]
        assert value(written) == value(pair[0]) + value(pair[1])
        # K columns, of which Q carry.
        columns, carries = len(written), int((info["tapes"][2] == 1).sum())
        assert len(episode.actions) == 5 * columns + 3 * carries
        assert episode.calls is not None and episode.calls.shape == (11 * columns + 5 * carries + 1, 1)


def test_a_sum_by_hand() -> None:
    env = AdditionEnv(render_mode="ansi")
    observation, _ = env.reset(options={"numbers": [[2, 5], [4, 8]]})
    assert np.flatnonzero(observation).tolist() == [5, 11 + 8, 22 + 10, 33 + 10]
    assert env.render() == "carry  .  .  . [.]\n    a  .  .  2 [5]\n    b  .  .  4 [8]\n  out  .  .  . [.]\n"
    lshift = ["move_a_left", "move_b_left", "move_carry_left", "move_out_left"]
    carry = ["move_carry_left", "write_carry_1", "move_carry_right"]
    expected = ["write_out_3", *carry, *lshift, "write_out_7", *lshift]
    assert [ADDITION_ACTIONS[action] for action in teacher([[2, 5], [4, 8]]).actions] == expected
    for name in expected[:8]:
        env.step(np.int64(ADDITION_ACTIONS.index(name)))
    assert env.render() == "carry  .  . [1] .\n    a  .  . [2] 5\n    b  .  . [4] 8\n  out  .  . [.] 3\n"


def test_nothing_is_earned_for_another_sum_or_more_than_it() -> None:
    for wrong in (["write_out_4"], ["write_out_3", "move_out_left", "write_out_0"], []):
        env = AdditionEnv()
        env.reset(options={"numbers": [[1], [2]]})
        for name in wrong:
            env.step(np.int64(ADDITION_ACTIONS.index(name)))
        assert env.step(np.int64(48))[1:3] == (0.0, True)


def test_heads_stay_on_their_tapes() -> None:
    env = AdditionEnv()
    env.reset(options={"numbers": [[1], [2]]})
    for name, place in (("move_a_right", 2), *[("move_a_left", place) for place in (1, 0, 0)]):
        *_, info = env.step(np.int64(ADDITION_ACTIONS.index(name)))
        assert info["heads"].tolist() == [place, 2, 2, 2]


def test_drawn_lengths_are_uniform() -> None:
    traces = demonstrations(1000, 0)
    columns = (traces.actions[..., None] == traces.actions.new_tensor([8 + 30 + d for d in range(10)])).any(-1).sum(1)
    assert columns.min() == 1 and columns.max() == 11
    # 5.5 digits, and a last carry in nearly half of the sums.
    assert float(columns.float().mean()) == pytest.approx(5.95, abs=0.3)


@pytest.mark.parametrize("pair", [[[1, 2], [3]], [[], []], [[1], [10]], [[1], [-1]], [[1.0], [2.0]], [1, 2], [[1]]])
def test_bad_numbers_are_refused(pair: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="numbers to add"):
        teacher(pair)
    with pytest.raises(ValueError, match="numbers to add"):
        AdditionEnv().reset(options={"numbers": pair})
    with pytest.raises(ValueError, match="min_length"):
        AdditionEnv(min_length=0)


def test_rgb_render() -> None:
    """Where a head is, there is a frame, and it moves with it."""
    env = AdditionEnv(render_mode="rgb_array")
    env.reset(options={"numbers": [[1, 2, 3], [4, 5, 6]]})
    places = []
    for _ in range(3):
        picture = env.render()
        rows = (picture == (214, 94, 30)).all(-1)[68:108]  # the first number
        places.append(np.flatnonzero(rows.any(0)).mean())
        env.step(np.int64(ADDITION_ACTIONS.index("move_a_left")))
    assert picture.dtype == np.uint8 and np.allclose(np.diff(places), -36)
