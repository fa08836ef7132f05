"""Learners in one batch: each does what it would do alone, whatever the others do, and can leave at any time."""

from __future__ import annotations

import copy
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

import soft_learners
from pyrocontrol.envs import LatentActionEnv, PointMove
from pyrocontrol.guides import FlowPolicy, GaussianPolicy, MixturePolicy
from pyrocontrol.inference import SeedBatch, SoftActorCritic, learn, learn_together, train_stagewise_together
from pyrocontrol.inference.control.replay import ReplayBatch
from pyrocontrol.inference.training import checkpoint
from pyrocontrol.models import GaussianPrior, UniformPrior
from soft_learners import LEARNERS, assert_alike, learner_of, part

S, B, O, A = 3, 8, 3, 2  # noqa: E741


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is the same for every learner and update, alone and in a batch."""

    def randn(*shape: Any, generator: Any = None, **given: Any) -> Tensor:
        size = torch.Size(shape if isinstance(shape[0], int) else shape[0])  # the compiler asks for some too
        return torch.linspace(-1.5, 1.5, size.numel(), **given).reshape(size)

    def exponential(tensor: Tensor, *args: Any, generator: Any = None) -> Tensor:
        shape = tensor.shape
        given = {"dtype": tensor.dtype, "device": tensor.device}
        return torch.zeros_like(tensor) + torch.linspace(0.2, 3.0, shape.numel(), **given).reshape(shape)

    # The compiler lists torch's functions when it is first used, and should not meet this one then.
    torch.compile(lambda values: values + 1, backend="eager")(torch.ones(1))
    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setattr(torch.Tensor, "exponential_", exponential)


def make(kind: str = "flow") -> list[Any]:
    return [learner_of(kind, seed) for seed in range(S)]


def transitions(seed: int = 0) -> ReplayBatch:
    return soft_learners.transitions(S, B, generator=torch.Generator().manual_seed(seed))


# An update


@pytest.mark.usefixtures("float64", "still")
@pytest.mark.parametrize("kind", LEARNERS)
def test_an_update_is_the_updates_of_all(kind: str) -> None:
    alone, batch = make(kind), SeedBatch(make(kind))
    for number in range(5):
        given = transitions(number)
        found = batch.update(given)
        for s, learner in enumerate(alone):
            for name, value in learner.update(part(given, s)).items():
                torch.testing.assert_close(found[name][s], value, msg=f"{name}, update {number}")
    for learner, together in zip(alone, batch.learners, strict=True):
        assert learner.updates == together.updates == 5
        assert_alike(together, learner)


@pytest.mark.usefixtures("float64", "still")
def test_learners_know_nothing_of_each_other() -> None:
    one, other = SeedBatch(make()), SeedBatch(make())
    given = transitions()
    changed = ReplayBatch(*(field.clone() for field in given))
    changed.rewards[1:] += 1
    one.update(given)
    other.update(changed)
    assert_alike(one.learners[0], other.learners[0], rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_alike(one.learners[1], other.learners[1], rtol=0, atol=0)


def test_each_learner_has_noise_of_its_own() -> None:
    learner = make()[0]
    batch = SeedBatch([learner, copy.deepcopy(learner)])
    first, second = batch.act(np.zeros((2, O)))
    assert not np.allclose(first, second)
    alike = ReplayBatch(*(field[:1].expand(2, *field.shape[1:]) for field in transitions()))
    assert len({*batch.update(alike)["policy_loss"].tolist()}) == 2


@pytest.mark.usefixtures("float64", "still")
def test_learners_join_later_and_go_on_alone() -> None:
    alone, learners, batch = make(), make(), None
    for number in range(6):
        given = transitions(number)
        for s, learner in enumerate(alone):
            learner.update(part(given, s))
        if number in (2, 3):
            batch = batch or SeedBatch(learners)
            batch.update(given)
        else:
            for s, learner in enumerate(learners):
                learner.update(part(given, s))
    for one, other in zip(alone, learners, strict=True):
        assert_alike(other, one)


@pytest.mark.usefixtures("float64", "still")
def test_a_state_that_is_loaded_counts() -> None:
    batch, other = SeedBatch(make()), SeedBatch(make())
    states = []
    for number in range(4):
        if number == 2:
            states = [copy.deepcopy(learner.state_dict()) for learner in batch.learners]
        batch.update(transitions(number))
    other.update(transitions(9))
    for learner, state in zip(other.learners, states, strict=True):
        learner.load_state_dict(state)
    for number in (2, 3):
        other.update(transitions(number))
    assert_alike(other, batch)


@pytest.mark.usefixtures("float64", "still")
@pytest.mark.parametrize(
    "leave",
    [
        lambda batch: batch.learners[0].policy.float().double(),
        lambda batch: torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(batch.learners[1].parameters()).detach().clone(),
            batch.learners[1].parameters(),
        ),
        copy.deepcopy,
    ],
    ids=["moved and back", "given other tensors", "copied"],
)
def test_learners_that_have_left_the_stack_are_stacked_anew(leave: Callable[[Any], Any]) -> None:
    batch, other = SeedBatch(make()), SeedBatch(make())
    for each in (batch, other):
        each.update(transitions())
    copied = leave(batch)
    batch = copied if isinstance(copied, SeedBatch) else batch
    for number in (1, 2):
        for each in (batch, other):
            each.update(transitions(number))
    assert_alike(batch, other, rtol=1e-4, atol=1e-6)  # what was single precision in between


@pytest.mark.usefixtures("float64", "still")
def test_what_is_frozen_stays() -> None:
    learners = make()
    before = []
    for learner in learners:
        learner.policy.embedding.requires_grad_(False)
        before.append(learner.policy.embedding[0].weight.clone())
    batch = SeedBatch(learners)
    batch.update(transitions())
    for learner, weight in zip(learners, before, strict=True):
        assert torch.equal(learner.policy.embedding[0].weight, weight)
        assert not torch.equal(learner.policy.conditioner.weight, weight)


def test_a_learner_that_went_on_alone_is_out_of_step() -> None:
    batch = SeedBatch(make())
    batch.update(transitions())
    batch.learners[1].update(part(transitions(), 1))
    with pytest.raises(ValueError, match="as many updates as each other, not .1, 2, 1"):
        batch.update(transitions())


@pytest.mark.usefixtures("still")
def test_it_moves_with_its_optimisers() -> None:
    batch, other = SeedBatch(make()), SeedBatch(make())
    for each in (batch, other):
        each.update(transitions())
    learner = copy.deepcopy(batch.learners[1])
    for moved in (batch, learner):
        moved.double()
    adam = learner.optimizer.state[learner.learnt[0]]
    assert adam["exp_avg"].dtype == torch.float64 and adam["step"] == 1
    given = transitions(1)
    doubled = ReplayBatch(*(field.double() for field in given))
    other.update(given)
    batch.update(doubled)
    learner.update(part(doubled, 1))
    assert learner.optimizer.state[learner.learnt[0]]["step"] == batch.learners[1].updates == 2
    assert_alike(learner, batch.learners[1])
    torch.testing.assert_close(batch.learners[2].log_alpha.float(), other.learners[2].log_alpha)


# Acting


@pytest.mark.usefixtures("still")
def test_it_acts_as_each_learner_does() -> None:
    learners = make()
    observations = np.random.default_rng(0).normal(size=(S, O)).astype(np.float32)
    expected = [learner.act(observation) for learner, observation in zip(learners, observations, strict=True)]
    np.testing.assert_allclose(SeedBatch(learners).act(observations), expected, rtol=1e-5)


def test_it_acts_with_the_latents_of_the_episodes() -> None:
    def upper() -> SoftActorCritic:
        return SoftActorCritic(FlowPolicy(O, A, squash=False), O, A, prior=GaussianPrior(A), fixed_latent=True)

    learners = [upper() for _ in range(S)]
    for seed, learner in enumerate(learners):
        learner.begin(seed)
    observations = np.zeros((S, O), np.float32)
    expected = [learner.act(observation) for learner, observation in zip(learners, observations, strict=True)]
    found = SeedBatch(learners).act(observations)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len({*found[:, 0].tolist()}) == S


# Compiled, and captured


@pytest.mark.usefixtures("float64", "still")
def test_compiled_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = (SeedBatch(make("soft Q-learning"), compile=compile) for compile in (False, True))
    for number in range(3):
        given = transitions(number)
        expected, found = plain.update(given), compiled.update(given)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    observations = np.ones((S, O))
    np.testing.assert_allclose(plain.act(observations), compiled.act(observations))
    assert_alike(compiled, plain)


def test_compiled_noise_is_of_each_learner_and_step() -> None:
    torch.compiler.reset()
    mixture = MixturePolicy(O, A, components=2, hidden=(8,))
    draw = torch.compile(torch.func.vmap(mixture.draw_component, randomness="different"), backend="aot_eager")
    condition = torch.zeros(2, 4000, 2 * (1 + 2 * A))
    condition[..., 0] = 1.0
    first, second = draw(condition), draw(condition)
    weight = torch.sigmoid(torch.tensor(1.0)).item()
    agreement = weight**2 + (1 - weight) ** 2
    for found, expected in (
        (first[0] == 0, weight),
        (first[1] == 0, weight),
        (first[0] == first[1], agreement),
        (first == second, agreement),
    ):
        assert abs(found.double().mean() - expected) < 4 * (0.25 / 4000) ** 0.5


def test_what_cannot_be_stacked_is_said() -> None:
    class Branching(GaussianPolicy):
        """Asks for a number, which is that of no one learner."""

        def draw(self, *args: Any, **given: Any) -> Any:
            actions, log_prob = super().draw(*args, **given)
            return (actions if log_prob.sum().item() < 1e9 else -actions), log_prob

    batch = SeedBatch([SoftActorCritic(Branching(O, A, hidden=(8,)), O, A, hidden=(8,)) for _ in range(2)])
    with pytest.raises(TypeError, match="what a Branching does cannot be stacked: vmap: "):
        batch.act(np.zeros((2, O)))


def test_what_cannot_be_compiled_is_said() -> None:
    batch = SeedBatch(make("splines"), compile=True)
    with pytest.raises(TypeError, match="torch cannot compile what a ZukoPolicy does: leave compile out"):
        batch.update(transitions())


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        pytest.skip("no C++ compiler")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler", "still")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, within torch
def test_the_compiler_makes_the_same_of_it() -> None:
    plain, compiled = SeedBatch(make()), SeedBatch(make(), compile=True)
    for number in range(3):
        given = transitions(number)
        plain.update(given)
        compiled.update(given)
    assert_alike(compiled, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.usefixtures("compiler", "still")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", [{"capture": True}, {"compile": True}, {"compile": True, "capture": True}], ids=str)
@pytest.mark.parametrize("kind", ["flow", "mixture of one", "soft Q-learning"])
def test_on_a_gpu_it_is_the_same(kind: str, options: dict[str, bool]) -> None:
    plain, other = SeedBatch(make(kind)), SeedBatch(make(kind), **options).to("cuda")
    observations = np.ones((S, O))
    for number in range(6):  # the first three are not played from a graph
        given = transitions(number)
        expected = plain.update(given)
        found = other.update(ReplayBatch(*(field.cuda() for field in given)))
        for name, value in expected.items():
            torch.testing.assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(other.act(observations), plain.act(observations), rtol=1e-3, atol=1e-4)
    assert_alike(other.to("cpu"), plain, rtol=1e-2, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_played_from_a_graph_noise_is_new() -> None:
    batch = SeedBatch(make(), capture=True).to("cuda")
    given = ReplayBatch(*(field.cuda() for field in transitions()))
    losses = [float(batch.update(given)["policy_loss"][0]) for _ in range(8)]
    actions = [batch.act(np.zeros((S, O))) for _ in range(8)]
    assert len({*losses}) == 8 and len({action.tobytes() for action in actions}) == 8
    assert len({*actions[-1][:, 0].tolist()}) == S


# Bad input


def test_what_cannot_be_stacked_is_refused() -> None:
    learner = make()[0]
    with pytest.raises(ValueError, match="a batch needs a learner at least"):
        SeedBatch([])
    with pytest.raises(TypeError, match="a Linear cannot be stacked: it is no SoftLearner"):
        SeedBatch([learner, torch.nn.Linear(1, 1)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="the same learner is in the batch twice"):
        SeedBatch([learner, learner])
    with pytest.raises(ValueError, match="or two share a policy or other weights"):
        SeedBatch([learner, SoftActorCritic(learner.policy, O, A, hidden=(8, 8))])
    frozen = make()[1]
    frozen.policy.embedding[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"differ in their policy.embedding.0.bias: .* True and .* False"):
        SeedBatch([learner, frozen])
    with pytest.raises(ValueError, match="differ in their log_alpha: torch.float32.* and torch.float64"):
        SeedBatch([learner, make()[1].double()])

    class Clipped(SoftActorCritic):
        def step(self, batch: ReplayBatch) -> dict[str, Tensor]:
            return super().step(batch)

    with pytest.raises(TypeError, match="the Clipped has its own step"):
        SeedBatch([Clipped(FlowPolicy(O, A), O, A)])
    with pytest.raises(ValueError, match=r"of one kind, these are\n.*lr=0.1.*\n.*lr=0.2"):
        SeedBatch([SoftActorCritic(FlowPolicy(O, A), O, A, lr=lr) for lr in (0.1, 0.2)])
    by_elbo = SoftActorCritic(FlowPolicy(O, A), O, A, prior=UniformPrior(A), gradient=pyro.infer.Trace_ELBO())
    with pytest.raises(TypeError, match="an elbo takes its step through Pyro"):
        SeedBatch([by_elbo])
    one, other = make()[:2]
    one.update(part(transitions(), 0))
    with pytest.raises(ValueError, match="as many updates as each other, not .1, 0"):
        SeedBatch([one, other]).update(ReplayBatch(*(field[:2] for field in transitions())))


def test_there_is_one_batch_and_one_observation_for_each_learner() -> None:
    batch = SeedBatch(make())
    given = transitions()
    with pytest.raises(ValueError, match=r"rewards must have shape \[3, B\], not \[8\]"):
        batch.update(part(given, 0))
    with pytest.raises(ValueError, match=r"rewards must have shape \[3, B\], not \[2, 8\]"):
        batch.update(ReplayBatch(*(field[:2] for field in given)))
    with pytest.raises(ValueError, match=r"observations must have shape \[3, 3\], not \[2, 3\]"):
        batch.act(np.zeros((2, O)))


# Learning

OPTIONS: dict[str, Any] = {"batch_size": 8, "replay": 500, "start": 10, "progress": False, "log_every": 5}


def small() -> Any:
    return SoftActorCritic(FlowPolicy(2, 2, hidden=(8,)), 2, 2, hidden=(8,))


def body() -> Any:
    return gymnasium.wrappers.TimeLimit(PointMove(positions=False), 7)


def batch_of(count: int = 2) -> SeedBatch:
    torch.manual_seed(5)
    return SeedBatch([small() for _ in range(count)])


def folders(path: Path, count: int = 2) -> list[Path]:
    return [path / f"seed-{number}" for number in range(count)]


def test_runs_have_episodes_and_replays_of_their_own(tmp_path: Path) -> None:
    told: list[tuple[str, int, dict[str, float]]] = []
    results = learn_together(
        batch_of(),
        [body(), body()],
        seeds=[3, 4],
        outs=folders(tmp_path),
        evaluates=[lambda step, n=n: {"number": n, "step": step} for n in (1.0, 2.0)],  # type: ignore[misc]
        steps=20,
        evaluate_every=10,
        on_evaluation=lambda step, values: told.append(("evaluation", step, values)),
        log=lambda step, values: told.append(("log", step, values)),
        **OPTIONS,
    )
    evaluations = [(step, values) for kind, step, values in told if kind == "evaluation"]
    assert evaluations[2:] == [(20, {"seed": 2.0 + n, "number": n, "step": 20.0}) for n in (1.0, 2.0)]
    for result, seed in zip(results, (3, 4), strict=True):
        logged = [(step, values["return"]) for _, step, values in told if values["seed"] == seed and "return" in values]
        assert logged == result.returns
    assert [result.step for result in results] == [20, 20]
    assert [[step for step, _ in result.returns] for result in results] == [[7, 14]] * 2
    assert results[0].returns != results[1].returns and results[0].losses != results[1].losses
    assert [result.evaluations[-1] for result in results] == [(20, {"number": n, "step": 20.0}) for n in (1.0, 2.0)]
    # Until the first update, what a run meets depends on its own seed and the noise: its first observation on the seed.
    alone = tmp_path / "alone"
    learn(small(), body(), seed=4, out=alone, steps=5, **OPTIONS)
    first = [np.fromfile(path / "replay-0.bin", np.float32)[:2] for path in (alone, folders(tmp_path)[1])]
    np.testing.assert_array_equal(*first)


def test_stopped_runs_come_to_the_same_bits(tmp_path: Path) -> None:
    def run(out: Path, *steps: int) -> SeedBatch:
        for number in steps:
            batch = batch_of()
            given = {"seeds": [0, 1], "outs": folders(out), "steps": number, "checkpoint_every": 5}
            learn_together(batch, [body(), body()], **given, **OPTIONS)
        return batch

    whole, stopped = run(tmp_path / "whole", 33), run(tmp_path / "stopped", 5, 19, 33)
    assert_alike(stopped, whole, rtol=0, atol=0)
    assert stopped.learners[0].updates == 23


def test_any_learners_learn_together_one_after_the_other() -> None:
    def runs(batch: Any) -> Any:
        batch = batch([*batch_of().learners])
        return [result.losses for result in learn_together(batch, [body(), body()], seeds=[0, 1], steps=30, **OPTIONS)]

    assert [len(losses) for losses in runs(list)] == [4, 4]
    assert runs(list) != runs(SeedBatch)  # their noise is another


def test_a_checkpoint_holds_its_own_run_alone(tmp_path: Path) -> None:
    learn_together(
        batch_of(4), [body() for _ in range(4)], seeds=range(4), outs=folders(tmp_path, 4), steps=15, **OPTIONS
    )
    learn(small(), body(), out=tmp_path / "alone", steps=15, **OPTIONS)
    sizes = [(path / "checkpoint.pt").stat().st_size for path in (*folders(tmp_path, 4), tmp_path / "alone")]
    assert max(sizes) < 1.1 * sizes[-1]
    taken = small()
    checkpoint.load_checkpoint(folders(tmp_path, 4)[2] / "checkpoint.pt", taken)
    assert taken.updates == 5


class Breaks(gymnasium.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: Any, after: int) -> None:
        super().__init__(env)
        self.left = after

    def step(self, action: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the simulator gave up")
        return super().step(action)


def test_where_one_environment_raises_all_keep_what_they_have(tmp_path: Path) -> None:
    given: dict[str, Any] = {"seeds": [0, 1], "outs": folders(tmp_path)} | OPTIONS
    with pytest.raises(RuntimeError, match="the simulator gave up") as caught:
        learn_together(batch_of(), [body(), Breaks(body(), 12)], steps=20, **given)
    assert caught.value.__notes__ == [
        f"at step 13, episode 1; {folders(tmp_path)[1] / 'checkpoint.pt'} holds all steps before"
    ]
    results = learn_together(batch_of(), [body(), body()], steps=20, **given)
    assert [[step for step, _ in result.returns] for result in results] == [[7, 19]] * 2


def test_runs_that_were_not_together_are_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {"outs": folders(tmp_path), "steps": 15} | OPTIONS
    envs = [body(), body()]
    learn_together(batch_of(), envs, seeds=[0, 1], **given)
    with pytest.raises(ValueError, match=r"was made with together=\[0, 1\], not None"):
        learn(small(), body(), seed=1, out=folders(tmp_path)[1], steps=15, **OPTIONS)
    with pytest.raises(ValueError, match=r"was made with together=\[0, 1\], not \[1, 0\]"):
        learn_together(batch_of(), envs, seeds=[1, 0], **given)
    shutil.rmtree(folders(tmp_path)[1])
    with pytest.raises(ValueError, match="must be at one step, not .*seed-0 at 15, .*seed-1 at 0; pass resume=False"):
        learn_together(batch_of(), envs, seeds=[0, 1], **given)
    assert not folders(tmp_path)[1].exists()


def test_there_is_one_of_everything_for_each_learner() -> None:
    one = body()
    for message, given in {
        "there are 2 learners and 1 envs": {"envs": [one], "seeds": [0, 1]},
        "there are 2 learners and 3 seeds": {"envs": [one, body()], "seeds": [0, 1, 2]},
        "there are 2 learners and 1 outs": {"envs": [one, body()], "seeds": [0, 1], "outs": ["here"]},
        "two of the envs are the same": {"envs": [one, gymnasium.wrappers.TimeLimit(one, 3)], "seeds": [0, 1]},
        "two of the seeds are the same": {"envs": [one, body()], "seeds": [1, 1]},
        "two of the outs are the same": {"envs": [one, body()], "seeds": [0, 1], "outs": ["here", "here/"]},
        "steps must be at least 1, not 0": {"envs": [one, body()], "seeds": [0, 1], "steps": 0},
    }.items():
        with pytest.raises(ValueError, match=message):
            learn_together(batch_of(), **given)
    with pytest.raises(TypeError, match="batch must be a SeedBatch or a list of learners, not SoftActorCritic"):
        learn_together(small(), [one], seeds=[0])
    learner = small()
    with pytest.raises(ValueError, match="two of the learners are the same"):
        learn_together([learner, learner], [one, body()], seeds=[0, 1])
    with pytest.raises(TypeError, match="a SeedBatch is several learners: give it to learn_together"):
        learn(batch_of(), one)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be a whole number, not 0.5"):
        learn_together(batch_of(), [one, body()], seeds=[0.5, 1.0])  # type: ignore[list-item]


def test_learners_out_of_step_leave_nothing(tmp_path: Path) -> None:
    batch = batch_of()
    batch.learners[0].updates = 3
    with pytest.raises(ValueError, match="as many updates as each other"):
        learn_together(batch, [body(), body()], seeds=[0, 1], outs=folders(tmp_path), steps=5, **OPTIONS)
    assert not [*tmp_path.iterdir()]


def test_states_are_loaded_where_the_learner_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a module moves no optimiser's state: what is loaded has to come after."""
    given: dict[str, Any] = {"out": tmp_path, "device": "cpu"} | OPTIONS
    learn(small(), body(), steps=15, **given)
    learner, moved = small(), []
    monkeypatch.setattr(learner, "to", lambda device: moved.append(len(learner.optimizer.state)))
    learn(learner, body(), steps=16, **given)
    assert moved == [0] and learner.updates == 6


