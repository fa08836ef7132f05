"""Checkpoints: written whole or not at all, loaded without executing code, refused by another model."""

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import CellType, CodeType
from typing import Any

import numpy as np
import torch
from torch import nn

from ..._files import read_content, write_contents
from ..._saved import Saved, objects_of, readable

__all__ = [
    "ANEW",
    "apply",
    "constants",
    "described",
    "difference",
    "fingerprint",
    "frozen",
    "load_checkpoint",
    "match",
    "mismatch",
    "read",
    "snapshot",
    "told",
    "verify_constants",
    "verify_settings",
    "write_all",
]

FORMAT = "pyrocontrol checkpoint 1"
ANEW = "pass resume=False to start anew, or another out"  # what to do about one that cannot be gone on from


def snapshot(module: nn.Module) -> dict[str, Any]:
    """What a checkpoint holds of one module: what `match` compares, its state, and what `load` makes it anew of."""
    about: dict[str, Any] = {"acts": any(hasattr(module, name) for name in ("predict", "within"))}
    if isinstance(module, Saved):
        about["objects"] = objects_of(module)
    return _compared(module) | about


def _compared(module: nn.Module) -> dict[str, Any]:
    """The class of a module, its ``signature()`` where it has one, what its parts say of themselves, its state."""
    signature = getattr(module, "signature", None)
    return {
        "class": type(module).__name__,
        "signature": str(signature()) if callable(signature) else None,
        "parts": {name: _placeless(f"{type(m).__name__}({m.extra_repr()})") for name, m in module.named_modules()},
        "state": dict(module.state_dict()),
    }


def _loaded(content: dict[str, Any], kind: str | None) -> list[dict[str, Any]]:
    """What `load` makes of a checkpoint: the module of a class, or the only one, or the only one that acts."""
    modules = content["modules"]
    found = [entry for entry in modules if kind in (None, entry["class"])]
    if kind is None and len(found) > 1:
        found = [entry for entry in found if entry.get("acts")]
    if len(found) != 1:
        names = [entry["class"] for entry in modules]
        raise ValueError(f"it is a checkpoint of {', '.join(names)}: say which, as in load(path, {names[0]!r})")
    if "objects" not in found[0]:
        name = found[0]["class"]
        raise ValueError(
            f"it does not say how its {name} was made (that is no pyrocontrol.Saved, or was trained by version 0.1): "
            "make one and call pyrocontrol.inference.load_checkpoint(path, it)"
        )
    objects: list[dict[str, Any]] = found[0]["objects"]
    return objects


readable(FORMAT, _loaded)


def mismatch(module: nn.Module, saved: dict[str, Any], to_train: bool = False) -> str | None:
    """Why a saved module cannot be loaded into ``module``, in one sentence, or None where it can.

    Args:
        module: any module; it is only read.
        saved: an entry made by :func:`snapshot`.
        to_train: whether it is to be trained on, for which parts without weights count too, and precisions.
    """
    own = _compared(module)
    if own["class"] != saved["class"]:
        return f"it holds a {saved['class']}, not a {own['class']}"
    if own["class"] == "ControlProgram" and "parts" not in saved:  # before version 0.3, which did not tell its horizon
        own["signature"] = re.sub(r", horizon=\d+", "", own["signature"])
    if own["signature"] != saved["signature"]:
        theirs_is, mine_is = _differing(str(saved["signature"]), str(own["signature"]))
        return f"its {own['class']} is\n{theirs_is}\nand this one is\n{mine_is}"
    mine, theirs = own["state"], saved["state"]
    for name in [*mine, *theirs]:
        if name not in theirs:
            return f"it has no {own['class']}.{name}"
        if name not in mine:
            return f"this {own['class']} has no {name}"
        if isinstance(mine[name], torch.Tensor) and not isinstance(theirs[name], torch.Tensor):
            return f"its {own['class']}.{name} is no tensor"
        shapes = [tuple(getattr(state[name], "shape", ())) for state in (mine, theirs)]
        if shapes[0] != shapes[1]:
            return f"its {own['class']}.{name} has shape {shapes[1]}, not {shapes[0]}"
        dtypes = [getattr(state[name], "dtype", None) for state in (mine, theirs)]
        if to_train and dtypes[0] != dtypes[1]:
            return f"its {own['class']}.{name} is of {dtypes[1]}, not {dtypes[0]}"
    if to_train and (unlike := difference(saved.get("parts", own["parts"]), own["parts"])):
        return f"its {own['class']} has {unlike}"
    return None


def _differing(one: str, other: str) -> tuple[str, str]:
    """Of two signatures the parts in which they differ, if they have as many parts; else both whole."""
    parts, others = (re.split(r", (?=\w+=)", signature) for signature in (one, other))
    if len(parts) != len(others):
        return one, other
    unlike = [pair for pair in zip(parts, others, strict=True) if pair[0] != pair[1]]
    return ", ".join(part for part, _ in unlike), ", ".join(part for _, part in unlike)


