"""Pyro guides: amortised posteriors."""

from .call_stack import CallStackGuide
from .encoders import BiLSTMEncoder, LSTMEncoder, TraceEncoder, TransformerEncoder, make_encoder
from .memory import MemoryGuide

__all__ = [
    "BiLSTMEncoder",
    "CallStackGuide",
    "LSTMEncoder",
    "MemoryGuide",
    "TraceEncoder",
    "TransformerEncoder",
    "make_encoder",
]
