"""Saving and loading: whatever this package makes comes back from one file, in another process, with the same outputs.

The module is imported by that process, too: there it loads the files and writes what came of them.
"""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

import pyrocontrol as pc
from pyrocontrol import _limits, _saved
from pyrocontrol import guides as g
from pyrocontrol import models as m
from pyrocontrol._saved import Saved, _kinds
from pyrocontrol.envs import bubble_sort
from pyrocontrol.guides.policies.image_policy import Convolutions
from pyrocontrol.inference import (
    DAC,
    SQIL,
    VMIL,
    Annealed,
    CoupledRandomNetworks,
    Discriminator,
    DrQ,
    FirstSoftActorCritic,
    Pathwise,
    ReplayBatch,
    Score,
    SequenceBatch,
    SoftActorCritic,
    SoftQLearning,
    SQILDrQ,
    StepwiseKL_ELBO,
    Temperature,
)
from pyrocontrol.inference.control.critics import Critics
from pyrocontrol.inference.control.drq import ImageCritics
from pyrocontrol.inference.training.optimized import Optimized
from pyrocontrol.models.dynamics import _Components

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
NAMED = spaces.Dict(place=spaces.Box(-1, 1, (2,), np.float32), mode=spaces.Discrete(2, start=1))
GOALS = spaces.Dict(
    {name: spaces.Box(-1, 1, (2,), np.float32) for name in ("observation", "achieved_goal", "desired_goal")}
)
BOX = spaces.Box(np.float32([-2, 0]), np.float32([2, 5]))
PAIR = torch.tensor([0, 1])
COMPONENTS = {"channels": 4, "features": 4, "dilations": [1, 2], "components": 2, "min_scale": 0.1}
TREE = "actions: left, right\nwalk -> step\nstep counts -> left, right"
OLD = Path(__file__).parent / "fixtures" / "version-0.1"


def demonstrations(observations: Any = VECTOR, actions: Any = BOX, seed: int = 0) -> Any:
    """Three traces of random steps."""
    observations, actions = copy.deepcopy(observations), copy.deepcopy(actions)
    observations.seed(seed), actions.seed(seed)

    def drawn(space: Any, count: int) -> Any:
        rows = [space.sample() for _ in range(count)]
        if isinstance(rows[0], dict):
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return np.stack(rows)

    episodes = [pc.envs.Episode(drawn(observations, n + 1), drawn(actions, n), truncated=True) for n in (4, 2, 5)]
    return pc.envs.Demonstrations.from_episodes(episodes, actions, observations)


class Wide(m.ReactivePolicy):
    """A user's policy: other arguments than its parent's, of all kinds."""

    not_saved = (*m.ReactivePolicy.not_saved, "rows")

    def __init__(
        self, width: int, *more: int, space: Any = VECTOR, shift: Any = 0.0, rows: Any = None, **options: Any
    ) -> None:
        super().__init__(space, spaces.Discrete(2, start=3), hidden=(width, *more), **options["policy"])
        self.shift, self.rest = torch.as_tensor(np.asarray(shift)), options

    def step(self, inputs: Tensor, state: Any, deterministic: bool) -> Any:
        return super().step(inputs + self.shift.sum().float(), state, deterministic)


class Twice(nn.Module):
    """An encoder that no file can hold."""

    groups = (22,)

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((22,), 2.0))

    def forward(self, observations: Tensor) -> Tensor:
        return self.factor * observations


class SavedTwice(Saved, Twice):
    """One that a file can hold."""


# What it is made of, what comes of it


def hierarchy(dtype: torch.dtype = torch.float32) -> pc.envs.Hierarchy:
    levels = [
        g.FlowPolicy(2, 3, hidden=(4,)).to(dtype),
        g.GaussianPolicy(2, 3, squash=False, hidden=(4,)).to(dtype),
    ]
    box = spaces.Box(np.float32([-2, -1, 0]), np.float32([2, 1, 5]))
    given: dict[str, Any] = {"observation_size": 5, "holds": [2], "fixed_latent": True, "action_space": box}
    return pc.envs.Hierarchy(levels, [slice(3, None), [4, 1]], **given)


def program(**options: Any) -> m.ControlProgram:
    return m.ControlProgram(bubble_sort.BUBBLE_SORT_TREE, 22, arg_size=1, hidden=(4,), **options)


def walk() -> m.ControlProgram:
    return m.ControlProgram(TREE, 3, hidden=(4,))


class Still(gymnasium.Env[Any, Any]):
    """Spaces, and nothing to do."""

    observation_space, action_space = VECTOR, spaces.Discrete(2, start=1)


def memories(**options: Any) -> m.LatentMemoryPolicy:
    return m.LatentMemoryPolicy(VECTOR, BOX, size=3, hidden=(4,), **options)


def cvae(**options: Any) -> m.TrajectoryCVAE:
    return m.TrajectoryCVAE(VECTOR, BOX, latent=2, hidden=(4,), **options)


def learner(kind: Any = SoftActorCritic, policy: Any = None, **options: Any) -> Any:
    policy = g.FlowPolicy(3, 2, hidden=(4,)) if policy is None else policy
    made = kind(policy, 3, 2, hidden=(4,), **options)
    made.update(transitions(made))
    return made


def imitator(kind: Any, **options: Any) -> Any:
    made = kind(g.FlowPolicy(3, 2, hidden=(4,)), demonstrations(), hidden=(4,), **options)
    made.update(transitions(made))
    return made


def of_images(kind: Any, *given: Any) -> Any:
    policy = g.ImagePolicy(PHOTO, BOX, frames=2, depth=2, features=3, hidden=(4,))
    made = kind(policy, *given, hidden=(4,))
    made.update(windows())
    return made


def windows() -> SequenceBatch:
    made = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, *PHOTO.shape), generator=made, dtype=torch.uint8)
    rewards = torch.rand(4, 3, generator=made)
    return SequenceBatch(images, torch.rand(4, 3, 2, generator=made), rewards, rewards > 2, 0 * rewards)


