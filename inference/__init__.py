"""ELBOs, the training loop and evaluation."""

from .augmentation import Augmented, compose, jitter, shifted
from .checkpoint import load_checkpoint
from .control_loop import Learner, LearnResult, evaluation, learn, learn_together
from .critics import Critics, TargetCopy
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
from .replay import Replay, ReplayBatch
from .results import Summary, mean_interval, read_rows, row, select, summary, write_results
from .seed_batch import SeedBatch
from .soft_control import SoftActorCritic, SoftLearner
from .soft_q_learning import SoftQLearning
from .stagewise import StagewiseResult, train_stagewise, train_stagewise_together
from .stepwise import InexactKLError, StepTerm, StepwiseKL_ELBO
from .usable import claim_folder, verify_device, verify_folder

__all__ = [
    "Augmented",
    "ChainPosterior",
    "ConfusionNoise",
    "Critics",
    "Examples",
    "FitResult",
    "GaussianNoise",
    "GoalData",
    "GoalTraces",
    "GreedyPolicy",
    "InexactKLError",
    "InteractiveResult",
    "KLWeight",
    "LearnResult",
    "Learner",
    "MutualInformation",
    "Noise",
    "Replay",
    "ReplayBatch",
    "Round",
    "SeedBatch",
    "SoftActorCritic",
    "SoftLearner",
    "SoftQLearning",
    "StagewiseResult",
    "StepTerm",
    "StepwiseKL_ELBO",
    "Structured",
    "Summary",
    "TargetCopy",
    "boundary_f1",
    "chain_posterior",
    "claim_folder",
    "compose",
    "constant",
    "dagger",
    "dart",
    "entropy_of_sum",
    "evaluation",
    "exact_match",
    "fit",
    "forward_log_likelihood",
    "geometric",
    "hindsight",
    "infonce",
    "jitter",
    "learn",
    "learn_together",
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
    "train_stagewise",
    "train_stagewise_together",
    "variational_bound",
    "verify_device",
    "verify_folder",
    "write_results",
]
