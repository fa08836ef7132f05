"""Pyro guides: amortised posteriors, and policies."""

from .action_policy import ActionDistribution, ActionPolicy, LatentPolicy
from .call_stack import CallStackGuide
from .encoders import BiLSTMEncoder, LSTMEncoder, MLPEncoder, TraceEncoder, TransformerEncoder, make_encoder
from .flow_policy import FlowPolicy
from .gaussian_policy import GaussianPolicy, MixturePolicy
from .memory import MemoryGuide
from .trajectory import TrajectoryEncoder, TrajectoryGuide
from .zuko_policy import ZukoPolicy

__all__ = [
    "ActionDistribution",
    "ActionPolicy",
    "BiLSTMEncoder",
    "CallStackGuide",
    "FlowPolicy",
    "GaussianPolicy",
    "LSTMEncoder",
    "LatentPolicy",
    "MLPEncoder",
    "MemoryGuide",
    "MixturePolicy",
    "TraceEncoder",
    "TrajectoryEncoder",
    "TrajectoryGuide",
    "TransformerEncoder",
    "ZukoPolicy",
    "make_encoder",
]
