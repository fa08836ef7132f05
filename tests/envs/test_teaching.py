"""What holds for every machine and its teacher; the numbers of each domain are tested beside it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from pyrocontrol.envs import (
    ADDITION_TREE,
    BUBBLE_SORT_MOVE_TREE,
    BUBBLE_SORT_TREE,
    NANO_CRAFT_TREE,
    addition,
    bubble_sort,
    nano_craft,
)
from pyrocontrol.models import ControlProgram

# Name of the environment, module, tree, and what its functions are told.
DOMAINS: dict[str, tuple[ModuleType, str, dict[str, Any]]] = {
    "BubbleSort": (bubble_sort, BUBBLE_SORT_TREE, {}),
    "BubbleSortMove": (bubble_sort, BUBBLE_SORT_MOVE_TREE, {"move": True}),
    "Addition": (addition, ADDITION_TREE, {}),
    "NanoCraft": (nano_craft, NANO_CRAFT_TREE, {}),
}
domains = pytest.mark.parametrize("name", DOMAINS)


@domains
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_gymnasium_accepts_the_environment(name: str, render_mode: str | None) -> None:
    check_env(gymnasium.make(f"pyrocontrol/{name}-v0", render_mode=render_mode).unwrapped)


@domains
def test_the_teachers_calls_are_a_program_of_the_tree_that_takes_its_actions(name: str) -> None:
    module, tree, options = DOMAINS[name]
    traces = module.demonstrations(20, 0, annotate=True, **options)
    assert (traces.calls[..., 0] >= 0).any(1).all()
    program = ControlProgram(tree, traces.observations.shape[-1])
    program.check(traces)
    # One action otherwise, and it is not.
    wrong = traces.actions.clone()
    wrong[0, 0] = (wrong[0, 0] + 1) % traces.num_actions
    with pytest.raises(ValueError, match="trace 0, step 0"):
        program.check(traces.replace(actions=wrong))


@domains
def test_demonstrations_are_reproducible_nested_and_apart(name: str) -> None:
    module, _, options = DOMAINS[name]
    whole, part = module.demonstrations(20, 7, **options), module.demonstrations(8, 7, **options)
    assert whole.calls is None
    longest = part.actions.shape[1]
    assert torch.equal(whole[torch.arange(8)].observations[:, :longest], part.observations)
    assert torch.equal(whole[torch.arange(8)].actions[:, :longest], part.actions)
    streams = [module.demonstrations(20, 7, stream=stream, **options) for stream in ("train", "validation", "test")]
    assert torch.equal(streams[0].actions, whole.actions)
    seen = [{trace.observations.numpy().tobytes() for trace in traces.read()} for traces in streams]
    # NanoCraft has few short buildings, which may be drawn twice.
    assert all(len(one & other) <= 2 for one, other in ((seen[0], seen[1]), (seen[0], seen[2]), (seen[1], seen[2])))


@domains
def test_bad_use_is_refused(name: str) -> None:
    module, _, options = DOMAINS[name]
    env: Any = gymnasium.make(f"pyrocontrol/{name}-v0").unwrapped
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is not in"):
        env.step(np.int64(99))
    with pytest.raises(ValueError, match="is the null"):
        env.encode_action(env.num_actions + 1)
    with pytest.raises(ValueError, match="render_mode"):
        type(env)(render_mode="human")
    with pytest.raises(ValueError, match="stream"):
        module.demonstrations(1, 0, stream="exam", **options)
    with pytest.raises(ValueError, match="count"):
        module.demonstrations(0, 0, **options)
