"""Distil big image networks into small ones inside Keras' own `fit`.

Importing the package registers every class that a saved file may name.
"""

from keras_ssd import (
    callbacks,
    checkpoints,
    collectives,
    data,
    distribution,
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
from keras_ssd.encoders import frozen_encoder
from keras_ssd.export import export_student
from keras_ssd.heads import (
    fixed_node_embedding,
    named_outputs,
    node_embedding_head,
    strip_heads,
    with_auxiliary_classifiers,
    with_connector,
    with_frozen_backbone,
    with_node_embedding,
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
    "distribution",
    "evaluation",
    "export_student",
    "fixed_node_embedding",
    "freeze",
    "frozen_encoder",
    "layers",
    "losses",
    "models",
    "named_outputs",
    "node_embedding_head",
    "objectives",
    "optimizers",
    "presets",
    "schedules",
    "strip_heads",
    "views",
    "with_auxiliary_classifiers",
    "with_connector",
    "with_frozen_backbone",
    "with_node_embedding",
    "with_peer",
    "with_projection",
]
