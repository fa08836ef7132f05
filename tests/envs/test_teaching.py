"""What holds for every machine and its teacher; the numbers of each domain are tested beside it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import pyrocontrol as pc
from pyrocontrol.envs import (
    ADDITION_TREE,
    BUBBLE_SORT_MOVE_TREE,
    BUBBLE_SORT_TREE,
    NANO_CRAFT_TREE,
    addition,
    bubble_sort,
    nano_craft,
)
from pyrocontrol.envs.teaching import CallRecorder
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


LOOKS = """\
actions: a, b
main(n: real[1]) -> look, b returns (done: onehot[2])
look(side: onehot[2]) -> a returns (found: onehot[2])
"""


class Nothing:
    """A machine that sees and does nothing."""

    def observe(self) -> np.ndarray:
        return np.zeros(1, np.float32)

    def apply(self, primitive: int) -> None: ...


def test_return_values_are_recorded() -> None:
    run = CallRecorder(LOOKS, Nothing())  # type: ignore[arg-type]
    with run.call("look", [1, 0]) as look:
        run.act("a")
        look.returns([0, 1])
    episode = run.episode([3.0], returns=[1, 0])
    assert episode.calls is not None
    assert episode.calls.tolist() == [[1, 1, 0], [2, 0, 0], [4, 0, 1], [4, 1, 0]]
    ControlProgram(LOOKS, 1).check(pc.envs.Demonstrations.from_episodes([episode], 2))


def test_what_is_no_program_of_the_tree_is_not_recorded() -> None:
    def refused(message: str, *steps: Any, task: Any = (1.0,), returns: Any = (1, 0)) -> None:
        run = CallRecorder(LOOKS, Nothing())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            for name, *given in steps:
                if name != "call":
                    run.act(name, *given)
                    continue
                procedure, argument, value, *actions = given
                with run.call(procedure, argument) as running:
                    for action in actions:
                        run.act(action)
                    if value is not None:
                        running.returns(value)
            run.episode(task, returns)

    refused("the argument of 'look' is 2 numbers, got \\[\\]", ("call", "look", (), (1, 0), "a"))
    refused("the argument of 'look' is 2 numbers, got \\[1.0, 0.0, 0.0\\]", ("call", "look", (1, 0, 0), (1, 0), "a"))
    refused("the argument of 'look' must hold side: onehot", ("call", "look", (1, 1), (1, 0), "a"))
    refused("the argument of 'b' is 0 numbers", ("b", (1,)))
    refused("the return value of 'look' is 2 numbers, got \\[\\]", ("call", "look", (1, 0), None, "a"))
    refused("the return value of 'look' must hold found: onehot", ("call", "look", (1, 0), (0, 0), "a"))
    refused("'look' is a procedure", ("look",))
    refused("'b' is an action", ("call", "b", (), None))
    refused("'main' does not call 'a'", ("a",))
    refused("'look' does not call 'b'", ("call", "look", (1, 0), (1, 0), "b"))
    refused("no procedure or action is called 'c'", ("c",))
    refused("'look' returns before it has done anything", ("call", "look", (1, 0), (1, 0)))
    refused("'main' returns before it has done anything")
    refused("the argument of 'main' is 1 numbers", ("b",), task=None)
    refused("the return value of 'main' is 2 numbers", ("b",), returns=())
    run = CallRecorder(LOOKS, Nothing())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'look' has not returned to 'main' yet"), run.call("look", (1, 0)):
        run.act("a")
        run.episode([1.0], (1, 0))
