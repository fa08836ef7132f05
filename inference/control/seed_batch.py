"""Several learners in one update: seeds of one experiment, whose networks become one batched product a layer.

Networks of the size of a policy keep neither a processor nor a GPU busy: most of an update is the calling of small
operations. Learners that differ in their weights alone share those calls.

Shapes: S learners, B batch, O observation numbers, A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .captured import CapturedCall, CapturedStep
from .policy_gradient import ByELBO
from .replay import ReplayBatch
from .soft_control import SoftLearner

__all__ = ["SeedBatch"]


class SeedBatch(nn.Module):
    """S learners of one kind that act and learn together, each on its own transitions, none knowing of the others.

    At the first use their parameters and their optimisers' states are stacked, and what a learner holds is from then on
    a view of its part of the stack: each can be evaluated, saved, and taken on alone at any time. Where that is no more
    so, a state having been loaded or moved, they are stacked anew. An update is what the S updates would be, but for
    rounding and the numbers of the noise; the options of the optimiser are those at the time of stacking.

    Args:
        learners: equal but for their weights: the same policy, sizes and settings.
        compile: compile the whole update and the acting (a minute at first; then torch's cache has it). On a CPU that
            asks for a C++ compiler.
        capture: on a GPU, make the update one CUDA graph, and the acting another; elsewhere it changes nothing.
            Together with ``compile`` the graphs are of what was compiled, and have the fewest kernels.

    Raises:
        TypeError: if something is no learner that can be stacked; at the first use, if torch cannot stack, or not
            compile, what the policy does (Zuko's cannot be compiled, at the time of writing).
        ValueError: if there are none, or they differ in more than their weights.

    Example:
        >>> from pyrocontrol.guides import FlowPolicy
        >>> from pyrocontrol.inference import SoftActorCritic
        >>> batch = SeedBatch([SoftActorCritic(FlowPolicy(3, 2), 3, 2) for _ in range(4)])
        >>> batch.act(np.zeros((4, 3))).shape
        (4, 2)
    """

    def __init__(self, learners: Sequence[SoftLearner], *, compile: bool = False, capture: bool = False) -> None:
        super().__init__()
        if not learners:
            raise ValueError("a batch needs a learner at least")
        for learner in learners:
            if not isinstance(learner, SoftLearner):
                raise TypeError(f"a {type(learner).__name__} cannot be stacked: it is no SoftLearner")
            if isinstance(getattr(learner, "gradient", None), ByELBO):
                raise TypeError("a learner with an elbo takes its step through Pyro, alone: it cannot be stacked")
            for name in ("step", "update"):
                if getattr(type(learner), name) is not getattr(SoftLearner, name):
                    kind = type(learner).__name__
                    raise TypeError(f"the {kind} has its own {name}, which a batch would pass over")
        tensors = [_named(learner) for learner in learners]
        if len({id(tensor) for named in tensors for tensor in named.values()}) < sum(map(len, tensors)):
            raise ValueError("the same learner is in the batch twice, or two share a policy or other weights")
        if len(kinds := {learner.signature() for learner in learners}) > 1:
            raise ValueError("learners of one batch must be of one kind, these are\n" + "\n".join(sorted(kinds)))
        for named in tensors[1:]:
            for name, tensor in named.items():
                one, other = (
                    f"{held.dtype}, {held.device}, learnt: {held.requires_grad}" for held in (tensors[0][name], tensor)
                )
                if one != other:
                    raise ValueError(f"learners of one batch differ in their {name}: {one} and {other}")
        self.learners = nn.ModuleList(learners)
        self.compiled, self.capture = compile, capture
        self.observation_size, self.action_size = learners[0].observation_size, learners[0].action_size
        self._stack: _Stack | None = None

    def __len__(self) -> int:
        """S."""
        return len(self.learners)

    def update(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """Take one step of every learner, then move the targets if that is due.

        Args:
            batch: fields ``[S, B, ..]``.

        Returns:
            The numbers that a learner's own update returns, each ``[S]``.

        Raises:
            ValueError: for a batch that is not one for each learner, or learners that are not in step.
        """
        if batch.rewards.dim() != 2 or len(batch.rewards) != len(self):
            raise ValueError(f"rewards must have shape [{len(self)}, B], not {[*batch.rewards.shape]}")
        with self._explained():
            return self._stacked().update(batch)

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Return normalised actions ``[S, A]`` at observations ``[S, O]``, those that keep a latent acting with it.

        Raises:
            ValueError: for observations of another shape, or learners that are not in step.
        """
        if np.shape(observations) != (len(self), self.observation_size):
            shapes = f"[{len(self)}, {self.observation_size}], not {[*np.shape(observations)]}"
            raise ValueError(f"observations must have shape {shapes}")
        latents: list[Any] = [learner.latent for learner in self.learners]
        with self._explained():
            return self._stacked().act(observations, latents)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except torch._dynamo.exc.Unsupported as error:
            kind = type(self.learners[0].policy).__name__
            raise TypeError(f"torch cannot compile what a {kind} does: leave compile out") from error
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            kind = type(self.learners[0].policy).__name__
            raise TypeError(f"what a {kind} does cannot be stacked: {str(error).splitlines()[0]}") from error

    def verify(self) -> None:
        """Refuse learners that are not in step.

        Raises:
            ValueError: if they have not had as many updates as each other.
        """
        counts = [learner.updates for learner in self.learners]
        if len({*counts}) > 1:
            raise ValueError(f"learners of one batch must have had as many updates as each other, not {counts}")

    def _stacked(self) -> _Stack:
        self.verify()
        if self._stack is None or not self._stack.intact():
            self._stack = _Stack([*self.learners], self.compiled, self.capture)
        return self._stack

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stack": None}  # a copy's learners have tensors of their own


def _named(learner: nn.Module) -> dict[str, Tensor]:
    return dict(learner.named_parameters()) | dict(learner.named_buffers())


class _Stack:
    """The tensors of learners, one above the other, and the functions that work on them."""

    def __init__(self, learners: Sequence[Any], compile: bool, capture: bool) -> None:
        self.learners, self.learner = learners, learners[0]
        named = [_named(learner) for learner in learners]
        optimised = {id(parameter) for parameter in self.learner.learnt if parameter.requires_grad}
        self.learnt: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        for name, held in named[0].items():
            stacked = torch.stack([tensors[name].detach() for tensors in named])
            (self.learnt if id(held) in optimised else self.fixed)[name] = stacked
            for tensors, part in zip(named, stacked, strict=True):
                tensors[name].data = part
        self.held = [(tensor, tensor.data_ptr()) for tensors in named for tensor in tensors.values()]
        for learner in learners:
            learner._captured = None  # a graph of where the tensors were
        self._stack_optimizers([tensors[name] for name in self.learnt] for tensors in named)
        names, every = {id(tensor): name for name, tensor in named[0].items()}, self.learnt | self.fixed
        self.targets, self.followed = (
            [every[names[id(tensor)]] for tensor in module.parameters()]
            for module in (self.learner.target, self.learner.followed)
        )
        self.policy = {name: stacked for name, stacked in every.items() if name.startswith("policy.")}
        self.acting = _Acting(self.learner.policy)
        self.like = next(iter(self.learnt.values()))
        self.step: Callable[[ReplayBatch], dict[str, Tensor]] = self._step
        self.draw: Callable[..., Tensor] = self._draws
        if compile:
            # On a CPU the compiler's own generator draws number by number, which takes longer than torch's.
            options: dict[str, Any] = {"fallback_random": not self.like.is_cuda}
            self.step = torch.compile(self.step, fullgraph=True, dynamic=False, options=options)
            self.draw = torch.compile(self.draw, fullgraph=True, dynamic=False, options=options)
        if capture and self.like.is_cuda:
            self.step, self.draw = CapturedStep(self.step), CapturedCall(self.draw)

    def _stack_optimizers(self, parameters: Iterable[list[Tensor]]) -> None:
        """Stack Adam's moments and numbers of steps, and give each optimiser its part to hold."""
        group = self.learner.optimizer.param_groups[0]
        self.lr, self.betas, self.eps = group["lr"], group["betas"], group["eps"]
        stacks = [*self.learnt.values()]
        self.steps = torch.zeros(len(self.learners), len(stacks), dtype=torch.float32, device=stacks[0].device)
        self.means = [torch.zeros_like(stacked) for stacked in stacks]
        self.squares = [torch.zeros_like(stacked) for stacked in stacks]
        self.states: list[tuple[Any, Tensor, Tensor]] = []
        for s, (learner, own) in enumerate(zip(self.learners, parameters, strict=True)):
            states = learner.optimizer.state
            for number, parameter in enumerate(own):
                views = {"step": self.steps[s, number]}
                views |= {"exp_avg": self.means[number][s], "exp_avg_sq": self.squares[number][s]}
                for name, old in states.get(parameter, {}).items():
                    views[name].copy_(old)
                states[parameter] = views
            self.states.append((learner.optimizer, own[0], states[own[0]]["exp_avg"]))

    def intact(self) -> bool:
        """Whether the learners and their optimisers still hold their parts, and nothing that was loaded or moved."""
        return all(tensor.data_ptr() == place for tensor, place in self.held) and all(
            adam.state.get(parameter, {}).get("exp_avg") is part for adam, parameter, part in self.states
        )

    def update(self, batch: ReplayBatch) -> dict[str, Tensor]:
        numbers = self.step(batch)
        for learner in self.learners:
            learner.updates += 1
        self.learner.move(self.targets, self.followed, self.learner.updates)
        return numbers

    def _step(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """The S steps: gradients, and Adam's step (D. Kingma and J. Ba 2015), its numbers of steps as tensors."""
        of_each = vmap(grad(self._loss, has_aux=True), randomness="different")
        gradients, numbers = of_each(self.learnt, self.fixed, batch)
        given, parameters = [*gradients.values()], [*self.learnt.values()]
        with torch.no_grad():
            self.steps += 1
            first, second = (1 - beta ** self.steps[0, 0].double() for beta in self.betas)
            torch._foreach_lerp_(self.means, given, 1 - self.betas[0])
            torch._foreach_mul_(self.squares, self.betas[1])
            torch._foreach_addcmul_(self.squares, given, given, 1 - self.betas[1])
            widths = torch._foreach_sqrt(torch._foreach_div(self.squares, second))
            torch._foreach_add_(widths, self.eps)
            steps = torch._foreach_div(self.means, widths)
            torch._foreach_sub_(parameters, torch._foreach_mul(steps, self.lr / first))
        return numbers

    def _loss(self, learnt: dict[str, Tensor], fixed: dict[str, Tensor], batch: ReplayBatch) -> Any:
        return functional_call(self.learner, learnt | fixed, (batch,))

    @torch.no_grad()
    def act(self, observations: np.ndarray, latents: list[Any]) -> np.ndarray:
        """Return actions ``[S, A]`` at observations ``[S, O]``, from latents ``[A]`` where there are any."""
        inputs = torch.as_tensor(observations, dtype=self.like.dtype, device=self.like.device)
        given = [] if latents[0] is None else [torch.stack(latents)]
        return self.draw(inputs, *given).cpu().numpy()

    def _draws(self, *inputs: Tensor) -> Tensor:
        return vmap(self._draw, randomness="different")(self.policy, *inputs)

    def _draw(self, weights: dict[str, Tensor], observation: Tensor, latent: Tensor | None = None) -> Tensor:
        return functional_call(self.acting, weights, (observation, latent))


class _Acting(nn.Module):
    """What a policy does at an observation, as a module's forward, whose weights can be replaced."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, latent: Tensor | None) -> Tensor:
        return self.policy.draw(observation)[0] if latent is None else self.policy.actions(latent, observation)
