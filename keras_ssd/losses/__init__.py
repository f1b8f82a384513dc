"""The losses of the papers as pure functions: tensors in, one value a row or one in all out."""

from keras_ssd.losses.contrastive import (
    compositional_contrastive_loss,
    contrastive_representation_loss,
    noise_contrastive_loss,
)
from keras_ssd.losses.cross_entropy import (
    cross_entropy,
)
from keras_ssd.losses.decoupled import (
    class_relation_loss,
    decoupled_divergence,
)
from keras_ssd.losses.divergences import (
    jensen_shannon_divergence,
    kl_divergence,
    soft_cross_entropy,
    symmetric_kl_divergence,
)
from keras_ssd.losses.features import (
    attention_loss,
    hierarchical_context_loss,
    hint_loss,
    partial_l2_loss,
    variational_information_loss,
)
from keras_ssd.losses.graph import (
    edge_loss,
    embedding_graph_loss,
    node_loss,
    pearson_correlation,
)
from keras_ssd.losses.joint_labels import (
    class_scores,
    joint_labels,
    view_scores,
)
from keras_ssd.losses.pooling import (
    adaptive_average_pooling,
)
from keras_ssd.losses.precision import (
    at_least_float32,
)
from keras_ssd.losses.ranking import (
    keep_mask,
    label_rank,
)
from keras_ssd.losses.relational import (
    correlation_congruence_loss,
    probabilistic_transfer_loss,
    relational_angle_loss,
    relational_distance_loss,
    similarity_preserving_loss,
)
from keras_ssd.losses.similarity import (
    cosine_similarity,
)

__all__ = [
    "adaptive_average_pooling",
    "at_least_float32",
    "attention_loss",
    "class_relation_loss",
    "class_scores",
    "compositional_contrastive_loss",
    "contrastive_representation_loss",
    "correlation_congruence_loss",
    "cosine_similarity",
    "cross_entropy",
    "decoupled_divergence",
    "edge_loss",
    "embedding_graph_loss",
    "hierarchical_context_loss",
    "hint_loss",
    "jensen_shannon_divergence",
    "joint_labels",
    "keep_mask",
    "kl_divergence",
    "label_rank",
    "node_loss",
    "noise_contrastive_loss",
    "partial_l2_loss",
    "pearson_correlation",
    "probabilistic_transfer_loss",
    "relational_angle_loss",
    "relational_distance_loss",
    "similarity_preserving_loss",
    "soft_cross_entropy",
    "symmetric_kl_divergence",
    "variational_information_loss",
    "view_scores",
]