def test_checkpoints_are_written_for_all_or_none(tmp_path: Path) -> None:
    old = {"step": 1}
    checkpoint.write_all({tmp_path / name: old for name in ("a.pt", "b.pt")})
    with pytest.raises(OSError):
        checkpoint.write_all({tmp_path / "a.pt": {"step": 2}, tmp_path / "a.pt" / "b.pt": {"step": 2}})
    synced, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError("no space left")
        synced(descriptor)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, "fsync", full)
        checkpoint.write_all({tmp_path / name: {"step": 2} for name in ("a.pt", "b.pt")})
    assert [checkpoint.read(tmp_path / name)["step"] for name in ("a.pt", "b.pt")] == [1, 1]
    assert len([*tmp_path.iterdir()]) == 2


# Level by level


def two_levels(out: Path, *, seeds: tuple[int, ...] = (0, 1), **given: Any) -> list[Any]:
    def learner(level: int, observations: int, actions: int) -> Any:
        prior = GaussianPrior(actions) if level else None
        policy = FlowPolicy(observations, actions, hidden=(8,), squash=level == 0)
        return SoftActorCritic(policy, observations, actions, hidden=(8,), prior=prior)

    return train_stagewise_together(
        [body, body],
        learner,
        15,
        seeds=seeds,
        embed=LatentActionEnv,
        outs=[out / f"seed-{seed}" for seed in seeds],
        **OPTIONS | given,
    )


