"""ELBOs, the training loop and evaluation."""

from .augmentation import Augmented, compose, jitter, shifted
from .checkpoint import load_checkpoint
from .evaluate import GreedyPolicy, Structured, boundary_f1, exact_match
from .fit import Examples, FitResult, fit
from .forward import ChainPosterior, chain_posterior, forward_log_likelihood
from .hindsight import GoalData, GoalTraces, hindsight
from .interactive import InteractiveResult, Round, constant, dagger, dart, geometric, linear
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
    "exact_match",
    "fit",
    "forward_log_likelihood",
    "geometric",
    "hindsight",
    "jitter",
    "linear",
    "load_checkpoint",
    "mean_interval",
    "read_rows",
    "row",
    "select",
    "shifted",
    "summary",
    "write_results",
]
