r"""Mutual information between a sum of skill embeddings and the trajectory that it generates.

If a behaviour is made of M sub-skills, its embedding is to be the sum of theirs. With z_i ~ q(. | tau_i),
V = sum_i z_i and tau~ ~ p(. | V) rolled out of the learnt dynamics, "Complex Skill Acquisition through Simple Skill
Imitation Learning" adds lambda I(V; tau~) to the ELBO, eqs. (4) and (5), or what it takes for a lower bound of it.
Given the tuple of demonstrations, V is Gaussian, so that H(V) is known; what differs is how H(V | tau~) is estimated:

================== ========================================================== ======================================
estimate           computes                                                   is
================== ========================================================== ======================================
``variational``    log Q(V | tau~) + H(V), Q a network of its own, eq. (4)    a lower bound (Barber, Agakov 2003)
``tied``           the same with Q = q, the guide; says z_A = sum_i z_i       a lower bound (ours)
``nonvariational`` sum_i log q(z_i | tau~) + H(V), eqs. (3) and (5), z_i      no bound: H(z_i | V, tau~) is dropped,
                   those whose sum generated tau~                             which is negative without limit
``literal``        -M H(q(. | tau~)) + H(V), eq. (6) read to the letter:      unbounded, and holds no V
                   z_i ~ q(. | tau~)
``infonce``        log p(tau~ | V) - log mean_k p(tau~ | V_k), V among the    a lower bound, at most ln K
                   V_k, by the dynamics' own density                          (van den Oord et al. 2018)
``leave_one_out``  the same, V not among the V_k                              an upper bound (Poole et al. 2019)
================== ========================================================== ======================================

The paper's eq. (7) lacks the dimension: H(V) = D/2 (1 + ln 2 pi) + 1/2 sum_d ln sum_i sigma_{i,d}^2.

Shapes: N tuples of demonstrations, M sub-skills, K samples of V, B demonstrations of a batch, T states of a trajectory,
S state numbers, A action numbers, D latent numbers, U skills. All values are in nats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ...models.registration import register
from ...models.skills import shows_only

__all__ = [
    "MutualInformation",
    "entropy_of_sum",
    "infonce",
    "leave_one_out",
    "literal",
    "nonvariational",
    "sum_of_parts",
    "variational_bound",
]

_KINDS = ("off", "variational", "nonvariational", "literal", "tied", "infonce")


# -- estimates ----------------------------------------------------------------------------------------------------


def sum_of_parts(parts: TorchDistribution) -> TorchDistribution:
    """Return p(V) of V = sum_i z_i, independent z_i ~ N(mu_i, sigma_i^2): N(sum_i mu_i, sum_i sigma_i^2).

    Args:
        parts: diagonal normals, batch shape ``[..., M]``, event shape ``[D]``.

    Returns:
        Batch shape ``[...]``, event shape ``[D]``.

    Raises:
        TypeError: if they are no diagonal normals.
        ValueError: if they have no batch dimension to sum over.
    """
    _check_parts(parts)
    return dist.Normal(parts.mean.sum(-2), parts.variance.sum(-2).sqrt()).to_event(1)


def entropy_of_sum(parts: TorchDistribution) -> Tensor:
    """Return H(V) of V = sum_i z_i, ``D/2 (1 + ln 2 pi) + 1/2 sum_d ln sum_i sigma_{i,d}^2``: eq. (7) in D dimensions.

    Args:
        parts: diagonal normals, batch shape ``[..., M]``, event shape ``[D]``.

    Returns:
        ``[...]``.

    Raises:
        TypeError: if they are no diagonal normals.
        ValueError: if they have no batch dimension to sum over.
    """
    _check_parts(parts)
    log_variance = parts.variance.sum(-2).log()
    return 0.5 * (parts.event_shape[0] * (1 + math.log(2 * math.pi)) + log_variance.sum(-1))


def variational_bound(v: Tensor, q: TorchDistribution, entropy: Tensor) -> Tensor:
    """Return ``log Q(V | tau~) + H(V)``, below I(V; tau~) in expectation by E KL(p(V | tau~) || Q): eq. (4).

    Barber and Agakov (2003). Any Q will do; with Q = q, the guide, it is the ``tied`` bound.

    Args:
        v: ``[..., D]``, drawn from p(V), tau~ drawn given it.
        q: Q(V | tau~), batch shape ``[...]``, event shape ``[D]``.
        entropy: H(V) ``[...]``.
    """
    return q.log_prob(v) + entropy


def nonvariational(z: Tensor, q: TorchDistribution, entropy: Tensor) -> Tensor:
    """Return ``sum_i log q(z_i | tau~) + H(V)``, eqs. (3) and (5) with the z_i whose sum generated tau~: no bound.

    Its expectation lies above I(V; tau~) wherever z_i is known well from V and tau~, and grows without limit as all
    deviations shrink together: by M - 1 nats a dimension for each factor e. The KL of M demonstrations loses M nats
    then, so one term a tuple stays bounded in that direction for a weight below M / (M - 1), and one term a
    demonstration, as in eq. (5), only below 1 / (M - 1); beta times that where the KL has a weight beta, so for none at
    the start of a warm-up. One q for all i is best at the mean V / M, not at V.

    Args:
        z: ``[..., M, D]``.
        q: q(z | tau~), batch shape ``[...]``, event shape ``[D]``.
        entropy: H(V) ``[...]``.
    """
    return q.log_prob(z.movedim(-2, 0)).sum(0) + entropy


def literal(q: TorchDistribution, subskills: int, entropy: Tensor) -> Tensor:
    """Return ``-M H(q(. | tau~)) + H(V)``, eq. (6) with z_i ~ q(. | tau~) as it is written: unbounded.

    What V was makes no difference to it, but through the deviations of q; as these shrink it grows without limit. An
    encoder that tells rollouts from demonstrations can shrink the former alone, and no KL stands against that.

    Args:
        q: q(z | tau~), batch shape ``[...]``, event shape ``[D]``.
        subskills: M.
        entropy: H(V) ``[...]``.
    """
    return entropy - subskills * q.entropy()


def infonce(scores: Tensor) -> Tensor:
    """Return InfoNCE with the exact conditional, a lower bound of I(V; tau~) in expectation, at most ln K.

        1/K sum_j [ log p(tau~_j | V_j) - log 1/K sum_k p(tau~_j | V_k) ]

    Van den Oord, Li, Vinyals (2018); with the conditional known there is no critic to learn.

    Args:
        scores: ``[..., K, K]``, in row k and column j ``log p(tau~_j | V_k)``, tau~_j drawn given V_j.

    Returns:
        ``[...]``.

    Raises:
        ValueError: if they are not square, or fewer than two.
    """
    count = _check_scores(scores)
    return (scores.diagonal(dim1=-2, dim2=-1) - scores.logsumexp(-2)).mean(-1) + math.log(count)


def leave_one_out(scores: Tensor) -> Tensor:
    """Return the leave-one-out estimate with the exact conditional, an upper bound of I(V; tau~) in expectation.

        1/K sum_j [ log p(tau~_j | V_j) - log 1/(K-1) sum_{k != j} p(tau~_j | V_k) ]

    Poole, Ozair, van den Oord, Alemi, Tucker (2019).

    Args:
        scores: ``[..., K, K]``, in row k and column j ``log p(tau~_j | V_k)``, tau~_j drawn given V_j.

    Returns:
        ``[...]``.

    Raises:
        ValueError: if they are not square, or fewer than two.
    """
    count = _check_scores(scores)
    own = torch.eye(count, dtype=torch.bool, device=scores.device)
    others = scores.masked_fill(own, -math.inf).logsumexp(-2)
    return (scores.diagonal(dim1=-2, dim2=-1) - others).mean(-1) + math.log(count - 1)


def _check_parts(parts: TorchDistribution) -> None:
    if not (isinstance(parts, Independent) and isinstance(parts.base_dist, Normal) and len(parts.event_shape) == 1):
        raise TypeError(f"the parts must be diagonal normals, Normal(mean, deviation).to_event(1), got {parts}")
    if not parts.batch_shape:
        raise ValueError("the parts must have batch shape [..., M], one for each sub-skill; these have none")


def _check_scores(scores: Tensor) -> int:
    if scores.dim() < 2 or scores.shape[-1] != scores.shape[-2] or scores.shape[-1] < 2:
        raise ValueError(f"scores must have shape [..., K, K] with K of at least 2, got {tuple(scores.shape)}")
    return scores.shape[-1]


# -- what is regularised ------------------------------------------------------------------------------------------


class Skills(Protocol):
    """A model of trajectories that an embedding generates, such as `TrajectoryCVAE`; also a module."""

    def parameters(self) -> Iterator[Any]:
        """Return its parameters."""

    def model(self, batch: Any) -> Any:
        """Pyro model of a batch of demonstrations."""

    def check(self, data: Any) -> None:
        """Refuse data of another problem."""

    def signature(self) -> str:
        """Return one line that two models share exactly when they can share weights."""

    def scaled(self, inputs: Tensor) -> Tensor:
        """Return observations ``[..., S]`` as states."""

    def dynamics_of(self, z: Tensor, first: Tensor, steps: int) -> TorchDistribution:
        """Return the distribution of the states after ``first`` ``[..., S]``, event shape ``[steps, S]``."""

    def actions_of(self, states: Tensor, z: Tensor) -> TorchDistribution:
        """Return the distribution of the actions along states ``[..., T, S]`` with embeddings ``[..., D]``."""


class Encoder(Protocol):
    """A network from trajectories ``[N, T, X]`` of lengths ``[N]`` to a distribution of embeddings; also a module."""

    input_size: int

    def __call__(self, inputs: Tensor, lengths: Tensor) -> TorchDistribution:
        """Return the distribution, batch shape ``[N]``, event shape ``[D]``."""


class SkillGuide(Protocol):
    """The posterior over embeddings, such as `TrajectoryGuide`; also a module."""

    @property
    def encoder(self) -> Any:
        """Its `Encoder`, of states."""

    def posterior(self, batch: Any) -> TorchDistribution:
        """Return q(z | tau) of a batch: diagonal normals, batch shape ``[B]``, event shape ``[D]``."""

    def encode(self, states: Tensor, lengths: Tensor) -> TorchDistribution:
        """Return q(z | tau) of states ``[N, T, S]``."""

    def fresh_encoder(self, extra: int = 0) -> Any:
        """Return another encoder of the same kind, which reads ``extra`` more numbers a step."""


class MutualInformation(nn.Module):
    """A model of skills with a mutual-information term: eq. (4) or (5), the sign of the KL corrected.

    :attr:`model` is the model of skills and ``pyro.factor("mutual_information", weight * B * estimate)`` for a batch of
    B demonstrations, outside their plate: one term a demonstration, as the paper has it. Each call draws N tuples of
    one demonstration a sub-skill, encodes them, rolls V = sum_i z_i out from the first state of a random one of the
    tuple, and averages the estimate over tuples. Gradients go through z_i and the rollout, to guide, dynamics and
    critic. ::

        mi = MutualInformation(skills, guide, demos, ("kick", "spin"), names=("kick", "spin", "jump"), kind="tied")
        svi = SVI(mi.model, guide, optimiser, StepwiseKL_ELBO())

    Guide, dynamics and the usual critic read states only: the policy gets no gradient from the term, unless the critic
    reads actions, too.

    Args:
        skills: the model.
        guide: its guide.
        demos: demonstrations to draw tuples of, whose task is the one-hot skill ``[B, U]``; those of none, of several
            at once or of part of one are not drawn.
        subskills: names of the M sub-skills whose embeddings are to be summed.
        names: of all U skills, in the order of the task.
        kind: ``"off"`` (no factor, and no rollouts), ``"variational"``, ``"nonvariational"``, ``"literal"``, ``"tied"``
            or ``"infonce"``; see the head of this file.
        weight: lambda. For ``"nonvariational"`` keep it below 1 / (M - 1), see :func:`nonvariational`.
        tuples: N.
        samples: K, for ``"infonce"``: how many V are drawn for each tuple, which takes N K rollouts and N K^2
            densities; a smaller N will do then.
        critic: Q of ``"variational"``, an encoder of states, or of states and actions (S + A numbers a step; the last
            state has zeros for its action). By default ``guide.fresh_encoder()``.
        stop_gradient: treat tau~ as data. No gradient reaches the dynamics then, but from ``"infonce"``, which scores
            by their density.
        steps: how many states follow the first in a rollout; by default as many as in the longest demonstration of a
            sub-skill.

    Raises:
        TypeError: for a critic without ``input_size``.
        ValueError: for an unknown kind or skill, fewer than two sub-skills, a sub-skill without demonstrations or one
            whose demonstration is a single state, names that do not fit the task, a weight that is negative or not
            finite, sizes that are too small, a critic that is not called for or of another input size, or rollouts
            without a pathwise gradient and no ``stop_gradient``.
    """

    critic: nn.Module | None

    def __init__(
        self,
        skills: Skills,
        guide: SkillGuide,
        demos: Any,
        subskills: Several[str],
        *,
        names: Several[str],
        kind: str = "variational",
        weight: float = 0.1,
        tuples: int = 8,
        samples: int = 8,
        critic: Encoder | None = None,
        stop_gradient: bool = False,
        steps: int | None = None,
    ):
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be finite and not negative, got {weight}")
        _check_sizes(tuples=(tuples, 1), samples=(samples, 2), steps=(1 if steps is None else steps, 1))
        if critic is not None and kind != "variational":
            raise ValueError(f'a critic is for kind="variational", not {kind!r}')
        self.subskills, self.names = tuple(subskills), tuple(names)
        self.kind, self.weight, self.tuples, self.samples = kind, float(weight), tuples, samples
        self.stop_gradient = stop_gradient
        skills.check(demos)
        self._members = _members(demos, self.subskills, self.names)
        longest = max(int(demos.lengths[rows].max()) for rows in self._members)
        self.steps = longest - 1 if steps is None else steps
        self.skills, self._demos = skills, demos
        self._guide = (guide,)  # in a tuple, so that its parameters are saved once, as the guide's
        self.critic = None
        self._reads_actions = False
        if kind == "variational":
            self._take_critic(guide.fresh_encoder() if critic is None else critic)
        if kind != "off":
            self._check_gradients()

    @property
    def guide(self) -> SkillGuide:
        """The guide that encodes demonstrations and rollouts."""
        return self._guide[0]

    # -- as a Pyro model ------------------------------------------------------------------------------------------

    @property
    def model(self) -> Callable[[Any], Any]:
        """The Pyro model: ``model(batch)``.

        It names the model of skills, too, so that `fit` saves that under its own name, and `load_checkpoint` finds it.
        """
        return functools.partial(self._run, self.skills)

    def forward(self, batch: Any) -> Any:
        """Run :attr:`model`, so that this can be given to an ELBO as a module."""
        return self._run(self.skills, batch)

    def _run(self, skills: Skills, batch: Any) -> Any:
        if self.kind != "off":
            if self.critic is not None:
                register("critic", self.critic)
            # Before the latent sites, which have no influence on it and are not to be credited with it.
            pyro.factor("mutual_information", self.weight * len(batch.observations) * self.estimate())
        return skills.model(batch)

    def check(self, data: Any) -> None:
        """Refuse data that the model of skills refuses."""
        self.skills.check(data)

    def signature(self) -> str:
        """Return what a checkpoint must share with this to fit it."""
        own = f"{self.kind}, {' + '.join(self.subskills)}, weight={self.weight:g}, stop_gradient={self.stop_gradient}"
        size = f"tuples={self.tuples}, samples={self.samples}, steps={self.steps}"
        return f"MutualInformation({own}, {size}) of {self.skills.signature()}"

    # -- estimates ------------------------------------------------------------------------------------------------

    def estimate(self) -> Tensor:
        """Return a fresh estimate of this kind, with its graph: a number, the mean over tuples (nats).

        Raises:
            ValueError: for the kind ``"off"``, which has none.
        """
        if self.kind == "off":
            raise ValueError('kind="off" has no estimate; estimates() has them all')
        values = dict(self._drawn((self.kind,), self.tuples, self.samples if self.kind == "infonce" else 1))
        return values[self.kind].mean()

    @torch.no_grad()
    def estimates(self, tuples: int | None = None, samples: int | None = None) -> dict[str, float]:
        """Return every estimate for the model as it is now, the sandwich ``infonce`` and ``leave_one_out`` among them.

        All are of the same tuples, V and rollouts.

        Args:
            tuples: N, by default this term's.
            samples: K for each tuple, by default this term's.

        Returns:
            Nats by name; ``"variational"`` only where there is a critic.

        Raises:
            ValueError: for fewer than one tuple or two samples.
        """
        tuples = self.tuples if tuples is None else tuples
        samples = self.samples if samples is None else samples
        _check_sizes(tuples=(tuples, 1), samples=(samples, 2))
        kinds = [kind for kind in (*_KINDS[1:], "leave_one_out") if kind != "variational" or self.critic is not None]
        return {kind: float(value.mean()) for kind, value in self._drawn(kinds, tuples, samples)}

    def _drawn(self, kinds: Several[str], tuples: int, samples: int) -> Iterator[tuple[str, Tensor]]:
        """Draw, and yield estimates by name, one a tuple or one a sample of each."""
        parts, first = self._encoded(tuples)
        entropy = entropy_of_sum(parts)
        z = parts.rsample(torch.Size((samples,))).transpose(0, 1)  # [N, K, M, D]
        v, first = z.sum(-2), first.unsqueeze(1).expand(-1, samples, -1)
        following = self._roll_out(v, first)  # [N, K, steps, S]
        if {"infonce", "leave_one_out"} & set(kinds):
            scores = self._scores(v, first, following)
            yield from ((kind.__name__, kind(scores)) for kind in (infonce, leave_one_out) if kind.__name__ in kinds)
        # What is left reads one trajectory at a time: the rows are N K.
        z, v = z.flatten(0, 1), v.flatten(0, 1)
        states = torch.cat([first.unsqueeze(-2), following], -2).flatten(0, 1)
        entropy = entropy.unsqueeze(1).expand(-1, samples).flatten()
        lengths = torch.full((len(states),), states.shape[1], device=states.device)
        if "variational" in kinds:
            yield "variational", variational_bound(v, self._criticised(states, v, lengths), entropy)
        if {"nonvariational", "literal", "tied"} & set(kinds):
            q = self.guide.encode(states, lengths)
            if "nonvariational" in kinds:
                yield "nonvariational", nonvariational(z, q, entropy)
            if "literal" in kinds:
                yield "literal", literal(q, len(self.subskills), entropy)
            if "tied" in kinds:
                yield "tied", variational_bound(v, q, entropy)

    def _encoded(self, tuples: int) -> tuple[TorchDistribution, Tensor]:
        """Tuples of demonstrations: their posteriors, batch shape ``[N, M]``, and a first state for each ``[N, S]``."""
        columns = [rows[torch.randint(len(rows), (tuples,))] for rows in self._members]
        batch = self._batch(torch.stack(columns, 1).flatten())
        posterior = self.guide.posterior(batch)
        mean, deviation = (x.unflatten(0, (tuples, -1)) for x in (posterior.mean, posterior.stddev))
        first = self.skills.scaled(batch.observations[:, 0]).unflatten(0, (tuples, -1))
        chosen = torch.randint(len(columns), (tuples, 1, 1)).to(first.device).expand(-1, -1, first.shape[-1])
        return dist.Normal(mean, deviation).to_event(1), first.gather(1, chosen).squeeze(1)

    @property
    def _pathwise(self) -> bool:
        return torch.is_grad_enabled() and not self.stop_gradient

    def _roll_out(self, v: Tensor, first: Tensor) -> Tensor:
        """The states that follow the first ones ``[..., S]``, ``[..., steps, S]``."""
        with torch.set_grad_enabled(self._pathwise):
            dynamics = self.skills.dynamics_of(v, first, self.steps)
            return dynamics.rsample() if self._pathwise else dynamics.sample()

    def _scores(self, v: Tensor, first: Tensor, following: Tensor) -> Tensor:
        """``log p(tau~_j | V_k)`` of the K samples of each tuple, ``[N, K, K]``."""
        samples = v.shape[1]
        v, first = (x.unsqueeze(2).expand(-1, -1, samples, -1) for x in (v, first))
        following = following.unsqueeze(1).expand(-1, samples, -1, -1, -1)
        return self.skills.dynamics_of(v, first, self.steps).log_prob(following)

    def _criticised(self, states: Tensor, v: Tensor, lengths: Tensor) -> TorchDistribution:
        """Q(V | tau~) of states ``[N, T, S]``, with the policy's actions where the critic reads them."""
        assert self.critic is not None
        if self._reads_actions:
            with torch.set_grad_enabled(self._pathwise):
                acted = states[:, :-1]
                actions = self.skills.actions_of(acted, v)
                drawn = actions.rsample() if self._pathwise else actions.sample()
            states = torch.cat([states, F.pad(drawn, (0, 0, 0, 1))], -1)
        return self.critic(states, lengths)

    # -- checks ---------------------------------------------------------------------------------------------------

    def _batch(self, rows: Tensor) -> Any:
        batch = self._demos[rows]
        parameter = next(iter(self.skills.parameters()), None)
        return batch.to(parameter.device) if parameter is not None and hasattr(batch, "to") else batch

    def _take_critic(self, critic: Any) -> None:
        """Keep the critic, if it reads what there is to read."""
        if not isinstance(getattr(critic, "input_size", None), int):
            raise TypeError(f"a critic is an encoder with an input_size, got {type(critic).__name__}")
        actions = self._batch(self._members[0][:1]).actions
        states, width = self.guide.encoder.input_size, actions.shape[-1] if actions.is_floating_point() else None
        self._reads_actions = width is not None and critic.input_size == states + width
        if critic.input_size != states and not self._reads_actions:
            both = f" or {states + width} (states and actions)" if width is not None else ""
            raise ValueError(f"the critic reads {critic.input_size} numbers a step: it takes {states} (states){both}")
        self.critic = critic

    @torch.no_grad()
    def _check_gradients(self) -> None:
        """Refuse rollouts that have no pathwise gradient, where one is wanted."""
        if self.stop_gradient:
            return
        batch = self._batch(self._members[0][:1])
        z, first = self.guide.posterior(batch).mean, self.skills.scaled(batch.observations[:, 0])
        sampled: dict[str, TorchDistribution] = {"rollouts": self.skills.dynamics_of(z, first, 1)}
        if self._reads_actions:
            sampled["actions"] = self.skills.actions_of(first.unsqueeze(-2), z)
        for what, distribution in sampled.items():
            if not distribution.has_rsample:
                kind = type(self.skills).__name__
                raise ValueError(f"the {what} of this {kind} have no pathwise gradient: pass stop_gradient=True")