def test_every_seed_gets_a_hierarchy_of_its_own(tmp_path: Path) -> None:
    seen: list[list[Any]] = []

    def evaluate(policies: list[Any]) -> Any:
        seen.append(policies)
        return lambda step: {"levels": len(policies)}

    results = two_levels(tmp_path, evaluate=evaluate)
    assert [len(result.policies) for result in results] == [2, 2]
    assert seen == [[result.policies[0]] for result in results] + [result.policies for result in results]
    assert [result.results[1].evaluations for result in results] == [[(15, {"levels": 2.0})]] * 2
    weights = [next(result.policies[0].parameters()) for result in results]
    assert not torch.equal(*weights)
    again = two_levels(tmp_path)  # from the checkpoints
    for one, two in zip(results, again, strict=True):
        for mine, theirs in zip(one.policies[1].parameters(), two.policies[1].parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_seeds_and_folders_go_together(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="every seed needs environments of its own"):
        train_stagewise_together([body()], lambda *_: small(), 5, seeds=[0, 1], embed=LatentActionEnv)
    with pytest.raises(ValueError, match="there are no seeds to train"):
        train_stagewise_together([body], lambda *_: small(), 5, seeds=[], embed=LatentActionEnv)
    with pytest.raises(ValueError, match=r"as many policies below, not \[1, 0\]"):
        train_stagewise_together(
            [body], lambda *_: small(), 5, seeds=[0, 1], embed=LatentActionEnv, below=[[small().policy], []]
        )
    for seeds, below, message in (
        ([0.5, 1.5], None, "seed must be a whole number, not 0.5"),
        ([0, 1], small().policy, "below must be a list of policies, not a FlowPolicy"),
        ([0, 1], [small().policy] * 2, "below must be a list of policies, not a FlowPolicy"),
    ):
        given: dict[str, Any] = {"seeds": seeds, "below": below}
        with pytest.raises(TypeError, match=message):
            train_stagewise_together([body], lambda *_: small(), 5, embed=LatentActionEnv, **given)
    with pytest.raises(ValueError, match="there are 2 seeds and 1 outs"):
        train_stagewise_together([body], lambda *_: small(), 5, seeds=[0, 1], embed=LatentActionEnv, outs=[tmp_path])