def aside(name: str) -> dict[str, Any]:
    """What no file of a learner holds."""
    shown = {"adversary": VECTOR, "SQIL": VECTOR, "SQIL from images": PHOTO, "VMIL": VECTOR}
    return {"demonstrations": demonstrations(shown[name])} if name in shown else {}


def watching(thing: Any) -> Any:
    """Updates of a copy, and what it does then."""
    copied = copy.deepcopy(thing)
    image = np.zeros(PHOTO.shape, np.uint8)
    return [copied.update(windows()), *(torch.as_tensor(copied.act(image)) for _ in range(2))]


def judging(thing: Any) -> Any:
    """Updates of a copy, and rewards."""
    copied = copy.deepcopy(thing)
    rows = numbers(thing, 4, 3)
    return [copied.update(rows, 2 * rows), copied.update(rows, rows + 1), copied.reward(rows)]


def rssm() -> m.LatentDynamics:
    return m.LatentDynamics(2, memory_size=4, latent_size=2, hidden=3)


def readings() -> m.Readings:
    made = m.Readings(VECTOR)
    made.standardize(np.arange(12.0).reshape(4, 3))
    return made


def driven(thing: Any) -> Any:
    return m.Driven(numbers(thing, 2, 3, 2))


def filtered(thing: Any) -> Any:
    return g.Filtered(numbers(thing, 2, 3, 2), numbers(thing, 2, 3, 4))


def started(thing: Any) -> Any:
    return m.Start(numbers(thing.policy, 5, 4), numbers(thing.policy, 5, 2))


def vmil() -> VMIL:
    policy = g.BeliefPolicy.observed(VECTOR, BOX, hidden=(4,), members=2)
    made = VMIL(policy, demonstrations(), length=3, pairs=4, hidden=(4,))
    made.update(sequences())
    return made


def sequences() -> SequenceBatch:
    made = torch.Generator().manual_seed(0)
    rewards = torch.rand(4, 3, generator=made)
    actions = torch.rand(4, 3, 2, generator=made)
    return SequenceBatch(torch.rand(4, 3, 3, generator=made), actions, rewards, rewards > 2, 0 * rewards)


def imitating(thing: Any) -> Any:
    """Updates of a copy, and what it does then."""
    copied = copy.deepcopy(thing)
    return [copied.update(sequences()), torch.as_tensor(copied.act(np.zeros(3, np.float32)))]


def transitions(thing: Any) -> Any:
    made = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(4, *shape, generator=made).to(precision(thing))

    return ReplayBatch(drawn(3), drawn(2), drawn(), drawn(3), 0 * drawn())


def precision(thing: Any) -> torch.dtype:
    return next((p.dtype for p in thing.parameters() if p.is_floating_point()), torch.float32)


def numbers(thing: Any, *shape: int) -> Tensor:
    count = math.prod(shape)
    return torch.linspace(-1, 1, count, dtype=precision(thing)).reshape(shape)


def acting(space: Any = VECTOR, **given: Any) -> Callable[[Any], Any]:
    """Actions, greedy and random, of a batch and of what follows."""

    def run(thing: Any) -> Any:
        seen = copy.deepcopy(space)
        seen.seed(0)
        observation, state, taken = seen.sample(), None, []
        for deterministic in (True, False, True):
            action, state = thing.predict(observation, state, None, deterministic, **given)
            taken.append(torch.as_tensor(action))
        return taken

    return run


def normalised(thing: Any) -> Any:
    return [torch.as_tensor(thing.act(numbers(thing, 4, 2), greedy)) for greedy in (True, False)]


def called(*shapes: tuple[int, ...]) -> Callable[[Any], Any]:
    """What a module makes of numbers."""

    def run(thing: Any) -> Any:
        made = thing(*(numbers(thing, *shape) for shape in shapes))
        return made if isinstance(made, Tensor) else [made.sample(), made.log_prob(made.sample())]

    return run


def encoding(thing: Any) -> Any:
    made = thing(numbers(thing, 2, 4, 3), torch.tensor([4, 3]))
    return made if isinstance(made, Tensor) else made.sample()


def walked(context: Callable[[Any], Any], horizon: int) -> Callable[[Any], Any]:
    """A walk of a process and its density."""

    def run(thing: Any) -> Any:
        sequence = m.Sequence(thing, context(thing), horizon)
        z = sequence.sample()
        return [z, sequence.log_prob(z)]

    return run


def remembering(thing: Any) -> Any:
    return m.MemoryContext(numbers(thing, 2, 3, 4), torch.tensor([3, 2]))


def moving(thing: Any) -> Any:
    return m.DynamicsContext(numbers(thing, 2, 2), numbers(thing, 2, 3), torch.tensor([3, 3]))


def calling(thing: Any) -> Any:
    return m.CallStackContext(numbers(thing, 2, 4, 3), numbers(thing, 2, 0))


def learning(thing: Any) -> Any:
    """Updates of a copy, so that the optimiser's state counts."""
    copied = copy.deepcopy(thing)
    return [
        copied.update(transitions(copied)),
        copied.update(transitions(copied)),
        torch.as_tensor(copied.act(np.zeros((2, 3)))),
    ]


def explaining(demos: Callable[[], Any]) -> Callable[[Any], Any]:
    """What a guide draws for demonstrations, and the model's density of it."""

    def run(thing: Any) -> Any:
        data, posterior = demos(), thing.posterior(demos())
        z = posterior.sample()
        of = next(getattr(thing, name) for name in ("program", "policy", "skills") if hasattr(thing, name))
        prior = of.prior(len(data)) if isinstance(of, m.TrajectoryCVAE) else of.prior(data)
        return [z, posterior.log_prob(z), prior.log_prob(z)]

    return run


def sorting() -> Any:
    return bubble_sort.demonstrations(3, seed=0)


