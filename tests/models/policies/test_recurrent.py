"""The recurrent baseline against a hand computation, and its behaviour as a Pyro model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyrocontrol.envs.bubble_sort import demonstrations
from pyrocontrol.envs.data.demonstrations import Demonstrations
from pyrocontrol.models.policies.recurrent import RecurrentController


@pytest.fixture(autouse=True)
def _clean_store() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)


def small(**options: bool) -> RecurrentController:
    """A controller of two small layers, in double precision."""
    return RecurrentController(22, 5, task_size=1, hidden=7, layers=2, **options).double()


@pytest.fixture(scope="module")
def traces() -> Demonstrations:
    """Three traces of different lengths."""
    traces = demonstrations(3, 3, max_length=4).to(dtype=torch.float64)
    assert len(set(traces.lengths.tolist())) > 1
    return traces


def linear(parameters: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """W x + b."""
    return parameters[f"{name}.weight"] @ x + parameters[f"{name}.bias"]


def by_hand(controller: RecurrentController, traces: Demonstrations, trace: int) -> Tensor:
    """`[T]` log-probabilities of a trace's actions, one step, one layer, one gate at a time."""
    p = dict(controller.named_parameters())
    hidden = [torch.zeros(controller.hidden, dtype=torch.float64) for _ in range(controller.layers)]
    memory = list(hidden)
    result = []
    for t in range(int(traces.lengths[trace])):
        parts = [traces.observations[trace, t]]
        if controller.see_task:
            parts.append(traces.task[trace])
        if controller.see_previous_action:
            previous = torch.zeros(controller.num_actions, dtype=torch.float64)
            if t > 0:
                previous[traces.actions[trace, t - 1]] = 1.0
            parts.append(previous)
        x = linear(p, "encoder.2", linear(p, "encoder.0", torch.cat(parts)).relu())
        for layer in range(controller.layers):
            gates = p[f"lstm.weight_ih_l{layer}"] @ x + p[f"lstm.bias_ih_l{layer}"]
            gates = gates + p[f"lstm.weight_hh_l{layer}"] @ hidden[layer] + p[f"lstm.bias_hh_l{layer}"]
            write, keep, new, show = gates.chunk(4)
            memory[layer] = keep.sigmoid() * memory[layer] + write.sigmoid() * new.tanh()
            x = hidden[layer] = show.sigmoid() * memory[layer].tanh()
        logits = linear(p, "decoder.2", linear(p, "decoder.0", x).relu())
        result.append(logits[traces.actions[trace, t]] - logits.logsumexp(0))
    return torch.stack(result)


