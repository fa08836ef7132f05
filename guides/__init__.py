"""Pyro guides: amortised posteriors, and policies."""

from .call_stack import CallStackGuide
from .encoders import BiLSTMEncoder, LSTMEncoder, MLPEncoder, TraceEncoder, TransformerEncoder, make_encoder
from .filtering import Filtered, FilteringGuide, FilteringPosterior
from .memory import MemoryGuide
from .policies.action_policy import ActionDistribution, ActionPolicy, LatentPolicy
from .policies.belief_policy import BeliefPolicy
from .policies.flow_policy import FlowPolicy
from .policies.gaussian_policy import GaussianPolicy, MixturePolicy
from .policies.hierarchy import Hierarchy, HierarchyState
from .policies.zuko_policy import ZukoPolicy
from .trajectory import TrajectoryEncoder, TrajectoryGuide

__all__ = [
    "ActionDistribution",
    "ActionPolicy",
    "BiLSTMEncoder",
    "BeliefPolicy",
    "CallStackGuide",
    "Filtered",
    "FilteringGuide",
    "FilteringPosterior",
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
