"""Memory beyond the laws that every process obeys (in test_process.py): what its steps are, and that it is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from pyrocontrol.models import DiscreteMemory, GaussianMemory, Memory, MemoryContext, Process, Sequence
from pyrocontrol.models.policies.memory import make_memory
from pyrocontrol.models.process import Steps

KINDS: dict[str, type[Memory]] = {"discrete": DiscreteMemory, "gaussian": GaussianMemory}
every = pytest.mark.parametrize("kind", KINDS)


def context(steps: tuple[int, ...] = (5, 3)) -> MemoryContext:
    return MemoryContext(torch.randn(len(steps), max(steps), 2), torch.tensor(steps))


def steps_along(memory: Memory, z: torch.Tensor, given: MemoryContext) -> Steps:
    return Sequence(memory, given, given.features.shape[1]).steps(z)


def test_discrete_memory_is_an_input_output_hidden_markov_model() -> None:
    memory, given = DiscreteMemory(2, 3, (4,)), context((5,))
    z = torch.tensor([[2, 0, 0, 1, 2]])
    output = memory.transition(memory.network(given.features[0])).reshape(5, 4, 3)
    rows = [output[t, 3 if t == 0 else int(z[0, t - 1])] for t in range(5)]
    torch.testing.assert_close(steps_along(memory, z, given).conditional.logits[0], torch.stack(rows).log_softmax(-1))


def test_gaussian_memory_is_gated() -> None:
    memory, given = GaussianMemory(2, 3, (4,)), context((5,))
    z = torch.randn(1, 5, 3)
    previous = torch.cat([torch.zeros(1, 3), z[0, :-1]])
    gate, content, raw = memory.output(memory.network(torch.cat([given.features[0], previous], -1))).split(3, -1)
    gate = gate.sigmoid() * (torch.arange(5) > 0).unsqueeze(-1)
    found = steps_along(memory, z, given).conditional
    torch.testing.assert_close(found.mean[0], gate * previous + (1 - gate) * content)
    torch.testing.assert_close(found.stddev[0], 1e-3 + F.softplus(raw))


@pytest.mark.parametrize("draw", ["sample", "mode"])
def test_a_walk_by_table_is_the_walk_step_by_step(draw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, given = DiscreteMemory(2, 4, (3,), keep=0.0), context((5, 3, 1))
    with torch.no_grad():
        memory.transition.weight.mul_(5)
    sequence = Sequence(memory, given, 5)
    if draw == "mode":
        found = sequence.greedy()
        monkeypatch.setattr(DiscreteMemory, "walk", Process.walk)
        assert torch.equal(found, sequence.greedy())
        return
    draws = 30_000
    found = sequence.sample((draws,))
    assert found.shape == (draws, 3, 5) and (found[:, 1, 3:] == 0).all() and (found[:, 2, 1:] == 0).all()
    monkeypatch.setattr(DiscreteMemory, "walk", Process.walk)
    other = sequence.sample((draws,))
    for statistic in (lambda z: z, lambda z: z[..., 1:] * 4 + z[..., :-1]):  # states, and pairs of them
        counts = [F.one_hot(statistic(z), 20).double().mean(0) for z in (found, other)]
        assert (counts[0] - counts[1]).abs().max() < 5 * (0.5 / draws) ** 0.5


@every
def test_at_first_memory_is_kept(kind: str) -> None:
    torch.manual_seed(0)
    given = context((20,) * 50)
    kept = []
    for keep in (0.0, 3.0, 6.0):
        z = Sequence(KINDS[kind](2, 4, keep=keep), given, 20).sample()
        if kind == "discrete":
            kept.append(float((z[:, 1:] == z[:, :-1]).float().mean()))
        else:
            kept.append(float(torch.corrcoef(torch.stack([z[:, 1:].flatten(), z[:, :-1].flatten()]))[0, 1]))
    assert kept[0] < kept[1] < kept[2] and kept[1] > 0.8 and kept[2] > 0.95


@every
def test_memory_over_other_contexts_is_of_the_same_kind(kind: str) -> None:
    memory = KINDS[kind](2, 3, (5, 4), keep=1.5)
    other = memory.like(7)
    assert type(other) is type(memory) and (other.context_size, other.size) == (7, 3)
    assert (other.hidden, other.keep) == ((5, 4), 1.5)
    short, long = (MemoryContext(torch.zeros(2, 3, 1), torch.tensor(steps)) for steps in ([1, 2], [3, 3]))
    assert other.same_states(memory, short, short) and memory.same_states(other, long, long)
    assert not memory.same_states(other, short, long)
    assert not {id(p) for p in memory.parameters()} & {id(p) for p in other.parameters()}
    assert not memory.same_states(KINDS[kind](2, 4), short, short)


@every
def test_gradients_reach_every_parameter(kind: str) -> None:
    memory, other, given = KINDS[kind](2, 3, (5,)), KINDS[kind](2, 3, (5,)), context((5, 3))
    sequence = Sequence(memory, given, 5)
    z = sequence.sample()
    (sequence.log_prob(z).sum() + sequence.step_kl(Sequence(other, given, 5), z).sum()).backward()
    for parameter in [*memory.parameters(), *other.parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0
    if kind == "gaussian":
        memory.zero_grad()
        sequence.rsample().sum().backward()
        assert memory.output.weight.grad is not None and memory.output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_memory("episodic", 2, 3, ()), "memory must be one of discrete, gaussian, got 'episodic'"),
        (lambda: DiscreteMemory(2, 0), "must be positive, got 0"),
        (lambda: GaussianMemory(2, -1), "must be positive, got -1"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Memory], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_signatures_tell_memories_apart() -> None:
    memories = [kind(2, size, hidden) for kind in KINDS.values() for size in (2, 3) for hidden in ((4,), (4, 4), ())]
    assert len({memory.signature() for memory in memories}) == len(memories)
    assert DiscreteMemory(2, 3, [4]).signature() == DiscreteMemory(2, 3, (4,)).like(5).signature()
