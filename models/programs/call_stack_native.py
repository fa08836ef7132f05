"""Compile and call the native walk of the call-stack process.

The sampling walk of :mod:`call_stack` is sequential: in tensor code a step costs a third of a
millisecond, nearly all of it in starting operations. `call_stack_walk.c` does the same in about a microsecond. It
is compiled with the machine's C compiler at the first use and kept in the user's cache; without a compiler the
tensor code walks.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .call_stack import CallStack, CallStackContext, ProcedureNetworks

__all__ = ["available", "walk"]

_SOURCE = Path(__file__).with_name("call_stack_walk.c")
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-lm")


class _Networks(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "tanh")),
        *((name, ctypes.c_void_p) for name in ("sizes", "weights", "biases")),
    ]


class _Stack(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("procedures", "actions", "choices", "width", "depth", "features")),
        *((name, ctypes.c_int64) for name in ("times", "inputs")),
        *((name, _Networks) for name in ("choose", "argue")),
        ("fields", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("field", "allowed", "counts")),
        ("posterior", ctypes.c_int32),
    ]


@cache
def available() -> Any:
    """Return the compiled walk, compiling it if need be; None (with one warning) where that is impossible."""
    compiler = next((c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None)
    if compiler is None:
        warnings.warn("no C compiler was found: call stacks are sampled by slower tensor code", stacklevel=2)
        return None
    key = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode() + _processor()).hexdigest()[:16]
    try:
        cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyrocontrol" / f"walk-{key}.so"
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
                built = Path(folder) / "walk.so"
                command = [compiler, str(_SOURCE), "-o", str(built), *_FLAGS]
                subprocess.run(command, check=True, capture_output=True, text=True)
                os.replace(built, cached)
        function = ctypes.CDLL(str(cached)).pyrocontrol_walk
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or error
        warnings.warn(f"the native walk could not be built, tensor code samples instead: {detail}", stacklevel=2)
        return None
    function.restype = None
    return function


def walk(process: CallStack, context: CallStackContext, horizon: int, greedy: bool) -> tuple[Tensor, Tensor] | None:
    """Return call traces ``[B, horizon, 1 + W]`` and their numbers of steps, or None where it cannot.

    It walks on a CPU, in single precision, with discrete arguments. A trace that has not ended at the horizon
    counts ``horizon + 1`` steps. Random numbers are seeded from torch's generator.

    Raises:
        ValueError: naming the trace and the step, where no choice is possible, or an action is none of the tree's.
    """
    features = context.features
    if not _fits(process, context):
        return None
    _check_ranges(process, context, horizon)
    function = available()
    if function is None:
        return None
    tree, kept = process.tree, []

    def pointer(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
        held = tensor.detach().to(dtype or tensor.dtype).contiguous()
        kept.append(held)
        return held.data_ptr()

    widest = 0

    def networks(held: ProcedureNetworks | None) -> _Networks:
        nonlocal widest
        if held is None:
            return _Networks(layers=0)
        sizes = [held.weights[0].shape[1], *(weight.shape[2] for weight in held.weights)]
        widest = max(widest, *sizes)
        weights, biases = (torch.tensor([pointer(p) for p in group]) for group in (held.weights, held.biases))
        return _Networks(
            layers=len(held.weights),
            tanh=int(held.activation == "tanh"),
            sizes=pointer(torch.tensor(sizes)),
            weights=pointer(weights),
            biases=pointer(biases),
        )

    batch, times, width = features.shape[0], features.shape[1], tree.arg_size
    inputs = process.choose.weights[0].shape[1]
    stack = _Stack(
        procedures=len(tree.procedures),
        actions=len(tree.actions),
        choices=len(tree.choices),
        width=width,
        depth=tree.depth,
        features=features.shape[2],
        times=times,
        inputs=inputs,
        choose=networks(process.choose),
        argue=networks(process.argue),
        fields=len(process.field_table),
        field=pointer(process.field_table),
        allowed=pointer(process.consistent if process.posterior else process.available, torch.uint8),
        counts=pointer(process._counts),
        posterior=int(process.posterior),
    )
    z = features.new_zeros(batch, horizon, 1 + width)
    steps = torch.empty(batch, dtype=torch.long)
    scratch = features.new_empty(inputs + 2 * widest + tree.depth * (3 + 2 * width))
    seed = 0 if greedy else int(torch.randint(2**62, ()))
    function(
        ctypes.byref(stack),
        ctypes.c_int64(batch),
        ctypes.c_int64(horizon),
        ctypes.c_void_p(pointer(features)),
        ctypes.c_void_p(pointer(context.task, torch.float32)),
        ctypes.c_void_p(None if context.actions is None else pointer(context.actions, torch.long)),
        ctypes.c_void_p(
            None if context.arguments is None or process.argue is None else pointer(context.arguments, torch.float32)
        ),
        ctypes.c_int32(int(greedy)),
        ctypes.c_uint64(seed),
        ctypes.c_int64(widest),
        ctypes.c_void_p(scratch.data_ptr()),
        ctypes.c_void_p(z.data_ptr()),
        ctypes.c_void_p(steps.data_ptr()),
    )
    stuck = (steps < 0).nonzero()
    if len(stuck):
        row = int(stuck[0])
        raise ValueError(
            f"sequence {row}, step {-1 - int(steps[row])}: no choice is possible, because all are masked or the "
            "networks gave NaN"
        )
    return z, steps


def _fits(process: CallStack, context: CallStackContext) -> bool:
    """Whether all that the walk reads is there, on a CPU, in single precision; tensor code says what is wrong."""
    batch, times = context.features.shape[:2]
    wanted: list[tuple[Tensor | None, tuple[int, ...]]] = [
        (context.features, (batch, times, process.feature_size)),
        (context.task, (batch, process.tree.arg_size)),
    ]
    if process.posterior:
        wanted.append((context.actions, (batch, times)))
        if context.arguments is not None:
            wanted.append((context.arguments, (batch, times, process.tree.arg_size)))
    shaped = all(x is not None and x.shape == shape and x.device.type == "cpu" for x, shape in wanted)
    tensors = [context.features, *process.parameters()]
    observed = process.posterior and context.arguments is not None
    fields = process.tree.placed_fields
    discrete = all(placed.field.kind == "onehot" or (placed.of_action and observed) for placed in fields)
    return discrete and shaped and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)


def _check_ranges(process: CallStack, context: CallStackContext, horizon: int) -> None:
    """Refuse what the compiled walk would index its tables out of bounds by: it looks nothing up twice."""
    if horizon < 1 or not context.features.shape[1]:
        raise ValueError(f"a walk needs a step and an observation, got {horizon} and {context.features.shape[1]}")
    if process.posterior and context.actions is not None:
        last = len(process.tree.actions)
        bad = (context.actions < 0) | (context.actions > last)
        if bad.any():
            row, step = bad.nonzero()[0].tolist()
            action = int(context.actions[row, step])
            raise ValueError(f"trace {row}, step {step}: an action outside 0..{last} (it is {action})")


def _processor() -> bytes:
    """What ``-march=native`` depends on: a cache may be shared between machines."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = sorted({line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))})
        return "".join(lines).encode()
    return platform.platform().encode() + platform.processor().encode()
