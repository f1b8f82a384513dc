"""SimilarityTransfer, ContrastivePretext: transformed views against the plain images of a batch."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_ssd import losses
from keras_ssd.batch import Batch
from keras_ssd.collectives import all_gather, replica_rows, row_count
from keras_ssd.objectives.objective import (
    Objective,
    check_share,
    check_temperature,
    weighted_sum,
)
from keras_ssd.objectives.selection import kept_rows

_NO_COLUMN = -1e9  # finite, so that 0 * log 0 stays 0; its softmax is exactly 0


class _Similarity(Objective):
    """Cosine similarities of this replica's transformed rows with every replica's plain rows."""

    needs_views = True
    compares_images = True

    def __init__(self, temperature: float, *, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight=weight, name=name)
        self.temperature = check_temperature(temperature)

    def _similarity(self, batch: Batch, projections: tf.Tensor) -> tf.Tensor:
        columns = all_gather(batch.select(projections, "plain"))
        similarity = losses.cosine_similarity(batch.select(projections, "transformed"), columns)
        if batch.sample_weight is None:
            return similarity
        valid = all_gather(tf.cast(batch.sample_weight > 0, tf.int32))
        return tf.where(valid > 0, similarity, tf.constant(_NO_COLUMN, similarity.dtype))

    def _own_column(self, batch: Batch, projections: tf.Tensor) -> tf.Tensor:
        """The column of each transformed row's own image, integers `[R]`."""
        images = row_count(projections) // batch.num_views
        start, _ = replica_rows(images)
        return tf.repeat(start + tf.range(images), batch.num_views - 1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="keras_ssd")
class SimilarityTransfer(_Similarity):
    """Self-supervision of the teacher: `T^2 KL` between rows of two similarity matrices.

    Row j of a matrix is the softmax over the batch's images of the cosines between a transformed
    view and all plain images. Rows are kept as in `SelectiveSoftLabels`, by the rank that the
    teacher gives to the view's own image. The widths of the two projections may differ. With
    several replicas the columns are the images of the global batch. A batch of one image gives 0.

    Args:
        temperature: T > 0. Below 1 the factor T^2 makes the term smaller.
        keep_wrong: Share in 0..1 of the wrong rows that is kept, best ranks first.
        weight: Weight of the term.
        teacher_output: Name of the teacher's projections.
        student_output: Name of the student's projections.
        name: Name of the term's metric.

    Source: Xu et al. 2020 (arXiv:2006.07114), sections 3.2 and 3.3, `loss_ss`.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        keep_wrong: float = 0.75,
        weight: float = 1.0,
        teacher_output: str = "projection",
        student_output: str = "projection",
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, weight=weight, name=name)
        self.keep_wrong = check_share("keep_wrong", keep_wrong)
        self.teacher_outputs = (teacher_output,)
        self.student_outputs = (student_output,)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's kept rows and their weight, two scalars."""
        projections = batch.student[self.student_outputs[0]]
        teacher = self._similarity(batch, batch.teacher[self.teacher_outputs[0]])
        student = self._similarity(batch, projections)
        teacher = tf.stop_gradient(teacher)
        ranks = losses.label_rank(teacher, self._own_column(batch, projections))
        kept = kept_rows(ranks, self.keep_wrong, batch.weights_of("transformed"))
        values = losses.kl_divergence(teacher, student, self.temperature)
        return weighted_sum(values, kept)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "keep_wrong": self.keep_wrong,
            "teacher_output": self.teacher_outputs[0],
            "student_output": self.student_outputs[0],
        }


@keras.saving.register_keras_serializable(package="keras_ssd")
class ContrastivePretext(_Similarity):
    """Trains a projection head: each transformed view must find its own image in the batch.

    The cross-entropy, in nats, of a view's own image under the softmax over the batch of the
    cosines divided by T. It is log(images) where all projections coincide, and with T = 1 never
    below log(1 + (images - 1) exp(-2)).

    Args:
        temperature: T > 0.
        weight: Weight of the term.
        student_output: Name of the projections that are trained.
        name: Name of the term's metric.

    Source: Xu et al. 2020 (arXiv:2006.07114), section 3.1. The paper writes a temperature, the
    authors' code has none: the default is 1.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        weight: float = 1.0,
        student_output: str = "projection",
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, weight=weight, name=name)
        self.student_outputs = (student_output,)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's transformed rows and their weight, two scalars."""
        projections = batch.student[self.student_outputs[0]]
        logits = self._similarity(batch, projections) / self.temperature
        own = self._own_column(batch, projections)
        values = losses.cross_entropy(own, logits)
        return weighted_sum(values, batch.weights_of("transformed"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "student_output": self.student_outputs[0]}
