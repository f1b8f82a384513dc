"""Distil big image networks into small ones inside Keras' own `fit`.

Importing the package registers every class that a saved file may name.
"""

from keras_ssd import (
    callbacks,
    checkpoints,
    collectives,
    data,
    evaluation,
    layers,
    losses,
    models,
    objectives,
    optimizers,
    presets,
    schedules,
    views,
)
from keras_ssd.batch import Batch
from keras_ssd.distiller import Distiller
from keras_ssd.export import export_student
from keras_ssd.heads import (
    named_outputs,
    strip_heads,
    with_auxiliary_classifiers,
    with_frozen_backbone,
    with_peer,
    with_projection,
)
from keras_ssd.teacher import FrozenTeacher, freeze

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Distiller",
    "FrozenTeacher",
    "callbacks",
    "checkpoints",
    "collectives",
    "data",
    "evaluation",
    "export_student",
    "freeze",
    "layers",
    "losses",
    "models",
    "named_outputs",
    "objectives",
    "optimizers",
    "presets",
    "schedules",
    "strip_heads",
    "views",
    "with_auxiliary_classifiers",
    "with_frozen_backbone",
    "with_peer",
    "with_projection",
]
