"""Objects kept in one file each: their class, the arguments that made them, and their weights.

A file holds data alone. Loading it executes nothing in it and imports nothing: classes are found by their names among
the subclasses of `Saved` that have been imported, and called with the arguments.
"""

from __future__ import annotations

import inspect
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from ._files import read_content, write_contents
from ._limits import Allocations, Budget
from ._random_state import random_state_aside
from ._verify import verify_device

__all__ = ["Saved", "load", "readable", "objects_of", "writable"]

_FORMAT = "pyrocontrol saved 1"
_LEFT_OUT = "left out"
_PLAIN = (type(None), bool, int, float, str, Tensor)  # which stand in a file as they are


class _Form(NamedTuple):
    """How values of a kind stand in a file: a name, and what makes plain values of them and back."""

    kind: type
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


class _Foreign(NamedTuple):
    """What stands for an argument that no file can hold; the argument itself is not kept."""

    kind: str

    def __repr__(self) -> str:
        return self.kind


_forms: dict[str, _Form] = {}
_readers: dict[str, Callable[[dict[str, Any], str | None], list[dict[str, Any]]]] = {}


def writable(name: str, kind: type, write: Callable[[Any], Any], read: Callable[[Any], Any]) -> None:
    """Let arguments of a kind be written to files.

    Args:
        name: of the kind in files.
        kind: the class, its subclasses included.
        write: makes a value of numbers, strings, tensors, lists and tuples of one; a TypeError says that it cannot.
        read: makes one of such a value.
    """
    _forms[name] = _Form(kind, write, read)


def readable(form: str, objects: Callable[[dict[str, Any], str | None], list[dict[str, Any]]]) -> None:
    """Let `load` read files of another format.

    Args:
        form: the format.
        objects: makes of the content, and the class name that `load` was given, what `objects_of` makes of an object.
    """
    _readers[form] = objects


writable("array", np.ndarray, lambda array: torch.from_numpy(array.copy()), lambda tensor: tensor.numpy())
writable("device", torch.device, str, torch.device)
writable("dict", dict, lambda given: [*given.items()], dict)
writable("dtype", torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), lambda name: getattr(torch, name))
writable("numpy dtype", np.dtype, lambda dtype: dtype.str, np.dtype)
writable("range", range, lambda given: [given.start, given.stop, given.step], lambda parts: _short(range(*parts)))
writable("size", torch.Size, list, torch.Size)
writable("slice", slice, lambda given: [given.start, given.stop, given.step], lambda parts: slice(*parts))


def _short(numbers: range) -> range:
    """A range that a file gives: three numbers, of which a list might be made."""
    if len(numbers) > 2**20:
        raise ValueError(f"{numbers} is too long")
    return numbers


