"""Pyro guides: amortised posteriors."""

from .call_stack import CallStackGuide
from .encoders import BiLSTMEncoder, LSTMEncoder, MLPEncoder, TraceEncoder, TransformerEncoder, make_encoder
from .memory import MemoryGuide
from .trajectory import TrajectoryEncoder, TrajectoryGuide

__all__ = [
    "BiLSTMEncoder",
    "CallStackGuide",
    "LSTMEncoder",
    "MLPEncoder",
    "MemoryGuide",
    "TraceEncoder",
    "TrajectoryEncoder",
    "TrajectoryGuide",
    "TransformerEncoder",
    "make_encoder",
]
