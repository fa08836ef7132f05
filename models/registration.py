"""Modules in Pyro's parameter store, without one silently training another's parameters."""

from __future__ import annotations

from contextlib import suppress

import pyro
from torch import nn

__all__ = ["register"]


def register(name: str, module: nn.Module) -> None:
    """Register a module's parameters with Pyro under ``name``, taking the name over from an earlier module.

    Plain ``pyro.module`` would leave the earlier module's parameters under the name, so that an optimiser went on
    with those and the module at hand was never trained.
    """
    store = pyro.get_param_store()
    for key, parameter in module.named_parameters():
        full = f"{name}$$${key}"
        held = store._params.get(full, parameter)
        if held is not parameter:
            with suppress(KeyError):  # two names of one parameter lead back to the later one alone
                del store[full]
            for other, value in store.named_parameters():
                if value is held:
                    store._param_to_name[held] = other
    pyro.module(name, module)
