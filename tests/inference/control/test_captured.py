"""A step played from a record, on a CPU: kernels are written down as they run, and called again at the same addresses.

A CUDA graph keeps kernels and addresses, not Python. So does the record here: it holds every operation of torch with
the very tensors that it read and wrote, refuses what would wait for a device, and plays them in order. What is tested
is that a learner's step is the same when it is played, which is all that a learner owes to a graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrocontrol.guides import FlowPolicy
from pyrocontrol.inference import SeedBatch, SoftActorCritic
from pyrocontrol.inference.control import captured, soft_control
from pyrocontrol.inference.control.captured import CapturedCall, CapturedStep
from pyrocontrol.inference.control.replay import ReplayBatch
from soft_learners import LEARNERS, assert_alike, learner_of, tensors, transitions


class Record(TorchDispatchMode):
    """Stands for a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        out = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            self.calls.append(
                (func, args, kwargs or {}, [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)])
            )
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, held in self.calls:
            for old, new in zip(held, tree_leaves(func(*args, **kwargs)), strict=False):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put the record in the place of CUDA's graphs; returns what names the learner, which recording must not change."""
    learners: list[Any] = []

    @contextlib.contextmanager
    def graph(record: Record) -> Iterator[None]:
        before = [(held, held.clone()) for held in tensors(learners[0])]
        noise = torch.get_rng_state()
        with record:
            yield
        torch.set_rng_state(noise)
        with torch.no_grad():
            for held, value in before:
                held.copy_(value)

    @contextlib.contextmanager
    def stream(_: Any) -> Iterator[None]:
        yield

    class Stream:
        def wait_stream(self, _: Any) -> None: ...

    monkeypatch.setattr(captured.torch.cuda, "CUDAGraph", Record)
    monkeypatch.setattr(captured.torch.cuda, "graph", graph)
    monkeypatch.setattr(captured.torch.cuda, "Stream", Stream)
    monkeypatch.setattr(captured.torch.cuda, "stream", stream)
    monkeypatch.setattr(captured.torch.cuda, "current_stream", Stream)
    return learners.append


def pair(kind: str) -> tuple[Any, Any]:
    return learner_of(kind), learner_of(kind)


def assert_played(plain: Any, played: Any, batches: list[ReplayBatch]) -> None:
    """Updates on these batches return the same and come to the same, to the bit."""
    for number, batch in enumerate(batches):
        found = []
        for learner in (plain, played):
            torch.manual_seed(number)
            found.append(learner.update(batch))
        for key, value in found[0].items():
            torch.testing.assert_close(found[1][key], value, rtol=0, atol=0, msg=f"{key}, update {number}")
    assert_alike(played, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_played_step_is_the_step(name: str, recorder: Callable[[Any], None]) -> None:
    plain, played = pair(name)
    recorder(played)
    played.step = CapturedStep(played.step, played.optimizer)
    assert_played(plain, played, [transitions(16) for _ in range(8)])


def test_what_a_batch_acts_by_can_be_played(recorder: Callable[[Any], None]) -> None:
    plain, played = (SeedBatch(pair("flow")) for _ in range(2))
    stack = played._stacked()
    recorder(played)
    stack.draw = CapturedCall(stack.draw)
    for number in range(8):
        found = []
        for batch in (plain, played):
            torch.manual_seed(number)
            found.append(batch.act(np.full((2, 3), number / 4)))
        np.testing.assert_array_equal(found[1], found[0])


@pytest.mark.parametrize("name", ["flow", "mixture", "soft Q-learning"])
def test_a_played_step_of_a_batch_is_the_step(name: str, recorder: Callable[[Any], None]) -> None:
    plain, played = (SeedBatch(pair(name)) for _ in range(2))
    stack = played._stacked()
    recorder(played)
    stack.step = CapturedStep(stack._step)
    batches = [transitions(2, 16) for _ in range(8)]
    assert_played(plain, played, batches)


def test_what_a_played_step_returned_stays(recorder: Callable[[Any], None]) -> None:
    _, learner = pair("flow")
    recorder(learner)
    step = CapturedStep(learner.step, learner.optimizer)
    losses = [step(transitions(16))["critic_loss"] for _ in range(6)]
    values = [float(loss) for loss in losses]
    step(transitions(16))
    assert len({*values}) == 6 and [float(loss) for loss in losses] == values


def test_batches_keep_their_size(recorder: Callable[[Any], None]) -> None:
    _, learner = pair("flow")
    recorder(learner)
    step = CapturedStep(learner.step, learner.optimizer)
    for _ in range(5):
        step(transitions(16))
    with pytest.raises(ValueError, match=r"captured with a tensor \[16, 3\], not \[8, 3\]"):
        step(transitions(8))


class _OnGPU:
    is_cuda = True


def test_a_learner_plays_its_step_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def captured_step(step: Any, optimizer: Any) -> Any:
        made.append(step)
        return lambda batch: {}

    monkeypatch.setattr(soft_control, "CapturedStep", captured_step)
    gpu: Any = ReplayBatch(*[_OnGPU()] * 5)  # type: ignore[arg-type]
    learner = SoftActorCritic(FlowPolicy(3, 2), 3, 2, capture=True)
    learner.update(transitions(16))
    assert not made
    learner.update(gpu)
    learner.update(gpu)
    assert made == [learner.step] and learner.updates == 3
    # Both leave the addresses that were captured.
    learner.load_state_dict(learner.state_dict())
    learner.update(gpu)
    learner.to(torch.float64)
    learner.update(gpu)
    assert len(made) == 3
    kept = SoftActorCritic(FlowPolicy(3, 2), 3, 2)
    with pytest.raises(AttributeError):  # without capture the step is taken as it is, for which this is no batch
        kept.update(gpu)


def test_a_captured_checkpoint_goes_on_anywhere() -> None:
    plain, captured_too = pair("flow")
    captured_too.optimizer.param_groups[0]["capturable"] = True  # as capturing leaves it
    captured_too.update(transitions(16))
    plain.load_state_dict(captured_too.state_dict())
    torch.manual_seed(1)
    first = plain.update(transitions(16))
    torch.manual_seed(1)
    assert plain.updates == 2 and first == captured_too.update(transitions(16))
    assert (
        plain.signature()
        == SoftActorCritic(FlowPolicy(3, 2, hidden=(8,)), 3, 2, hidden=(8, 8), capture=True).signature()
    )
