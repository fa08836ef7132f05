"""The trajectory CVAE: its density by hand, its bound, generating, acting, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO

from pyrocontrol import load
from pyrocontrol.envs import Demonstrations, Episode
from pyrocontrol.guides import TrajectoryGuide
from pyrocontrol.inference import StepwiseKL_ELBO, fit, load_checkpoint
from pyrocontrol.models import AdditiveDynamics, MLPDynamics, TrajectoryCVAE

AXES = ["time", "components", "additive"]
ELBOS: dict[str, type[ELBO]] = {"stepwise": StepwiseKL_ELBO, "trace": Trace_ELBO, "mean-field": TraceMeanField_ELBO}


def demonstrations(lengths: tuple[int, ...] = (4, 2, 6), dtype: Any = np.float32, seed: int = 0) -> Demonstrations:
    rng = np.random.default_rng(seed)
    episodes = [
        Episode((3 + 2 * rng.normal(size=(n + 1, 3))).astype(dtype), rng.uniform(-1, 1, (n, 2)).astype(dtype))
        for n in lengths
    ]
    return Demonstrations.from_episodes(episodes, spaces.Box(-1, 1, (2,), dtype))


def skills_for(data: Demonstrations, **options: Any) -> TrajectoryCVAE:
    return TrajectoryCVAE(data.observation_space, data.action_space, **{"latent": 2, "hidden": (8,)} | options)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("axis", AXES)
def test_density_by_hand(axis: str) -> None:
    data = demonstrations((3, 1), np.float64)
    skills = skills_for(data, axis=axis)
    skills.normalize(data)
    z = torch.randn(2, 2)
    trace = poutine.trace(poutine.condition(skills.model, {"z": z})).get_trace(data)
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum()
    for row, steps in enumerate((3, 1)):
        seen = data.observations[data.acted]
        states = (data.observations[row] - seen.mean(0)) / seen.std(0, correction=0)
        for t in range(steps):
            policy = skills.actions_of(states[: t + 1], z[row])
            expected += policy.log_prob(data.actions[row, : t + 1])[t]
        expected += skills.dynamics_of(z[[row]], states[[0]], steps).log_prob(states[None, 1 : steps + 1]).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


@pytest.mark.usefixtures("float64")
def test_the_bound_is_below_the_evidence() -> None:
    data = demonstrations((2,), np.float64)
    skills = skills_for(data, latent=1, axis=MLPDynamics(3, 1, hidden=(4,)))
    guide = TrajectoryGuide(skills, encoder_size=4)
    grid = torch.linspace(-8, 8, 601)
    with poutine.block(), torch.no_grad():
        trace = poutine.trace(poutine.condition(skills.model, {"z": grid.unsqueeze(1)})).get_trace(data[[0] * 601])
        trace.compute_log_prob()
        joint = sum(site["log_prob"] for site in trace.nodes.values() if "log_prob" in site)
        evidence = joint.logsumexp(0) + math.log(grid[1] - grid[0])
        posterior = guide.posterior(data)
        log_q = posterior.log_prob(grid.reshape(-1, 1, 1)).flatten()
        # E_q[log p - log q], and what it lacks: KL(q || p(z | tau)), both by quadrature.
        weight = log_q.exp() * (grid[1] - grid[0])
        bound, gap = (weight * (joint - log_q)).sum(), (weight * (log_q - joint + evidence)).sum()
    losses = torch.tensor([StepwiseKL_ELBO().loss(skills.model, guide, data) for _ in range(100)])
    assert gap > 0
    torch.testing.assert_close(bound + gap, evidence)
    assert abs(-losses.mean() - bound) < 4 * losses.std() / 10


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("axis", AXES)
def test_every_elbo_trains_it(elbo: str, axis: str) -> None:
    data = demonstrations()
    skills = skills_for(data, axis=axis)
    skills.normalize(data)
    guide = TrajectoryGuide(skills, encoder_size=4)
    svi = SVI(skills.model, guide, pyro.optim.Adam({"lr": 3e-3}), ELBOS[elbo]())
    result = fit(svi, data, steps=12, batch_size=3, log_every=4, progress=False)
    losses = [loss for _, loss in result.losses]
    assert losses[-1] < losses[0]


def test_particles_at_once_are_particles_in_turn() -> None:
    data = demonstrations()
    skills = skills_for(data)
    guide = TrajectoryGuide(skills, encoder_size=4)
    at_once = Trace_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
    values = torch.tensor([Trace_ELBO().loss(skills.model, guide, data) for _ in range(100)])
    found = at_once.loss(skills.model, guide, data)
    assert abs(found - values.mean()) < 4 * values.std() / math.sqrt(80)


def test_padding_changes_nothing() -> None:
    data, z = demonstrations((4, 2)), torch.randn(2, 2)
    skills = skills_for(data)

    def log_prob(rows: list[int]) -> torch.Tensor:
        condition = poutine.condition(skills.model, {"z": z[rows]})
        return poutine.trace(condition).get_trace(data[rows]).log_prob_sum()

    torch.testing.assert_close(log_prob([0]) + log_prob([1]), log_prob([0, 1]))


@pytest.mark.parametrize("axis", AXES)
def test_generating(axis: str) -> None:
    data = demonstrations()
    skills = skills_for(data, axis=axis)
    skills.normalize(data)
    z, first = torch.randn(4, 2), data.observations[0, 0]
    found = skills.generate(z, first, 5)
    assert found.shape == (4, 6, 3) and not found.requires_grad
    torch.testing.assert_close(found[:, 0], first.expand(4, 3))
    torch.testing.assert_close(found, skills.generate(z, first, 5))
    torch.testing.assert_close(skills.scaled(skills.unscaled(found)), found, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, 1:], skills.generate(z, first, 5, deterministic=False)[:, 1:])


def test_the_mode_is_the_mean_of_every_step_in_turn() -> None:
    data = demonstrations()
    skills = skills_for(data)
    z, first = torch.randn(1, 2), torch.randn(1, 3)
    sequence = skills.dynamics_of(z, first, 3)
    found = sequence.greedy()
    torch.testing.assert_close(sequence.steps(found).conditional.mean, found)


def test_acting_with_an_embedding() -> None:
    data = demonstrations()
    skills = skills_for(data)
    observation, z = np.ones((2, 3), np.float32), torch.randn(2)
    with torch.no_grad():
        expected = skills.actions_of(torch.ones(2, 3), z).mean.clamp(-1, 1)
    action, state = skills.acting(z).predict(observation, deterministic=True)
    np.testing.assert_allclose(action, expected, rtol=1e-5)
    torch.testing.assert_close(state, z.expand(2, 2))
    again, _ = skills.acting(z).predict(observation, None, np.ones(2, bool), deterministic=True)
    np.testing.assert_array_equal(again, action)
    one, _ = skills.acting(z.unsqueeze(0)).predict(observation[0], deterministic=True)
    assert one.shape == (2,)


def test_without_an_embedding_it_draws_one_an_episode() -> None:
    data = demonstrations()
    skills = skills_for(data)
    observation = np.zeros((3, 3), np.float32)
    _, z = skills.predict(observation)
    _, kept = skills.predict(observation, z)
    _, begun = skills.predict(observation, z, np.array([False, True, False]))
    torch.testing.assert_close(kept, z)
    assert (begun == z).all(1).tolist() == [True, False, True]


def test_discrete_actions() -> None:
    rng = np.random.default_rng(0)
    episodes = [Episode(rng.normal(size=(5, 3)).astype(np.float32), rng.integers(0, 4, 4)) for _ in range(3)]
    data = Demonstrations.from_episodes(episodes, spaces.Discrete(4))
    skills = skills_for(data)
    guide = TrajectoryGuide(skills, encoder_size=4)
    assert math.isfinite(StepwiseKL_ELBO().loss(skills.model, guide, data))
    assert skills.acting(torch.zeros(2)).predict(np.zeros(3, np.float32))[0] in range(4)


# -- skills with names -----------------------------------------------------------------------------------------------

NAMES = ("kick", "spin")


def named(tasks: list[list[float]], **options: Any) -> tuple[TrajectoryCVAE, Demonstrations]:
    data = demonstrations((4, 2, 6), np.float64).replace(task=torch.tensor(tasks, dtype=torch.float64))
    data = data.to(dtype=torch.get_default_dtype())
    skills = skills_for(data, names=NAMES, **{"axis": "additive", "hidden": ()} | options)
    skills.normalize(data)
    torch.nn.init.normal_(skills.embeddings)
    poutine.block(skills.model)(data)  # as in training
    return skills, data


@pytest.mark.usefixtures("float64")
def test_a_policy_adds_along_the_whole_episode() -> None:
    skills, data = named([[1, 0], [0, 1], [0, 0]])
    states, (one, other) = skills.scaled(data.observations), torch.randn(2, 3, 2)

    def policy(z: torch.Tensor) -> dist.Normal:
        return skills.actions_of(states, z).base_dist

    means = [policy(z).mean for z in (one + other, one, other, torch.zeros_like(one))]
    torch.testing.assert_close(means[0], means[1] + means[2] - means[3], rtol=0, atol=1e-12)
    torch.testing.assert_close(policy(one).scale, policy(other).scale, rtol=0, atol=0)
    # Acting knows the time since the episode began, row by row.
    skill, state, start = skills.acting(one[0]), None, np.array([False, False])
    for t in range(4):
        action, state = skill.predict(data.observations[[0, 2], t].numpy(), state, start, deterministic=True)
        expected = skills.actions_of(states[[0, 2]], one[0].expand(2, -1)).mean[:, t].detach().clamp(-1, 1)
        np.testing.assert_allclose(action, expected, atol=1e-12)
    again, _ = skill.predict(data.observations[[0, 2], 0].numpy(), state, np.array([True, False]), deterministic=True)
    np.testing.assert_allclose(again[0], skills.actions_of(states[:1, :1], one[0]).mean[0, 0].detach().clamp(-1, 1))


@pytest.mark.usefixtures("float64")
def test_doing_nothing_is_zero_and_two_at_once_are_a_sum() -> None:
    skills, data = named([[1, 1], [0, 1], [0, 0]])
    kick, spin = skills.embeddings.detach().T
    z = torch.randn(3, 2)

    def trace(z: torch.Tensor) -> Any:
        return poutine.trace(poutine.condition(skills.model, {"z": z})).get_trace(data)

    found = trace(z)
    prior = dist.Normal(torch.stack([kick + spin, spin, torch.zeros(2)]), 1.0).to_event(1)
    torch.testing.assert_close(found.nodes["z"]["fn"].log_prob(z), prior.log_prob(z))
    moved = z.clone()
    moved[2] += 1  # of doing nothing: without any influence on what is seen
    found.compute_log_prob()
    other = trace(moved)
    other.compute_log_prob()
    for site in ("states", "actions"):
        torch.testing.assert_close(other.nodes[site]["log_prob"], found.nodes[site]["log_prob"])
    assert (other.nodes["_RETURN"]["value"][2] == 0).all()
    skills.settled.fill_(True)
    torch.testing.assert_close(skills.compose({"kick": 1.0, "spin": 0.5}), kick + 0.5 * spin)
    torch.testing.assert_close(skills.compose({"kick": np.float32(1), "spin": torch.tensor(0.5)}), kick + 0.5 * spin)
    assert (skills.compose({}) == 0).all()


@pytest.mark.usefixtures("float64")
def test_embeddings_settle_at_means_and_sums() -> None:
    skills, data = named([[1, 1], [0, 1], [0, 0]])
    z = torch.randn(3, 2)
    skills.settle(z, data.task)
    torch.testing.assert_close(skills.compose({"spin": 1.0}), z[1])
    torch.testing.assert_close(skills.compose({"kick": 1.0, "spin": 1.0}), z[0])
    z = torch.randn(4, 2)
    skills.settle(z, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(skills.compose({"kick": 1.0}), z[:2].mean(0))
    with pytest.raises(ValueError, match="embeddings of 2 numbers and a task of 2 for each"):
        skills.settle(z, data.task)


@pytest.mark.parametrize(
    ("task", "lacking"),
    [
        ([[1, 0], [1, 0], [0, 0]], "spin"),
        ([[1, 1], [2, 2], [0, 0]], "kick, spin"),
        ([[0, 0], [0, 0], [0, 0]], "kick, spin"),
    ],
)
def test_embeddings_that_the_demonstrations_do_not_tell(task: list[list[float]], lacking: str) -> None:
    skills, data = named(task)
    before = skills.embeddings.detach().clone()
    with pytest.raises(ValueError, match=f"do not tell the embeddings of {lacking}: show"):
        skills.settle(torch.ones(3, 2), data.task)
    for z, shown in ((torch.full((3, 2), math.nan), data.task), (torch.ones(3, 2), data.task / 0)):
        with pytest.raises(ValueError, match="an embedding or a task is not finite"):
            skills.settle(z, shown)
    assert torch.equal(skills.embeddings, before) and not skills.settled


def test_composing_needs_an_origin_trained_on_and_settled_embeddings() -> None:
    skills, data = named([[1, 0], [0, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"not settled.*skills.settle\(guide.posterior"):
        skills.compose({"kick": 1.0})
    z = torch.randn(3, 2)
    skills.settle(z, data.task)
    torch.testing.assert_close(skills.compose({"kick": 1.0, "spin": 1.0}), z[0] + z[1])
    with torch.no_grad():
        poutine.block(skills.model)(data)  # evaluating is no training
    poutine.block(skills.eval().model)(data)
    skills.compose({"kick": 1.0})
    poutine.block(skills.train().model)(data)
    with pytest.raises(ValueError, match="not settled"):
        skills.compose({"kick": 1.0})
    # To be normalized by doing nothing is not to be trained on it.
    skills, shown = named([[1, 0], [0, 1], [1, 0]])
    skills.normalize(data)
    skills.settle(z, shown.task)
    with pytest.raises(ValueError, match="no origin was shown"):
        skills.compose({"kick": 1.0})


def test_files_from_before_embeddings_were_settled(tmp_path: Any) -> None:
    skills, data = named([[1, 0], [0, 1], [0, 0]])
    skills.settle(torch.randn(3, 2), data.task)
    skills.save(tmp_path / "skills.pt")
    assert load(tmp_path / "skills.pt").settled
    guide = TrajectoryGuide(skills, encoder_size=4)
    svi = SVI(skills.model, guide, pyro.optim.Adam({"lr": 3e-3}), StepwiseKL_ELBO())
    fit(svi, data, steps=1, batch_size=3, out=tmp_path, progress=False)

    def without(content: Any) -> Any:
        if isinstance(content, dict):
            return type(content)({key: without(each) for key, each in content.items() if key != "settled"})
        return [*map(without, content)] if isinstance(content, list) else content

    for name in ("skills.pt", "checkpoint.pt"):
        torch.save(without(torch.load(tmp_path / name, weights_only=False)), tmp_path / name)
    old = load(tmp_path / "skills.pt")
    assert old.grounded and not old.settled
    skills.settle(torch.randn(3, 2), data.task)
    load_checkpoint(tmp_path / "checkpoint.pt", skills)
    assert skills.grounded and not skills.settled
    assert fit(svi, data, steps=2, batch_size=3, out=tmp_path, progress=False).step == 2


@pytest.mark.parametrize(
    ("options", "adds"),
    [
        ({"axis": AdditiveDynamics(3, 2, base="apart")}, True),
        ({"axis": AdditiveDynamics(3, 2, base="linear")}, True),
        ({"axis": AdditiveDynamics(3, 2, base="mlp")}, False),
        ({"axis": AdditiveDynamics(3, 2, base="wavenet", size=4)}, False),
        ({"axis": AdditiveDynamics(3, 2, gains="state")}, False),
        ({"axis": AdditiveDynamics(3, 2), "hidden": (8,)}, False),
        ({"axis": AdditiveDynamics(3, 2), "head": "mixture"}, False),
        ({"axis": "time", "hidden": (8,)}, False),
    ],
)
def test_sums_are_only_of_models_that_add(options: dict[str, Any], adds: bool) -> None:
    skills, data = named([[1, 0], [0, 1], [0, 0]], **options)
    skills.settle(torch.randn(3, 2), data.task)
    assert skills.adds is adds
    anyway = skills.compose({"kick": 1.0, "spin": 1.0}, anyway=True)
    if adds:
        torch.testing.assert_close(skills.compose({"kick": 1.0, "spin": 1.0}), anyway)
        z, first = torch.stack([*skills.embeddings.T, anyway, 0 * anyway]), data.observations[0, 0].float()
        one, other, both, nothing = skills.generate(z.detach(), first, 10)
        torch.testing.assert_close(both - nothing, one + other - 2 * nothing, rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(ValueError, match="sums mean nothing to this model"):
            skills.compose({"kick": 1.0, "spin": 1.0})


def test_demonstrations_beyond_the_horizon() -> None:
    data = demonstrations((4, 2, 6))
    skills_for(data, axis=AdditiveDynamics(3, 2, horizon=6, basis=3)).check(data)
    with pytest.raises(ValueError, match=r"change for 5 steps, but a demonstration has 6: give .*horizon=6\)"):
        skills_for(data, axis=AdditiveDynamics(3, 2, horizon=5, basis=3)).normalize(data)


def test_composing_what_cannot_be() -> None:
    skills, data = named([[1, 0], [0, 1], [0, 0]])
    with pytest.raises(ValueError, match="there is no skill 'jump'; there are kick, spin"):
        skills.compose({"kick": 1.0, "jump": 1.0})
    for weight in (math.nan, 1e39):  # the second is none of 32 bits
        with pytest.raises(ValueError, match=r"the weight of 'kick' must be finite, got (nan|1e\+39)"):
            skills.compose({"kick": weight})
    with pytest.raises(TypeError, match="the weight of 'kick' must be a number, got '1.0'"):
        skills.compose({"kick": "1.0"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"weights must map names of skills to numbers, got \['kick'\]"):
        skills.compose(["kick"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no skill 'kick'; there are no names"):
        skills_for(data).compose({"kick": 1.0})
    with pytest.raises(ValueError, match="2 names of skills, but the demonstrations' task has 0 numbers"):
        skills.check(demonstrations())
    with pytest.raises(ValueError, match="names must be those of the skills, each once"):
        skills_for(data, names=("kick", "kick"))


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [0, -1])
def test_no_latent(latent: int) -> None:
    with pytest.raises(ValueError, match=f"latent must be positive, got {latent}"):
        skills_for(demonstrations(), latent=latent)


def test_sizes_when_generating() -> None:
    skills = skills_for(demonstrations())
    with pytest.raises(ValueError, match=r"embedding and state have 2 and 3 numbers, got \(5, 3\)"):
        skills.generate(torch.zeros(1, 5), torch.zeros(3), 4)
    with pytest.raises(ValueError, match="an embedding or a first state is not finite"):
        skills.generate(torch.full((1, 2), math.nan), torch.zeros(3), 4)
    with pytest.raises(ValueError, match="horizon of at least one step, got 0"):
        skills.generate(torch.zeros(1, 2), torch.zeros(3), 0)


def test_bad_embeddings() -> None:
    skills = skills_for(demonstrations())
    with pytest.raises(ValueError, match=r"one embedding of 2 numbers is needed, got shape \(3,\)"):
        skills.acting(torch.zeros(3))
    with pytest.raises(ValueError, match="the embedding is not finite"):
        skills.acting(torch.tensor([0.0, math.nan]))


def test_signatures_tell_models_apart() -> None:
    data = demonstrations()
    signatures = {
        skills_for(data, **o).signature()
        for o in ({}, {"latent": 3}, {"axis": "components"}, {"axis": "additive"}, {"head": "mixture"})
    }
    assert len(signatures) == 5
