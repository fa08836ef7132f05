"""ELBOs, the training loop and evaluation."""

from .checkpoint import load_checkpoint
from .evaluate import GreedyPolicy, Structured, boundary_f1, exact_match
from .fit import Examples, FitResult, fit
from .results import Summary, mean_interval, read_rows, row, select, summary, write_results
from .stepwise import InexactKLError, StepTerm, StepwiseKL_ELBO

__all__ = [
    "Examples",
    "FitResult",
    "GreedyPolicy",
    "InexactKLError",
    "StepTerm",
    "StepwiseKL_ELBO",
    "Structured",
    "Summary",
    "boundary_f1",
    "exact_match",
    "fit",
    "load_checkpoint",
    "mean_interval",
    "read_rows",
    "row",
    "select",
    "summary",
    "write_results",
]