@pytest.mark.parametrize("full", [False, True])
def test_log_prob_is_the_hand_computed_one(traces: Demonstrations, full: bool) -> None:
    controller = small(see_task=full, see_previous_action=full)
    site = poutine.trace(controller.model).get_trace(traces)
    site.compute_log_prob()
    found = site.nodes["actions"]["log_prob"]
    expected = torch.stack([by_hand(controller, traces, trace).sum() for trace in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    loss = Trace_ELBO().loss(controller.model, controller.guide, traces)
    assert loss == pytest.approx(-expected.sum().item())


@pytest.mark.parametrize("full", [False, True])
def test_stepped_it_is_what_it_scores(traces: Demonstrations, full: bool) -> None:
    """So it sees nothing that comes later, and as published neither task nor previous action."""
    controller = small(see_task=full, see_previous_action=full)
    expected = controller.logits(traces).log_softmax(-1)
    others = traces._replace(task=traces.task + 1, actions=(traces.actions + 1) % 5)
    assert torch.equal(controller.logits(others).log_softmax(-1), expected) != full
    padding = torch.arange(expected.shape[1]) >= traces.lengths.unsqueeze(1)
    assert torch.equal(controller.greedy_actions(traces), expected.argmax(-1).masked_fill(padding, 5))
    state = controller.predict(traces.observations[:, 0].numpy(), task=traces.task)[1]
    state = controller.begin(3)._replace(task=state.task)
    for t in range(traces.observations.shape[1]):
        distribution, state = controller.step(controller.encoded(traces.observations[:, t]), state, True)
        torch.testing.assert_close(distribution.logits, expected[:, t])
        state = controller.remember(state, traces.actions[:, t])


def test_it_learns_one_list_and_a_second_controller_in_the_process_does_too() -> None:
    traces = demonstrations(1, 0, min_length=3, max_length=3)
    for steps in (1, 120):
        controller = RecurrentController(22, 5, task_size=1, see_task=True, see_previous_action=True, layers=1)
        svi = SVI(controller.model, controller.guide, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO())
        for _ in range(steps):
            loss = svi.step(traces)
    assert loss < 0.5
    assert torch.equal(controller.greedy_actions(traces), traces.actions)


def world(actions: Any, width: int = 22) -> Any:
    return SimpleNamespace(observation_space=Box(0, 1, (width,)), action_space=actions)


def test_it_acts_with_null_where_there_is_one() -> None:
    controller = small()
    with torch.no_grad():
        controller.decoder[-1].bias.copy_(torch.tensor([0, 0, 0, 50, 0, 90.0]))
    one, many = np.zeros(22, np.float32), np.zeros((3, 22), np.float32)
    assert controller.predict(one, deterministic=True)[0] == 3
    for space, expected in ((Discrete(6), 5), (Discrete(6, start=4), 9), (Discrete(5, start=1), 4), (Discrete(8), 3)):
        bound = controller.within(world(space))
        for deterministic in (True, False):
            found, _ = bound.predict(many, deterministic=deterministic)
            assert found.tolist() == [expected] * 3 and found.dtype == space.dtype
    assert controller.action_space == Discrete(5)
    made = RecurrentController(observation_space=Box(0, 1, (22,)), action_space=Discrete(6), num_actions=5)
    assert made.predict(one)[0] in Discrete(6)


def test_the_task_stays_when_an_episode_begins() -> None:
    controller = small(see_task=True, see_previous_action=True).within(world(Discrete(6)))
    many = np.random.default_rng(0).random((2, 22), np.float32)
    first = controller.initial_state({"task": np.float32([3])})
    _, state = controller.predict(many[:1], first, True)
    begun = controller.predict(many[:1], state, True)[1]
    for one, other in zip(begun.cell, controller.predict(many[:1], first)[1].cell, strict=True):
        torch.testing.assert_close(one, other)
    _, state = controller.predict(many, task=np.float32([[3], [4]]))
    _, state = controller.predict(many, [[leaf.numpy() for leaf in state.cell], *state[1:]], np.array([True, False]))
    assert state.task.flatten().tolist() == [3, 4] and controller.predict(many, task=[3])[1].task.shape == (2, 1)
    for bad in ({}, {"task": [1, 2]}):
        with pytest.raises(ValueError, match=r"the task must have shape \[1\], got \["):
            controller.initial_state(bad)
    with pytest.raises(ValueError, match="the state is of another policy, or not of 2 rows"):
        controller.predict(many, first)
    with pytest.raises(ValueError, match="the batch is empty"):
        controller.predict(many[:0])


def test_vectorised_particles_agree(traces: Demonstrations) -> None:
    controller = small()
    one = Trace_ELBO().loss(controller.model, controller.guide, traces)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert elbo.loss(controller.model, controller.guide, traces) == pytest.approx(one)


def test_check_names_what_differs(traces: Demonstrations) -> None:
    small(see_task=True).check(traces)
    with pytest.raises(ValueError, match="obs_size 22, the recurrent controller 21"):
        RecurrentController(21, 5).check(traces)
    with pytest.raises(ValueError, match="num_actions 5"):
        RecurrentController(22, 4).check(traces)
    with pytest.raises(ValueError, match="task_size 1"):
        RecurrentController(22, 5, task_size=2, see_task=True).check(traces)
    with pytest.raises(ValueError, match="argument size 4"):
        RecurrentController(22, 2).check(demonstrations(1, 0, move=True))
    cut = torch.tensor([False, True, False])
    with pytest.raises(ValueError, match=rf"trace 1, step {int(traces.lengths[1]) - 1}: the trace was cut off, not te"):
        small().check(traces.replace(truncated=cut, terminated=~cut))
    box = traces.replace(actions=torch.zeros(*traces.actions.shape, 2), action_space=Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match="the actions must be Discrete, numbered and with a null, these are Box"):
        small().check(box)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecurrentController(0, 5), "must be positive"),
        (lambda: RecurrentController(22, 5, see_task=True), "see_task needs task_size"),
        (lambda: RecurrentController(22), "give num_actions, or the action_space"),
        (lambda: RecurrentController(num_actions=5), "give obs_size, or the observation_space"),
        (lambda: RecurrentController(3, 5, observation_space=Box(0, 1, (2,))), "obs_size=3, .* space has 2"),
        (lambda: RecurrentController(3, 5, action_space=Discrete(4)), r"has 5 actions, .* is Discrete\(4\)"),
        (lambda: small().within(world(Box(0, 1, (2,)))), "has 5 actions, the action space is Box"),
        (lambda: small().within(world(Discrete(6), 3)), "observations of 22 numbers, got 3"),
    ],
)
def test_bad_sizes_and_spaces_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_signature_tells_controllers_apart() -> None:
    assert small().signature() == small().signature()
    assert small().signature() != small(see_task=True).signature()
