"""The BubbleSort domain: the environments, the teacher and its call trace, the renders."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from pyrocontrol.envs.bubble_sort import BubbleSortEnv, BubbleSortMoveEnv, demonstrations, teacher

NAMES = {False: "pyrocontrol/BubbleSort-v0", True: "pyrocontrol/BubbleSortMove-v0"}


def random_lists(count: int, longest: int = 12) -> list[list[int]]:
    """Lists of every length from 2, ties included."""
    generator = np.random.default_rng(0)
    lists = [generator.integers(0, 10, size=int(generator.integers(2, longest + 1))).tolist() for _ in range(count)]
    return [
        *lists,
        [3, 3],
        [9] * 6,
        list(range(10)),
        list(range(9, -1, -1)),
        generator.integers(0, 10, 20).tolist(),
    ]


def inversions(values: list[int]) -> int:
    """Pairs in the wrong order."""
    return sum(a > b for i, a in enumerate(values) for b in values[i + 1 :])


@pytest.mark.parametrize("move", [False, True])
def test_the_teacher_sorts_in_the_environment(move: bool) -> None:
    env = gymnasium.make(NAMES[move])
    for values in random_lists(100):
        episode = teacher(values, move=move)
        observation, info = env.reset(options={"list": values})
        assert info["task"].tolist() == [len(values)] == episode.task.tolist()
        assert info["list"].tolist() == values
        for step, (action, argument) in enumerate(zip(episode.actions, episode.arguments, strict=True)):
            assert np.array_equal(observation, episode.observations[step])
            observation, reward, terminated, _, info = env.step(env.unwrapped.encode_action(action, argument))
            assert reward == 0.0 and not terminated
        assert np.array_equal(observation, episode.observations[-1])
        observation, reward, terminated, truncated, info = env.step(
            env.unwrapped.encode_action(env.unwrapped.num_actions)
        )
        assert reward == 1.0 and terminated and not truncated
        assert info["list"].tolist() == sorted(values)
        assert info["pointers"].tolist() == [0, 0]


@pytest.mark.parametrize("move", [False, True])
def test_trace_and_call_stack_have_the_known_lengths(move: bool) -> None:
    for values in random_lists(300):
        m, swaps = len(values) - 1, inversions(values)
        episode = teacher(values, move=move)
        assert len(episode.actions) == 4 * m * m + m + swaps
        assert len(episode.observations) == len(episode.actions) + 1
        assert episode.calls is not None and episode.calls.dtype == np.float32
        assert len(episode.calls) == 10 * m * m + 5 * m + 1 + swaps


def test_both_variants_tell_the_same_story() -> None:
    for values in random_lists(20):
        plain, move = teacher(values), teacher(values, move=True)
        assert np.array_equal(plain.observations, move.observations)
        pointer, direction = move.arguments[:, :2].argmax(1), move.arguments[:, 2:].argmax(1)
        assert np.array_equal(np.where(move.actions == 1, 4, 2 * pointer + direction), plain.actions)


def test_the_first_pass_by_hand() -> None:
    episode = teacher([2, 1])
    # ptr2right, swap, ptr1right, ptr2right, ptr1left, ptr2left
    assert episode.actions.tolist() == [3, 4, 1, 3, 0, 2]
    # bubble ptr2right bstep swap rshift ptr1right ptr2right . . . resetptr lshift ptr1left ptr2left . . .
    assert episode.calls[:, 0].tolist() == [1, 9, 3, 10, 5, 7, 9, 11, 11, 11, 2, 4, 6, 8, 11, 11, 11]
    first = np.zeros(22)
    first[[2, 10, 11 + 2, 21]] = 1  # both pointers at the digit 2, both at an edge
    assert np.array_equal(episode.observations[0], first)


def test_pointers_are_clamped_and_edges_shown() -> None:
    env = BubbleSortEnv()
    env.reset(options={"list": [4, 5, 6]})
    observation, _, _, _, info = env.step(np.int64(0))
    assert info["pointers"].tolist() == [0, 0] and observation[10] == 1
    observation, *_ = env.step(np.int64(1))
    assert observation[[5, 10, 11 + 4, 21]].tolist() == [1, 0, 1, 1]
    for _ in range(4):
        observation, _, _, _, info = env.step(np.int64(1))
    assert info["pointers"].tolist() == [2, 0] and observation[10] == 1


def test_stopping_early_earns_nothing() -> None:
    env = BubbleSortEnv()
    env.reset(options={"list": [2, 1]})
    _, reward, terminated, _, _ = env.step(np.int64(5))
    assert reward == 0.0 and terminated


def test_encode_action() -> None:
    plain, move = BubbleSortEnv(), BubbleSortMoveEnv()
    assert plain.encode_action(4, []) == 4
    assert move.encode_action(0, [0, 1, 1, 0]).tolist() == [0, 1, 0]
    assert move.encode_action(0, torch.tensor([1.0, 0, 0, 1])).tolist() == [0, 0, 1]
    assert move.encode_action(1, [0, 0, 0, 0]).tolist() == [1, 0, 0]
    assert move.encode_action(2).tolist() == [2, 0, 0]
    assert all(move.action_space.contains(move.encode_action(i, [0, 1, 0, 1])) for i in range(3))
    with pytest.raises(ValueError, match="outside 0..5"):
        plain.encode_action(6)
    with pytest.raises(ValueError, match="4 numbers"):
        move.encode_action(0, [0, 1])


@pytest.mark.parametrize("values", [[1], [], [1, 10], [-1, 2], [0.5, 1.0], [[1, 2]]])
def test_bad_lists_are_refused(values: list[int]) -> None:
    with pytest.raises(ValueError, match="a list to sort holds"):
        teacher(values)
    with pytest.raises(ValueError, match="a list to sort holds"):
        BubbleSortEnv().reset(options={"list": values})


def test_bad_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="min_length"):
        BubbleSortEnv(min_length=1)
    with pytest.raises(ValueError, match="min_length"):
        demonstrations(1, 0, min_length=3, max_length=2)


def test_demonstrations_have_the_published_statistics() -> None:
    traces = demonstrations(1000, 0)
    sizes = traces.task.squeeze(1).long()
    assert sizes.min() == 2 and sizes.max() == 9
    assert torch.bincount(sizes)[2:].min() > 80
    # METHODS: mean T 114; its standard error over 1000 traces is about 2.7.
    assert traces.lengths.float().mean().item() == pytest.approx(114, abs=9)
    assert traces.lengths.max() <= 301
    assert traces.calls is None
    digits = traces.observations[:, 0, :10].mean(0)
    assert digits.sum().item() == pytest.approx(1) and digits.min() > 0.06


def test_annotated_and_longer_lists() -> None:
    traces = demonstrations(4, 0, min_length=15, max_length=15, annotate=True, move=True)
    assert traces.calls is not None and traces.calls.shape[-1] == 5
    assert (traces.task == 15).all() and traces.arguments.shape[-1] == 4 and traces.num_actions == 2


def test_ansi_render() -> None:
    env = BubbleSortEnv(render_mode="ansi")
    env.reset(options={"list": [3, 1, 4]})
    env.step(np.int64(3))
    assert env.render() == " 1\n[3][1][4]\n    2\n"


def test_rgb_render() -> None:
    env = BubbleSortEnv(render_mode="rgb_array")
    pictures = []
    for place in range(4):
        env.reset(options={"list": [0, 9, 5, 2]})
        for _ in range(place):
            env.step(np.int64(3))
        pictures.append(env.render())
    assert all(picture.dtype == np.uint8 and picture.shape == pictures[0].shape for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 4
    columns = [np.flatnonzero((picture == (22, 138, 102)).all(-1).any(0)).mean() for picture in pictures]
    assert np.allclose(np.diff(columns), 48)  # the second pointer moves by one cell
