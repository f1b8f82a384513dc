"""Looking at what a student has learned."""

from keras_ssd.evaluation import figures

__all__ = ["figures"]
