"""Objectives that compare how the images of a batch relate to each other, at any widths."""

from __future__ import annotations

import abc
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_ssd.arguments import check_not_negative
from keras_ssd.batch import Batch
from keras_ssd.collectives import all_gather, all_sum, replica_rows, row_count
from keras_ssd.losses import relational
from keras_ssd.losses.blocks import Block, kept_of, rows_of
from keras_ssd.objectives.objective import OneOutputEach, weighted_sum


class _Relational(OneOutputEach):
    """A mean over images of a value that needs the image and all others of the global batch."""

    compares_images = True

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's images that take part, and their number."""
        weights = batch.weights_of("plain")
        teacher, student = self._rows(batch)
        theirs = _block(teacher, weights, "teacher")
        ours = _block(student, weights, "student")
        return weighted_sum(self._values(theirs, ours), ours.kept_rows)

    @abc.abstractmethod
    def _values(self, teacher: Block, student: Block) -> tf.Tensor:
        """One value for each of this replica's images."""


def _block(features: tf.Tensor, weights: tf.Tensor, name: str) -> Block:
    """This replica's rows beside the rows of all replicas."""
    rows = rows_of(features, weights, name)
    start, _ = replica_rows(row_count(rows))
    return Block(
        rows,
        all_gather(rows),
        own=start + tf.range(row_count(rows)),
        kept=all_gather(kept_of(rows, weights)),
    )


@keras.saving.register_keras_serializable(package="keras_ssd")
class SimilarityPreserving(_Relational):
    """Similarity-preserving distillation (SP): images that are alike to the teacher are alike.

    The mean over all pairs of images of the global batch of `(G_t - G_s)^2`, where a row of G are
    the inner products of an image's features with those of all images, divided by the row's norm.
    Features are the plain rows of one output of each network, maps or vectors, of any shapes.
    Images of weight 0 are left out; all others count alike. A batch of one image gives 0.

    Args:
        weight: Weight of the term.
        teacher_output: Name of the teacher's features; in the paper the last feature maps.
        student_output: Name of the student's features.
        name: Name of the term's metric.

    Source: Tung and Mori 2019 (arXiv:1907.09682); weight 3000 of the code of CRD (Tian et al. 2020,
    arXiv:1910.10699), on the last feature maps. See `losses.similarity_preserving_loss`.
    """

    def __init__(
        self,
        weight: float = 3000.0,
        *,
        teacher_output: str = "embedding",
        student_output: str = "embedding",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )

    def _values(self, teacher: Block, student: Block) -> tf.Tensor:
        return relational.similarity_preserving_rows(teacher, student)


@keras.saving.register_keras_serializable(package="keras_ssd")
class ProbabilisticTransfer(_Relational):
    """Probabilistic knowledge transfer (PKT): the affinities of images as distributions.

    The mean over all pairs of images of the global batch of `K_t ln(K_t / K_s)`, where a row of K
    are the affinities `(cos + 1) / 2` of an image with all images, divided by their sum. Widths may
    differ. Images of weight 0 are left out; all others count alike. A batch of one image gives 0.

    Args:
        weight: Weight of the term; large, because the mean is over B^2 entries of about 1 / B.
        teacher_output: Name of the teacher's embeddings.
        student_output: Name of the student's embeddings.
        name: Name of the term's metric.

    Source: Passalis and Tefas 2018 (arXiv:1803.10837); weight 30000 of the code of CRD. See
    `losses.probabilistic_transfer_loss`.
    """

    def __init__(
        self,
        weight: float = 30000.0,
        *,
        teacher_output: str = "embedding",
        student_output: str = "embedding",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )

    def _values(self, teacher: Block, student: Block) -> tf.Tensor:
        return relational.probabilistic_transfer_rows(teacher, student)


@keras.saving.register_keras_serializable(package="keras_ssd")
class RelationalKnowledge(_Relational):
    """Relational knowledge distillation (RKD): distances between images, and angles of three.

    `distance_weight * distance + angle_weight * angle`, the smooth L1 differences of distances (in
    units of each network's mean distance) and of cosines, means over all pairs and triples of the
    global batch. Widths may differ. Images of weight 0 are left out; all others count alike. A
    batch of one image gives 0. The angles cost B^3 operations a dimension of the embedding.

    Args:
        distance_weight: Finite number >= 0; 0 leaves the distances and their cost out.
        angle_weight: Finite number >= 0; 0 leaves the angles and their cost out.
        weight: Weight of the term.
        teacher_output: Name of the teacher's embeddings.
        student_output: Name of the student's embeddings.
        name: Name of the term's metric.

    Source: Park et al. 2019 (arXiv:1904.05068); 25 and 50 of the authors' code. See
    `losses.relational_distance_loss` and `losses.relational_angle_loss`.
    """

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        *,
        weight: float = 1.0,
        teacher_output: str = "embedding",
        student_output: str = "embedding",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )
        self.distance_weight = check_not_negative("distance_weight", distance_weight)
        self.angle_weight = check_not_negative("angle_weight", angle_weight)

    def _values(self, teacher: Block, student: Block) -> tf.Tensor:
        values = tf.zeros_like(student.kept_rows)
        if self.distance_weight:
            distances = relational.relational_distance_rows(teacher, student, _sum_over_replicas)
            values = ops.add(values, self.distance_weight * distances)
        if self.angle_weight:
            angles = relational.relational_angle_rows(teacher, student)
            values = ops.add(values, self.angle_weight * angles)
        return values

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
        }


@keras.saving.register_keras_serializable(package="keras_ssd")
class CorrelationCongruence(OneOutputEach):
    """Correlation congruence (CC): the errors of neighbours in the batch are to be uncorrelated.

    The mean over neighbours i, i + 1 of `<|s_i - t_i|, |s_(i+1) - t_(i+1)|>`: it depends on the
    order of the images, of the global batch in replica order. The embeddings have one width; in the
    paper's code both come from trained linear layers, and a teacher's head that the Distiller
    trains gets its gradient from here, too. Images of weight 0 are left out, so that their
    neighbours meet; all others count alike. A batch of one image gives 0.

    Args:
        weight: Weight of the term.
        teacher_output: Name of the teacher's embeddings.
        student_output: Name of the student's embeddings.
        name: Name of the term's metric.

    Source: Peng et al. 2019 (arXiv:1904.01802), in the form and with the weight of the code of CRD.
    See `losses.correlation_congruence_loss`.
    """

    needs_equal_widths = True
    compares_images = True
    trains_teacher_head = True

    def __init__(
        self,
        weight: float = 0.02,
        *,
        teacher_output: str = "embedding",
        student_output: str = "embedding",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of the global batch and 1, or 0 and 0 where no image takes part."""
        weights = batch.weights_of("plain")
        teacher, student = (
            all_gather(rows_of(features, weights, name))
            for name, features in zip(("teacher", "student"), self._rows(batch), strict=True)
        )
        weights = all_gather(weights)
        value = relational.correlation_congruence_loss(teacher, student, weights)
        return value, tf.cast(tf.reduce_any(weights > 0), value.dtype)


def _sum_over_replicas(entries: tf.Tensor) -> tf.Tensor:
    return all_sum(tf.reduce_sum(entries))
