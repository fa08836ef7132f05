"""Every controller, in every space that it supports: collect, train, predict, evaluate, correct, save, load, serve."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pyro
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy as their_evaluate_policy

import pyrocontrol as pc

VECTOR = spaces.Box(-2, 2, (3,), np.float32)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "float32": VECTOR,
    "float64": spaces.Box(-1, 1, (2, 2), np.float64),
    "bytes": spaces.Box(0, 255, (9,), np.uint8),
    "integers": spaces.Box(-9, 9, (3,), np.int64),
    "image": spaces.Box(0, 255, (16, 16, 3), np.uint8),
    "small image": spaces.Box(0, 255, (4, 4), np.uint8),
    "discrete": spaces.Discrete(4, start=2),
    "several": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(5),
    "dict": spaces.Dict(a=VECTOR, b=spaces.Discrete(3), c=spaces.Box(0, 255, (8, 8, 3), np.uint8)),
    "nested": spaces.Dict(a=VECTOR, b=spaces.Dict(c=spaces.Discrete(3), d=spaces.MultiBinary(2))),
    "tuple": spaces.Tuple([spaces.Discrete(2), VECTOR]),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "numbered": spaces.Discrete(3),
    "from one": spaces.Discrete(2, start=1),
    "several": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(np.array([0, -5], np.float32), np.array([10, 5], np.float32)),
    "double box": spaces.Box(-1, 1, (1,), np.float64),
}
NUMBERED = ("numbered", "from one")


class Toy(gymnasium.Env[Any, Any]):
    """Random observations for four steps; refuses actions that are not its own."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.time += 1
        return self.observation_space.sample(), 1.0, self.time >= 4, False, {}


class Kind(NamedTuple):
    """How a kind of controller is made of an environment, and what it learns by.

    ``pair`` returns the loss module, or None for what is not learnt by cloning.
    """

    make: Callable[[gymnasium.Env[Any, Any]], Any]
    loss: Callable[[Any], Any]
    observations: tuple[str, ...] = tuple(OBSERVATIONS)
    actions: tuple[str, ...] = tuple(ACTIONS)


def policy(kind: str, **settings: Any) -> Callable[[gymnasium.Env[Any, Any]], Any]:
    return lambda env: getattr(pc.models, kind)(env.observation_space, env.action_space, **settings)


def program(env: gymnasium.Env[Any, Any]) -> Any:
    names = [f"a{number}" for number in range(int(env.action_space.n))]  # type: ignore[attr-defined]
    tree = f"actions: {', '.join(names)}\nroot -> do\ndo -> {', '.join(names)}"
    spaces_ = {"observation_space": env.observation_space, "action_space": env.action_space}
    return pc.models.ControlProgram(tree, hidden=(4,), **spaces_)