def match(
    path: str | os.PathLike[str],
    modules: Sequence[nn.Module],
    saved: Sequence[dict[str, Any]],
    to_train: bool = False,
) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Pair each module with the first saved one that fits it and is not taken.

    Args:
        path: the file, for messages.
        modules: any modules; they are only read.
        saved: entries made by :func:`snapshot`.
        to_train: whether they are to be trained on.

    Returns:
        Pairs (module, state), one for each module.

    Raises:
        ValueError: a module fits none of the saved ones.
    """
    left, matched = [*map(_renamed, saved)], []
    for module in modules:
        reasons = [mismatch(module, entry, to_train) for entry in left]
        if None not in reasons:
            kind = type(module).__name__
            alike = [reason for reason, entry in zip(reasons, left, strict=True) if entry["class"] == kind]
            why = [*alike, *reasons, f"it has nothing for the {kind}"][0]
            raise ValueError(f"{path} is a checkpoint of another model: {why}")
        matched.append((module, left.pop(reasons.index(None))["state"]))
    return matched


def _renamed(saved: dict[str, Any]) -> dict[str, Any]:
    """What a saved module of version 0.1 is called now, and the flag that skills had no use for then."""
    name, signature, state = saved["class"], str(saved["signature"]), saved["state"]
    settled = {f"{key.removesuffix('grounded')}settled" for key in state if key.endswith("grounded")}
    saved = saved | {"state": dict.fromkeys(settled, torch.tensor(False)) | state}
    if name == "SoftActorCritic" and ", first=True," in signature:
        return saved | {"class": f"First{name}", "signature": f"First{signature}"}
    return saved


def apply(matched: Sequence[tuple[nn.Module, dict[str, Any]]]) -> None:
    """Load what :func:`match` paired, in place."""
    for module, state in matched:
        module.load_state_dict(state)


def write_all(contents: dict[Path, dict[str, Any]]) -> None:
    """Write checkpoints that belong together: none takes the place of an old one before all are on the disk.

    Raises:
        OSError: a folder cannot be written, or the disk is full; the previous checkpoints stand.
    """
    write_contents({path: {"format": FORMAT, **content} for path, content in contents.items()})


def read(path: str | os.PathLike[str], *names: str) -> dict[str, Any]:
    """Read a checkpoint, all tensors on the CPU, without executing code (``weights_only=True``).

    Args:
        path: the file.
        *names: what has to be in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged or not a checkpoint, or lacks one of the names.
    """
    content = read_content(path, "a checkpoint", FORMAT)
    if missing := [name for name in names if name not in content]:
        raise ValueError(f"{path} is no such checkpoint as is needed: it has no {missing[0]}; {ANEW}")
    return content


def described(value: Any, depth: int = 3) -> str:
    """Return what tells two values apart, in another process too: no addresses, and what objects hold.

    Args:
        value: of any kind; one whose class has no ``repr`` of its own is described by its attributes.
        depth: how far down attributes of attributes count.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{value.dtype}{value.tolist()}"
    if type(value) is dict:
        return "{" + ", ".join(f"{name!r}: {described(item, depth)}" for name, item in value.items()) + "}"
    shown: Any = type(value).__repr__
    if shown in (object.__repr__, nn.Module.__repr__):
        held = sorted(vars(value).items()) if depth and hasattr(value, "__dict__") else []
        if isinstance(value, nn.Module):  # weights have their own place in a checkpoint
            held = [(name, item) for name, item in held if name != "training" and not name.startswith("_")]
        return f"{type(value).__name__}({', '.join(f'{name}={described(item, depth - 1)}' for name, item in held)})"
    return _placeless(repr(value))


def constants(modules: Sequence[nn.Module]) -> dict[str, Any]:
    """Return the plain attributes by which a user's own modules are told apart, by their names.

    They are numbers, strings, tuples of those, tensors and arrays, for which a hash stands. Names that begin with an
    underscore do not count, nor do modules that say what they are themselves: those with a ``signature()``, and those
    of this package, torch and Pyro.
    """
    found: dict[str, Any] = {}
    kinds = [type(module).__name__ for module in modules]
    for number, (kind, module) in enumerate(zip(kinds, modules, strict=True)):
        for path, part in module.named_modules(prefix=kind + (f"[{number}]" if kind in kinds[:number] else "")):
            ours = type(part).__module__.split(".")[0] in (__name__.split(".")[0], "torch", "pyro")
            if not (ours or callable(getattr(part, "signature", None))):
                held = {name: value for name, value in vars(part).items() if name != "training" and name[0] != "_"}
                found |= {f"{path}.{name}": told(value) for name, value in held.items() if _is_plain(value)}
    return found


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    dense = type(value) is torch.Tensor and value.layout is torch.strided
    return dense or type(value) in (bool, int, float, str, np.ndarray)


def frozen(*modules: nn.Module) -> list[str]:
    """Names of the parameters that are not trained."""
    return [f"{type(m).__name__}.{name}" for m in modules for name, p in m.named_parameters() if not p.requires_grad]


