"""The losses of the papers as pure functions: tensors in, one value a row out, no state."""

from keras_ssd.losses.cross_entropy import cross_entropy
from keras_ssd.losses.divergences import (
    jensen_shannon_divergence,
    kl_divergence,
    soft_cross_entropy,
    symmetric_kl_divergence,
)
from keras_ssd.losses.joint_labels import class_scores, joint_labels, view_scores
from keras_ssd.losses.precision import at_least_float32
from keras_ssd.losses.ranking import keep_mask, label_rank
from keras_ssd.losses.similarity import cosine_similarity

__all__ = [
    "at_least_float32",
    "class_scores",
    "cosine_similarity",
    "cross_entropy",
    "jensen_shannon_divergence",
    "joint_labels",
    "keep_mask",
    "kl_divergence",
    "label_rank",
    "soft_cross_entropy",
    "symmetric_kl_divergence",
    "view_scores",
]
