"""A classifier that grows: learn, predict, evaluate, save, load."""

from promptcl.learner.calibration import Calibration
from promptcl.learner.learner import Learner
from promptcl.learner.records import Correction, Evaluation, LearnRecord, Prediction

__all__ = ["Calibration", "Correction", "Evaluation", "LearnRecord", "Learner", "Prediction"]
