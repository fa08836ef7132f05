"""Variational model-based imitation: a world model, evidence of optimality, and a policy inferred in imagination.

R. Rafailov et al., "Variational Model-Based Imitation Learning in High-Dimensional Observation Spaces" (2021). The ELBO
of eq. (1) has a part of the model, on what was observed, and one of the policy, on what is imagined; a discriminator,
eq. (2), supplies the evidence of optimality. An update takes a step on each in turn.

Shapes: B sequences of a batch, L observations of each, N pairs of states, H imagined steps, A action, F feature and
X evidence numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from gymnasium import spaces
from pyro import poutine
from torch import Tensor, nn

from ..._saved import Saved
from ..._verify import verify_least, verify_positive
from ...envs.data.demonstrations import Demonstrations
from ...guides.policies.belief_policy import BeliefPolicy
from ...models.imagination import Imagination, Start, soft_lambda_returns, trajectory
from ...models.optimality import ActionPrior, UniformPrior
from ...models.policies.level import from_box
from ...models.process import Sequence as SequenceDistribution
from ...models.spaces import boxes_of, observation_size
from ..control.critics import Critics, TargetCopy
from ..control.observed import fits
from ..control.sequence_replay import SequenceBatch, SequenceReplay
from ..control.temperature import Temperature, as_temperature
from ..objectives.stepwise import StepwiseKL_ELBO
from ..training.checkpoint import described
from .discriminator import Discriminator
from .evidence import Evidence

__all__ = ["VMIL", "SequencePool"]

Judged = Literal["observations", "features"]


class SequencePool(NamedTuple):
    """Demonstrations, of which windows of L observations are drawn uniformly.

    Attributes:
        observations: ``[D, T, O]``, flattened, bytes where they are.
        actions: ``[D, T, A]``, normalised.
        starts: ``[W, 2]`` long, the demonstration and the step at which each window starts.
        length: L.
    """

    observations: Tensor
    actions: Tensor
    starts: Tensor
    length: int

    @classmethod
    def of(cls, demonstrations: Demonstrations, policy: BeliefPolicy, length: int) -> SequencePool:
        """Return the windows of demonstrations.

        Raises:
            TypeError: for what is no `Demonstrations`.
            ValueError: for observations of another size or kind than the policy's, actions of another space or with
                other bounds, or no demonstration of at least L observations.
        """
        if not isinstance(demonstrations, Demonstrations):
            raise TypeError(f"demonstrations must be Demonstrations, not {type(demonstrations).__name__}")
        space, seen = policy.observation_space, demonstrations.observation_space
        if not fits(space, seen) or [*boxes_of(space)] != [*boxes_of(seen)]:
            raise ValueError(f"the demonstrations show {seen}, the policy takes {space}")
        box, found = policy.box, demonstrations.action_space
        if found != box:
            raise ValueError(f"the demonstrations' actions are in {found}, the policy acts in {box}")
        lengths = demonstrations.lengths.tolist()
        starts = [(row, t) for row, steps in enumerate(lengths) for t in range(steps - length + 1)]
        if not starts:
            raise ValueError(
                f"no demonstration has the {length} observations of a sequence: the longest has {max(lengths)}"
            )
        actions = torch.as_tensor(from_box(demonstrations.actions.numpy(), box), dtype=torch.get_default_dtype())
        return cls(demonstrations.observations, actions.clamp(-1, 1), torch.tensor(starts), length)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Return windows ``[count, L, O]`` and ``[count, L, A]``, drawn with replacement."""
        rows, first = self.starts[torch.randint(len(self.starts), (count,), device=self.starts.device)].unbind(1)
        steps = first.unsqueeze(1) + torch.arange(self.length, device=first.device)
        return self.observations[rows.unsqueeze(1), steps], self.actions[rows.unsqueeze(1), steps]

    def to(self, device: Any) -> SequencePool:
        """Return the same on a device."""
        return SequencePool(self.observations.to(device), self.actions.to(device), self.starts.to(device), self.length)