def squashed() -> m.Head:
    return m.SquashedHead(4, BOX.low, BOX.high, min_scale=0.1)


CHOICE = spaces.Discrete(2, start=1)
FIVE = spaces.Box(-1, 1, (5,), np.float32)
IMAGE = spaces.Box(0, 255, (8, 8), np.uint8)
PHOTO = spaces.Box(0, 255, (16, 16, 1), np.uint8)
LIT = spaces.Box(np.float32([1, 0, 0, 0]), np.float32([1, 0, 0, 0]))

CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    # controllers
    "reactive": (lambda: m.ReactivePolicy(NAMED, CHOICE, normalize=demonstrations(NAMED, CHOICE)), acting(NAMED)),
    "squashed": (lambda: m.ReactivePolicy(VECTOR, BOX, hidden=[4], head=squashed()).double(), acting()),
    "choices": (lambda: m.ReactivePolicy(VECTOR, spaces.MultiDiscrete([2, 3])).eval(), acting()),
    "a user's": (lambda: Wide(4, 3, shift=np.arange(3), rows=object(), policy={"activation": "relu"}, x=[2]), acting()),
    "seeing": (lambda: m.ReactivePolicy(IMAGE, BOX, encoder=m.ObservationEncoder(IMAGE, features=3)), acting(IMAGE)),
    "goals": (lambda: m.GoalConditionedPolicy(GOALS, BOX, 2, head="mixture"), acting(GOALS)),
    "recurrent": (lambda: m.RecurrentPolicy(VECTOR, BOX, cell="gru", see_previous_action=True), acting()),
    "memory": (lambda: memories(memory=m.GaussianMemory(3, 2, keep=1.0)), acting()),
    "skills": (lambda: cvae(axis=m.MLPDynamics(3, 2, hidden=(4,))), acting()),
    "skill": (lambda: cvae().acting(torch.tensor([0.3, -2.0])), acting()),
    "baseline": (lambda: m.RecurrentController(22, 5, hidden=4, layers=1), lambda thing: thing.logits(sorting())),
    "program": (lambda: program(sparsity=0.1, num_traces=5), lambda thing: thing.greedy_actions(sorting())),
    "program in a space": (lambda: walk().within(Still()), acting()),
    "flow": (lambda: g.FlowPolicy(2, 2, units=3, hidden=(4,)), normalised),
    "flow of the paper": (lambda: g.FlowPolicy.paper(2, 2, hidden=(4,)).double(), normalised),
    "gaussian": (lambda: g.GaussianPolicy(2, 2, hidden=(4,)), normalised),
    "mixture": (lambda: g.MixturePolicy(2, 2, components=3, hidden=(4,)), normalised),
    "spline": (lambda: pytest.importorskip("zuko") and g.ZukoPolicy(2, 2, hidden=(4,), units=(4,)), normalised),
    "hierarchy": (hierarchy, acting(FIVE)),
    "double hierarchy": (lambda: hierarchy(torch.float64), acting(FIVE)),
    "teacher of the pole": (lambda: pc.envs.CartPoleTeacher(position_weight=2.0), acting(spaces.Box(-1, 1, (4,)))),
    "teacher of the lane": (pc.envs.LaneTeacher, acting(spaces.Box(-1, 1, (16,)))),
    "teacher of the maze": (pc.envs.TMazeTeacher, acting(LIT)),
    "teacher of the point": (lambda: pc.envs.PointTeacher("push", steps=20), acting(FIVE)),
    # guides and encoders
    "guide of calls": (lambda: g.CallStackGuide(program(encoder=SavedTwice()), "lstm"), explaining(sorting)),
    "guide of memory": (lambda: g.MemoryGuide(memories(), g.TransformerEncoder(5, 4)), explaining(demonstrations)),
    "guide of skills": (lambda: g.TrajectoryGuide(cvae(), pooling="mean"), explaining(demonstrations)),
    "trajectory": (lambda: g.TrajectoryEncoder(3, 2, "mlp", encoder_size=4), encoding),
    "each step": (lambda: g.MLPEncoder(3, 4), encoding),
    "forwards": (lambda: g.LSTMEncoder(3, 4), encoding),
    "both ways": (lambda: g.BiLSTMEncoder(3, 4), encoding),
    "attention": (lambda: g.TransformerEncoder(3, hidden=4, layers=1), encoding),
    "fields": (lambda: m.FieldEncoder([("digit", 2), (None, 1), ("digit", 2)], embed=2), called((4, 5))),
    "images": (lambda: m.ObservationEncoder(IMAGE, "cnn", features=3), called((4, 64))),
    "a user's encoder": (SavedTwice, called((4, 22))),
    # heads, processes and networks
    "categorical head": (lambda: m.CategoricalHead(4, 3), called((2, 4))),
    "head of choices": (lambda: m.MultiCategoricalHead(4, np.array([2, 3])), called((2, 4))),
    "gaussian head": (lambda: m.GaussianHead(4, 2, shared=True), called((2, 4))),
    "deterministic head": (lambda: m.DeterministicHead(4, size=2), called((2, 4))),
    "additive head": (lambda: m.AdditiveHead(4, 2, common=1, apart=True), called((2, 4))),
    "mixture head": (lambda: m.MixtureHead(4, 2, components=2), called((2, 4))),
    "squashed head": (squashed, called((2, 4))),
    "discrete memory": (lambda: m.DiscreteMemory(4, 3, (2,), code=2.0), walked(remembering, 3)),
    "gaussian memory": (lambda: m.GaussianMemory(4, 3, keep=1.0), walked(remembering, 3)),
    "dynamics in time": (lambda: m.WaveNetDynamics(3, 2, channels=4, dilations=(1, 2)), walked(moving, 3)),
    "additive dynamics": (lambda: m.AdditiveDynamics(3, 2, horizon=5, basis=4), walked(moving, 3)),
    "skills with names": (lambda: cvae(axis=m.AdditiveDynamics(3, 2), names=("a", "b")), acting()),
    "markov dynamics": (lambda: m.MLPDynamics(3, 2, residual=True), walked(moving, 3)),
    "component dynamics": (lambda: m.ComponentDynamics(3, 2, channels=4, features=4), walked(moving, 3)),
    "components": (lambda: _Components(3, 2, **COMPONENTS), lambda thing: [*thing.parameters()]),
    "call stack": (lambda: m.CallStack(m.ProcedureTree.parse(TREE), 3).double(), walked(calling, 40)),
    "networks": (lambda: m.ProcedureNetworks(2, 3, (4,), 2, "tanh"), lambda thing: thing(numbers(thing, 2, 3), PAIR)),
    "wavenet": (lambda: m.WaveNet(3, 4, condition=2, dilations=[1, 2]), called((2, 4, 3), (2, 2))),
    # control
    "optimality": (lambda: m.OneStepOptimality(Critics(3, 2), m.UniformPrior(2), 0.5), lambda thing: thing.alpha),
    "uniform prior": (lambda: m.UniformPrior(2), lambda thing: thing.log_prob(torch.zeros(4, 2))),
    "gaussian prior": (lambda: m.GaussianPrior(action_size=2), lambda thing: thing.log_prob(torch.zeros(4, 2))),
    "critics": (lambda: Critics(3, 2, hidden=[4], count=3), called((4, 3), (4, 2))),
    "actor-critic": (lambda: learner(prior=m.UniformPrior(2), value_range=(-3, 0.0)), learning),
    "first form": (lambda: learner(FirstSoftActorCritic, g.MixturePolicy(3, 2, hidden=(4,)).double()), learning),
    "by paths": (lambda: learner(gradient=Pathwise(2), temperature=Temperature.learned(0.5)), learning),
    "temperature": (lambda: Temperature.fixed(0.2), lambda thing: torch.tensor(thing.initial)),
    "pathwise": (lambda: Pathwise(2), lambda thing: torch.tensor(thing.draws)),
    "score": (lambda: Score(), lambda thing: torch.tensor(thing.draws)),
    "q-learning": (lambda: learner(SoftQLearning, particles=4), learning),
    "critics of images": (
        lambda: ImageCritics(Convolutions((16, 16, 1), 2, 2), 3, 2, (4,)),
        called((4, 2, 16, 16, 1), (4, 2)),
    ),
    "convolutions": (lambda: Convolutions((16, 16, 1), frames=2, depth=2), called((4, 2, 16, 16, 1))),
    "policy of images": (lambda: g.ImagePolicy(PHOTO, BOX, depth=2, features=3, hidden=(4,)), acting(PHOTO)),
    "from images": (lambda: of_images(DrQ, 256, 2), watching),
    # world models
    "latent dynamics": (
        lambda: m.LatentDynamics(2, memory_size=4, latent_size=2, hidden=3, classes=2),
        walked(driven, 3),
    ),
    "observed dynamics": (lambda: m.ObservedDynamics(3, 2, hidden=(4,), members=2), walked(driven, 3)),
    "filtering": (lambda: g.FilteringPosterior(rssm(), 4), walked(filtered, 3)),
    "imagination": (lambda: m.Imagination(rssm(), g.GaussianPolicy(6, 2, hidden=(4,))), walked(started, 3)),
    "imagined optimality": (
        lambda: m.ImaginedOptimality(rssm(), Critics(6, 2), prior=m.UniformPrior(2), horizon=3),
        lambda thing: torch.tensor(thing.horizon),
    ),
    "encoder of vectors": (lambda: m.VectorEncoder(3, 4), called((4, 3))),
    "decoder of vectors": (lambda: m.VectorDecoder(3, 4, hidden=5), called((2, 4, 3))),
    "encoder of images": (lambda: m.ImageEncoder(1, depth=1), called((2, 64, 64, 1))),
    "decoder of images": (lambda: m.ImageDecoder(3, 1, depth=1), called((2, 4, 3))),
    "readings": (readings, lambda thing: thing(torch.linspace(-1, 1, 12).reshape(4, 3))),
    "world model": (
        lambda: m.WorldModel(rssm(), m.VectorDecoder(6, 3, hidden=4)),
        lambda thing: thing(numbers(thing, 2, 4, 3), numbers(thing, 2, 4, 2)),
    ),
    "guide of a world": (
        lambda: g.FilteringGuide(m.WorldModel(rssm(), m.VectorDecoder(6, 3)), m.VectorEncoder(3, 4), 4, trace="lstm"),
        lambda thing: thing.posterior(numbers(thing, 2, 4, 3), numbers(thing, 2, 4, 2)).sample(),
    ),
    "beliefs": (lambda: g.BeliefPolicy.latent(VECTOR, BOX, memory_size=4, latent_size=2, hidden=4), acting()),
    "VMIL": (vmil, imitating),
    # from demonstrations
    "annealed": (lambda: Annealed(0.3, 0.0, 5), lambda thing: torch.tensor(thing(2))),
    "discriminator": (lambda: Discriminator(3, hidden=(4,), noise=Annealed(0.3, 0, 5), spectral_norm=True), judging),
    "random networks": (lambda: CoupledRandomNetworks(3, hidden=(4,), embedding=2).double(), judging),
    "adversary": (lambda: imitator(DAC, evidence=CoupledRandomNetworks(5, hidden=(4,)), inputs="sa"), learning),
    "SQIL": (lambda: imitator(SQIL), learning),
    "SQIL from images": (lambda: of_images(SQILDrQ, demonstrations(PHOTO)), watching),
}
ABSTRACT = (
    "Acting ActionDriven ActionPolicy DemonstratedActorCritic DirectPolicy Dynamics Head LatentPolicy LearntEvidence "
    "Memory Optimized Policy Process SoftLearner TraceEncoder _NormalDynamics _Prior"
)