def _members(demos: Any, subskills: tuple[str, ...], names: tuple[str, ...]) -> list[Tensor]:
    """Which demonstrations there are of each sub-skill, long tensors on the CPU."""
    if len(subskills) < 2:
        raise ValueError(f"a composite has at least two sub-skills, got {len(subskills)}")
    if len(set(subskills)) != len(subskills):
        raise ValueError(f"a sub-skill is named twice: {', '.join(subskills)}")
    task = demos.task.cpu()
    if not task.shape[-1]:
        raise ValueError("the demonstrations have no task, which would say which skill each one shows")
    if len(names) != task.shape[-1] or len(set(names)) != len(names):
        raise ValueError(
            f"names must be those of all skills, one for each of the {task.shape[-1]} numbers of the demonstrations' "
            f"task: got {', '.join(names) or 'none'}"
        )
    members = []
    for name in subskills:
        if name not in names:
            raise ValueError(f"the composite names no skill {name!r}; there are {', '.join(names)}")
        rows = shows_only(task, names.index(name)).nonzero().squeeze(-1)
        if not len(rows):
            raise ValueError(f"there is no demonstration of the sub-skill {name!r}")
        short = demos.lengths[rows].cpu() < 2
        if bool(short.any()):
            raise ValueError(f"demonstration {int(rows[short][0])} of {name!r} is a single state: nothing follows it")
        members.append(rows)
    return members


def _check_sizes(**sizes: tuple[int, int]) -> None:
    for name, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
