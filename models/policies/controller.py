"""What acts: one protocol for programs, policies, flows, hierarchies, skills, and the models of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["Controller", "FunctionController", "as_controller", "carried", "verify_rows"]

State = TypeVar("State")


class Controller(Protocol):
    """Whatever acts in an environment. The signature is that of stable-baselines3's models, which are controllers too.

    A controller may have two methods more:

    - ``within(env)`` returns the controller that it is in one environment, whose spaces it then knows;
    - ``initial_state(info)`` returns the state that an episode begins with, given the ``info`` of its reset.
    """

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Choose an action.

        Args:
            observation: one, or a batch of them, in the environment's own form.
            state: what the call before returned; None at first.
            episode_start: bool, or bool ``[B]``: where an episode begins, so that the state is begun anew.
            deterministic: take the likeliest action instead of a random one.

        Returns:
            The action, or a batch of them, in the environment's own form, and the state to pass on.
        """
        ...


class FunctionController:
    """A function from one observation to one action, as a controller.

    Args:
        function: takes and returns what the environment gives and takes.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Return the function's action, and no state."""
        return self.function(observation), None


def as_controller(policy: Any, env: Any = None) -> Controller:
    """Return the controller that a policy is in an environment.

    Args:
        policy: has ``within(env)``, or ``predict``, or is a function of an observation.
        env: the environment; None where only ``predict`` is to be asked.

    Raises:
        TypeError: for what is no controller, such as a network, a class, or a policy that acts with normalised actions
            and is given no environment whose actions they could be.
    """
    if not isinstance(policy, type):
        if env is not None and callable(within := getattr(policy, "within", None)):
            return within(env)
        if callable(getattr(policy, "predict", None)):
            return policy
        if callable(policy) and not isinstance(policy, nn.Module):
            return FunctionController(policy)
    kind = f"the class {policy.__name__}" if isinstance(policy, type) else f"the {type(policy).__name__}"
    raise TypeError(
        f"{kind} is no controller: a policy has a method predict(observation, state, episode_start, deterministic), "
        "or is a function of an observation"
    )


def verify_rows(flat: np.ndarray) -> None:
    """Refuse what nobody can act on, given flattened observations.

    Raises:
        ValueError: unless they are one ``[O]``, or a batch ``[B, O]`` of at least one, and finite.
    """
    if flat.ndim > 2:
        raise ValueError(f"predict takes one observation or a batch of them, got shape {flat.shape[:-1]}")
    if not len(flat):
        raise ValueError("predict takes at least one observation, the batch is empty")
    if not (finite := np.isfinite(flat)).all():
        row = int(np.atleast_2d(finite).all(-1).argmin())
        raise ValueError(f"the observation (or goal) of row {row} is not finite")


def carried(fresh: State, state: Any, episode_start: Any, rows: int) -> State:
    """Return the state that a controller goes on with, begun anew in the rows where an episode starts.

    Args:
        fresh: the state before an episode's first step, any pytree of tensors ``[B, ...]``.
        state: what the call before returned, or None. It may have been through others' hands: named tuples may have
            become plain ones, tensors arrays.
        episode_start: bool, or bool ``[B]``; None for nowhere.
        rows: B.

    Raises:
        ValueError: for a state of another controller or another number of rows, or an ``episode_start`` of another
            shape.
    """
    if episode_start is not None and np.shape(episode_start) not in ((), (rows,)):
        raise ValueError(f"episode_start must be one bool or [{rows}], got shape {[*np.shape(episode_start)]}")
    if state is None or fresh is None:
        return fresh
    begun, form = pytree.tree_flatten(fresh)
    given = pytree.tree_leaves(state)
    if [leaf.shape for leaf in begun] != [np.shape(leaf) for leaf in given] or any(len(x) != rows for x in begun):
        raise ValueError(f"the state is of another policy, or not of {rows} rows")
    leaves = [torch.as_tensor(old, dtype=new.dtype, device=new.device) for new, old in zip(begun, given, strict=True)]
    if episode_start is not None:
        for place, (new, old) in enumerate(zip(begun, leaves, strict=True)):
            anew = torch.as_tensor(episode_start, dtype=torch.bool, device=new.device).expand(rows)
            leaves[place] = torch.where(anew.reshape((rows,) + (1,) * (old.dim() - 1)), new, old)
    return pytree.tree_unflatten(leaves, form)
