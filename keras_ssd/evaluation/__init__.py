"""Looking at what a student has learned."""

from keras_ssd.evaluation import figures
from keras_ssd.evaluation.linear_probe import LinearProbe, linear_probe

__all__ = ["LinearProbe", "figures", "linear_probe"]
