"""A model of one's own: demonstrations fall into skills, and nobody has marked where.

A hand moves from place to place above a table; which place it is moving to, and for how long, is latent. The model is a
semi-Markov chain of skills, its guide reads the whole demonstration. docs/your-own-method.md builds both step by step.

    python examples/segment_skills.py --seed 0

writes OUT/result.json (accuracy of the labels and F1 of the boundaries on held-out demonstrations; the bound and the
exact log-likelihood, in nats a demonstration), OUT/segments.png and OUT/checkpoint.pt, in about a minute. Beside what
was learnt stand k-means on the velocities, the guide before training, and the exact posterior of the true model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pyro
import torch
import torch.nn.functional as F
import tyro
from gymnasium.spaces import Box
from pyro.distributions import Categorical, Normal
from torch import Tensor, nn
from torch.distributions import constraints

import pyrocontrol as pc
from pyrocontrol._files import replacing
from pyrocontrol.models import Emission, Process, Sequence, at_step, spread

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

PLACES = np.array([[0.2, 0.2], [0.8, 0.3], [0.3, 0.9], [0.9, 0.9]])
PULL, NOISE, SHORTEST, LONGEST = 0.3, 0.05, 4, 10
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")


@dataclass
class Arguments:
    """Segment demonstrations into skills."""

    demos: int = 100
    """demonstrations to learn from; as many are held out"""
    updates: int = 300
    """batches of 25 demonstrations"""
    rate: float = 0.01
    """learning rate of Adam"""
    particles: int = 4
    """samples from the guide a demonstration"""
    seed: int = 0
    """of the demonstrations, the initial weights and the batches"""
    out: Path = Path("out/segment_skills")
    """folder for results; a run that was stopped goes on from its checkpoint"""


# -- demonstrations -----------------------------------------------------------------------------------------------


def demonstrate(count: int, seed: int) -> tuple[pc.envs.Demonstrations, list[Tensor]]:
    """Return demonstrations of a hand that visits three or four places, and where it was going at every step."""
    rng = np.random.default_rng(seed)
    positions, velocities, labels = [], [], []
    for _ in range(count):
        position, velocity, going, place = [rng.random(2)], [], [], -1
        for _ in range(rng.integers(3, 5)):
            place = rng.choice([other for other in range(len(PLACES)) if other != place])
            for _ in range(rng.integers(SHORTEST, LONGEST + 1)):
                velocity.append(PULL * (PLACES[place] - position[-1]) + NOISE * rng.standard_normal(2))
                position.append(position[-1] + velocity[-1])
                going.append(place)
        positions.append(np.array(position, np.float32))
        velocities.append(np.array(velocity, np.float32))
        labels.append(torch.tensor(going))
    return pc.envs.from_arrays(positions, velocities, action_space=Box(-np.inf, np.inf, (2,))), labels


# -- the model ----------------------------------------------------------------------------------------------------


class Running(NamedTuple):
    """The state: which skill runs, for how many steps it has run, and which step comes next; all long ``[B]``."""

    skill: Tensor
    age: Tensor
    step: Tensor


class Seen(NamedTuple):
    """The context: how many steps there are ``[B]`` and, in the guide, the evidence for each skill ``[B, T, K]``."""

    steps: Tensor
    evidence: Tensor | None = None


class Skills(Process):
    """Which of K skills runs at each step. It depends on how long a skill has run whether it ends."""

    terminates = True

    def __init__(self, skills: int, longest: int = 12):
        super().__init__()
        self.skills, self.longest = skills, longest
        self.support = constraints.integer_interval(0, skills - 1)
        self.ending = nn.Parameter(torch.full((skills + 1, longest + 1), -2.0))  # logits, by skill and age
        self.following = nn.Parameter(torch.zeros(skills + 1, skills))  # logits; the last row: which skill begins

    def initial(self, context: Seen) -> Running:
        """Before the first step, "skill K" has run for no time."""
        zero = torch.zeros_like(context.steps)
        return Running(zero + self.skills, zero, zero)

    def conditional(self, state: Running, context: Seen) -> Categorical:
        """The skill goes on, or it ends and another one follows."""
        same = F.one_hot(state.skill, self.skills + 1)[..., :-1].bool()
        following = self.following[state.skill].masked_fill(same, -1e9).log_softmax(-1)
        ending = self.ending[state.skill, state.age].unsqueeze(-1)
        return Categorical(logits=torch.where(same, F.logsigmoid(-ending), F.logsigmoid(ending) + following))

    def advance(self, state: Running, z: Tensor, context: Seen) -> Running:
        """A skill that goes on gets older, one that follows begins at age 1."""
        age = torch.where(z == state.skill, (state.age + 1).clamp(max=self.longest), 1)
        return Running(z, age, state.step + 1)

    def live(self, state: Running, context: Seen) -> Tensor:
        """The sequence ends with the demonstration."""
        return state.step < context.steps


class Hand(nn.Module):
    """The model: skill k moves the hand towards place k."""

    def __init__(self, places: Tensor, longest: int = 12):
        super().__init__()
        self.process = Skills(len(places), longest)
        self.places = nn.Parameter(places)
        self.pull = nn.Parameter(torch.tensor(0.2))
        self.noise = nn.Parameter(torch.tensor(0.1).log())

    def velocity(self, skill: Tensor, position: Tensor) -> Any:
        """p(velocity | skill, position)."""
        return Normal(self.pull * (self.places[skill] - position), self.noise.exp()).to_event(1)

    def forward(self, batch: pc.envs.Demonstrations) -> None:
        """Draw the skills, then observe the velocities."""
        position, velocity = batch.observations[:, :-1], batch.actions[:, :-1]
        with pyro.plate("demonstrations", len(batch)):
            skill = pyro.sample("skill", Sequence(self.process, Seen(batch.lengths - 1), velocity.shape[1]))
            emission = Emission(self.velocity(skill, position), along="skill", mask=batch.acted[:, :-1])
            pyro.sample("velocity", emission, obs=velocity)


# -- the guide ----------------------------------------------------------------------------------------------------


class SkillsFound(Skills):
    """The skills, given a whole demonstration: such a chain too, with evidence for each skill at every step."""

    def conditional(self, state: Running, context: Seen) -> Categorical:
        """What could be expected after the steps before, times what the demonstration says."""
        assert context.evidence is not None
        return Categorical(logits=super().conditional(state, context).logits + at_step(context.evidence, state.step))


class Reader(nn.Module):
    """The guide: a network reads the demonstration forwards and backwards, and gives the evidence."""

    mean: Tensor
    scale: Tensor

    def __init__(self, demos: pc.envs.Demonstrations, skills: int):
        super().__init__()
        self.encoder = pc.guides.BiLSTMEncoder(4, 32)
        self.evidence = nn.Linear(self.encoder.size, skills)
        self.process: Skills = SkillsFound(skills)
        inputs = torch.cat([demos.observations, demos.actions], -1)[demos.acted]
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("scale", inputs.std(0))

    def posterior(self, batch: pc.envs.Demonstrations) -> Sequence:
        """q(skills | positions, velocities)."""
        inputs = (torch.cat([batch.observations, batch.actions], -1) - self.mean) / self.scale
        evidence = self.evidence(self.encoder(inputs, batch.lengths))
        return Sequence(self.process, Seen(batch.lengths - 1, evidence), batch.actions.shape[1] - 1)

    def forward(self, batch: pc.envs.Demonstrations) -> None:
        """Draw the skills at the model's own site."""
        with pyro.plate("demonstrations", len(batch)):
            pyro.sample("skill", self.posterior(batch))


