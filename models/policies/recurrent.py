"""The end-to-end baseline: a recurrent network from observations to actions, without latent structure.

R. Fox et al., "Hierarchical Imitation Learning via Variational Inference of Control Programs" (2018), Appendix C: four
LSTM layers of 64 nodes between two 64-node MLPs, and a softmax over the actions. As published it sees neither the
task nor its own previous action; `see_task` and `see_previous_action` give it both.

Shapes: B traces, T steps, O observation numbers, U task numbers, A actions (the null not counted).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..programs.traces import Traces, check_stopped
from ..registration import register
from ..spaces import observation_size

__all__ = ["RecurrentController"]


class RecurrentController(nn.Module):
    """MLP, stacked LSTM, MLP: p(a_t | o_0..o_t [, task] [, a_0..a_{t-1}]).

    A Pyro model without latent variables. Actions with arguments are not supported: the controller models the
    action's index alone.

    Args:
        obs_size: O, observation numbers.
        num_actions: A, actions without the null.
        task_size: U, task numbers; needed if `see_task`.
        see_task: feed the task at every step.
        see_previous_action: feed the previous action at every step, one-hot `[A]`, zeros at step 0.
        hidden: nodes of every layer.
        layers: LSTM layers.

    Raises:
        ValueError: if a size is not positive, or `see_task` is asked for without a task.
    """

    def __init__(
        self,
        obs_size: int,
        num_actions: int,
        *,
        task_size: int = 0,
        see_task: bool = False,
        see_previous_action: bool = False,
        hidden: int = 64,
        layers: int = 4,
    ) -> None:
        super().__init__()
        if min(obs_size, num_actions, hidden, layers) < 1:
            raise ValueError("obs_size, num_actions, hidden and layers must be positive")
        if see_task and task_size < 1:
            raise ValueError("see_task needs task_size >= 1")
        self.obs_size, self.num_actions, self.task_size = obs_size, num_actions, task_size
        self.see_task, self.see_previous_action = see_task, see_previous_action
        self.hidden, self.layers = hidden, layers
        inputs = obs_size + see_task * task_size + see_previous_action * num_actions
        self.encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        # Padded and batch first, never packed: a packed sequence leaves the fused kernel, which is 7 times as
        # fast. Padding comes last, so a causal network is not touched by it.
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_actions + 1))

    def check(self, traces: Traces) -> None:
        """Refuse traces of another problem.

        Raises:
            ValueError: if sizes differ, or the actions are not Discrete or take arguments; naming trace and step, if a
                trace was cut off.
        """
        check_stopped(traces)
        found = {
            "obs_size": (observation_size(traces.observation_space), self.obs_size),
            "num_actions": (traces.num_actions, self.num_actions),
            "action argument size": (traces.arguments.shape[-1], 0),
        }
        if self.see_task:
            found["task_size"] = (traces.task.shape[-1], self.task_size)
        for name, (given, expected) in found.items():
            if given != expected:
                raise ValueError(f"the demonstrations have {name} {given}, the recurrent controller {expected}")

    def signature(self) -> str:
        """One line that two controllers share exactly when they can share weights."""
        return (
            f"RecurrentController(obs_size={self.obs_size}, num_actions={self.num_actions}, "
            f"task_size={self.task_size}, see_task={self.see_task}, "
            f"see_previous_action={self.see_previous_action}, hidden={self.hidden}, layers={self.layers})"
        )

    def logits(self, traces: Traces) -> Tensor:
        """`[B, T, A + 1]` unnormalised log p(a_t | past), the past being the trace's own; last is null."""
        inputs = [traces.observations]
        batch, horizon = traces.actions.shape
        if self.see_task:
            inputs.append(traces.task.unsqueeze(1).expand(batch, horizon, self.task_size))
        if self.see_previous_action:
            seen = nn.functional.one_hot(traces.actions[:, :-1], self.num_actions + 1)[..., :-1]
            inputs.append(nn.functional.pad(seen.to(traces.observations.dtype), (0, 0, 1, 0)))
        output, _ = self.lstm(self.encoder(torch.cat(inputs, -1)))
        return self.decoder(output)

    def model(self, traces: Traces) -> Tensor:
        """Pyro model: log p(a | o) = sum_{t < length} log p(a_t | o_0..o_t), as one observed site `actions`.

        Returns:
            `[B, T]` the actions.
        """
        register("controller", self)
        logits = self.logits(traces)
        live = torch.arange(logits.shape[1], device=logits.device) < traces.lengths.unsqueeze(1)
        with pyro.plate("traces", logits.shape[0], dim=-1):
            return pyro.sample("actions", dist.Categorical(logits=logits).mask(live).to_event(1), obs=traces.actions)

    def forward(self, traces: Traces) -> Tensor:
        """Same as `model`."""
        return self.model(traces)

    def guide(self, traces: Traces) -> None:
        """Pyro guide of a model without latent variables: empty."""

    @torch.no_grad()
    def greedy_actions(self, traces: Traces) -> Tensor:
        """`[B, T]` long: the likeliest action at each step given the trace's past; null in the padding."""
        live = torch.arange(traces.actions.shape[1], device=traces.actions.device) < traces.lengths.unsqueeze(1)
        return torch.where(live, self.logits(traces).argmax(-1), self.num_actions)

    def greedy_arguments(self, traces: Traces) -> Tensor:
        """`[B, T, 0]`: its actions have no arguments."""
        return traces.observations.new_zeros(*traces.actions.shape, 0)