def _placeless(text: str) -> str:
    """The same without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def told(value: Any, depth: int = 4) -> Any:
    """What a checkpoint says of an option, so that `difference` finds another one.

    Args:
        value: numbers, strings and None stand for themselves, also in lists, tuples and dictionaries; arrays and
            functions for a hash, functions also for what they hold; anything else for its class.
        depth: how far down functions count that functions hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): told(item, depth) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [told(item, depth) for item in value]
    if isinstance(value, torch.Tensor | np.ndarray):
        return fingerprint(value)
    if isinstance(value, functools.partial):
        return told([value.func, value.args, value.keywords], depth)
    if (code := getattr(value, "__code__", None)) is None or not depth:
        return value.__qualname__ if isinstance(value, type) else type(value).__name__
    held = [*(getattr(value, "__closure__", None) or ()), *(value.__defaults__ or ())]
    held = [getattr(cell, "cell_contents", None) if isinstance(cell, CellType) else cell for cell in held]
    digest = hashlib.blake2b(repr(_instructions(code)).encode(), digest_size=8).hexdigest()
    return [f"{value.__qualname__} {digest}", *told(held, depth - 1)]


def _instructions(code: CodeType) -> Any:
    """What a function does, the same in every process of one version of Python."""
    constants = [
        _instructions(one) if isinstance(one, CodeType) else sorted(map(repr, one)) if type(one) is frozenset else one
        for one in code.co_consts
    ]
    return code.co_code, code.co_names, constants


def fingerprint(numbers: torch.Tensor | np.ndarray) -> str:
    """A short hash of numbers, the same on every device; of objects in an array only that they are some."""
    digest = hashlib.blake2b(f"{numbers.dtype} {[*numbers.shape]}".encode(), digest_size=8)
    if isinstance(numbers, torch.Tensor):
        digest.update(numbers.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif not numbers.dtype.hasobject:
        digest.update(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def difference(saved: Any, given: Any, name: str = "") -> str | None:
    """Where two descriptions first differ: ``groups[1].lr=0.1, not 0.5``; None where they do not.

    Args:
        saved: a number, a string or None, or lists, tuples and dictionaries of them.
        given: another.
        name: of both.
    """
    pairs: list[tuple[str, Any, Any]]
    saved, given = ([*one] if isinstance(one, tuple) else one for one in (saved, given))
    if isinstance(saved, dict) and isinstance(given, dict):
        dot = f"{name}." if name else ""
        pairs = [(f"{dot}{key}", saved.get(key), given.get(key)) for key in {**saved, **given}]
    elif isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given) and not _numbers(saved):
        pairs = [(f"{name}[{number}]", *pair) for number, pair in enumerate(zip(saved, given, strict=True))]
    else:
        return None if saved == given else f"{name}={saved}, not {given}"
    return next((found for key, was, wanted in pairs if (found := difference(was, wanted, key))), None)


def _numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def verify_settings(path: Path, content: dict[str, Any], settings: dict[str, Any], steps: int) -> None:
    """Refuse a checkpoint that was made under other settings or is beyond what is asked for.

    Raises:
        ValueError: the first difference, and what to do about it.
    """
    saved = content["settings"]
    if "version" not in content:  # 0.1 described less
        settings = {name: value for name, value in settings.items() if name in saved}
    if unlike := difference(saved, settings):
        raise ValueError(f"{path} was made with {unlike}; {ANEW}")
    if content["step"] > steps:
        raise ValueError(f"{path} is at step {content['step']}, beyond steps={steps}; {ANEW}")


def verify_constants(path: Path, content: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Refuse a checkpoint of modules with other `constants`.

    A checkpoint holds those that have not changed in training. Counters and annealed weights do, so that they need not
    be what they were.

    Returns:
        Of ``own`` those that have not changed.

    Raises:
        ValueError: the first difference, and what to do about it.
    """
    saved = content.get("constants", own)
    kept = {name: value for name, value in own.items() if name in saved}
    if unlike := difference({name: saved[name] for name in kept}, kept):
        raise ValueError(f"{path} was made with {unlike}; {ANEW}")
    return kept


def load_checkpoint(path: str | os.PathLike[str], *modules: nn.Module) -> int:
    """Load trained modules from a checkpoint of :func:`fit` or :func:`learn`, to evaluate or execute them.

    Args:
        path: the file, usually ``OUT/checkpoint.pt``.
        *modules: modules made as they were for training; any of those that were trained. Each takes the first
            saved module with its class, signature, parameter names and shapes.

    Returns:
        The number of training steps behind these weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, not a checkpoint, or one of another model; nothing is changed then.
    """
    content = read(path, "modules", "step")
    try:
        matched, step = match(path, modules, content["modules"]), int(content["step"])
    except (TypeError, AttributeError, LookupError, OverflowError) as error:
        raise ValueError(f"{path} is not whole ({type(error).__name__}: {error})") from error
    apply(matched)
    return step
