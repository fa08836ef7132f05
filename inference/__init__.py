"""ELBOs, the training loop and evaluation."""

from .._verify import claim_folder, verify_device, verify_folder
from .control.critics import Critics, TargetCopy
from .control.evaluation import evaluation
from .control.first_form import FirstSoftActorCritic
from .control.loop import Learner, LearnOptions, LearnResult, learn, learn_together
from .control.policy_gradient import Pathwise, PolicyGradient, Score
from .control.replay import Replay, ReplayBatch
from .control.ring import ReplayOptions
from .control.seed_batch import SeedBatch
from .control.sequence_replay import SequenceBatch, SequenceReplay
from .control.soft_control import SoftActorCritic, SoftLearner, SoftOptions
from .control.soft_q_learning import SoftQLearning
from .control.stagewise import StagewiseResult, train_stagewise, train_stagewise_together
from .control.temperature import Temperature
from .imitation.augmentation import Augmented, compose, jitter, shifted
from .imitation.hindsight import GoalData, GoalTraces, hindsight
from .imitation.interactive import InteractiveResult, Round, constant, dagger, dart, geometric, linear
from .imitation.noise import ConfusionNoise, GaussianNoise, Noise
from .imitation.segmentation import match_labels, segmentation_scores
from .imitation.structure import GreedyPolicy, Structured, boundary_f1, exact_match
from .objectives.enumerated import EnumeratedStates, enumerate_states
from .objectives.exact import CallStackPosterior, ExactLikelihood
from .objectives.forward import ChainPosterior, chain_posterior, forward_log_likelihood
from .objectives.kl_weight import KLWeight
from .objectives.mutual_information import (
    MutualInformation,
    entropy_of_sum,
    infonce,
    leave_one_out,
    literal,
    nonvariational,
    sum_of_parts,
    variational_bound,
)
from .objectives.stepwise import BalancedKL, InexactKLError, StepTerm, StepwiseKL_ELBO
from .training.checkpoint import load_checkpoint
from .training.fit import Examples, FitResult, fit
from .training.restarts import BestFit, fit_best
from .training.results import Summary, mean_interval, read_rows, row, select, summary, write_results
from .training.run import RunOptions

__all__ = [
    "Augmented",
    "BalancedKL",
    "BestFit",
    "CallStackPosterior",
    "ChainPosterior",
    "ConfusionNoise",
    "Critics",
    "EnumeratedStates",
    "ExactLikelihood",
    "Examples",
    "FirstSoftActorCritic",
    "FitResult",
    "GaussianNoise",
    "GoalData",
    "GoalTraces",
    "GreedyPolicy",
    "InexactKLError",
    "InteractiveResult",
    "KLWeight",
    "LearnOptions",
    "LearnResult",
    "Learner",
    "MutualInformation",
    "Noise",
    "Pathwise",
    "PolicyGradient",
    "Replay",
    "ReplayBatch",
    "ReplayOptions",
    "Round",
    "RunOptions",
    "Score",
    "SeedBatch",
    "SequenceBatch",
    "SequenceReplay",
    "SoftActorCritic",
    "SoftLearner",
    "SoftOptions",
    "SoftQLearning",
    "StagewiseResult",
    "StepTerm",
    "StepwiseKL_ELBO",
    "Structured",
    "Summary",
    "TargetCopy",
    "Temperature",
    "boundary_f1",
    "chain_posterior",
    "claim_folder",
    "compose",
    "constant",
    "dagger",
    "dart",
    "entropy_of_sum",
    "enumerate_states",
    "evaluation",
    "exact_match",
    "fit",
    "fit_best",
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
    "match_labels",
    "mean_interval",
    "nonvariational",
    "read_rows",
    "row",
    "segmentation_scores",
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