def outputs(name: str, thing: Any) -> Any:
    torch.manual_seed(0)
    np.random.seed(0)
    with torch.set_grad_enabled(isinstance(thing, Optimized | VMIL)):
        return CASES[name][1](thing)


def serve(folder: str) -> None:
    """In another process: load every file, and write what comes of what is in it."""
    torch.set_num_threads(1)
    found = {}
    for name in CASES:
        if (path := Path(folder) / f"{name}.pt").exists():
            torch.manual_seed(7)  # not that of the weights
            found[name] = outputs(name, pc.load(path, **aside(name)))
    torch.save(found, Path(folder) / "outputs.pt")


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What came here, what came in another process, and the objects."""
    folder, things, here = tmp_path_factory.mktemp("saved"), {}, {}
    for name, (make, _) in CASES.items():
        torch.manual_seed(len(name))
        try:
            things[name] = make()
        except pytest.skip.Exception:
            continue
        things[name].save(folder / f"{name}.pt", without=aside(name))
        here[name] = outputs(name, things[name])
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", f"import test_saved; test_saved.serve({str(folder)!r})"]
    process = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    there = torch.load(folder / "outputs.pt", weights_only=True)
    yield {name: (things[name], here[name], there[name]) for name in things}
    shutil.rmtree(folder)


def test_every_class_that_can_be_saved_is_in_the_table(served: dict[str, Any]) -> None:
    own = {kind.__name__ for kind in _kinds(Saved) if kind.__module__.split(".")[0] == "pyrocontrol"}
    there = {type(thing).__name__ for thing, _, _ in served.values()}
    zuko = set() if "spline" in served else {"ZukoPolicy"}
    assert own - {*ABSTRACT.split()} - zuko == there - {"Wide", "SavedTwice"}


@pytest.mark.parametrize("name", CASES)
def test_what_is_loaded_in_another_process_does_the_same(name: str, served: dict[str, Any]) -> None:
    if name not in served:
        pytest.skip("its extra is not installed")
    thing, here, there = served[name]
    same(there, here)
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    for again in (
        copy.deepcopy(thing), pickle.loads(pickle.dumps(thing)), torch.load(file, weights_only=False)
    ):  # fmt: skip
        same(outputs(name, again), here)


# After training, by whatever trains


def svi(model: Any, guide: Any, data: Any, elbo: Any = None) -> Callable[[], Any]:
    trained = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO() if elbo is None else elbo)
    return lambda: trained.step(data)


def trained_policy() -> Any:
    policy = m.ReactivePolicy(VECTOR, BOX, hidden=(4,))
    return [policy], svi(policy.model, policy.guide, demonstrations())


def trained_program() -> Any:
    made = program()
    guide, elbo = g.CallStackGuide(made, encoder_size=4), StepwiseKL_ELBO()
    return [guide, made, elbo, elbo(made, guide)], svi(made.model, guide, sorting(), elbo)


def trained_memory() -> Any:
    policy = memories()
    guide = g.MemoryGuide(policy, encoder_size=4)
    return [policy, guide], svi(policy, guide, demonstrations(), TraceGraph_ELBO())


def trained_skills() -> Any:
    skills, rng = cvae(), np.random.default_rng(0)
    episodes = [
        pc.envs.Episode(rng.normal(size=(3, 3)).astype(np.float32), np.ones((2, 2), np.float32), task=task)
        for task in np.eye(2, dtype=np.float32)
    ]
    data = pc.envs.Demonstrations.from_episodes(episodes, BOX)
    guide = g.TrajectoryGuide(skills, encoder_size=4)
    elbo = pc.inference.KLWeight("z", StepwiseKL_ELBO(), warmup=5)
    both = pc.inference.MutualInformation(skills, guide, data, ("a", "b"), names=("a", "b"), tuples=2)
    return [elbo, guide, both, skills.acting(torch.zeros(2)), elbo(both, guide)], svi(both.model, guide, data, elbo)


def trained_by_fit() -> Any:
    policy, data = m.RecurrentPolicy(VECTOR, BOX, hidden=4), demonstrations()
    made = SVI(policy.model, policy.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    steps = iter(range(1, 9))
    return [policy], lambda: pc.inference.fit(made, data, steps=next(steps), batch_size=2, progress=False)


def trained_elbo() -> Any:
    """Of functions, whose sites are in another order in the guide, which the ELBO remembers."""

    def model(data: Any) -> None:
        pyro.sample("one", dist.Normal(0.0, 1.0))
        pyro.sample("two", dist.Normal(0.0, 1.0))

    def guide(data: Any) -> None:
        pyro.sample("two", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
        pyro.sample("one", dist.Normal(0.0, 1.0))

    elbo = StepwiseKL_ELBO()
    return [elbo], svi(model, guide, None, elbo)


def trained_learner(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        made = learner(prior=m.UniformPrior(2), **options)
        made._captured = lambda batch: None  # on a GPU, a CUDA graph
        return [made, made.policy, made.critics], lambda: made.update(transitions(made))

    return make


def trained_together() -> Any:
    made = pc.inference.SeedBatch([learner(), learner()])
    batch = ReplayBatch(*(torch.stack([field, field]) for field in transitions(made)))
    return [made, made.learners[0].policy], lambda: made.update(batch)


def trained_levels() -> Any:
    made = learner(policy=g.FlowPolicy(3, 2, hidden=(4,)))
    optimality = m.UniformPrior(2).optimality(made.critics.value_of_frozen, 0.5)
    step = svi(optimality.model, optimality.guide_of(made.policy), torch.zeros(4, 3))
    step()
    box = spaces.Box(-np.ones(2, np.float32), np.ones(2, np.float32))
    return [pc.envs.Hierarchy([made.policy], action_space=box), made.policy, made], step


def trained_environment() -> Any:
    policy = g.FlowPolicy(4, 2, hidden=(4,))
    optimality = m.UniformPrior(2).optimality(lambda s, a: a.sum(-1), 0.5)
    step = svi(optimality.model, optimality.guide_of(policy), torch.zeros(4, 4))
    step()
    return [pc.envs.LatentActionEnv(TimeLimit(pc.envs.PointMaze(), 5), policy), policy], step


TRAINED = {
    "policy": trained_policy, "program": trained_program, "memory": trained_memory, "skills": trained_skills,
    "fit": trained_by_fit, "learner": trained_learner(), "elbo": trained_learner(gradient=StepwiseKL_ELBO()),
    "first": trained_learner(kind=FirstSoftActorCritic), "together": trained_together, "levels": trained_levels,
    "functions": trained_elbo,
    "environment": trained_environment,
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_what_was_trained_can_be_pickled_copied_and_trained_on(name: str) -> None:
    things, step = TRAINED[name]()
    for _ in range(2):
        step()
        for thing in things:
            file = io.BytesIO()
            torch.save(thing, file)
            file.seek(0)
            for again in (
                torch.load(file, weights_only=False),
                pickle.loads(pickle.dumps(thing)),
                copy.deepcopy(thing),
            ):
                assert type(again) is type(thing)
                if isinstance(thing, nn.Module):
                    same([*again.parameters()], [*thing.parameters()])


# One by one


class Both(Saved):
    """Two objects, of which one may hold the other."""

    def __init__(self, one: Any, other: Any = None) -> None:
        self.one, self.other = one, other


def test_what_two_share_stays_one(tmp_path: Path) -> None:
    made = program()
    Both(g.CallStackGuide(made), {"program": [made]}).save(tmp_path / "both.pt")
    both: Any = pc.load(tmp_path / "both.pt")
    assert both.one.program is both.other["program"][0]
    size = (tmp_path / "both.pt").stat().st_size
    Both(g.CallStackGuide(made)).save(tmp_path / "one.pt")
    assert size < 1.1 * (tmp_path / "one.pt").stat().st_size


def test_arguments_come_back_as_they_were(tmp_path: Path) -> None:
    given = [
        None, True, 3, -math.inf, "ä", (1, [2.5, {"a": (), 2: None}]), slice(1, None), range(3), torch.Size([2]),
        torch.float64, np.dtype(np.int16), torch.device("cpu"), NAMED, bubble_sort.BUBBLE_SORT_TREE,
        np.arange(6, dtype=np.int32).reshape(2, 3), torch.tensor([1.5], dtype=torch.float64),
    ]  # fmt: skip
    Both(given, other=np.float64(2.5)).save(tmp_path / "both.pt")
    both: Any = pc.load(tmp_path / "both.pt")
    for one, other in zip(both.one, given, strict=True):
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other) if isinstance(one, np.ndarray) else _equal(one, other)
    assert both.one[14].dtype == np.int32 and both.other == 2.5


def _equal(one: Any, other: Any) -> None:
    assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_what_is_kept_is_what_was_given(tmp_path: Path) -> None:
    """Not what the caller makes of it afterwards; and nothing of the data is kept."""
    hidden = [4]
    data = demonstrations(actions=spaces.Discrete(2))
    policy = m.ReactivePolicy(VECTOR, spaces.Discrete(2), hidden=hidden, normalize=data)
    array = np.zeros(2)
    both = Both(policy.eval(), array)
    hidden.append(5)
    array += 1
    both.save(tmp_path / "both.pt")
    again: Any = pc.load(tmp_path / "both.pt")
    assert again.one.hidden == (4,) and not again.one.training and again.other.tolist() == [0, 0]
    assert len(pickle.dumps(policy)) < 6000


def test_loading_changes_nothing_else(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)  # the fixture of all tests puts it back
    policy = m.ReactivePolicy(VECTOR, spaces.Box(-0.1, 0.3, (2,), np.float64), head="squashed")
    policy.save(tmp_path / "policy.pt")
    torch.set_default_dtype(torch.float32)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = pc.load(tmp_path / "policy.pt")
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert torch.get_default_dtype() == torch.float32 and precision(again) == torch.float64
    same(again.head.reach, policy.head.reach)  # which single precision would have rounded
    with pytest.raises(ValueError, match="device meta cannot be used"):
        pc.load(tmp_path / "policy.pt", device="meta")


def test_arguments_may_be_given_when_loading(tmp_path: Path) -> None:
    path, made = tmp_path / "program.pt", program(encoder=Twice())
    with torch.no_grad():
        made.encoder.factor.mul_(3)  # type: ignore[operator, union-attr]
    with pytest.raises(TypeError, match=r"argument encoder is a Twice.*inherit pyrocontrol.Saved.*without='encoder'"):
        made.save(path)
    with pytest.raises(TypeError, match=r"argument program.encoder is a Twice"):
        g.CallStackGuide(made).save(path)
    assert not [*tmp_path.iterdir()]
    made.save(path, without="encoder")
    with pytest.raises(ValueError, match=r"program.pt: it was saved without the argument encoder"):
        pc.load(path)
    assert pc.load(path, encoder=Twice()).encoder.factor.unique().tolist() == [6.0]
    g.CallStackGuide(made).save(path, without=["program.encoder"])
    assert isinstance(pc.load(path, **{"program.encoder": Twice()}, compile=True).program.encoder, Twice)
    with pytest.raises(ValueError, match="a CallStackGuide takes no argument 'encode'"):
        pc.load(path, **{"program.encoder": Twice()}, encode=1)
    with pytest.raises(ValueError, match="the ControlProgram was made without the argument 'encode'"):
        program().save(path, without="encode")
    with pytest.raises(TypeError, match=r"argument critic is a method"):
        m.OneStepOptimality(Critics(3, 2).value_of_frozen, m.UniformPrior(2)).save(path)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    policy: Any = m.ReactivePolicy(VECTOR, BOX, hidden=(4,))
    policy.network = nn.Identity()
    with pytest.raises(ValueError, match=r"not those of such a ReactivePolicy: Missing key.*network.0.weight"):
        policy.save(tmp_path / "policy.pt")
    policy = g.FlowPolicy(3, 2)
    nn.init.constant_(next(policy.parameters()), math.nan)
    with pytest.raises(ValueError, match=r"the weights .* of the FlowPolicy are NaN or infinite"):
        policy.save(tmp_path / "policy.pt")
    assert not [*tmp_path.iterdir()]
    for name in ("policy", "policy.v1", ".hidden"):  # torch reads a kind of file off a name
        m.UniformPrior(2).save(tmp_path / "new" / name)
        assert pc.load(tmp_path / "new" / name).action_size == 2
    with pytest.raises(OSError, match="director"):
        m.UniformPrior(2).save(tmp_path / "new")
    assert len([*(tmp_path / "new").iterdir()]) == 3 and len([*tmp_path.iterdir()]) == 1


def test_of_a_hierarchy_its_own_levels_are_saved(tmp_path: Path) -> None:
    policy = g.FlowPolicy(3, 2)
    levels = pc.envs.Hierarchy([policy])
    nn.init.constant_(next(policy.parameters()), math.nan)  # whoever goes on with the policy does not change them
    levels.save(tmp_path / "levels.pt")
    again = pc.envs.Hierarchy.load(tmp_path / "levels.pt")
    same(again.state_dict(), levels.state_dict())
    assert not again.levels[0].training and not any(weight.requires_grad for weight in again.parameters())


def test_a_class_that_was_not_imported_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.pt"

    def stranger() -> Any:
        class Stranger(g.FlowPolicy):
            pass

        return Stranger(3, 2)

    stranger().save(path)
    content = torch.load(path, weights_only=True)
    assert content["version"] == pc.__version__
    content["objects"][-1]["class"] = "robots.policies:Missing"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"policy.pt: it holds a Missing of robots.policies, .*import robots.policies"):
        pc.load(path)
    content["objects"][-1]["class"] = "pyrocontrol.elsewhere:FlowPolicy"  # a class that has moved is found
    torch.save(content, path)
    assert type(pc.load(path)) is g.FlowPolicy
    assert type(pc.load(path, "FlowPolicy")) is type(g.FlowPolicy.load(path)) is g.FlowPolicy
    for load in (lambda: m.Policy.load(path), lambda: pc.load(path, "Policy")):
        with pytest.raises(ValueError, match=r"policy.pt.* holds a FlowPolicy, not a Policy"):
            load()


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("went-off",)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """Change one bit of a weight."""
    whole = path.read_bytes()
    at = whole.index(torch.load(path, weights_only=True)["objects"][-1]["state"]["network.0.weight"].numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def edited(part: str, drop: str = "", **new: Any) -> Callable[[Path], None]:
    """Change the arguments or the state of what is saved, or the content of the file."""

    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        entry = content["objects"][-1][part] if part else content
        entry.update(new)
        entry.pop(drop, None)
        torch.save(content, path)

    return damage


class Claim:
    """Asks for a terabyte when it is unpickled."""

    def __reduce__(self) -> Any:
        return bytearray, (10**12,)


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else []


def repeated(depth: int) -> Any:
    """Twice the same list, of twice the same list, and so on: a few bytes for 2^depth."""
    return [repeated(depth - 1)] * 2 if depth else []


CODE_INSIDE = "(it holds more than tensors and numbers)"
TOO_LARGE = ": it claims to hold more than a file of its size may"
NO_FILE = " is truncated or not a file that can be loaded "
NO_WEIGHTS = ": the weights are not those of such a ReactivePolicy: "
NAN = {"head.loc.bias": torch.full((2,), math.nan)}
CODE = {"format": "pyrocontrol saved 1", "objects": Bomb()}
DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut, NO_FILE + "(it is no whole archive)"),
    "a bit": (flip, NO_FILE),
    "empty": (lambda path: path.write_bytes(b""), NO_FILE + "(it is no whole archive)"),
    "text": (lambda path: path.write_text("policy"), NO_FILE + "(it is no whole archive)"),
    "code": (lambda path: torch.save(CODE, path), NO_FILE + CODE_INSIDE),
    "list": (lambda path: torch.save([1], path), NO_FILE + "(no 'pyrocontrol saved 1' inside)"),
    "format": (edited("", format="another"), NO_FILE + "(no 'pyrocontrol saved 1' inside)"),
    "key": (edited("", drop="objects"), " is not whole (KeyError: 'objects')"),
    "none": (edited("", objects=[]), " is not whole (IndexError: list index out of range)"),
    "reference": (edited("arguments", head={"object": 9}), " is not whole (there is no object 9 in it)"),
    "argument": (edited("arguments", depth=3), ": a ReactivePolicy takes no argument 'depth'"),
    "value": (edited("arguments", hidden=[0]), ": hidden layers must have positive sizes"),
    "form": (edited("arguments", hidden={"dtype": "load"}), ": 'load' is no dtype"),
    "lacking": (edited("arguments", drop="action_space"), ": ReactivePolicy.__init__() missing 1"),
    "shape": (edited("state", factor=torch.ones(7)), NO_WEIGHTS + "size mismatch for factor"),
    "missing": (edited("state", drop="factor"), NO_WEIGHTS + "Missing key"),
    "unknown": (edited("", count=2**40), ": it holds 'count', which no such file does"),
    "objects": (edited("", objects={"class": "Policy"}), ": it holds a dict in place of objects"),
    "class": (edited("", objects=[{"class": 3}]), ": the class of an object in it is no str"),
    # What a few bytes claim.
    "wide": (edited("arguments", hidden=[10**9]), TOO_LARGE),
    "wider": (edited("arguments", hidden=[10**4, 10**5]), TOO_LARGE),
    "deep": (edited("arguments", hidden=[1] * 10**5), TOO_LARGE),
    "range": (edited("arguments", hidden={"range": [1, 10**12, 1]}), ": range(1, 1000000000000) is too long"),
    "bytes": (lambda path: torch.save({"format": Claim()}, path), NO_FILE + CODE_INSIDE),
    "stretched": (edited("state", factor=torch.ones(1).expand(10**9)), NO_FILE + "(it claims to hold more than"),
    "nested": (edited("arguments", hidden=nested(100)), NO_FILE + "(it is nested deeper than 64)"),
    "repeated": (edited("arguments", hidden=repeated(40)), NO_FILE + "(it repeats itself too often)"),
    "nan": (edited("state", **NAN), ": the weights head.loc.bias of the ReactivePolicy are NaN or infinite"),
    "mixed": (edited("state", factor=torch.ones(3).double()), ": factor of the ReactivePolicy is torch.float64"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_gets_one_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, (damage, message) = tmp_path / "policy.pt", DAMAGED[name]
    m.ReactivePolicy(VECTOR, BOX, hidden=[4]).save(path)
    damage(path)
    with pytest.raises(ValueError, match=re.escape(f"policy.pt{message}")) as caught:
        pc.load(path)
    assert "\n" not in str(caught.value) and [*tmp_path.iterdir()] == [path]
    with pytest.raises(FileNotFoundError):
        pc.load(tmp_path / "none.pt")


# Checkpoints


def test_a_checkpoint_of_training_is_loaded_as_well(tmp_path: Path) -> None:
    path, made = tmp_path / "fit" / "checkpoint.pt", program(encoder=Twice())
    guide = g.CallStackGuide(made, encoder_size=4)
    trained = SVI(made.model, guide, pyro.optim.Adam({"lr": 1e-2}), StepwiseKL_ELBO())
    pc.inference.fit(trained, sorting(), steps=2, batch_size=3, out=path.parent, progress=False)
    again = pc.load(path, encoder=Twice())  # of the two the one that acts
    same(again.state_dict(), made.state_dict())
    both = pc.load(path, "CallStackGuide", **{"program.encoder": Twice()})
    same([both.state_dict(), both.program.state_dict()], [guide.state_dict(), made.state_dict()])
    with pytest.raises(ValueError, match=r"checkpoint.pt: it is a checkpoint of ControlProgram, CallStackGuide: say"):
        pc.load(path, "FlowPolicy")


def test_what_is_given_may_be_larger_than_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hierarchy copies its levels, say."""
    given = [nn.Linear(300, 300), nn.Linear(2, 2)]
    monkeypatch.setattr(_limits, "ROOM", 2**16)
    with pytest.raises(ValueError, match="claims to hold more"), _limits.Allocations(_limits.Budget(0)):
        copy.deepcopy(given)
    with _limits.Allocations(_limits.Budget(_saved._bytes_of(given), 4)):
        same(copy.deepcopy(given)[0].state_dict(), given[0].state_dict())


