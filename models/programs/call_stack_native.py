"""Call the native walk of the call-stack process.

The sampling walk of :mod:`call_stack` is sequential: in tensor code a step costs a third of a
millisecond, nearly all of it in starting operations. `call_stack_walk.c` does the same in about a microsecond;
where it cannot be compiled, the tensor code walks. C looks nothing up twice: whatever it indexes by is checked here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._native import library

if TYPE_CHECKING:
    from .call_stack import CallStack, CallStackContext, ProcedureNetworks

__all__ = ["ready", "walk"]

_Layers = list[tuple[Tensor, Tensor]]  # weights and biases
# A tensor, its type (any if None) and its shape.
_Wanted = tuple[Tensor | None, torch.dtype | None, tuple[int, ...]]
_SOURCE = Path(__file__).with_name("call_stack_walk.c")


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


def walk(
    process: CallStack,
    context: CallStackContext,
    horizon: int,
    greedy: bool,
    *,
    weights: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Return call traces ``[B, horizon, 1 + W]`` and their numbers of steps, or None where it cannot.

    It walks on a CPU, in single precision, with discrete arguments. A trace that has not ended at the horizon
    counts ``horizon + 1`` steps.

    Args:
        process: the call stack.
        context: leaves ``[B, ...]``.
        horizon: most steps.
        greedy: take the likeliest choice at every step.
        weights: by parameter name; None for the process's own.
        seed: of the random numbers, at least 0; None draws one from torch's generator.

    Raises:
        ValueError: naming the trace and the step, where no choice is possible, or an action is none of the tree's.
    """
    features = context.features
    weights = dict(process.named_parameters()) if weights is None else weights
    choose, argue = (_layers(weights, name) for name in ("choose", "argue"))
    if not _fits(process, context, choose, argue):
        return None
    _check_ranges(process, context, horizon)
    native = library(_SOURCE, "pyrocontrol_walk")
    if native is None:
        return None
    tree, kept = process.tree, []

    def pointer(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
        held = tensor.detach().to(dtype or tensor.dtype).resolve_neg().contiguous()
        kept.append(held)
        return held.data_ptr()

    widest = 0

    def networks(held: ProcedureNetworks | None, layers: _Layers) -> _Networks:
        nonlocal widest
        if held is None:
            return _Networks(layers=0)
        sizes = [layers[0][0].shape[1], *(bias.shape[1] for _, bias in layers)]
        widest = max(widest, *sizes)
        weights, biases = (torch.tensor([pointer(p) for p in group]) for group in zip(*layers, strict=True))
        return _Networks(
            layers=len(layers),
            tanh=int(held.activation == "tanh"),
            sizes=pointer(torch.tensor(sizes)),
            weights=pointer(weights),
            biases=pointer(biases),
        )

    batch, times, width = features.shape[0], features.shape[1], tree.arg_size
    inputs = choose[0][0].shape[1]
    stack = _Stack(
        procedures=len(tree.procedures),
        actions=len(tree.actions),
        choices=len(tree.choices),
        width=width,
        depth=tree.depth,
        features=features.shape[2],
        times=times,
        inputs=inputs,
        choose=networks(process.choose, choose),
        argue=networks(process.argue, argue),
        fields=len(tree.placed_fields),
        field=pointer(torch.tensor([(f.slot, f.parameter, f.place, f.field.size) for f in tree.placed_fields])),
        allowed=pointer(process.consistent if process.posterior else process.available, torch.uint8),
        counts=pointer(process._counts),
        posterior=int(process.posterior),
    )
    z = features.new_zeros(batch, horizon, 1 + width)
    steps = torch.empty(batch, dtype=torch.long)
    scratch = features.new_empty(inputs + 2 * widest + tree.depth * (3 + 2 * width))
    if seed is None:
        seed = 0 if greedy else int(torch.randint(2**62, ()))
    native.pyrocontrol_walk(
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


def ready() -> bool:
    """Whether there is a compiled walk."""
    return library(_SOURCE, "pyrocontrol_walk") is not None


def _layers(weights: Mapping[str, Tensor], name: str) -> _Layers:
    """The layers of one of the process's networks, none if it is not there."""
    count = sum(key.startswith(f"{name}.weights.") for key in weights)
    return [(weights[f"{name}.weights.{n}"], weights[f"{name}.biases.{n}"]) for n in range(count)]


def _fits(process: CallStack, context: CallStackContext, choose: _Layers, argue: _Layers) -> bool:
    """Whether all that the walk reads is there, on a CPU, in single precision; tensor code says what is wrong."""
    tree, (batch, times) = process.tree, context.features.shape[:2]
    h, a, k, width = len(tree.procedures), len(tree.actions), len(tree.choices), tree.arg_size
    inputs, parameters = process.feature_size + 1 + k + 2 * width, sum(f.field.parameters for f in tree.placed_fields)
    observed = process.posterior and context.arguments is not None
    wanted: list[_Wanted] = [
        (context.features, torch.float32, (batch, times, process.feature_size)),
        (context.task, None, (batch, width)),
        (process._counts, torch.float32, (h,)),
        *_wanted(choose, h, inputs, k),
        *_wanted(argue, h, inputs, parameters),
    ]
    if process.posterior:
        wanted += [(context.actions, None, (batch, times)), (process.consistent, torch.bool, (h, a + 1, k))]
    else:
        wanted += [(process.available, torch.bool, (h, k))]
    if observed:
        wanted += [(context.arguments, None, (batch, times, width))]
    return all(f.field.kind == "onehot" or (f.of_action and observed) for f in tree.placed_fields) and all(
        x is not None and x.shape == shape and x.device.type == "cpu" and dtype in (None, x.dtype)
        for x, dtype, shape in wanted
    )


def _wanted(layers: _Layers, procedures: int, inputs: int, outputs: int) -> list[_Wanted]:
    """The weights and biases of networks, with what they must be."""
    wanted: list[_Wanted] = []
    for number, (weight, bias) in enumerate(layers, 1):
        size = outputs if number == len(layers) else bias.shape[-1]
        wanted += [(weight, torch.float32, (procedures, inputs, size)), (bias, torch.float32, (procedures, size))]
        inputs = size
    return wanted


def _check_ranges(process: CallStack, context: CallStackContext, horizon: int) -> None:
    """Refuse what the compiled walk would index its tables out of bounds by: it looks nothing up twice."""
    if horizon < 1 or not context.features.shape[1]:
        raise ValueError(f"a walk needs a step and an observation, got {horizon} and {context.features.shape[1]}")
    if process.posterior and context.actions is not None:
        last = len(process.tree.actions)
        if context.actions.is_floating_point():
            raise ValueError(f"actions are whole numbers, got {context.actions.dtype}")
        bad = (context.actions < 0) | (context.actions > last)
        if bad.any():
            row, step = bad.nonzero()[0].tolist()
            action = int(context.actions[row, step])
            raise ValueError(f"trace {row}, step {step}: an action outside 0..{last} (it is {action})")
