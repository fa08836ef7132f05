"""What acts: one protocol for programs, policies, flows, hierarchies, skills, and the models of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

__all__ = ["Controller", "FunctionController", "as_controller"]


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
    kind = f"the class {policy.__name__}" if isinstance(policy, type) else f"a {type(policy).__name__}"
    raise TypeError(
        f"{kind} is no controller: it has no method predict(observation, state, episode_start, deterministic), "
        "and is no function of an observation"
    )
