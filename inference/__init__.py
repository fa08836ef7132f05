"""ELBOs, the training loop and evaluation."""

from .augmentation import Augmented, compose, jitter, shifted
from .checkpoint import load_checkpoint
from .evaluate import GreedyPolicy, Structured, boundary_f1, exact_match
from .fit import Examples, FitResult, fit
from .forward import ChainPosterior, chain_posterior, forward_log_likelihood
from .hindsight import GoalData, GoalTraces, hindsight
from .interactive import InteractiveResult, Round, constant, dagger, dart, geometric, linear
from .kl_weight import KLWeight
from .mutual_information import (
    MutualInformation,
    entropy_of_sum,
    infonce,
    leave_one_out,
    literal,
    nonvariational,
    sum_of_parts,
    variational_bound,
)
from .noise import ConfusionNoise, GaussianNoise, Noise
from .results import Summary, mean_interval, read_rows, row, select, summary, write_results
from .stepwise import InexactKLError, StepTerm, StepwiseKL_ELBO

__all__ = [
    "Augmented",
    "ChainPosterior",
    "ConfusionNoise",
    "Examples",
    "FitResult",
    "GaussianNoise",
    "GoalData",
    "GoalTraces",
    "GreedyPolicy",
    "InexactKLError",
    "InteractiveResult",
    "KLWeight",
    "MutualInformation",
    "Noise",
    "Round",
    "StepTerm",
    "StepwiseKL_ELBO",
    "Structured",
    "Summary",
    "boundary_f1",
    "chain_posterior",
    "compose",
    "constant",
    "dagger",
    "dart",
    "entropy_of_sum",
    "exact_match",
    "fit",
    "forward_log_likelihood",
    "geometric",
    "hindsight",
    "infonce",
    "jitter",
    "leave_one_out",
    "linear",
    "literal",
    "load_checkpoint",
    "mean_interval",
    "nonvariational",
    "read_rows",
    "row",
    "select",
    "shifted",
    "sum_of_parts",
    "summary",
    "variational_bound",
    "write_results",
]