def test_a_checkpoint_of_the_wrong_content_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for modules in (3, [3], [{}], [{"class": "FlowPolicy", "signature": None, "state": 3}], None):
        torch.save({"format": "pyrocontrol checkpoint 1", "step": 1, "modules": modules}, path)
        for read in (pc.load, lambda path: pc.inference.load_checkpoint(path, g.FlowPolicy(3, 1, hidden=(4,)))):
            with pytest.raises(ValueError, match=r"checkpoint\.pt"):
                read(path)


def test_a_checkpoint_of_learning_gives_what_acts(tmp_path: Path) -> None:
    made = pc.inference.SoftActorCritic(g.FlowPolicy(3, 1, hidden=(4,)), 3, 1, hidden=(4,))
    env = gymnasium.make("Pendulum-v1")
    given: dict[str, Any] = {"start": 4, "batch_size": 4, "replay": 50, "out": tmp_path, "progress": False}
    pc.inference.learn(made, env, steps=8, **given)
    policy, again = pc.load(tmp_path / "checkpoint.pt"), pc.load(tmp_path / "checkpoint.pt", "SoftActorCritic")
    same([policy.state_dict(), again.policy.state_dict()], [made.policy.state_dict()] * 2)
    assert again.updates == made.updates == 4


def test_what_version_0_1_wrote_is_loaded_or_refused_in_a_line(tmp_path: Path) -> None:
    with np.load(OLD / "expected.npz") as expected:
        action, _ = pc.load(OLD / "hierarchy.pt").predict(np.array([0.1, -0.2, 0.3], np.float32), deterministic=True)
        assert np.allclose(action, expected["hierarchy"])
    content = torch.load(OLD / "hierarchy.pt", weights_only=True)
    content["levels"].pop()
    torch.save(content, tmp_path / "levels.pt")
    with pytest.raises(ValueError, match=r"levels.pt is not whole \(KeyError: 1\)"):
        pc.load(tmp_path / "levels.pt")
    with pytest.raises(ValueError, match=r"does not say how its ReactivePolicy was made .*load_checkpoint\(path, it\)"):
        pc.load(OLD / "clone" / "checkpoint.pt", "ReactivePolicy")


def test_a_part_that_is_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    # torch would take it for empty, and return memory that nobody has written.
    path = tmp_path / "policy.pt"
    pc.guides.FlowPolicy(3, 2, hidden=(4,)).save(path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    while b"/data/" not in content[entry + 46 : entry + 46 + 40].split(b"PK")[0]:
        entry = content.index(b"PK\x01\x02", entry + 1)
    content[entry + 38] = 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"policy\.pt .*a part of it is marked as a folder"):
        pc.load(path)


def test_a_size_that_no_observation_has_is_refused() -> None:
    with pytest.raises(ValueError, match="obs_size must be between 0 and 16777216, got 2147483647"):
        pc.models.ControlProgram("actions: a\nroot -> a", obs_size=2**31 - 1)
