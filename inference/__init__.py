"""ELBOs, the training loop and evaluation."""

from .checkpoint import load_checkpoint
from .evaluate import GreedyPolicy, Structured, boundary_f1, exact_match
from .fit import Examples, FitResult, fit
from .results import read_rows, row, write_results
from .stepwise import InexactKLError, StepTerm, StepwiseKL_ELBO

__all__ = [
    "Examples",
    "FitResult",
    "GreedyPolicy",
    "InexactKLError",
    "StepTerm",
    "StepwiseKL_ELBO",
    "Structured",
    "boundary_f1",
    "exact_match",
    "fit",
    "load_checkpoint",
    "read_rows",
    "row",
    "write_results",
]
