"""The same programs in NumPyro: models, guides and the ELBO on JAX, with weights that pass both ways.

    twin, twin_guide = twins.to_numpyro(program), twins.to_numpyro(guide)
    svi = numpyro.infer.SVI(twin.model, twin_guide, numpyro.optim.Adam(1e-3), twins.StepwiseKL_ELBO())
    found = twins.fit(svi, twins.as_arrays(demonstrations), steps=2000, batch_size=4, seeds=range(6))
    twins.from_numpyro(found.params[0], program, "program")

It needs numpyro and jax: ``pip install 'pyrocontrol-ppl[numpyro]'``.
"""

try:
    import numpyro  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"pyrocontrol.inference.twins needs {error.name}: pip install 'pyrocontrol-ppl[numpyro]'", name=error.name
    ) from None

from ..guides.call_stack_numpyro import CallStackGuide
from ..guides.encoders_numpyro import BiLSTMEncoder, LSTMEncoder
from ..guides.filtering_numpyro import Filtered, FilteringGuide, FilteringPosterior
from ..models.latent_dynamics_numpyro import (
    ActionDriven,
    Belief,
    Driven,
    LatentDynamics,
    ObservedDynamics,
    VectorDecoder,
    VectorEncoder,
    WorldModel,
)
from ..models.process_numpyro import Emission, Process, Sequence, Steps, at_step
from ..models.programs.call_stack_numpyro import CallStack, CallStackContext, CallStackState, ProcedureStep, scored_rows
from ..models.programs.control_program_numpyro import ControlProgram, FieldEncoder
from ..models.programs.traces_numpyro import Traces, as_arrays
from ..models.twin_numpyro import Twin, from_numpyro, to_numpyro
from .objectives.stepwise_numpyro import BalancedKL, InexactKLError, StepTerm, StepwiseKL_ELBO
from .training.fit_numpyro import Fitted, fit

__all__ = [
    "ActionDriven",
    "BalancedKL",
    "Belief",
    "BiLSTMEncoder",
    "CallStack",
    "CallStackContext",
    "CallStackGuide",
    "CallStackState",
    "ControlProgram",
    "Driven",
    "Emission",
    "FieldEncoder",
    "Filtered",
    "FilteringGuide",
    "FilteringPosterior",
    "Fitted",
    "InexactKLError",
    "LSTMEncoder",
    "LatentDynamics",
    "ObservedDynamics",
    "ProcedureStep",
    "Process",
    "Sequence",
    "StepTerm",
    "Steps",
    "StepwiseKL_ELBO",
    "Traces",
    "Twin",
    "VectorDecoder",
    "VectorEncoder",
    "WorldModel",
    "as_arrays",
    "at_step",
    "fit",
    "from_numpyro",
    "scored_rows",
    "to_numpyro",
]