# -- the exact answer ---------------------------------------------------------------------------------------------


def chain(model: Hand, batch: pc.envs.Demonstrations) -> tuple[Tensor, Tensor, Tensor]:
    """Return the model as a chain of pairs (skill, age): log p of the first, of the next, of what is observed."""
    process, longest = model.process, model.process.longest
    pair = torch.arange(process.skills * longest)
    state, seen = Running(pair // longest, pair % longest + 1, pair), Seen(batch.lengths[:1])
    initial = torch.full((len(pair),), -1e9)
    initial[::longest] = process.conditional(process.initial(seen), seen).logits[0]
    transition = torch.full((len(pair), len(pair)), -1e9)
    for skill, logit in enumerate(process.conditional(state, seen).logits.unbind(-1)):
        after = process.advance(state, torch.full_like(pair, skill), seen)
        transition[pair, after.skill * longest + after.age - 1] = logit
    velocity = model.velocity(torch.arange(process.skills), batch.observations[:, :-1, None])
    emission = torch.where(batch.acted[:, :-1, None], velocity.log_prob(batch.actions[:, :-1, None]), 0.0)
    return initial, transition, emission.repeat_interleave(longest, -1)


# -- to compare with ----------------------------------------------------------------------------------------------


def cut(labels: Tensor, demos: pc.envs.Demonstrations) -> list[Tensor]:
    """Return labels ``[B, I]`` without their padding."""
    return [row[: length - 1] for row, length in zip(labels, demos.lengths.tolist(), strict=True)]


@torch.no_grad()
def likeliest(model: Hand, demos: pc.envs.Demonstrations) -> list[Tensor]:
    """Return the likeliest skill at every step, by the exact posterior."""
    marginals = pc.inference.chain_posterior(*chain(model, demos)).marginals
    skills = marginals.unflatten(-1, (model.process.skills, model.process.longest)).logsumexp(-1)
    return cut(skills.argmax(-1), demos)


@torch.no_grad()
def true_model() -> Hand:
    """Return the model with what the demonstrations were made with."""
    model = Hand(torch.tensor(PLACES, dtype=torch.float32))
    model.pull.fill_(PULL)
    model.noise.fill_(NOISE).log_()
    for age in range(1, model.process.longest + 1):
        ends = 0.0 if age < SHORTEST else 1 / max(LONGEST + 1 - age, 1)
        model.process.ending[:, age] = torch.tensor(ends).logit(eps=1e-6)
    return model


def k_means(points: Tensor, count: int, rounds: int = 50) -> Tensor:
    """Return means ``[K, D]`` of clusters of points ``[N, D]``."""
    means = spread(points, count)
    for _ in range(rounds):
        nearest = torch.cdist(points, means).argmin(-1)
        means = torch.stack([points[nearest == k].mean(0) if (nearest == k).any() else means[k] for k in range(count)])
    return means


def judge(model: Hand, guide: Reader | None, demos: pc.envs.Demonstrations, labels: list[Tensor]) -> dict[str, float]:
    """Return the scores of what a guide finds or, without one, the exact posterior; nats a demonstration."""
    exact = pc.inference.forward_log_likelihood(*chain(model, demos)).mean()
    found = likeliest(model, demos) if guide is None else cut(guide.posterior(demos).greedy(), demos)
    scores = pc.inference.segmentation_scores(found, labels) | {"log_likelihood": float(exact.detach())}
    if guide is not None:
        loss = pc.inference.StepwiseKL_ELBO(16, 1, vectorize_particles=True).loss(model, guide, demos)
        scores["elbo"] = -loss / len(demos)
    return scores


def references(
    demos: pc.envs.Demonstrations, held_out: pc.envs.Demonstrations, labels: list[Tensor]
) -> dict[str, dict[str, float]]:
    """Return the scores of k-means on the velocities, and of the true model's exact posterior: the ceiling."""
    means = k_means(demos.actions[demos.acted], len(PLACES))
    clusters = cut(torch.cdist(held_out.actions, means).argmin(-1), held_out)
    scores = {"k-means": pc.inference.segmentation_scores(clusters, labels)}
    return scores | {"ceiling": judge(true_model(), None, held_out, labels)}


# -- learning -----------------------------------------------------------------------------------------------------


def learn(loss: nn.Module, demos: pc.envs.Demonstrations, arguments: Arguments, **options: Any) -> Any:
    """Fit whatever a loss holds."""
    optimizer = torch.optim.Adam(loss.parameters(), lr=arguments.rate)
    size = min(25, len(demos))
    return pc.inference.fit(
        (loss, optimizer), demos, steps=arguments.updates, batch_size=size, seed=arguments.seed, **options
    )


def main(arguments: Arguments) -> None:
    """Demonstrate, learn, compare, plot."""
    for name in ("demos", "updates", "particles"):
        if getattr(arguments, name) < 1:
            raise SystemExit(f"--{name} must be at least 1")
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    start = time.perf_counter()
    demos, _ = demonstrate(arguments.demos, 2 * arguments.seed)
    held_out, labels = demonstrate(arguments.demos, 2 * arguments.seed + 1)
    pyro.set_rng_seed(arguments.seed)
    model = Hand(spread(demos.observations[demos.mask], len(PLACES)))
    guide = Reader(demos, len(PLACES))
    scores = references(demos, held_out, labels) | {"untrained": judge(model, guide, held_out, labels)}
    elbo = pc.inference.StepwiseKL_ELBO(arguments.particles, 1, vectorize_particles=True)
    result = learn(elbo(model, guide), demos, arguments, out=arguments.out)
    if result.interrupted:
        print("stopped; the same command goes on from its checkpoint")
        return
    scores["guide"] = judge(model, guide, held_out, labels)
    scores["exact"] = judge(model, None, held_out, labels)
    seconds = time.perf_counter() - start
    setting = {name: getattr(arguments, name) for name in ("demos", "updates", "rate", "particles")}
    rows = [
        pc.inference.row(method, "places", metric, value, seed=arguments.seed, seconds=seconds, **setting)
        for method, metrics in scores.items()
        for metric, value in metrics.items()
    ]
    for each in rows:
        print(f"{each['method']:>10} {each['metric']:>16} {each['value']:8.3f}")
    pc.inference.write_results(arguments.out / "result.json", "segment_skills", rows)
    plot(arguments.out / "segments.png", model, guide, held_out, labels)
    print(f"done in {seconds:.0f} s; results in {arguments.out}")


@torch.no_grad()
def plot(path: Path, model: Hand, guide: Reader, demos: pc.envs.Demonstrations, true: list[Tensor]) -> None:
    """Draw the paths of three demonstrations and the places, and below what was true, found and believed."""
    found = cut(guide.posterior(demos).greedy(), demos)
    names = pc.inference.match_labels(found, true)
    samples = names[guide.posterior(demos).sample((200,))]
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.0), height_ratios=(3, 2), layout="constrained")
    for i, (above, below) in enumerate(axes.T[: len(demos)]):
        for k, place in zip(names.tolist(), model.places, strict=True):
            above.plot(*place, marker="*", markersize=14, color=COLOURS[k], markeredgecolor="black")
        for t, k in enumerate(names[found[i]].tolist()):
            above.plot(*demos.observations[i, t : t + 2].T, color=COLOURS[k], marker=".")
        above.set(aspect="equal", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), title=f"held-out demonstration {i + 1}")
        believed = torch.stack([(samples[:, i] == k).float().mean(0) for k in range(len(COLOURS))])
        steps = len(true[i])
        below.stackplot(np.arange(steps) + 0.5, believed[:, :steps], colors=COLOURS)
        for height, labels in ((1.1, names[found[i]]), (1.4, true[i])):
            below.bar(range(steps), 0.25, 1.0, height, align="edge", color=[COLOURS[k] for k in labels.tolist()])
        below.set(xlim=(0, steps), xlabel="step")
        below.set_yticks([0.5, 1.22, 1.52], ["posterior", "found", "true"])
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
