"""Checkpoints: written whole or not at all, loaded without executing code, refused by another model."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..._files import read_content, write_contents
from ..._saved import Saved, objects_of, readable

__all__ = [
    "ANEW",
    "apply",
    "described",
    "load_checkpoint",
    "match",
    "mismatch",
    "read",
    "snapshot",
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
    """The class of a module, its ``signature()`` where it has one, its state."""
    signature = getattr(module, "signature", None)
    return {
        "class": type(module).__name__,
        "signature": str(signature()) if callable(signature) else None,
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


def mismatch(module: nn.Module, saved: dict[str, Any]) -> str | None:
    """Why a saved module cannot be loaded into ``module``, in one sentence, or None where it can.

    Args:
        module: any module; it is only read.
        saved: an entry made by :func:`snapshot`.
    """
    own = _compared(module)
    if own["class"] != saved["class"]:
        return f"it holds a {saved['class']}, not a {own['class']}"
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
    return None


def _differing(one: str, other: str) -> tuple[str, str]:
    """Of two signatures the parts in which they differ, if they have as many parts; else both whole."""
    parts, others = (re.split(r", (?=\w+=)", signature) for signature in (one, other))
    if len(parts) != len(others):
        return one, other
    unlike = [pair for pair in zip(parts, others, strict=True) if pair[0] != pair[1]]
    return ", ".join(part for part, _ in unlike), ", ".join(part for _, part in unlike)


def match(
    path: str | os.PathLike[str], modules: Sequence[nn.Module], saved: Sequence[dict[str, Any]]
) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Pair each module with the first saved one that fits it and is not taken.

    Args:
        path: the file, for messages.
        modules: any modules; they are only read.
        saved: entries made by :func:`snapshot`.

    Returns:
        Pairs (module, state), one for each module.

    Raises:
        ValueError: a module fits none of the saved ones.
    """
    left, matched = [*map(_renamed, saved)], []
    for module in modules:
        reasons = [mismatch(module, entry) for entry in left]
        if None not in reasons:
            kind = type(module).__name__
            alike = [reason for reason, entry in zip(reasons, left, strict=True) if entry["class"] == kind]
            why = [*alike, *reasons, f"it has nothing for the {kind}"][0]
            raise ValueError(f"{path} is a checkpoint of another model: {why}")
        matched.append((module, left.pop(reasons.index(None))["state"]))
    return matched


def _renamed(saved: dict[str, Any]) -> dict[str, Any]:
    """What a saved module of version 0.1 is called now."""
    name, signature = saved["class"], str(saved["signature"])
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
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def verify_settings(path: Path, content: dict[str, Any], settings: dict[str, Any], steps: int) -> None:
    """Refuse a checkpoint that was made under other settings or is beyond what is asked for.

    Raises:
        ValueError: the first difference, and what to do about it.
    """
    saved = content["settings"]
    for name in {**saved, **settings}:
        was, wanted = saved.get(name), settings.get(name)
        if was != wanted:
            raise ValueError(f"{path} was made with {name}={was}, not {wanted}; {ANEW}")
    if content["step"] > steps:
        raise ValueError(f"{path} is at step {content['step']}, beyond steps={steps}; {ANEW}")


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
