"""Banks of softmax policies under GRPO: the theory's own world, simulated and measured.

Functions return data; figures and tables are made elsewhere.
"""

from entropy_theory.dynamics.centering import Centering, centering
from entropy_theory.dynamics.config import SimulationConfig, VocabSimulationConfig
from entropy_theory.dynamics.engine import Simulation
from entropy_theory.dynamics.fits import log_log_slope, slope_through_origin
from entropy_theory.dynamics.interventions import Condition, interventions
from entropy_theory.dynamics.prediction import Prediction, predicted_against_realised, sample_steps
from entropy_theory.dynamics.ranks import torchrun_ranks
from entropy_theory.dynamics.results import SimulationResult
from entropy_theory.dynamics.simulation import run, simulate
from entropy_theory.dynamics.starts import gaussian_logits

__all__ = [
    "Centering",
    "Condition",
    "Prediction",
    "Simulation",
    "SimulationConfig",
    "SimulationResult",
    "VocabSimulationConfig",
    "centering",
    "gaussian_logits",
    "interventions",
    "log_log_slope",
    "predicted_against_realised",
    "run",
    "sample_steps",
    "simulate",
    "slope_through_origin",
    "torchrun_ranks",
]
