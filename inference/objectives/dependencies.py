"""What depends on what in a model and its guide: which sites a site's distribution reads, and across which plates.

Two ways find it. For a site of few values, model and guide run again with every other value, all else being equal.
For the others a value is tracked through tensors; where it leaves them, all that follows counts as depending on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from typing import Any, NamedTuple
from unittest import mock

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.inspect import is_sample_site
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._functorch import apis as functorch_apis
from torch._functorch import eager_transforms
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["Dependencies", "Frame", "dependencies", "frames_of", "latent_names"]


def latent_names(trace: Trace) -> list[str]:
    """The latent sites of a guide's trace, in order."""
    return [name for name, site in trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]]


class Frame(NamedTuple):
    """A vectorised plate; Pyro's own frames take long to compare."""

    name: str
    dim: int
    size: int


def frames_of(site: Any) -> frozenset[Frame]:
    """The vectorised plates around a site."""
    return frozenset(
        Frame(frame.name, frame.dim, frame.size) for frame in site["cond_indep_stack"] if frame.dim is not None
    )


# Functions that turn tensors into Python values, shapes or other libraries' tensors, or write into one: what they are
# given loses its provenance.
_LOSING = frozenset(
    "__array__ __bool__ __complex__ __contains__ __dlpack__ __float__ __format__ __index__ __int__ __repr__ "
    "__setitem__ __str__ allclose argwhere bincount data_ptr equal is_nonzero item masked_select nonzero numpy "
    "repeat_interleave tolist unique unique_consecutive untyped_storage __iadd__ __iand__ __idiv__ __ifloordiv__ "
    "__ilshift__ __imod__ __imul__ __ior__ __ipow__ __irshift__ __isub__ __itruediv__ __ixor__".split()
)
# At most so many values of a site are tried one by one, in so many runs of model and guide.
_FEW, _RUNS = 16, 3


class _Losses(TorchFunctionMode):
    """Remembers what the provenance of tensors loses, for all that comes after may depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: frozenset[str] = frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        # A boolean index makes a shape of numbers.
        by_mask = name == "__getitem__" and any(
            isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in pytree.tree_leaves(args[1:])
        )
        if in_place or by_mask or name in _LOSING or kwargs.get("out") is not None:
            self.lost |= get_provenance([args, kwargs])
        return func(*args, **kwargs)

    def transformed(self, impl: Callable[..., Any]) -> Callable[..., Any]:
        """A function transform of torch.func, whose arguments lose their provenance inside."""

        @functools.wraps(impl)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.lost |= get_provenance([args, kwargs])
            return impl(
                *map(detach_provenance, args), **{name: detach_provenance(value) for name, value in kwargs.items()}
            )

        return call

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Watch functions of tensors, and the transforms of torch.func, which are none."""
        with ExitStack() as stack:
            for module, name in _TRANSFORMS:
                stack.enter_context(mock.patch.object(module, name, self.transformed(getattr(module, name))))
            yield stack.enter_context(self) and None


# What vmap, grad, vjp, jvp and jacobians of torch.func call with the arguments.
_TRANSFORMS = [(functorch_apis, "vmap_impl")] + [
    (eager_transforms, name) for name in ("_vjp_with_argnums", "_jvp_with_argnums", "grad_and_value_impl", "grad_impl")
]


class _Tracker(Messenger):
    """Marks the value of every site with its name; remembers what was lost when a site was reached."""

    def __init__(self, losses: _Losses) -> None:
        super().__init__()
        self.losses = losses
        self.lost: dict[str, frozenset[str]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.lost[msg["name"]] = self.losses.lost

    def _pyro_post_sample(self, msg: Any) -> None:
        # What drawing a value loses, this value alone depends on.
        self.losses.lost = self.lost[msg["name"]]
        if is_sample_site(msg):
            msg["value"] = track_provenance(detach_provenance(msg["value"]), frozenset({msg["name"]}))


class Dependencies(NamedTuple):
    """Which sites a site's distribution reads, in model and guide, and which plates a dependency crosses.

    Attributes:
        model: by site, the sites that it directly depends on in the model.
        guide: the same in the guide, in its order.
        crossed: by pair (read, reading): the plates of which a row of the first influences other rows of the second.
    """

    model: dict[str, set[str]]
    guide: dict[str, set[str]]
    crossed: dict[tuple[str, str], set[Frame]]

    def descendants(self, name: str) -> set[str]:
        """The sites that the guide samples from a site, directly or not."""
        found: set[str] = set()
        for other, read in self.guide.items():  # in order, so that a site's ancestors are complete when it is reached
            if name in read or found & read:
                found.add(other)
        return found


def dependencies(model: Any, guide: Any, args: Any, kwargs: Any, rows: Container[str] = ()) -> Dependencies:
    """Find what depends on what, and for the sites ``rows`` which plates that crosses."""
    found = Dependencies({}, {}, {})
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices), pyro.validation_enabled(False), torch.no_grad(), poutine.block():
        for _ in range(_RUNS):
            trace, certain, lost = _tracked(guide, args, kwargs)
            model_trace, *in_model = _tracked(poutine.replay(model, trace=trace), args, kwargs)
            again = _Again(model, guide, args, kwargs, trace, model_trace)
            for reads, (direct, suspected) in ((found.guide, (certain, lost)), (found.model, in_model)):
                for name, ancestors in direct.items():
                    reads.setdefault(name, set()).update(ancestors)
                    reads[name] |= {other for other in suspected[name] if other not in again.few}
            for name in latent_names(trace):
                for value in again.few.get(name, ()):
                    for reads, changed in zip((found.guide, found.model), again.changed(name, value), strict=True):
                        for other in changed:
                            reads.setdefault(other, set()).add(name)
                if name not in rows:
                    continue
                for frame in frames_of(trace.nodes[name]):
                    if frame.size > 1:
                        for other in again.other_rows(name, frame):
                            found.crossed.setdefault((name, other), set()).add(frame)
    return found