class _Signature:
    """The signature of a class, that of its constructor: `Saved.__new__`, which takes anything, would hide it."""

    def __get__(self, instance: Any, kind: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        return inspect.Signature([*inspect.signature(kind.__init__).parameters.values()][1:])  # type: ignore[misc]


class Saved:
    """What can be saved and loaded whole; every controller, model and guide of this package inherits it.

    ::

        policy.save("policy.pt")
        policy = pyrocontrol.load("policy.pt")  # also elsewhere, later

    A class that inherits it needs nothing else. The arguments that an object was made with, of whichever subclass, are
    kept, and saved with its ``state_dict`` where it is a module; attributes set afterwards are not. Arguments may be
    numbers, strings, None, arrays, tensors, dtypes, spaces, procedure trees, other objects that can be saved (one that
    two share stays one), and lists, tuples and dictionaries of these.

    Such an object can also be pickled and copied after training by Pyro.
    """

    #: Arguments that are not saved, such as data that a constructor computes statistics of. The state holds what came
    #: of them, and loading leaves them at their defaults.
    not_saved: ClassVar[tuple[str, ...]] = ()

    __signature__ = _Signature()
    _made_with: tuple[list[Any], dict[str, Any], torch.dtype]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, those of the class that is called."""
        self = super().__new__(cls)
        given = [*map(_kept, args)], {name: _kept(value) for name, value in kwargs.items()}
        object.__setattr__(self, "_made_with", (*given, torch.get_default_dtype()))
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied."""
        if isinstance(self, nn.Module):
            for parameter in self.parameters():
                vars(parameter).pop("unconstrained", None)  # Pyro's weak reference, which it makes anew at each step
        return self.__dict__

    def save(self, path: str | os.PathLike[str], *, without: str | Iterable[str] = ()) -> None:
        """Write one file that `load` brings this object back from; whole or not at all.

        Args:
            path: the file; its folder is made if missing.
            without: names of arguments to leave out, which `load` has to be given then; ``"program.encoder"`` is that
                of an argument's own.

        Raises:
            TypeError: if an argument cannot be written.
            ValueError: if what is to be left out is no argument, weights are not finite, or are not those of an object
                made with these arguments.
            OSError: the folder cannot be written, or the disk is full; what was there stands.
        """
        from . import __version__  # the package is whole by now

        without = [without] if isinstance(without, str) else [*without]
        objects = objects_of(self, without)
        if not without:
            _made(objects, {}, "cpu")
        write_contents({Path(path): {"format": _FORMAT, "version": __version__, "objects": objects}})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu", **given: Any) -> Self:
        """Read an object of this class; see `pyrocontrol.load`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: as `pyrocontrol.load`, or the object is of another class.
        """
        made = load(path, device=device, **given)
        if not isinstance(made, cls):
            raise ValueError(f"{path} holds a {type(made).__name__}, not a {cls.__name__}")
        return made

    def _arguments(self) -> inspect.BoundArguments:
        """The arguments by name, those left out that are not saved."""
        args, kwargs, _ = self._made_with
        bound = inspect.signature(type(self)).bind(*args, **kwargs)
        for name in self.not_saved:
            bound.arguments.pop(name, None)
        return bound

    def _copied(self, given: Iterable[Any], copies: Iterable[Any]) -> None:
        """Say that this object holds copies of objects among its arguments, which are saved in their place."""
        instead = {id(old): new for old, new in zip(given, copies, strict=True)}
        args, kwargs, dtype = self._made_with
        kept = [_kept(value, instead) for value in args], {n: _kept(v, instead) for n, v in kwargs.items()}
        self._made_with = (*kept, dtype)


def load(
    path: str | os.PathLike[str], kind: str | None = None, /, *, device: str | torch.device = "cpu", **given: Any
) -> Any:
    """Read what ``save`` wrote, or a module of a checkpoint of `fit` or `learn`, without executing code in the file.

    Args:
        path: the file.
        kind: class name of what is wanted. Of the modules in a checkpoint it is by default the only one, or the only
            one that acts (has ``predict`` or ``within``).
        device: where to put it.
        **given: arguments of its constructor that the file does not hold, or instead of those that it holds.

    Returns:
        The object. Random numbers of the process go on as if nothing had been made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged or of another kind; an object in it is of a class that has not been
            imported; it cannot be made of its arguments; weights are not those of such an object, or not finite; or
            the device cannot be used.
    """
    verify_device(device)
    content = read_content(path, "a file that can be loaded", *_readers)
    try:
        try:
            objects = _readers[content["format"]](content, kind)
            _verify_objects(objects)
        except (TypeError, AttributeError) as error:
            raise LookupError(error) from error
        with Allocations(Budget(os.stat(path).st_size + sum(map(_bytes_of, given.values())), 4)):
            return _made(objects, given, device)
    except LookupError as error:
        why = error if type(error) is LookupError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not whole ({why})") from error
    except Exception as error:  # of whatever class it names, made of whatever arguments
        raise ValueError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _bytes_of(value: Any) -> int:
    """How large the numbers of an argument are, which what is made may copy."""
    if isinstance(value, nn.Module):
        return sum(tensor.nbytes for tensor in (*value.parameters(), *value.buffers()))
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    return value.nbytes if isinstance(value, Tensor | np.ndarray) else 0


def _saved_objects(content: dict[str, Any], kind: str | None) -> list[dict[str, Any]]:
    if unknown := content.keys() - {"format", "version", "objects"}:
        raise ValueError(f"it holds {min(map(repr, unknown))}, which no such file does")
    objects: list[dict[str, Any]] = content["objects"]
    if kind is not None and kind != (found := objects[-1]["class"].split(":")[-1]):
        raise ValueError(f"it holds a {found}, not a {kind}")
    return objects


readable(_FORMAT, _saved_objects)


# -- to data ----------------------------------------------------------------------------------------------------------


def objects_of(thing: Saved, without: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Return an object, after all that it was made with, as data: class, arguments and state of each.

    Args:
        thing: the object.
        without: names of arguments to leave out; None for all that cannot be written.

    Raises:
        TypeError: if an argument cannot be written.
        ValueError: if what is to be left out is no argument.
    """
    writing = _Writing(None if without is None else {*without})
    writing.object(thing, "")
    if writing.without:
        raise ValueError(f"the {type(thing).__name__} was made without the argument {min(writing.without)!r}")
    return writing.objects


class _Writing:
    """Objects as data, each once; the arguments of one refer to others by their places.

    In arguments, what is neither plain nor a list or tuple is a dictionary of one entry: the name of its form, or of
    an object or something left out.
    """

    def __init__(self, without: set[str] | None) -> None:
        self.without, self.lenient = without or set(), without is None
        self.objects: list[dict[str, Any]] = []
        self.places: dict[int, int] = {}

    def object(self, thing: Saved, path: str) -> int:
        if id(thing) in self.places:
            return self.places[id(thing)]
        arguments = {}
        for name, value in thing._arguments().arguments.items():
            where = f"{path}{name}"
            try:
                arguments[name] = {_LEFT_OUT: where} if where in self.without else self.value(value, where)
            except TypeError:
                if not self.lenient:
                    raise
                arguments[name] = {_LEFT_OUT: where}
            self.without.discard(where)
        entry: dict[str, Any] = {
            "class": f"{type(thing).__module__}:{type(thing).__qualname__}",
            "arguments": arguments,
            "precision": str(thing._made_with[2]).removeprefix("torch."),
        }
        if isinstance(thing, nn.Module):
            entry |= {"state": dict(thing.state_dict()), "training": thing.training}
        self.objects.append(entry)
        self.places[id(thing)] = len(self.objects) - 1
        return self.places[id(thing)]

    def value(self, value: Any, where: str) -> Any:
        if type(value) in _PLAIN:
            return value
        if type(value) in (list, tuple):
            return type(value)(self.value(item, where) for item in value)
        if isinstance(value, Saved):
            return {"object": self.object(value, f"{where}.")}
        if isinstance(value, _Foreign):
            raise TypeError(
                f"the argument {where} is a {value.kind}, which cannot be written: let its class inherit "
                f"pyrocontrol.Saved, or leave it out, save(..., without={where!r}), and give it back, "
                f"load(..., {where}=...)"
            )
        name, form = next(found for found in _forms.items() if isinstance(value, found[1].kind))
        try:
            written = form.write(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"the argument {where} cannot be written: {error}") from error
        return {name: self.value(written, where)}


def _kept(value: Any, instead: dict[int, Any] | None = None) -> Any:
    """An argument as it is now: what can change is copied, what cannot be written is not kept."""
    if instead and id(value) in instead:
        return instead[id(value)]
    if type(value) in (list, tuple) or isinstance(value, nn.ModuleList):
        return (tuple if type(value) is tuple else list)(_kept(item, instead) for item in value)
    if isinstance(value, dict):
        return {key: _kept(item, instead) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        value = value.detach().clone()
    elif isinstance(value, np.ndarray):
        value = value.copy()
    kinds = (Saved, _Foreign, *(form.kind for form in _forms.values()))
    return value if type(value) in _PLAIN or isinstance(value, kinds) else _Foreign(type(value).__name__)


# -- from data --------------------------------------------------------------------------------------------------------


def _verify_objects(objects: Any) -> None:
    """Refuse what does not have the form of objects as data.

    Raises:
        ValueError: naming what has another form.
        LookupError, TypeError: something is missing, or there is nothing.
    """
    if not isinstance(objects, list):
        raise ValueError(f"it holds a {type(objects).__name__} in place of objects")
    for entry in [objects[-1], *objects]:
        kinds: dict[str, type] = {"class": str, "arguments": dict, "precision": str}
        for name, kind in (kinds | ({"state": dict, "training": bool} if "state" in entry else {})).items():
            named = all(isinstance(key, str) for key in entry[name]) if kind is dict else True
            if not isinstance(entry[name], kind) or not named:
                raise ValueError(f"the {name} of an object in it is no {kind.__name__}{' of names' * (not named)}")


def _made(objects: list[dict[str, Any]], given: dict[str, Any], device: str | torch.device) -> Any:
    """Make objects, the last of which is what is wanted; the random state stays as it was."""
    made: list[Any] = []
    missing = dict(given)
    with random_state_aside():
        for number, entry in enumerate(objects):
            kind = _class_of(entry["class"])
            arguments = {name: _value(value, made, missing) for name, value in entry["arguments"].items()}
            if number == len(objects) - 1:  # what the caller gives goes to the one that is wanted
                arguments |= missing
            signature = inspect.signature(kind)
            if unknown := arguments.keys() - signature.parameters:
                raise ValueError(f"a {kind.__name__} takes no argument {min(unknown)!r}")
            bound = inspect.BoundArguments(signature, arguments)
            before = torch.get_default_dtype()
            torch.set_default_dtype(_dtype(entry["precision"]))
            try:
                thing = kind(*bound.args, **bound.kwargs)
            finally:
                torch.set_default_dtype(before)
            if isinstance(thing, nn.Module):
                _fill(thing, entry["state"])
                if not entry["training"]:
                    thing.eval()
            made.append(thing)
        for thing in made:
            if isinstance(thing, nn.Module):
                thing.to(device)
    return made[-1]


def _value(value: Any, made: list[Any], given: dict[str, Any]) -> Any:
    """An argument of its data."""
    if type(value) in (list, tuple):
        return type(value)(_value(item, made, given) for item in value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"{reprlib.repr(value)} is no argument")
    ((name, content),) = value.items()
    if name == "object":
        if type(content) is not int or not 0 <= content < len(made):
            raise LookupError(f"there is no object {reprlib.repr(content)} in it")
        return made[content]
    if name == _LEFT_OUT:
        if content not in given:
            raise ValueError(f"it was saved without the argument {content}: give load(..., {content}=...)")
        return given.pop(content)
    form = _forms[name]
    parts = _value(content, made, given)
    try:
        found = form.read(parts)
    except (TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{reprlib.repr(content)} is no {name}") from error
    if not isinstance(found, form.kind):
        raise ValueError(f"{reprlib.repr(content)} is no {name}")
    return found


def _fill(module: nn.Module, state: dict[str, Any]) -> None:
    """Give a module that has just been made its weights, and their precision."""
    kind, own = type(module).__name__, module.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    precisions = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(precisions) == 1 and any(own[name].dtype != tensors[name].dtype for name in own.keys() & tensors.keys()):
        module.to(dtype=precisions.pop())
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(str(error).split(":", 1)[-1].split())
        raise ValueError(f"the weights are not those of such a {kind}: {why}") from error
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and name in tensors and value.dtype != tensors[name].dtype:
            raise ValueError(f"{name} of the {kind} is {tensors[name].dtype}, and is made as {value.dtype}")
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"the weights {name} of the {kind} are NaN or infinite")


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = _forms["dtype"].read(name)
    return found


def _class_of(name: str) -> type[Saved]:
    """The class of a name, ``module:class``: of that module, or elsewhere in its package, or anywhere if it is one."""
    module, _, own = name.rpartition(":")
    alike = [kind for kind in _kinds(Saved) if kind.__qualname__ == own]
    if exact := [kind for kind in alike if kind.__module__ == module]:
        return exact[-1]  # the last to be defined, where one was defined again
    near = [kind for kind in alike if kind.__module__.split(".")[0] == module.split(".")[0]]
    found = near or alike
    if len(found) != 1:
        several = ", ".join(sorted({f"{kind.__module__}.{own}" for kind in found}))
        known = f"there are several of that name: {several}" if found else "no module that is imported has it"
        raise ValueError(f"it holds a {own} of {module or 'an unknown module'}, and {known}; import {module or 'it'}")
    return found[0]


def _kinds(parent: type[Saved]) -> Iterator[type[Saved]]:
    for kind in parent.__subclasses__():
        yield kind
        yield from _kinds(kind)
