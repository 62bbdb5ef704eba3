"""A classifier that grows: learn, predict, evaluate, save, load."""

from promptcl.learner.calibration import Calibration
from promptcl.learner.learner import Learner
from promptcl.learner.records import Evaluation, LearnRecord, Prediction

__all__ = ["Calibration", "Evaluation", "LearnRecord", "Learner", "Prediction"]
