"""What generates a demonstration: processes, sequence distributions, Pyro models."""

from .call_stack import CallStack, CallStackContext, CallStackState, ProcedureNetworks, ProcedureStep
from .call_trace import Boundary, CallTrace, Interval, plot_call_stack
from .control_program import ControlProgram, Execution
from .observation import FieldEncoder
from .procedure_tree import Action, Field, PlacedField, Procedure, ProcedureTree
from .process import Emission, Process, Sequence, Steps
from .recurrent import RecurrentController
from .registration import register
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
from .traces import Traces, check_stopped, split_annotated

__all__ = [
    "Action",
    "Boundary",
    "CallStack",
    "CallStackContext",
    "CallStackState",
    "CallTrace",
    "ControlProgram",
    "Emission",
    "Execution",
    "Field",
    "FieldEncoder",
    "Interval",
    "PlacedField",
    "Procedure",
    "ProcedureNetworks",
    "ProcedureStep",
    "ProcedureTree",
    "Process",
    "RecurrentController",
    "Sequence",
    "SpaceError",
    "Steps",
    "Traces",
    "action_size",
    "as_action_space",
    "check_action_space",
    "check_stopped",
    "decode_actions",
    "encode_actions",
    "flatten_observations",
    "observation_dtype",
    "observation_parts",
    "observation_size",
    "plot_call_stack",
    "register",
    "space_from_json",
    "space_to_json",
    "split_annotated",
    "unflatten_observations",
]
