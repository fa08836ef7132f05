"""The recurrent baseline against a hand computation, and its behaviour as a Pyro model."""

from __future__ import annotations

import pyro
import pytest
import torch
from gymnasium.spaces import Box
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


def test_padding_changes_nothing(traces: Demonstrations) -> None:
    controller = small(see_task=True, see_previous_action=True)
    together = controller.greedy_actions(traces)
    loss = Trace_ELBO().loss(controller.model, controller.guide, traces)
    apart = 0.0
    for trace, single in enumerate(traces):
        length = int(single.lengths)
        assert torch.equal(together[trace, :length], controller.greedy_actions(single)[0])
        assert (together[trace, length:] == 5).all()
        apart += Trace_ELBO().loss(controller.model, controller.guide, single)
    assert loss == pytest.approx(apart)


def test_it_is_causal(traces: Demonstrations) -> None:
    controller = small(see_task=True, see_previous_action=True)
    before = controller.logits(traces)
    observations, actions = traces.observations.clone(), traces.actions.clone()
    observations[0, 5] += 1.0
    actions[0, 4] = (actions[0, 4] + 1) % 5
    changed = controller.logits(traces._replace(observations=observations, actions=actions))
    assert torch.equal(before[0, :5], changed[0, :5])
    assert not torch.allclose(before[0, 5], changed[0, 5])


def test_as_published_it_sees_neither_task_nor_previous_action(traces: Demonstrations) -> None:
    controller = small()
    before = controller.logits(traces)
    changed = traces._replace(task=traces.task + 1, actions=(traces.actions + 1) % 5)
    assert torch.equal(before, controller.logits(changed))


def test_it_learns_one_list() -> None:
    traces = demonstrations(1, 0, min_length=3, max_length=3)
    controller = RecurrentController(22, 5, task_size=1, see_task=True, see_previous_action=True, layers=1)
    svi = SVI(controller.model, controller.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(200):
        loss = svi.step(traces)
    assert loss < 0.5
    assert torch.equal(controller.greedy_actions(traces), traces.actions)


def test_a_second_controller_in_the_process_is_trained_too(traces: Demonstrations) -> None:
    for _ in range(2):
        controller = small()
        before = [p.detach().clone() for p in controller.parameters()]
        svi = SVI(controller.model, controller.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        svi.step(traces)
        assert all(not torch.equal(a, b) for a, b in zip(before, controller.parameters(), strict=True))


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


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        RecurrentController(0, 5)
    with pytest.raises(ValueError, match="task_size"):
        RecurrentController(22, 5, see_task=True)


def test_signature_tells_controllers_apart() -> None:
    assert small().signature() == small().signature()
    assert small().signature() != small(see_task=True).signature()