def _tracked(fn: Any, args: Any, kwargs: Any) -> tuple[Trace, dict[str, set[str]], dict[str, set[str]]]:
    """Run a model or guide; return its trace, and of each site which it reads and which it may read."""
    losses = _Losses()
    with losses.everywhere(), _Tracker(losses) as tracker:
        trace = poutine.trace(fn).get_trace(*args, **kwargs)
    certain, lost = {}, {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            log_prob = site["fn"].log_prob(site["value"])
            certain[name] = set(get_provenance([log_prob, site["scale"], site["mask"]])) - {name}
            lost[name] = set(tracker.lost[name]) - {name}
            site["value"] = detach_provenance(site["value"])
    return trace, certain, lost


class _Again:
    """Model and guide run again, all values and random numbers being what they were, but for one site.

    Attributes:
        few: by site, its other values, where there are few.
    """

    def __init__(self, model: Any, guide: Any, args: Any, kwargs: Any, trace: Trace, model_trace: Trace) -> None:
        self.model, self.guide, self.args, self.kwargs, self.trace = model, guide, args, kwargs, trace
        self.state = torch.get_rng_state()
        self.before = self._run({})
        self.few: dict[str, list[Tensor]] = {}
        for name in latent_names(trace):
            site: Any = trace.nodes[name]
            if not getattr(detach_provenance(site["fn"]), "has_enumerate_support", False):
                continue
            with suppress(NotImplementedError, ValueError, RuntimeError):
                support = detach_provenance(site["fn"].enumerate_support(expand=False))
                shape = site["value"].shape
                elements = site["value"].numel() // max(site["fn"].event_shape.numel(), 1)
                if len(support) ** elements <= _FEW:
                    event = support.reshape((len(support),) + site["fn"].event_shape)
                    whole = product(event, repeat=elements)
                    self.few[name] = [torch.stack(one).reshape(shape) for one in whole]

    def _run(self, values: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The weighed log-probability of every site, in guide and model; None where a value is an error."""
        trace = self.trace.copy()
        for name, value in values.items():
            trace.nodes[name] = {**trace.nodes[name], "value": value}
        torch.set_rng_state(self.state)
        found = []
        try:
            for fn in (self.guide, self.model):
                run = poutine.trace(poutine.replay(fn, trace=trace)).get_trace(*self.args, **self.kwargs)
                nodes = {name: site for name, site in run.nodes.items() if site["type"] == "sample"}
                # All at the values of before: what is asked is whether the distribution has changed.
                found.append({name: _at(site, self.trace.nodes.get(name)) for name, site in nodes.items()})
        except Exception:
            return None
        return found[0], found[1]

    def changed(self, name: str, value: Tensor) -> tuple[set[str], set[str]]:
        """The sites whose distribution changes with a site's value, in guide and model; all where that is an error."""
        after = self._run({name: value})
        assert self.before is not None
        if after is None:
            return tuple({other for other in before if other != name} for before in self.before)  # type: ignore[return-value]
        return tuple(  # type: ignore[return-value]
            {other for other in {**was, **now} if other != name and not _equal(was.get(other), now.get(other))}
            for was, now in zip(self.before, after, strict=True)
        )

    def other_rows(self, name: str, frame: Frame) -> set[str]:
        """The sites of a plate in which other rows than the first change with the first row of a site's value."""
        site: Any = self.trace.nodes[name]
        value, fn = site["value"], site["fn"]
        place = value.dim() + frame.dim - len(fn.event_shape)
        if place < 0:
            return set()
        for _ in range(8):
            drawn = detach_provenance(fn.sample())
            with suppress(RuntimeError):
                drawn = drawn.expand(value.shape)
            if drawn.shape == value.shape and not torch.equal(drawn.select(place, 0), value.select(place, 0)):
                break
        else:
            return set()
        mixed = value.clone()
        mixed.select(place, 0).copy_(drawn.select(place, 0))
        after = self._run({name: mixed})
        assert self.before is not None
        crossed: set[str] = set()
        for was, now in zip(self.before, after or ({}, {}), strict=True):
            for other, value in was.items():
                if other != name and frame in self._frames_of(other):
                    changed = now.get(other)
                    if changed is None or not _equal(_rest(value, frame), _rest(changed, frame)):
                        crossed.add(other)
        return crossed

    def _frames_of(self, name: str) -> frozenset[Frame]:
        return self._all_frames.get(name, frozenset())

    @functools.cached_property
    def _all_frames(self) -> dict[str, frozenset[Frame]]:
        run = poutine.trace(poutine.replay(self.model, trace=self.trace)).get_trace(*self.args, **self.kwargs)
        nodes = {**self.trace.nodes, **run.nodes}
        return {name: frames_of(site) for name, site in nodes.items() if site["type"] == "sample"}


def _at(site: Any, before: Any | None) -> Tensor:
    """The weighed log-probability of a site, at the value that it had."""
    value = site["value"] if site["is_observed"] or before is None else before["value"]
    return detach_provenance(scale_and_mask(site["fn"].log_prob(value), site["scale"], site["mask"]))


def _rest(value: Tensor, frame: Frame) -> Tensor:
    """All rows of a plate but the first."""
    place = value.dim() + frame.dim
    return value if place < 0 or value.shape[place] == 1 else value.narrow(place, 1, value.shape[place] - 1)


def _equal(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)
