"""Imitation without a model: soft actor-critic whose rewards come from demonstrations.

Both methods here are learners of :func:`~pyrocontrol.inference.learn`, with its replay; the environment's rewards are
only reported. They are what VMIL is compared with.

Shapes: B batch, O observation numbers, A action numbers, X evidence inputs, N demonstrated steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Unpack, get_args

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from ..._verify import verify_finite
from ...envs.data.demonstrations import Demonstrations
from ...models.optimality import ActionGuide
from ...models.policies.level import check_box, from_box
from ...models.spaces import observation_size
from ..control.critics import Critics
from ..control.drq import DrQ
from ..control.observed import fits
from ..control.policy_gradient import PolicyGradient
from ..control.replay import ReplayBatch
from ..control.soft_control import SoftActorCritic, SoftOptions
from ..control.temperature import Temperature
from .discriminator import Discriminator
from .evidence import Evidence

__all__ = ["DAC", "SQIL", "DemonstratedActorCritic", "SQILDrQ"]

Inputs = Literal["sa", "ss", "sas"]

_TEMPERATURE = Temperature.learned(0.2)  # rewards are of the order of 1 here


class Steps(NamedTuple):
    """Demonstrated steps, every observation once.

    Attributes:
        observations: of all traces, one after the other.
        places: where among them the one before each step is ``[N]``; the one after it follows.
        starts: where its trace starts ``[N]``.
        actions: ``[N, A]``, normalised.
        terminated: ``[N]``.
    """

    observations: Tensor
    places: Tensor
    starts: Tensor
    actions: Tensor
    terminated: Tensor


class DemonstratedActorCritic(SoftActorCritic):
    """Soft actor-critic, a share of whose batches is demonstrated; a subclass says what the rewards are.

    Demonstrated steps are transitions like all others, their actions normalised by the bounds of their space. The last
    step of a demonstration ends the task only where the demonstration says ``terminated``; where it was cut off, the
    value of its last observation counts. They stay with the learner and are not in its state: a checkpoint names them
    by their fingerprint, and a run goes on with the same ones only.

    Args:
        policy: the policy to learn, which squashes its actions.
        demonstrations: of the same environment.
        expert_share: how much of each batch is demonstrated, in [0, 1).
        temperature: see `SoftActorCritic`.
        gradient: see `SoftActorCritic`.
        **options: see `SoftOptions`.

    Raises:
        TypeError: if the demonstrations are none, or their actions are no Box of floats.
        ValueError: for demonstrations of other sizes than the policy's, actions without bounds, and as
            `SoftActorCritic`.
    """

    def __init__(
        self,
        policy: ActionGuide,
        demonstrations: Demonstrations,
        *,
        expert_share: float = 0.5,
        temperature: Temperature | float | Literal["learned"] = _TEMPERATURE,
        gradient: PolicyGradient | ELBO | None = None,
        **options: Unpack[SoftOptions],
    ) -> None:
        verify_finite(0.0, expert_share=expert_share)
        if expert_share >= 1:
            raise ValueError(f"expert_share must be below 1, not {expert_share}: there is the agent's share too")
        _verify_demonstrations(demonstrations, policy)
        sizes = policy.observation_size, policy.action_size
        super().__init__(policy, *sizes, temperature=temperature, gradient=gradient, **options)
        self.expert_share = float(expert_share)
        self.action_space = demonstrations.action_space
        demonstrations = demonstrations.read()
        self._settings |= {"expert_share": self.expert_share, "demonstrations": demonstrations.fingerprint()}
        for name, values in self.steps_of(demonstrations)._asdict().items():
            self.register_buffer(f"expert_{name}", values, persistent=False)  # goes where the learner goes

    def make_critics(self, hidden: Sequence[int], coordinates: Callable[[Tensor], Tensor] | None) -> Critics:
        """Return critics that are bounded far from the data, as demonstrations are."""
        return Critics(self.observation_size, self.action_size, hidden, self.critic_count, coordinates, normalized=True)

    def steps_of(self, demonstrations: Demonstrations) -> Steps:
        """Return what is kept of demonstrations."""
        steps = _steps(demonstrations, self.log_alpha.dtype)
        return steps._replace(observations=steps.observations.to(self.log_alpha.dtype))

    def demonstrated(self, count: int) -> ReplayBatch:
        """Return ``count`` demonstrated steps, drawn with replacement; their rewards are 0."""
        held = Steps(*map(self.get_buffer, (f"expert_{name}" for name in Steps._fields)))
        drawn = torch.randint(len(held.actions), (count,), device=held.actions.device)
        places, starts, actions, terminated = (part[drawn] for part in held[1:])
        before, after = (self.seen_at(held.observations, at, starts) for at in (places, places + 1))
        return ReplayBatch(before, actions, torch.zeros_like(terminated), after, terminated)

    def seen_at(self, observations: Tensor, places: Tensor, starts: Tensor) -> Tensor:
        """Return what is seen at places among all observations, in traces that start at others."""
        return observations[places]

    def update(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """Replace a share of the agent's transitions ``[B]`` by demonstrated ones, all rewards by learnt ones; learn.

        Returns:
            What `SoftActorCritic` reports, and ``reward``, the mean of the batch.
        """
        count = round(self.expert_share * len(batch.rewards))
        expert = self.demonstrated(count)
        mixed = ReplayBatch(*(torch.cat([one, own[count:]]) for one, own in zip(expert, batch, strict=True)))
        mixed = mixed._replace(rewards=self.rewards(mixed, count))
        return super().update(mixed) | {"reward": mixed.rewards.mean()}

    def rewards(self, batch: ReplayBatch, count: int) -> Tensor:
        """Return the rewards ``[B]`` of a batch, the first ``count`` rows of which are demonstrated."""
        raise NotImplementedError


class DAC(DemonstratedActorCritic):
    """Discriminator actor-critic: soft actor-critic whose reward is the evidence that a step is the expert's.

    The evidence learns at every update from as many demonstrated steps as there are in a batch of the replay, and
    rewards are computed anew from what it has become. After I. Kostrikov et al., "Discriminator-Actor-Critic" (2019),
    with our soft actor-critic in place of TD3. What differs: a share of each batch of the critics is demonstrated;
    and there are no absorbing states. Those repair rewards of one sign where the task can end early. Where only time
    runs out, nothing needs repair, as the value of the last observation counts; where it can end, take a reward of both
    signs, as ``"logit"`` is.

    Args:
        policy: the policy to learn, which squashes its actions.
        demonstrations: of the same environment.
        evidence: a module such as `Discriminator` or `CoupledRandomNetworks`, with ``update`` and ``reward``, of X
            inputs; None for ``Discriminator(X)``. It goes to the precision of the policy.
        inputs: what the evidence sees: ``"sa"``, state and action, X = O + A; ``"ss"``, state and next state, X = 2 O,
            which no difference between the expert's actions and the policy's can give away; ``"sas"``, all three.
        expert_share: how much of each batch of the critics is demonstrated, in [0, 1); 0 as in the paper.
        temperature: see `SoftActorCritic`.
        gradient: see `SoftActorCritic`.
        **options: see `SoftOptions`.

    Raises:
        TypeError: if something is not what it should be.
        ValueError: for demonstrations of other sizes than the policy's, actions without bounds, evidence of other
            inputs, and as `SoftActorCritic`.
    """

    evidence: Any  # a module that is an Evidence, which mypy cannot say

    def __init__(
        self,
        policy: ActionGuide,
        demonstrations: Demonstrations,
        *,
        evidence: Evidence | None = None,
        inputs: Inputs = "ss",
        expert_share: float = 0.25,
        temperature: Temperature | float | Literal["learned"] = _TEMPERATURE,
        gradient: PolicyGradient | ELBO | None = None,
        **options: Unpack[SoftOptions],
    ) -> None:
        if inputs not in get_args(Inputs):
            raise ValueError(f"inputs must be one of {', '.join(get_args(Inputs))}, not {inputs!r}")
        for name in ("update", "reward"):
            if evidence is not None and not (isinstance(evidence, nn.Module) and hasattr(evidence, name)):
                raise TypeError(f"evidence must be a module with update and reward, not {type(evidence).__name__}")
        super().__init__(
            policy,
            demonstrations,
            expert_share=expert_share,
            temperature=temperature,
            gradient=gradient,
            **options,
        )
        size = {"s": self.observation_size, "a": self.action_size}
        total = sum(size[part] for part in inputs)
        if (given := getattr(evidence, "size", total)) != total:
            raise ValueError(f"the evidence takes {given} numbers, {inputs!r} has {total}")
        self.inputs = inputs
        self.evidence = Discriminator(total) if evidence is None else evidence
        self.evidence.to(self.log_alpha.dtype)
        about = getattr(self.evidence, "signature", lambda: type(evidence).__name__)
        self._settings |= {"inputs": inputs, "evidence": about()}

    def inputs_of(self, batch: ReplayBatch) -> Tensor:
        """Return what the evidence sees of transitions, ``[B, X]``."""
        after = [batch.actions] if "a" in self.inputs else []
        after += [batch.next_observations] if self.inputs.endswith("s") else []
        return torch.cat([batch.observations, *after], -1)

    def update(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """Update the evidence, then policy and critics by its rewards.

        Returns:
            What `SoftActorCritic` reports, ``reward``, the mean of the batch, and what the evidence reports, each name
            after ``evidence_``.
        """
        expert = self.demonstrated(len(batch.rewards))
        numbers = self.evidence.update(self.inputs_of(expert), self.inputs_of(batch))
        return super().update(batch) | {f"evidence_{name}": value for name, value in numbers.items()}

    @torch.no_grad()
    def rewards(self, batch: ReplayBatch, count: int) -> Tensor:
        """Return the evidence ``[B]`` of each step."""
        rewards: Tensor = self.evidence.reward(self.inputs_of(batch))
        return rewards


class SQIL(DemonstratedActorCritic):
    """Soft Q imitation learning: reward 1 for what was demonstrated, 0 for what the agent did, half a batch of each.

    After S. Reddy, A. Dragan and S. Levine, "SQIL: Imitation Learning via Reinforcement Learning with Sparse Rewards"
    (2020), which is behaviour cloning with a regulariser of the soft Bellman error; with continuous actions it is soft
    actor-critic.

    Args:
        policy: the policy to learn, which squashes its actions.
        demonstrations: of the same environment.
        expert_share: how much of each batch is demonstrated, in [0, 1).
        temperature: see `SoftActorCritic`.
        gradient: see `SoftActorCritic`.
        **options: see `SoftOptions`.

    Raises:
        TypeError: if something is not what it should be.
        ValueError: for demonstrations of other sizes than the policy's, actions without bounds, and as
            `SoftActorCritic`.
    """

    def rewards(self, batch: ReplayBatch, count: int) -> Tensor:
        """Return 1 for the demonstrated rows, 0 for the others, ``[B]``."""
        rewards = torch.zeros_like(batch.rewards)
        rewards[:count] = 1
        return rewards


class SQILDrQ(DrQ, SQIL):  # type: ignore[misc]  # whose update takes windows, and gives transitions to SQIL's
    """`SQIL` from images, by `DrQ`: VMIL's model-free baseline.

    The demonstrations are of single images, as the environment gives them. The paper's settings: 84 x 84 pixels, 3
    frames, shifts of 4 pixels, batches of 128, ``lr=1e-3``, ``hidden=(1024, 1024)``.

    Args:
        policy: an `ImagePolicy`.
        demonstrations: of the same environment, images of the same shape as bytes.
        expert_share: see `SQIL`, as for what follows.
        temperature: as there.
        gradient: as there.
        **options: as there.

    Raises:
        TypeError: as `SQIL`, and if the policy is no `ImagePolicy`.
        ValueError: as `SQIL`, and for demonstrations of other images.
    """

    def steps_of(self, demonstrations: Demonstrations) -> Steps:
        """Return what is kept of demonstrations: their images as bytes.

        Raises:
            ValueError: for images of another shape, or no images.
        """
        seen, wanted = demonstrations.observation_space, self.observation_space
        if not fits(wanted, seen):
            raise ValueError(f"the demonstrations are of {seen}, the policy's images of {wanted}")
        if (acted := demonstrations.action_space) != self.policy.action_space:
            raise ValueError(
                f"the actions of the demonstrations are in {acted}, the policy's in {self.policy.action_space}"
            )
        return _steps(demonstrations, self.log_alpha.dtype)

    def seen_at(self, observations: Tensor, places: Tensor, starts: Tensor) -> Tensor:
        """Return the last F images ``[B, F, H, W, C]``; a trace's first one stands for those before it."""
        back = torch.arange(1 - self.policy.frames, 1, device=places.device)
        return observations[(places.unsqueeze(1) + back).maximum(starts.unsqueeze(1))].unflatten(
            -1, self.observation_space.shape
        )