def elbo(guide: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda model: pc.inference.StepwiseKL_ELBO()(model, guide(model))


KINDS: dict[str, Kind] = {
    "ReactivePolicy": Kind(policy("ReactivePolicy", hidden=(8,)), lambda made: made.loss),
    "RecurrentPolicy": Kind(policy("RecurrentPolicy", hidden=8, see_previous_action=True), lambda made: made.loss),
    "LatentMemoryPolicy": Kind(policy("LatentMemoryPolicy", size=3, hidden=(8,)), elbo(pc.guides.MemoryGuide)),
    "ControlProgram": Kind(program, elbo(pc.guides.CallStackGuide), actions=NUMBERED),
    "RecurrentController": Kind(
        lambda env: pc.models.RecurrentController(
            observation_space=env.observation_space, action_space=env.action_space, hidden=8, layers=1
        ),
        lambda made: elbo(lambda model: model.guide)(made),
        actions=NUMBERED,
    ),
    "TrajectoryCVAE": Kind(
        policy("TrajectoryCVAE", latent=2, hidden=(8,), axis="time"),
        elbo(pc.guides.TrajectoryGuide),
        observations=("float32",),
    ),
    "Hierarchy": Kind(
        lambda env: pc.guides.Hierarchy(
            [pc.guides.FlowPolicy(3, 2, hidden=(8,)), pc.guides.MixturePolicy(3, 2, hidden=(8,), squash=False)],
            action_space=env.action_space,  # type: ignore[arg-type]
            holds=[2],
        ),
        lambda made: None,
        observations=("float32",),
        actions=("box",),
    ),
}


def pairs(kind: Kind) -> Iterator[tuple[str, str]]:
    """Every space once, each with one of the other kind."""
    for number in range(max(len(kind.observations), len(kind.actions))):
        yield kind.observations[number % len(kind.observations)], kind.actions[number % len(kind.actions)]


@pytest.mark.parametrize("name", KINDS)
def test_from_the_first_step_to_another_process(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    served: dict[str, tuple[Any, Any]] = {}
    warnings.filterwarnings("ignore", "the data is torch.float64, the model torch.float32")
    for observed, acted in pairs(kind):
        env = Toy(OBSERVATIONS[observed], ACTIONS[acted])
        env.action_space.seed(0)
        demos = pc.envs.collect(env, lambda _, env=env: env.action_space.sample(), 3, seed=0, progress=False)
        pyro.clear_param_store()
        made = kind.make(env)
        if (loss := kind.loss(made)) is not None:
            learnt = loss if isinstance(loss, torch.nn.Module) else made
            optimizer = torch.optim.Adam(learnt.parameters(), lr=1e-3)
            pc.inference.fit((loss, optimizer), demos, steps=2, batch_size=3, progress=False)
        # One observation, a batch of them, and whole episodes of ours and of stable-baselines3's.
        action, _ = made.predict(env.reset(seed=1)[0], deterministic=True)
        assert env.action_space.contains(action), (observed, acted, action)
        assert pc.envs.evaluate_policy(env, made, 2)["return"] == [4.0, 4.0], (observed, acted)
        assert len(pc.envs.collect(env, made, 2, seed=0, progress=False)) == 2
        if observed not in ("nested", "tuple"):  # theirs cannot be
            mean, _ = their_evaluate_policy(made, env, n_eval_episodes=1, deterministic=True, warn=False)
            assert mean == 4.0, (observed, acted)
        corrected = pc.inference.dagger(
            env,
            lambda _, env=env: env.action_space.sample(),
            lambda _, made=made: made,
            rounds=2,
            episodes=1,
            progress=False,
        )
        assert len(corrected.demonstrations) == 2
        # On disk, and back.
        path = tmp_path / f"{observed} {acted}.pt".replace(" ", "-")
        made.save(path)
        seen = env.reset(seed=2)[0]
        torch.manual_seed(0)  # a skill is drawn where none is given
        expected = made.predict(seen, deterministic=True)[0]
        for again in (pc.load(path), pickle.loads(pickle.dumps(made))):
            torch.manual_seed(0)
            assert np.array_equal(again.predict(seen, deterministic=True)[0], expected), (observed, acted)
        served[path.name] = (seen, expected)
    (tmp_path / "seen.pickle").write_bytes(pickle.dumps({file: seen for file, (seen, _) in served.items()}))
    code = (
        "import pickle, torch, pyrocontrol as pc\n"
        "seen = pickle.load(open('seen.pickle', 'rb'))\n"
        "def serve(file, one):\n"
        "    controller = pc.load(file)\n"
        "    torch.manual_seed(0)\n"
        "    return controller.predict(one, deterministic=True)[0]\n"
        "found = {file: serve(file, one) for file, one in seen.items()}\n"
        "pickle.dump(found, open('found.pickle', 'wb'))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)
    found = pickle.loads((tmp_path / "found.pickle").read_bytes())
    for file, (_, expected) in served.items():
        assert np.array_equal(found[file], expected), file


def test_normalised_actions_cannot_be_mistaken() -> None:
    """A policy of normalised actions has no predict; in an environment it acts in that one's bounds."""
    env = Toy(VECTOR, ACTIONS["box"])
    for kind in (pc.guides.FlowPolicy, pc.guides.GaussianPolicy, pc.guides.MixturePolicy):
        flow = kind(3, 2, hidden=(8,))
        assert not hasattr(flow, "predict")
        assert pc.envs.evaluate_policy(env, flow, 1)["return"] == [4.0]
        with pytest.raises(TypeError, match="is no controller"):
            pc.models.as_controller(flow)
    with pytest.raises(ValueError, match="the hierarchy acts in .* the environment in"):
        pc.envs.evaluate_policy(env, pc.guides.Hierarchy([flow]), 1)
    latent = pc.envs.LatentActionEnv(env, pc.guides.FlowPolicy(3, 2, hidden=(8,)))
    with pytest.raises(ValueError, match="trained for a level above the lowest"):
        pc.envs.evaluate_policy(latent, pc.guides.FlowPolicy(3, 2, squash=False, hidden=(8,)), 1)


@pytest.mark.parametrize("thing", [torch.nn.Linear(3, 1), pc.models.ReactivePolicy, 3, None, "policy", [lambda _: 0]])
def test_what_is_no_controller_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="is no controller"):
        pc.envs.evaluate_policy(Toy(VECTOR, spaces.Discrete(2)), thing, 1)
    with pytest.raises((TypeError, pc.envs.CollectionError), match="is no controller"):
        pc.envs.collect(Toy(VECTOR, spaces.Discrete(2)), thing, 1, progress=False)


def test_a_vector_of_environments_is_refused() -> None:
    several = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    for act in (pc.envs.evaluate_policy, pc.envs.collect):
        with pytest.raises(TypeError, match="one environment is acted in, not a vector of them"):
            act(several, lambda _: 0, 1)  # type: ignore[operator]
    several.close()
