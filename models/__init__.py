"""What generates a demonstration: processes, sequence distributions, Pyro models."""

from .._saved import Saved
from .additive import Additive, AdditiveState
from .causal import Causal
from .dynamics import (
    AdditiveDynamics,
    ComponentDynamics,
    Dynamics,
    DynamicsContext,
    DynamicsState,
    MLPDynamics,
    ScalarMixture,
    WaveNetDynamics,
    make_dynamics,
)
from .heads import (
    AdditiveHead,
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    Head,
    MixtureHead,
    MultiCategoricalHead,
    SquashedHead,
    make_head,
)
from .imagination import Imagination, ImaginedOptimality, Start, soft_lambda_returns
from .latent_dynamics import (
    ActionDriven,
    Belief,
    Driven,
    LatentDynamics,
    ObservedDynamics,
    VectorDecoder,
    VectorEncoder,
    WorldModel,
)
from .observation_encoder import ObservationEncoder
from .optimality import (
    ActionGuide,
    ActionPrior,
    GaussianPrior,
    OneStepOptimality,
    OptimalityModel,
    UniformPrior,
    optimality_evidence,
)
from .policies.controller import Controller, FunctionController, as_controller
from .policies.episodes import Episodes, Step
from .policies.memory import (
    DiscreteMemory,
    GaussianMemory,
    LatentMemoryPolicy,
    Memory,
    MemoryContext,
    MemoryState,
)
from .policies.policy import DirectPolicy, Policy
from .policies.reactive import GoalConditionedPolicy, ReactivePolicy
from .policies.recurrent import RecurrentController, RecurrentPolicy, RecurrentState
from .process import Emission, Process, Sequence, Steps, at_step
from .programs.call_stack import CallStack, CallStackContext, CallStackState, ProcedureNetworks, ProcedureStep
from .programs.call_trace import Boundary, CallTrace, Interval, plot_call_stack, plot_posterior
from .programs.control_program import ControlProgram, Execution
from .programs.field_encoder import FieldEncoder
from .programs.procedure_tree import Action, Field, PlacedField, Procedure, ProcedureTree
from .programs.traces import Traces, check_stopped, split_annotated
from .readings import ImageDecoder, ImageEncoder, Readings
from .registration import register
from .skills import Skill, TrajectoryCVAE
from .space_json import space_from_json, space_to_json
from .spaces import (
    SpaceError,
    action_size,
    as_action_space,
    check_action_space,
    decode_actions,
    encode_actions,
    flatten_observations,
    observation_dtype,
    observation_parts,
    observation_size,
    unflatten_observations,
)
from .spread import spread
from .wavenet import WaveNet, WaveNetCache

__all__ = [
    "Action",
    "ActionDriven",
    "ActionGuide",
    "ActionPrior",
    "Additive",
    "AdditiveDynamics",
    "AdditiveHead",
    "AdditiveState",
    "Belief",
    "Boundary",
    "CallStack",
    "CallStackContext",
    "CallStackState",
    "CallTrace",
    "CategoricalHead",
    "Causal",
    "ComponentDynamics",
    "ControlProgram",
    "Controller",
    "DeterministicHead",
    "DirectPolicy",
    "DiscreteMemory",
    "Driven",
    "Dynamics",
    "DynamicsContext",
    "DynamicsState",
    "Emission",
    "Episodes",
    "Execution",
    "Field",
    "FieldEncoder",
    "FunctionController",
    "GaussianHead",
    "GaussianMemory",
    "GaussianPrior",
    "GoalConditionedPolicy",
    "Head",
    "ImageDecoder",
    "ImageEncoder",
    "Imagination",
    "ImaginedOptimality",
    "Interval",
    "LatentDynamics",
    "LatentMemoryPolicy",
    "MLPDynamics",
    "Memory",
    "MemoryContext",
    "MemoryState",
    "MixtureHead",
    "MultiCategoricalHead",
    "ObservationEncoder",
    "ObservedDynamics",
    "OneStepOptimality",
    "OptimalityModel",
    "PlacedField",
    "Policy",
    "Procedure",
    "ProcedureNetworks",
    "ProcedureStep",
    "ProcedureTree",
    "Process",
    "ReactivePolicy",
    "Readings",
    "RecurrentController",
    "RecurrentPolicy",
    "RecurrentState",
    "Saved",
    "ScalarMixture",
    "Sequence",
    "Skill",
    "SpaceError",
    "SquashedHead",
    "Start",
    "Step",
    "Steps",
    "Traces",
    "TrajectoryCVAE",
    "UniformPrior",
    "VectorDecoder",
    "VectorEncoder",
    "WaveNet",
    "WaveNetCache",
    "WaveNetDynamics",
    "WorldModel",
    "action_size",
    "as_action_space",
    "as_controller",
    "at_step",
    "check_action_space",
    "check_stopped",
    "decode_actions",
    "encode_actions",
    "flatten_observations",
    "make_dynamics",
    "make_head",
    "observation_dtype",
    "observation_parts",
    "observation_size",
    "optimality_evidence",
    "plot_call_stack",
    "plot_posterior",
    "register",
    "soft_lambda_returns",
    "space_from_json",
    "space_to_json",
    "split_annotated",
    "spread",
    "unflatten_observations",
]
