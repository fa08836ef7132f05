"""One update of a training loop, by Pyro's SVI or by a loss module and a torch optimiser.

Both kinds have the same methods, which `fit` calls.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.infer.util import zero_grads
from pyro.optim import PyroLRScheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from . import checkpoint
from .checkpoint import described, told

__all__ = ["SVIUpdate", "TorchUpdate", "all_finite", "update_of"]


def update_of(svi: Any) -> "SVIUpdate | TorchUpdate":
    """Return how to update what `fit` was given.

    Raises:
        TypeError: if it is neither an SVI nor a pair (loss, optimizer).
    """
    if isinstance(svi, SVI):
        return SVIUpdate(svi)
    if isinstance(svi, tuple) and len(svi) == 2 and callable(svi[0]) and isinstance(svi[1], Optimizer):
        return TorchUpdate(*svi)
    given = f"({', '.join(type(e).__name__ for e in svi)})" if isinstance(svi, tuple) else type(svi).__name__
    raise TypeError(f"pass an SVI or a pair (loss, optimizer) with a torch optimiser, not {given}")


class SVIUpdate:
    """The halves of ``SVI.step``, gradients and update, with room to clip and to stop in between."""

    def __init__(self, svi: SVI) -> None:
        self.svi = svi
        self.modules = _modules(svi.model, svi.guide, svi.loss_and_grads)
        self.parameters: list[Tensor] = []  # those of the last step
        self.everything: list[Tensor] = []  # what any step may reach; see `meet`
        self.verified = False

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must share with this update to go on from it."""
        optim = self.svi.optim
        found = {**_objective(self.svi.loss), "optimizer": _name(optim.pt_optim_constructor)}
        found |= _plain(optim.pt_optim_args)  # as in version 0.1
        found |= {"optim_args": told(optim.pt_optim_args), "clip_args": told(optim.pt_clip_args)}
        if isinstance(optim, PyroLRScheduler):
            found |= {"scheduler": _name(optim.pt_scheduler_constructor), "scheduler_args": told(optim.kwargs)}
        return found

    def loss_of(self, batch: Any) -> float | Tensor:
        """The loss of a batch, without gradients."""
        return _value(self.svi.evaluate_loss(batch))

    def meet(self, batch: Any) -> None:
        """Make the parameters that only a first run makes, and note all there are."""
        with torch.no_grad(), poutine.trace(param_only=True) as capture:
            self.svi.loss(self.svi.model, self.svi.guide, batch)
        self.everything = _parameters(capture.trace)

    def gradients(self, batch: Any) -> float | Tensor:
        """Compute the loss of a batch and its gradients; return the loss, unread where that would wait for a GPU."""
        with poutine.trace(param_only=True) as capture:
            try:
                loss = self.svi.loss_and_grads(self.svi.model, self.svi.guide, batch)
            finally:  # a dict keeps the order, hence the bits of the norm; SVI's set does not
                self.parameters = _parameters(capture.trace)
        if not self.verified:
            self._verify_trained(capture.trace.nodes)
        return _value(loss)

    def apply(self, clip: float | None) -> Tensor | None:
        """Step the optimiser, the norm of the gradient clipped first if asked; return the norm then."""
        norm = None if clip is None else clip_grad_norm_(self.parameters, clip)
        self.svi.optim(self.parameters)
        zero_grads(self.parameters)
        if isinstance(self.svi.optim, PyroLRScheduler):
            self.svi.optim.step()
        return norm

    def discard(self) -> None:
        """Drop the gradients of an update that is not to be finished."""
        zero_grads(self.parameters)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it, the modules apart."""
        optim = self.svi.optim
        # State that waits belongs to parameters that no step since the resume has met.
        return {
            "params": {name: value.detach() for name, value in self._loose().items()},
            "optimizer": {**optim._state_waiting_to_be_consumed, **optim.get_state()},
        }

    def restore(self, path: Path, content: dict[str, Any], first_batch: Callable[[], Any]) -> None:
        """Go on from a checkpoint; nothing is changed if it does not fit."""
        store, optim = pyro.get_param_store(), self.svi.optim
        entries = sum(len(module.state_dict()) for module in self.modules)
        lazy = entries < sum(len(module["state"]) for module in content["modules"])
        if not lazy:
            checkpoint.match(path, self.modules, content["modules"], to_train=True)
        # A model made anew in this process would find the old one's parameters under its names.
        own = self._own()
        for name, value in list(store.named_parameters()):
            if name in content["optimizer"] and id(value) not in own:
                del store[name]
        if lazy or content["params"]:
            self.meet(first_batch())
        matched = checkpoint.match(path, self.modules, content["modules"], to_train=True)
        loose = dict(store.named_parameters())
        for name, value in content["params"].items():
            if name not in loose or loose[name].shape != value.shape:
                raise ValueError(f"{path} is a checkpoint of another model: nothing here takes its {name}")
        checkpoint.apply(matched)
        with torch.no_grad():
            for name, value in content["params"].items():
                loose[name].copy_(value)
        optim.optim_objs.clear()
        optim.grad_clip.clear()
        optim._state_waiting_to_be_consumed.clear()
        optim.set_state(content["optimizer"])

    def finite(self) -> bool:
        """Whether all parameters are finite."""
        return all_finite([*(p for m in self.modules for p in m.parameters()), *self._loose().values()])

    def _own(self) -> set[int]:
        return {id(parameter) for module in self.modules for parameter in module.parameters()}

    def _loose(self) -> dict[str, Tensor]:
        """Unconstrained values, by name, of the optimised parameters that no module holds."""
        own, store = self._own(), pyro.get_param_store()
        return {str(store.param_name(p)): p for p in self.svi.optim.optim_objs if id(p) not in own}

    def _verify_trained(self, names: Collection[str]) -> None:
        """Refuse what Pyro passes over in silence: a module whose gradients no optimiser sees."""
        remedy = "call pyro.module(name, self) in the model or guide"
        if not self.parameters:
            raise ValueError(f"no parameter reaches the optimiser: {remedy}")
        reached = {id(parameter) for parameter in self.parameters}
        for module in _modules(self.svi.model, self.svi.guide):
            parameters = dict(module.named_parameters())
            if any(id(p) in reached for p in parameters.values()):
                continue
            if all(p.grad is None for p in parameters.values()):  # frozen, or not used in this step
                continue
            stale = [name for name in names if name.split("$$$")[-1] in parameters]
            if stale:
                remedy = f"Pyro's parameter store has another module's {stale[0]}; call pyro.clear_param_store()"
            raise ValueError(f"no parameter of the {type(module).__name__} reaches the optimiser: {remedy}")
        self.verified = True


class TorchUpdate:
    """A differentiable loss and one torch optimiser over its parameters."""

    def __init__(self, loss: nn.Module, optimizer: Optimizer) -> None:
        self.loss, self.optimizer = loss, optimizer
        self.modules = _modules(loss)
        self.everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.parameters = self.everything  # those of the last step
        own = {id(parameter) for module in self.modules for parameter in module.parameters()}
        if foreign := sum(id(parameter) not in own for parameter in self.everything):
            raise ValueError(f"the optimiser holds {foreign} parameters that no module behind the loss holds")
        held = {id(parameter) for parameter in self.everything}
        for module in self.modules:
            trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
            if trainable and not any(id(parameter) in held for parameter in trainable):
                raise ValueError(
                    f"no parameter of the {type(module).__name__} is in the optimiser: use elbo(program, guide), not "
                    "elbo(program.model, guide), and an optimiser of all its parameters(), or freeze the module with "
                    "requires_grad_(False)"
                )

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must share with this update to go on from it."""
        found = {**_objective(self.loss), "optimizer": f"torch {type(self.optimizer).__name__}"}
        found |= _plain(self.optimizer.defaults)  # as in version 0.1
        names = {id(p): f"{type(m).__name__}.{n} {[*p.shape]}" for m in self.modules for n, p in m.named_parameters()}
        groups = []
        for group in self.optimizer.param_groups:
            options = {name: told(value) for name, value in group.items() if name not in ("params", "initial_lr")}
            options["lr"] = told(group.get("initial_lr", group["lr"]))  # a scheduler has moved on from the first
            groups.append(options | {"params": [names[id(parameter)] for parameter in group["params"]]})
        return found | {"groups": groups}

    def loss_of(self, batch: Any) -> float | Tensor:
        """The loss of a batch, without gradients."""
        with torch.no_grad():
            return _value(self.loss(batch))

    def meet(self, batch: Any) -> None:
        """Do nothing: the optimiser has all parameters."""

    def gradients(self, batch: Any) -> float | Tensor:
        """Compute the loss of a batch and its gradients; return the loss, unread where that would wait for a GPU."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.parameters = [parameter for parameter in self.everything if parameter.grad is not None]
        return _value(loss)

    def apply(self, clip: float | None) -> Tensor | None:
        """Step the optimiser, the norm of the gradient clipped first if asked; return the norm then."""
        norm = None if clip is None else clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()
        return norm

    def discard(self) -> None:
        """Drop the gradients of an update that is not to be finished."""
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it, the modules apart."""
        return {"params": {}, "optimizer": self.optimizer.state_dict()}

    def restore(self, path: Path, content: dict[str, Any], first_batch: Callable[[], Any]) -> None:
        """Go on from a checkpoint; nothing is changed if it does not fit."""
        matched = checkpoint.match(path, self.modules, content["modules"], to_train=True)
        groups = content["optimizer"]["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.optimizer.param_groups]:
            raise ValueError(f"{path} is a checkpoint of another optimiser: its parameter groups differ")
        checkpoint.apply(matched)
        self.optimizer.load_state_dict(content["optimizer"])

    def finite(self) -> bool:
        """Whether all parameters are finite."""
        return all_finite(self.everything)


def _parameters(trace: poutine.Trace) -> list[Tensor]:
    """The unconstrained parameters of a trace of them, each once and in its order."""
    values: list[Any] = [site["value"] for site in trace.nodes.values()]
    return list(dict.fromkeys(value.unconstrained() for value in values))


def _modules(*callables: Any) -> list[nn.Module]:
    """The modules behind models, guides and losses: themselves, or what a method or handler is bound to."""
    found: dict[int, nn.Module] = {}

    def visit(thing: Any) -> None:
        if isinstance(thing, ELBOModule):
            visit(thing.model)
            visit(thing.guide)
            visit(thing.elbo)
        elif isinstance(thing, nn.Module):
            found.setdefault(id(thing), thing)
        elif isinstance(thing, functools.partial):  # also what poutine's handlers return
            for inner in (thing.func, *thing.args, *thing.keywords.values()):
                visit(inner)
        elif inspect.ismethod(thing):
            visit(thing.__self__)

    for thing in callables:
        visit(thing)
    return list(found.values())


def _value(loss: Any) -> float | Tensor:
    """A loss as a float, or as a detached tensor where reading it would wait for a GPU; tuples are summed."""
    if isinstance(loss, tuple):  # ReweightedWakeSleep
        loss = sum(loss)
    if isinstance(loss, Tensor):
        return loss.item() if loss.device.type == "cpu" else loss.detach().double()
    return float(loss)


def _objective(loss: Any) -> dict[str, Any]:
    """What is minimised, to be saved and compared: the class of an ELBO and its options, or another loss's name."""
    elbo = loss.elbo if isinstance(loss, ELBOModule) else getattr(loss, "__self__", loss)
    if not isinstance(elbo, ELBO):
        return {"loss": getattr(loss, "__qualname__", type(loss).__name__)}
    # Plates may nest as deep as a first run finds, and warnings change no number.
    aside = ("max_plate_nesting", "strict_enumeration_warning", "ignore_jit_warnings")
    held = {k: v for k, v in vars(elbo).items() if k not in aside and not k.startswith("_")}
    options = {k: told(v) for k, v in held.items() if not isinstance(v, nn.Module | ELBO)}  # which have their own place
    return {"loss": type(elbo).__name__, **{f"loss.{name}": value for name, value in options.items()}}


def _name(constructor: Any) -> str:
    return getattr(constructor, "__name__", None) or described(constructor)


def _plain(options: Any) -> dict[str, Any]:
    """Those options of an optimiser that are plain values."""
    kinds = (bool, int, float, str, tuple)
    return {k: v for k, v in options.items() if isinstance(v, kinds)} if isinstance(options, dict) else {}


def all_finite(parameters: list[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite."""
    return not parameters or bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())
