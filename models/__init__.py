"""What generates a demonstration: processes, sequence distributions, Pyro models."""

from .._saved import Saved
from .causal import Causal
from .dynamics import (
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
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    Head,
    MixtureHead,
    MultiCategoricalHead,
    SquashedHead,
    make_head,
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
    "ActionGuide",
    "ActionPrior",
    "Boundary",
    "CallStack",
    "CallStackContext",
    "CallStackState",
    "CallTrace",
    "Causal",
    "CategoricalHead",
    "ComponentDynamics",
    "ControlProgram",
    "Controller",
    "DeterministicHead",
    "DirectPolicy",
    "DiscreteMemory",
    "Dynamics",
    "DynamicsContext",
    "DynamicsState",
    "Emission",
    "Execution",
    "Episodes",
    "Field",
    "FieldEncoder",
    "FunctionController",
    "GaussianHead",
    "GaussianMemory",
    "GaussianPrior",
    "GoalConditionedPolicy",
    "Head",
    "Interval",
    "LatentMemoryPolicy",
    "MLPDynamics",
    "Memory",
    "MemoryContext",
    "MemoryState",
    "MixtureHead",
    "MultiCategoricalHead",
    "ObservationEncoder",
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
    "RecurrentController",
    "RecurrentPolicy",
    "RecurrentState",
    "Saved",
    "ScalarMixture",
    "Sequence",
    "Skill",
    "SpaceError",
    "SquashedHead",
    "Step",
    "Steps",
    "Traces",
    "TrajectoryCVAE",
    "UniformPrior",
    "WaveNet",
    "WaveNetCache",
    "WaveNetDynamics",
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
    "space_from_json",
    "space_to_json",
    "split_annotated",
    "spread",
    "unflatten_observations",
]
