"""Pyro guides: amortised posteriors, and policies."""

from .call_stack import CallStackGuide
from .encoders import BiLSTMEncoder, LSTMEncoder, MLPEncoder, TraceEncoder, TransformerEncoder, make_encoder
from .memory import MemoryGuide
from .policies.action_policy import ActionDistribution, ActionPolicy, LatentPolicy
from .policies.flow_policy import FlowPolicy
from .policies.gaussian_policy import GaussianPolicy, MixturePolicy
from .policies.hierarchy import Hierarchy, HierarchyState
from .policies.zuko_policy import ZukoPolicy
from .trajectory import TrajectoryEncoder, TrajectoryGuide

__all__ = [
    "ActionDistribution",
    "ActionPolicy",
    "BiLSTMEncoder",
    "CallStackGuide",
    "FlowPolicy",
    "GaussianPolicy",
    "Hierarchy",
    "HierarchyState",
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
