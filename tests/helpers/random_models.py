"""Random small models and guides, whose exact ELBO and gradient an estimator must have in expectation.

    python tests/helpers/random_models.py --count 10000 --first 0      # ten thousand of them

Each has two to four latent sites, binary or a short chain of binary steps, some in a plate, some in one nested in it,
some outside of both; observations; masks and scales; a guide in an order of its own. What a site reads is drawn at
random too, summed over the plates that it is not in: so rows of a plate influence each other through sites outside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import enumeration  # noqa: E402  (beside this file)
from pyrocontrol.inference import InexactKLError, StepwiseKL_ELBO  # noqa: E402
from pyrocontrol.models import Emission, Process, Sequence  # noqa: E402

PLATES = {"outer": (2, -1), "inner": (2, -2)}
FRAMES = ((), ("outer",), ("outer", "inner"))
MOST = 5  # binary numbers of all latent sites


class Coins(Process):
    """Two coins, the second given the first, and how likely heads are."""

    support = dist.constraints.boolean

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight  # a parameter of the pair, not of this module

    def initial(self, context: Tensor) -> Tensor:
        return torch.zeros_like(context)

    def conditional(self, state: Tensor, context: Tensor) -> dist.Bernoulli:
        logits = context.unsqueeze(-1) if state.dim() > context.dim() else context
        return dist.Bernoulli(logits=logits + self.weight * state)

    def advance(self, state: Tensor, z: Tensor, context: Tensor) -> Tensor:
        return z


class Site(NamedTuple):
    """A site: where it is, what it is, and how it is weighed."""

    name: str
    plates: tuple[str, ...]
    kind: str  # "coin", "coins" (a sequence), or of an observation: "normal", "bernoulli", "emission"
    along: str = ""


class Pair(NamedTuple):
    """A model, a guide, and their parameters."""

    model: Callable[[], Any]
    guide: Callable[[], Any]
    parameters: list[Tensor]


def random_pair(seed: int) -> Pair:
    """Return the pair of a seed."""
    rng = np.random.default_rng(seed)
    latent: list[Site] = []
    numbers = 0
    for index in range(int(rng.integers(2, 5))):
        plates = FRAMES[rng.integers(3)]
        kind = "coins" if rng.random() < 0.25 and len(plates) < 2 else "coin"
        size = 2 ** len(plates) * (2 if kind == "coins" else 1)
        if numbers + size <= MOST:
            latent.append(Site(f"z{index}", plates, kind))
            numbers += size
    if not latent:
        latent = [Site("z0", (), "coin")]
    observed = [
        Site(f"x{index}", FRAMES[rng.integers(3)], str(rng.choice(["normal", "bernoulli"])))
        for index in range(int(rng.integers(1, 3)))
    ]
    chains = [site for site in latent if site.kind == "coins"]
    if chains and rng.random() < 0.5:
        observed.append(Site("e", chains[0].plates, "emission", chains[0].name))
    parameters: list[Tensor] = []

    def parameter() -> Tensor:
        parameters.append(torch.tensor(rng.normal(), requires_grad=True))
        return parameters[-1]

    def reading(order: list[Site], site: Site) -> dict[str, Tensor]:
        before = order[: order.index(site)] if site in order else order
        # An emission reads its own sequence step by step alone, as it has promised.
        return {other.name: parameter() for other in before if other.name != site.along and rng.random() < 0.6}

    def shape(site: Site) -> tuple[int, ...]:
        return tuple(PLATES[name][0] for name in reversed(site.plates))

    # What is weighed, and how; half of the time in the model alone, where only log-ratios are right.
    scales = {site.name: float(rng.choice([1.0, 1.0, 0.5, 3.0])) for site in [*latent, *observed]}
    masks = {
        site.name: torch.tensor(rng.random(shape(site)) < 0.7)
        for site in [*latent, *observed]
        if site.plates and rng.random() < 0.25
    }
    alone = {site.name for site in latent if rng.random() < 0.2}
    guide_order = [latent[i] for i in rng.permutation(len(latent))]
    model_order = [latent[i] for i in rng.permutation(len(latent))] if rng.random() < 0.5 else guide_order
    sampled = {site.name for site in latent if rng.random() < 0.15}
    data = {
        site.name: torch.tensor(
            rng.normal(size=shape(site))
            if site.kind == "normal"
            else (rng.random((*shape(site), 2)) < 0.5) * 1.0
            if site.kind == "emission"
            else (rng.random(shape(site)) < 0.5) * 1.0
        )
        for site in observed
    }
    in_guide = {site.name: (parameter(), parameter(), reading(guide_order, site)) for site in guide_order}
    in_model = {site.name: (parameter(), parameter(), reading(model_order, site)) for site in model_order}
    in_model |= {site.name: (parameter(), parameter(), reading(latent, site)) for site in observed}
    plates_of = {site.name: site.plates for site in latent}

    def logits(
        site: Site, reads: dict[str, tuple[Tensor, Tensor, dict[str, Tensor]]], values: dict[str, Tensor]
    ) -> Tensor:
        bias, _, weights = reads[site.name]
        total = bias.expand(shape(site))
        for name, weight in weights.items():
            value = values[name]
            # Summed over the plates that the site is not in, broadcast over those that the other is not in.
            for plate in [plate for plate in plates_of[name] if plate not in site.plates]:
                value = value.sum(PLATES[plate][1], keepdim=True)
            while value.dim() > len(site.plates):
                value = value.squeeze(0)
            total = total + weight * (value - 0.5)
        return total

    def draw(site: Site, reads: Any, values: dict[str, Tensor], obs: Tensor | None = None, **infer: Any) -> None:
        logit, other = logits(site, reads, values), reads[site.name][1]
        fn: Any
        if site.kind == "coin" or site.kind == "bernoulli":
            fn = dist.Bernoulli(logits=logit)
        elif site.kind == "normal":
            fn = dist.Normal(logit, 0.7)
        elif site.kind == "coins":
            fn = Sequence(Coins(other), logit, 2, batch_shape=logit.shape)
        else:
            fn = Emission(
                dist.Bernoulli(logits=logit.unsqueeze(-1) + other * values[f"{site.along} steps"]), site.along
            )
        value = pyro.sample(site.name, fn, obs=obs, infer=infer)
        values[site.name] = value.sum(-1) if site.kind == "coins" else value
        values[f"{site.name} steps"] = value

    def run(order: list[Site], reads: Any, of_model: bool) -> None:
        values: dict[str, Tensor] = {}
        plates = {name: pyro.plate(name, size, dim=dim) for name, (size, dim) in PLATES.items()}
        for site in order:
            weighed = of_model or site.name not in alone
            context = poutine.scale(scale=scales[site.name] if weighed else 1.0)
            mask = masks.get(site.name) if weighed else None
            with context, poutine.mask(mask=True if mask is None else mask):
                infer = {} if of_model or site.name not in sampled else {"analytic_kl": False}
                with _within([plates[name] for name in site.plates]):
                    draw(site, reads, values, data.get(site.name), **infer)

    def guide() -> None:
        run(guide_order, in_guide, False)

    def model() -> None:
        run([*model_order, *observed], in_model, True)

    def with_sampled_ratios() -> Pair:
        sampled.update(site.name for site in latent)
        return Pair(model, guide, parameters)

    try:  # where a KL would be biased, the guide has to say so
        StepwiseKL_ELBO().loss(model, guide)
    except InexactKLError:
        return with_sampled_ratios()
    return Pair(model, guide, parameters)


class _within:
    """Several context managers as one."""

    def __init__(self, contexts: list[Any]):
        self.contexts = contexts

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *given: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*given)


def error_of(seed: int, elbo: Any = None) -> tuple[float, float]:
    """Return how far the expected loss and gradient of an estimator are from the enumerated ones."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    pair = random_pair(seed)
    found = list(enumeration.runs(pair.model, pair.guide))
    exact = -enumeration.exact_elbo(found)
    wanted = enumeration.gradient(exact, pair.parameters)
    weights, losses, gradients = enumeration.estimates(
        elbo or StepwiseKL_ELBO(), pair.model, pair.guide, (), pair.parameters, found
    )
    return float((weights @ losses - exact).abs().detach()), float((weights @ gradients - wanted).abs().max())


def is_off(seed: int) -> bool:
    """Whether a model's estimates are not the enumerated ones; says which are not, or what was raised."""
    try:
        loss, gradient = error_of(seed)
    except Exception as error:
        print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
        return True
    if max(loss, gradient) > 1e-8:
        print(f"seed {seed}: loss off by {loss:.2e}, gradient by {gradient:.2e}", flush=True)
        return True
    return False


def main() -> int:
    """Try many; print those that are off."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    bad = sum(is_off(seed) for seed in range(given.first, given.first + given.count))
    print(f"{bad} of {given.count} models are off")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
