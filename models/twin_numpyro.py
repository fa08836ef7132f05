"""Twins: the same programs in NumPyro, on the weights of the torch modules that they mirror.

A twin holds what its module is (sizes, call graph, spaces) by holding the module, and weights of its own: JAX arrays
under the module's own parameter names. Its Pyro model is a NumPyro model, with the sites of the other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import torch
from torch import nn

__all__ = ["Twin", "from_numpyro", "to_numpyro"]

Array = Any
"""A JAX array, or what stands for one while a function is compiled."""


class Twin:
    """A module's twin. Subclasses name the class that they mirror: ``class Flow(Twin, of=models.Flow)``.

    Args:
        *args: a module of that class, or the arguments that make one; its weights are the twin's first. A twin among
            them stands for its module.
        **kwargs: as before.

    Attributes:
        mirrored: the module.
        weights: JAX arrays by the module's parameter names.

    Raises:
        ValueError: for weights in double precision while JAX is in single precision.
    """

    of: ClassVar[type[nn.Module]] = nn.Module
    _twins: ClassVar[dict[type[nn.Module], type[Twin]]] = {}

    def __init_subclass__(cls, of: type[nn.Module] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if of is not None:
            cls.of = of
            Twin._twins[of] = cls

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        args = tuple(_module(value) for value in args)
        made = len(args) != 1 or bool(kwargs) or not isinstance(args[0], self.of)
        self.mirrored: Any = (
            self.of(*args, **{key: _module(value) for key, value in kwargs.items()}) if made else args[0]
        )
        wide = [name for name, parameter in self.mirrored.named_parameters() if rounded(parameter)]
        if wide:
            raise ValueError(f"{wide[0]} is float64, and JAX is in single precision: {DOUBLE} first")
        self.weights: dict[str, Array] = {
            name: jnp.asarray(parameter.detach().cpu().numpy()) for name, parameter in self.mirrored.named_parameters()
        }

    def with_weights(self, weights: Mapping[str, Array]) -> Self:
        """Return the same twin with other weights, all of them."""
        twin = copy.copy(self)
        twin.weights = dict(weights)
        return twin

    def part(self, name: str) -> Any:
        """Return the twin of a part of the module, ``"process"`` or ``"encoder.net"``, with this twin's weights."""
        start = name + "."
        twin = to_numpyro(self.mirrored.get_submodule(name))
        return twin.with_weights(
            {key.removeprefix(start): w for key, w in self.weights.items() if key.startswith(start)}
        )

    def registered(self, name: str) -> Self:
        """Return the twin with weights that are NumPyro parameters ``NAME$$$PARAMETER``, as Pyro has them.

        ``numpyro.handlers.lift`` makes them random: then NUTS samples them.
        """
        return self.with_weights(
            {key: numpyro.param(f"{name}$$${key}", weight) for key, weight in self.weights.items()}
        )


def to_numpyro(module: nn.Module) -> Any:
    """Return the twin of a module, with its weights as they are now, in their precision.

    Double precision needs ``jax.config.update("jax_enable_x64", True)``.

    Args:
        module: such as a :class:`~pyrocontrol.models.ControlProgram`, or its guide.

    Raises:
        TypeError: where there is no twin of its class.
        ValueError: for double precision without that.
    """
    twin = next((Twin._twins[kind] for kind in type(module).__mro__ if kind in Twin._twins), None)
    if twin is None:
        known = ", ".join(sorted(kind.__name__ for kind in Twin._twins))
        raise TypeError(f"{type(module).__name__} has no twin in NumPyro; these have: {known}")
    return twin(module)


@torch.no_grad()
def from_numpyro(params: Mapping[str, Array], module: nn.Module, name: str | None = None) -> None:
    """Give a module the weights that NumPyro has found.

    Args:
        params: by name, such as ``svi.get_params(state)``, of which those of this module are taken; or a twin's
            ``weights``.
        module: whose parameters are set, all or none.
        name: under which the model registered it (``"program"`` or ``"guide"``); None for plain parameter names.

    Raises:
        ValueError: if a parameter is missing, of another shape, or not finite.
    """
    start = "" if name is None else f"{name}$$$"
    found = {}
    for key, parameter in module.named_parameters():
        value = params.get(start + key)
        if value is None:
            raise ValueError(f"there is no {start + key} among the {len(params)} parameters")
        array = np.array(value)
        if array.shape != tuple(parameter.shape):
            raise ValueError(f"{start + key} must have shape {[*parameter.shape]}, not {[*array.shape]}")
        if not np.isfinite(array).all():
            raise ValueError(f"{start + key} has values that are not finite")
        found[key] = torch.from_numpy(array)
    for key, parameter in module.named_parameters():
        parameter.copy_(found[key])


DOUBLE = 'jax.config.update("jax_enable_x64", True)'


def rounded(tensor: torch.Tensor) -> bool:
    """Whether JAX, as it is set, would round a tensor."""
    return tensor.dtype == torch.float64 and jnp.result_type(float) != jnp.float64


def _module(value: Any) -> Any:
    return value.mirrored if isinstance(value, Twin) else value


def one_hot(index: Array, size: int, like: Array) -> Array:
    """Return one-hot rows ``[..., size]`` of the type of another array."""
    return jax.nn.one_hot(index, size, dtype=like.dtype)


LOG_2_PI = math.log(2 * math.pi)
