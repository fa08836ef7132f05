"""NanoCraft: buildings, lengths of traces, a trace by hand, renders."""

from __future__ import annotations

import numpy as np
import pytest

from pyrocontrol.envs import NANO_CRAFT_ACTIONS, NanoCraftEnv
from pyrocontrol.envs.nano_craft import demonstrations, teacher


def test_the_teacher_builds_in_the_environment() -> None:
    for size in (3, 6, 9):
        env = NanoCraftEnv(size=size)
        env.reset(seed=size)
        for _ in range(30):
            observation, info = env.reset()
            before, (x, y, width, height) = info["blocks"], info["building"]
            episode = teacher(info["building"], before, size=size)
            for action, seen in zip(episode.actions, episode.observations, strict=False):
                assert np.array_equal(observation, seen) and env.observation_space.contains(seen)
                observation, reward, terminated, _, info = env.step(np.int64(action))
                assert reward == 0 and not terminated
            _, reward, terminated, truncated, info = env.step(np.int64(5))
            assert reward == 1 and terminated and not truncated
            ring = np.zeros((size, size), bool)
            ring[y : y + height + 1, [x, x + width]] = ring[[y, y + height], x : x + width + 1] = True
            assert np.array_equal(info["blocks"], ring) and info["agent"].tolist() == [y, x]
            lacking = int(ring.sum() - before.sum())
            assert ring.sum() == 2 * (width + height)
            assert len(episode.actions) == x + y + 2 * (width + height) + lacking
            assert episode.calls is not None
            assert episode.calls.shape == (13 + 3 * (x + y) + 6 * (width + height) + lacking, 1)


def test_a_building_by_hand() -> None:
    blocks = np.zeros((6, 6), bool)
    blocks[2, 2] = True
    env = NanoCraftEnv(render_mode="ansi")
    observation, _ = env.reset(options={"building": [1, 2, 2, 1], "blocks": blocks})
    assert observation.tolist() == [0, 1, 2, 2, 1]
    right, down, left, up, place = range(5)
    expected = [right, down, down, right, right, place, down, place, left, place, left, place, up, place]
    assert teacher([1, 2, 2, 1], blocks).actions.tolist() == expected
    assert [NANO_CRAFT_ACTIONS[action] for action in (up, place)] == ["move_up", "place_block"]
    for action in expected[:7]:
        observation, *_ = env.step(np.int64(action))
    assert observation.tolist() == [0, 1, 2, 2, 1]
    empty = " .  .  .  .  .  .\n"
    assert env.render() == empty + empty + " .  o  #  #  .  .\n .  o  o [o] .  .\n" + empty + empty
    env.step(np.int64(place))
    assert env.step(np.int64(left))[0][0] == 0 and env.step(np.int64(right))[0][0] == 1


def test_the_agent_stays_on_the_grid_and_a_block_too_many_earns_nothing() -> None:
    env = NanoCraftEnv(size=3)
    env.reset(options={"building": (1, 1, 1, 1)})
    for action, agent in ((2, [0, 0]), (3, [0, 0]), (1, [1, 0]), (1, [2, 0]), (1, [2, 0]), (0, [2, 1])):
        *_, info = env.step(np.int64(action))
        assert info["agent"].tolist() == agent
    env.reset(options={"building": (1, 1, 1, 1)})
    env.step(np.int64(4))  # in the corner of the grid, where none is to be
    for action in teacher((1, 1, 1, 1), size=3).actions:
        env.step(np.int64(action))
    assert env.step(np.int64(5))[1:3] == (0.0, True)


def test_draws_are_uniform() -> None:
    traces = demonstrations(2000, 0)
    buildings, times = traces.observations[:, 0, 1:].int().unique(dim=0, return_counts=True)
    assert len(buildings) == 100 and times.max() < 45  # 20 each, with a standard deviation of 4.5
    assert (buildings[:, 0] + buildings[:, 2]).max() == (buildings[:, 1] + buildings[:, 3]).max() == 5
    needed = 2 * traces.observations[:, 0, 3:].sum(1)
    placed = (traces.actions == 4).sum(1)
    assert float((placed / needed).mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("building", "blocks", "message"),
    [
        ([0, 1, 1, 1], None, "whole numbers from 1"),
        ([1, 1, 1], None, "whole numbers from 1"),
        ([1.0, 1, 1, 1], None, "whole numbers from 1"),
        ([3, 1, 3, 1], None, "must fit the grid of 6 x 6"),
        ([1, 1, 1, 1], np.ones((6, 6)), "has some of the building's"),
        ([1, 1, 1, 1], np.zeros((5, 5)), "a grid of 6 x 6"),
    ],
)
def test_bad_buildings_are_refused(building: list[int], blocks: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        teacher(building, blocks)
    with pytest.raises(ValueError, match=message):
        NanoCraftEnv().reset(options={"building": building, "blocks": blocks})
    with pytest.raises(ValueError, match="size must be at least 3"):
        NanoCraftEnv(size=2)


def test_rgb_render() -> None:
    env = NanoCraftEnv(render_mode="rgb_array")
    env.reset(options={"building": [1, 1, 2, 2]})
    colours = {"agent": (214, 94, 30), "plan": (22, 138, 102), "block": (150, 90, 40)}
    places, sizes = [], []
    for action in (0, 4, 1, 4):
        env.step(np.int64(action))
        shown = {name: (env.render() == colour).all(-1) for name, colour in colours.items()}
        places.append([axis.mean() for axis in np.nonzero(shown["agent"])])
        sizes.append(shown["block"].sum())
    assert np.allclose(np.diff(places, axis=0), [[0, 0], [48, 0], [0, 0]])
    assert 0 == sizes[0] < sizes[1] < sizes[2] < sizes[3]  # in the third, the agent no longer hides the block
    assert env.render().dtype == np.uint8 and shown["plan"].any()
