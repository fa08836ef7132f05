"""Pyro guides: amortised posteriors."""

from .call_stack import CallStackGuide
from .encoders import BiLSTMEncoder, LSTMEncoder, TraceEncoder, TransformerEncoder

__all__ = ["BiLSTMEncoder", "CallStackGuide", "LSTMEncoder", "TraceEncoder", "TransformerEncoder"]
