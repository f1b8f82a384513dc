"""The Distiller: a `keras.Model` that trains a student with objectives inside Keras' own `fit`."""

from keras_ssd.distiller.distiller import Distiller
from keras_ssd.distiller.report import CheckReport, NetworkFacts, TermFacts

__all__ = ["CheckReport", "Distiller", "NetworkFacts", "TermFacts"]