class VMIL(Saved, nn.Module):
    """Learns to imitate demonstrations without their rewards, by what `learn` lets it try.

    The policy's `readings` get the moments of the demonstrations, unless they have some already.

    An update on windows of the replay, and of the demonstrations, takes a step each of

    1. the world model and its guide, by the ELBO of what was observed, ``elbo(world.model, guide)``;
    2. the evidence, on pairs ``(s_t, s_{t+1})`` inferred from demonstrations and from the replay;
    3. the actor, in H steps imagined from states that were inferred, on the soft lambda-returns of the evidence (see
       `soft_lambda_returns`), reparametrised through the world model,

           max E[mean_t G_t],    G_t with r_t = evidence(s_t, s_{t+1});

    4. two critics of states, ``V_k(s_t) -> G_t``, of which the lesser counts, and the temperature, as in soft
       actor-critic.

    With ``mixing=1`` and ``discount=1``, ``G_0 / alpha`` is the ELBO of
    :class:`~pyrocontrol.models.ImaginedOptimality`. An episode that ends is imagined to go on.

    Args:
        policy: what acts, and holds the world model, its guide and the actor.
        demonstrations: of the same observations and actions.
        evidence: of optimality, over X numbers, or what makes it of X, such as the class `Discriminator`, which None
            stands for.
        judged: what the evidence reads of a state: ``"observations"``, vectors, as they are or decoded; or
            ``"features"``, from which no gradient reaches the world model. With ``actions``, X counts those too.
        actions: whether the evidence reads the action between the two states, as in eq. (2).
        elbo: of the world model; None for a `StepwiseKL_ELBO` with 3 free nats.
        length: L.
        horizon: H.
        share: of each batch that demonstrations are added as.
        pairs: N that the evidence learns from, of each kind.
        starts: inferred states from which steps are imagined, or all if there are fewer.
        discount: gamma.
        mixing: lambda.
        temperature: alpha: a `Temperature`, or short for one, a number or ``"learned"``.
        prior: p(a); None for the uniform one.
        hidden: sizes of the critics' hidden layers.
        model_lr: of Adam, for world model and guide.
        lr: of Adam, for actor, critics and temperature.
        clip: greatest norm of the gradient of each step.
        smoothing: how far the target critics move towards the critics in an update.

    Raises:
        TypeError: for a policy, demonstrations or evidence of other kinds.
        ValueError: for demonstrations of other observations or actions, or none of L observations, evidence or a prior
            of other sizes, or numbers out of range.
    """

    def __init__(
        self,
        policy: BeliefPolicy,
        demonstrations: Demonstrations,
        evidence: Evidence | Callable[[int], Evidence] | None = None,
        *,
        judged: Judged | None = None,
        actions: bool = False,
        elbo: StepwiseKL_ELBO | None = None,
        length: int = 16,
        horizon: int = 3,
        share: float = 0.25,
        pairs: int = 128,
        starts: int = 128,
        discount: float = 0.99,
        mixing: float = 0.95,
        temperature: Temperature | float | Literal["learned"] | None = None,
        prior: ActionPrior | None = None,
        hidden: Sequence[int] = (256, 256),
        model_lr: float = 6e-4,
        lr: float = 5e-4,
        clip: float = 100.0,
        smoothing: float = 0.02,
    ) -> None:
        super().__init__()
        if not isinstance(policy, BeliefPolicy):
            raise TypeError(f"policy must be a BeliefPolicy, which has a world model, not {type(policy).__name__}")
        verify_least(1, horizon=horizon, pairs=pairs, starts=starts)
        verify_least(2, length=length)
        verify_positive(model_lr=model_lr, lr=lr, clip=clip)
        for name, number in {"share": share, "discount": discount, "mixing": mixing}.items():
            if not 0 <= number <= 1 or (name == "share" and number in (0, 1)):
                raise ValueError(f"{name} must be between 0 and 1, not {number}")
        self.policy, self.demonstrations = policy, SequencePool.of(demonstrations, policy, length)
        policy.readings.standardize(policy.readings.unflatten(demonstrations.observations[demonstrations.mask]))
        if judged is None:
            judged = "observations" if not policy.readings.images else "features"
        if judged not in get_args(Judged):
            raise ValueError(f"judged must be one of {', '.join(get_args(Judged))}, not {judged!r}")
        if judged == "observations" and not policy.readings.vectors:
            raise ValueError("images are not judged as observations: use judged='features'")
        self.judged, self.actions = judged, actions
        dynamics = policy.world.dynamics
        state = (
            dynamics.feature_size
            if judged == "features"
            else sum(math.prod(box.shape) for box in policy.readings.vectors.values())
        )
        self.judged_size = 2 * state + (dynamics.action_size if actions else 0)
        made: Any = Discriminator if evidence is None else evidence
        self.evidence: Any = made(self.judged_size) if callable(made) and not isinstance(made, nn.Module) else made
        for name in ("update", "reward"):
            if not (isinstance(self.evidence, nn.Module) and callable(getattr(self.evidence, name, None))):
                kind = type(self.evidence).__name__
                raise TypeError(f"evidence must be a module with update and reward, or make one of X, not {kind}")
        if (reads := getattr(self.evidence, "size", self.judged_size)) != self.judged_size:
            raise ValueError(f"the evidence reads {reads} numbers, here are {self.judged_size}")
        self.elbo = StepwiseKL_ELBO(max_plate_nesting=1, free_nats=3.0) if elbo is None else elbo
        self.length, self.horizon, self.share = length, horizon, share
        self.pairs, self.starts = pairs, starts
        self.discount, self.mixing, self.lr, self.clip = discount, mixing, lr, clip
        self.prior: ActionPrior = UniformPrior(dynamics.action_size) if prior is None else prior
        if self.prior.action_size != dynamics.action_size:
            raise ValueError(f"the prior has {self.prior.action_size} action numbers, not {dynamics.action_size}")
        self.temperature = Temperature.learned(0.2) if temperature is None else as_temperature(temperature)
        goal = self.temperature.target_entropy
        self.target_entropy = float(-dynamics.action_size if goal is None else goal)
        self.critics = Critics(dynamics.feature_size, 0, hidden, 2, normalized=True)
        self.target = copy.deepcopy(self.critics).requires_grad_(False)
        self.move = TargetCopy(smoothing, 1)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(self.temperature.initial)))
        self.modelled = [*policy.world.parameters(), *(policy.guide.parameters() if policy.guide is not None else ())]
        self.acting = [*policy.actor.parameters()]
        self.optimizers = {
            "model": torch.optim.Adam(self.modelled, lr=model_lr, fused=True),
            "actor": torch.optim.Adam(self.acting, lr=lr, fused=True),
            "critics": torch.optim.Adam(self.critics.parameters(), lr=lr, fused=True),
            "temperature": torch.optim.Adam([self.log_alpha], lr=lr, fused=True),
        }
        #: Updates so far.
        self.updates = 0
        self.state: Start | None = None
        self._inferred: Any = None  # the guide's site of this update
        self._settings = {
            "judged": judged,
            "actions": actions,
            "evidence": getattr(self.evidence, "signature", lambda: type(self.evidence).__name__)(),
            "elbo": described(self.elbo),
            "length": length,
            "horizon": horizon,
            "share": share,
            "pairs": pairs,
            "starts": starts,
            "discount": discount,
            "mixing": mixing,
            "temperature": described(self.temperature),
            "prior": described(self.prior),
            "hidden": tuple(hidden),
            "model_lr": model_lr,
            "lr": lr,
            "clip": clip,
            "smoothing": smoothing,
            "demonstrations": demonstrations.fingerprint(),
        }

    # -- what `learn` asks for --------------------------------------------------------------------------------------

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Of the policy."""
        return self.policy.observation_space

    @property
    def observation_size(self) -> int:
        """O."""
        return observation_size(self.observation_space)

    @property
    def action_size(self) -> int:
        """A."""
        return self.policy.action_size

    def make_replay(self, capacity: int, **options: Any) -> SequenceReplay:
        """Return a replay of windows of L observations."""
        return SequenceReplay(capacity, self.observation_space, self.action_size, length=self.length, **options)

    def begin(self, seed: int) -> None:
        """Forget the episode before."""
        self.state = None

    def act(self, observation: Any, deterministic: bool = False) -> np.ndarray:
        """Return a normalised action ``[A]``, and remember what was seen and done."""
        action, self.state = self.policy.act(observation, self.state, deterministic)
        return action

    def update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Take a step of everything; return named scalars, ``critic_loss`` among them, without a graph."""
        readings, own = self.policy.readings, len(batch.actions)
        shown, done = self.demonstrations.sample(max(1, round(own * self.share / (1 - self.share))))
        x = _joined(readings(batch.observations), readings(readings.unflatten(shown)))
        actions = torch.cat([batch.actions, done])
        numbers, start = self._model_step(x, actions)
        judged = self._read(self.policy.world.dynamics.features(*start))
        numbers |= self._evidence_step(judged, actions, own)
        drawn = torch.randperm(actions[..., 0].numel(), device=actions.device)[: self.starts]
        numbers |= self._policy_step(Start(start.memory.flatten(0, 1)[drawn], start.z.flatten(0, 1)[drawn]))
        self.updates += 1
        self.move(self.target.parameters(), self.critics.parameters(), self.updates)
        return numbers

    # -- the parts of an update -------------------------------------------------------------------------------------

    def _model_step(self, x: Any, actions: Tensor) -> tuple[dict[str, Tensor], Start]:
        """Learn the world model; return the states inferred, without a graph."""
        world, guide = self.policy.world, self.policy.guide
        given = x, actions
        if guide is None:  # members of an ensemble are dealt out by row: each is to see demonstrations
            order = torch.randperm(len(actions), device=actions.device)
            given = x[order], actions[order]
        loss = self.elbo.differentiable_loss(world.model, self._recorded, *given) / actions[..., 0].numel()
        # Of the parameters as they are, before the step.
        if guide is None:
            path, z = world.path(actions), x
        else:
            path, z = self._inferred["fn"], self._inferred["value"]
        start = Start(path.states(z).memory.detach(), z.detach())
        self._inferred = None
        self._take("model", loss, self.modelled)
        return {"model_loss": loss.detach()}, start

    def _recorded(self, x: Any, actions: Tensor) -> None:
        """Run the guide, and remember its site."""
        if self.policy.guide is not None:
            with poutine.trace() as tracer:
                self.policy.guide(x, actions)
            self._inferred = tracer.trace.nodes["latents"]

    def _read(self, features: Tensor) -> Tensor:
        """Return what the evidence reads of features ``[..., F]``: these, or vectors as they are or decoded."""
        if self.judged == "features" or self.policy.guide is None:
            return features
        world: Any = self.policy.world
        return torch.cat([world.decoders[name].mean(features) for name in self.policy.readings.vectors], -1)

    def _pairs(self, before: Tensor, action: Tensor, after: Tensor) -> Tensor:
        return torch.cat([before, action, after] if self.actions else [before, after], -1)

    def _evidence_step(self, judged: Tensor, actions: Tensor, own: int) -> dict[str, Tensor]:
        """Learn what tells demonstrations from the replay."""
        judged = judged.detach()
        pairs = self._pairs(judged[:, :-1], actions[:, :-1], judged[:, 1:])
        agent, expert = pairs[:own].flatten(0, 1), pairs[own:].flatten(0, 1)
        rows = [torch.randint(len(kind), (self.pairs,), device=kind.device) for kind in (expert, agent)]
        found = self.evidence.update(expert[rows[0]], agent[rows[1]])
        return {f"evidence_{name}": value for name, value in found.items()}

    def _policy_step(self, start: Start) -> dict[str, Tensor]:
        """Learn actor, critics and temperature from imagined steps."""
        actor, alpha = self.policy.actor, self.log_alpha.detach().exp()
        path = SequenceDistribution(Imagination(self.policy.world.dynamics, actor), start, self.horizon)
        steps = path.rsample()
        features, actions, log_probs = trajectory(path, steps)
        seen = self._read(features)
        rewards = self.evidence.reward(self._pairs(seen[:, :-1], actions, seen[:, 1:]))
        log_ratios = log_probs - self.prior.log_prob(actions)
        values = self.target.minimum(features[:, 1:])
        returns = soft_lambda_returns(rewards, log_ratios, values, alpha, self.discount, self.mixing)
        loss = -returns.mean()
        self._take("actor", loss, self.acting)
        target = returns.detach()
        errors = self.critics(features[:, :-1].detach()) - target
        critic_loss = 0.5 * errors.square().mean()
        self._take("critics", critic_loss * len(errors), [*self.critics.parameters()])
        divergence = log_ratios.detach().mean()
        if self.temperature.is_learned:
            shift = self.target_entropy - self.action_size * math.log(2)
            self._take("temperature", -self.log_alpha * (divergence + shift), [self.log_alpha])
        return {
            "critic_loss": critic_loss.detach(),
            "policy_loss": loss.detach(),
            "reward": rewards.detach().mean(),
            "value": values.detach().mean(),
            "alpha": alpha,
            "divergence": divergence,
        }

    def _take(self, name: str, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """Take a step on a loss, with clipped gradients, of some parameters alone."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        nn.utils.clip_grad_norm_(parameters, self.clip)
        optimizer.step()

    # -- saving -----------------------------------------------------------------------------------------------------

    def signature(self) -> str:
        """What two learners share exactly when one can go on from the other's checkpoint."""
        settings = ", ".join(f"{name}={value}" for name, value in self._settings.items())
        return f"VMIL({self.policy.signature()}, {settings})"

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state that is in no tensor of the modules."""
        return {
            "updates": self.updates,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "state": None if self.state is None else [*self.state],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go back to a state of :meth:`get_extra_state`, sharing nothing with it."""
        self.updates = int(state["updates"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))
        device = self.log_alpha.device
        kept = state["state"]
        self.state = None if kept is None else Start(*(leaf.to(device, copy=True) for leaf in kept))

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self.demonstrations = self.demonstrations.to(self.log_alpha.device)
        for optimizer in self.optimizers.values():  # whose state moves where the parameters are
            optimizer.load_state_dict(optimizer.state_dict())
        return self


def _joined(one: Any, other: Any) -> Any:
    """Rows of one batch, then those of another; by name where there are several observations."""
    if isinstance(one, Tensor):
        return torch.cat([one, other])
    return {name: torch.cat([one[name], other[name]]) for name in one}