def _verify_demonstrations(demonstrations: Any, policy: Any) -> None:
    """Refuse what a policy cannot learn from; a policy that is none is refused later."""
    if not isinstance(demonstrations, Demonstrations):
        kind = type(demonstrations).__name__
        raise TypeError(f"demonstrations must be Demonstrations, which say what each step led to, not {kind}")
    for name in ("observation_size", "action_size"):
        if not hasattr(policy, name):
            raise TypeError(f"a {type(policy).__name__} is no policy to learn: it has no {name}")
    check_box(demonstrations.action_space, policy.action_size)
    if (seen := observation_size(demonstrations.observation_space)) != policy.observation_size:
        raise ValueError(
            f"the demonstrations have {seen} observation numbers, the {type(policy).__name__} {policy.observation_size}"
        )
    if not getattr(policy, "squash", True):
        raise ValueError(f"the {type(policy).__name__} acts with any real numbers, demonstrations have bounds")


def _steps(demonstrations: Demonstrations, dtype: torch.dtype) -> Steps:
    """All steps of demonstrations, observations as they are."""
    seen, taken = demonstrations.mask, demonstrations.mask[:, 1:]
    numbers = (seen.flatten().cumsum(0) - 1).view(seen.shape)
    ended = torch.zeros_like(taken, dtype=dtype)
    ended[torch.arange(len(ended)), demonstrations.lengths - 2] = demonstrations.terminated.to(dtype)
    actions = from_box(demonstrations.actions[:, :-1][taken].cpu().numpy(), demonstrations.action_space)  # type: ignore[arg-type]
    return Steps(
        demonstrations.observations[seen],
        numbers[:, :-1][taken],
        numbers[:, :1].expand_as(taken)[taken],
        torch.as_tensor(actions.clip(-1, 1)).to(ended),
        ended[taken],
    )
