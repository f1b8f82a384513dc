"""Heads on a network, and taking them off again."""

from keras_ssd.heads.auxiliary import with_auxiliary_classifiers
from keras_ssd.heads.connector import with_connector
from keras_ssd.heads.frozen_backbone import with_frozen_backbone
from keras_ssd.heads.node_embedding import (
    fixed_node_embedding,
    node_embedding_head,
    with_node_embedding,
)
from keras_ssd.heads.peer import with_peer
from keras_ssd.heads.projection import with_projection
from keras_ssd.heads.taps import named_outputs, strip_heads

__all__ = [
    "fixed_node_embedding",
    "named_outputs",
    "node_embedding_head",
    "strip_heads",
    "with_auxiliary_classifiers",
    "with_connector",
    "with_frozen_backbone",
    "with_node_embedding",
    "with_peer",
    "with_projection",
]
