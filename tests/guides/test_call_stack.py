"""Guides over call stacks: they explain the trace and nothing else, whatever the encoder and the padding."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor, nn

from pyrocontrol.envs import Demonstrations
from pyrocontrol.envs.bubble_sort import BUBBLE_SORT_MOVE_TREE, BUBBLE_SORT_TREE, demonstrations
from pyrocontrol.guides import CallStackGuide, TraceEncoder
from pyrocontrol.inference import StepwiseKL_ELBO, fit
from pyrocontrol.models import ControlProgram

TREES = {False: BUBBLE_SORT_TREE, True: BUBBLE_SORT_MOVE_TREE}


class Mean(TraceEncoder):
    """A user's own: every step sees its input and the mean of the trace."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.size = 5
        self.map = nn.Linear(2 * input_size, 5)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        there = torch.arange(inputs.shape[1]) < lengths.unsqueeze(1)
        mean = torch.where(there.unsqueeze(-1), inputs, 0.0).sum(1, keepdim=True) / lengths.view(-1, 1, 1)
        return self.map(torch.cat([inputs, mean.expand_as(inputs)], -1)).tanh()


ENCODERS = ["bilstm", "lstm", "transformer", "own"]
every = pytest.mark.parametrize("encoder", ENCODERS)
either_task = pytest.mark.parametrize(("encoder", "move"), [(name, n % 2 == 1) for n, name in enumerate(ENCODERS)])


def make(encoder: str, move: bool = False) -> CallStackGuide:
    program = ControlProgram(TREES[move], 22)
    if encoder == "own":
        # observation, previous action, action or null, argument
        actions = len(program.tree.actions)
        own = Mean(22 + 2 * actions + 1 + program.tree.action_arg_size)
        guide = CallStackGuide(program, own)
        assert guide.encoder is own and guide.input_size == own.map.in_features // 2
        return guide
    return CallStackGuide(program, encoder, encoder_size=8)


def traces(move: bool = False) -> Demonstrations:
    found = demonstrations(4, 1, max_length=4, move=move)
    assert len(set(found.lengths.tolist())) > 1
    return found


@either_task
def test_the_posterior_explains_the_trace(encoder: str, move: bool) -> None:
    guide, data = make(encoder, move), traces(move)
    posterior = guide.posterior(data)
    assert posterior.batch_shape == (4,)
    for z in (posterior.sample(), posterior.greedy(), posterior.sample((3,))):
        actions, arguments = guide.program.taken(z, data.actions.shape[1])
        assert (actions == data.actions).all() and (arguments == data.arguments).all()
        assert (posterior.log_prob(z) > -1e8).all()
        assert (guide.program.prior(data).log_prob(z) > -1e8).all()
    calls = guide.infer(data)
    assert [trace.actions for trace in calls] == [
        actions[: length - 1] for actions, length in zip(data.actions.tolist(), data.lengths.tolist(), strict=True)
    ]


@every
def test_one_update_trains_guide_and_program(encoder: str) -> None:
    guide, data = make(encoder), traces()
    svi = SVI(guide.program.model, guide, pyro.optim.Adam({"lr": 1e-2}), StepwiseKL_ELBO())
    before = {name: p.clone() for name, p in guide.named_parameters()}
    assert torch.tensor([svi.step(data) for _ in range(2)]).isfinite().all()
    moved = [name for name, p in guide.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith("encoder") for name in moved) and any(name.startswith("process") for name in moved)


@either_task
def test_padding_never_matters(encoder: str, move: bool) -> None:
    """A trace alone, or padded beside longer ones, has the same posterior."""
    guide, data = make(encoder, move), traces(move)
    together = guide.posterior(data)
    z = together.sample()
    log_probs = together.log_prob(z)
    for row in range(len(data)):
        alone = guide.posterior(data[row])
        own = z[row : row + 1, : alone.horizon]
        torch.testing.assert_close(alone.log_prob(own)[0], log_probs[row], rtol=0, atol=1e-5)
        length = int(data.lengths[row])
        torch.testing.assert_close(
            alone.context.features[0], together.context.features[row, :length], rtol=0, atol=1e-5
        )


@every
def test_only_the_causal_guide_ignores_the_future(encoder: str) -> None:
    guide = make(encoder)
    data = traces()[[int(traces().lengths.argmax())]]
    before = guide.posterior(data).context.features
    now = 5
    observations, actions = data.observations.clone(), data.actions.clone()
    observations[:, now + 1 : -1] = torch.rand_like(observations[:, now + 1 : -1])
    actions[:, now + 1 : -1] = (actions[:, now + 1 : -1] + 1) % 5
    future = Demonstrations(observations, actions, data.lengths, 5, task=data.task)
    after = guide.posterior(future).context.features
    changed = (before - after).abs().amax(-1)[0]
    assert (changed[now + 1 : -1] > 1e-6).all()
    if encoder == "lstm":
        assert torch.equal(before[:, : now + 1], after[:, : now + 1])
    else:
        assert (changed[: now + 1] > 1e-6).all()


def test_every_encoder_reads_the_previous_action() -> None:
    guide, data = make("lstm"), traces()
    inputs = guide._inputs(data)
    assert inputs.shape[-1] == guide.input_size
    assert (inputs[:, 0, :5] == 0).all()
    step = 3
    for row in range(len(data)):
        assert inputs[row, step, :5].argmax() == data.actions[row, step - 1]
        torch.testing.assert_close(inputs[row, step, 5:27], data.observations[row, step])
        assert inputs[row, step, 27:33].argmax() == data.actions[row, step]


def test_the_guide_does_not_own_the_programs_parameters() -> None:
    guide = make("bilstm")
    own = {id(p) for p in guide.parameters()}
    assert not own & {id(p) for p in guide.program.parameters()}
    assert guide.process.choose.weights[0].shape[1] > guide.program.process.choose.weights[0].shape[1] - 22


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder must be one of bilstm, lstm, transformer, mlp, got 'gru'"):
        make("gru")


def test_signatures_tell_guides_apart() -> None:
    signatures = {make(encoder).signature() for encoder in ENCODERS}
    assert len(signatures) == len(ENCODERS)
    assert make("bilstm").signature() in signatures


def test_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    demos = demonstrations(6, seed=0, max_length=3)

    def train(out: Path, *stops: int) -> tuple[Tensor, list[tuple[int, float]]]:
        for steps in stops:
            pyro.clear_param_store()
            torch.manual_seed(1)
            program = ControlProgram(BUBBLE_SORT_TREE, 22)
            guide = CallStackGuide(program)
            svi = SVI(program.model, guide, Adam({"lr": 1e-2}), StepwiseKL_ELBO())
            torch.rand(3)  # whatever else draws random numbers before a run goes on
            result = fit(svi, demos, steps=steps, batch_size=2, out=out, log_every=2, progress=False)
        weights = torch.cat([p.detach().flatten() for m in (program, guide) for p in m.parameters()])
        return weights, result.losses

    straight, resumed = train(tmp_path / "a", 8), train(tmp_path / "b", 4, 8)
    assert torch.equal(straight[0], resumed[0])
    assert straight[1] == resumed[1]
