"""The Distiller: a `keras.Model` that trains a student with objectives inside Keras' own `fit`."""

from keras_ssd.distiller.distiller import Distiller

__all__ = ["Distiller"]
