"""SimilarityTransfer, ContrastivePretext: transformed views against the plain images of a batch."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_ssd import losses
from keras_ssd.arguments import check_count, check_temperature
from keras_ssd.batch import Batch
from keras_ssd.collectives import all_gather, replica_rows, row_count
from keras_ssd.losses.blockwise_similarity import (
    Similarities,
    blockwise_cross_entropy,
    blockwise_divergence,
    blockwise_rank,
)
from keras_ssd.losses.similarity import NO_COLUMN
from keras_ssd.objectives.objective import (
    Objective,
    check_share,
    weighted_sum,
)
from keras_ssd.objectives.selection import kept_rows


class _Similarity(Objective):
    """Cosine similarities of this replica's transformed rows with every replica's plain rows."""

    needs_views = True
    compares_images = True

    def __init__(
        self,
        temperature: float,
        *,
        columns_per_block: int | None = None,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.temperature = check_temperature(temperature)
        if columns_per_block is not None:
            check_count("columns_per_block", columns_per_block)
        self.columns_per_block = columns_per_block

    def _similarity(self, batch: Batch, projections: tf.Tensor) -> tf.Tensor:
        """The whole matrix `[R, C]`."""
        rows, columns, valid = self._rows_and_columns(batch, projections)
        similarity = losses.cosine_similarity(rows, columns)
        if valid is None:
            return similarity
        return tf.where(valid > 0, similarity, tf.constant(NO_COLUMN, similarity.dtype))

    def _in_blocks(self, batch: Batch, projections: tf.Tensor, columns: int) -> Similarities:
        """The matrix in blocks of so many columns."""
        return Similarities.of(*self._rows_and_columns(batch, projections), columns)

    def _rows_and_columns(
        self, batch: Batch, projections: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Transformed rows, plain rows of all replicas, and which of these take part."""
        columns = all_gather(batch.select(projections, "plain"))
        valid = batch.sample_weight
        if valid is not None:
            valid = all_gather(tf.cast(valid > 0, tf.int32))
        return batch.select(projections, "transformed"), columns, valid

    def _own_column(self, batch: Batch, projections: tf.Tensor) -> tf.Tensor:
        """The column of each transformed row's own image, integers `[R]`."""
        images = row_count(projections) // batch.num_views
        start, _ = replica_rows(images)
        return tf.repeat(start + tf.range(images), batch.num_views - 1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "columns_per_block": self.columns_per_block,
        }


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
        columns_per_block: None, or how many columns of the matrix are there at a time: past what
            fits memory, the same numbers (to rounding) for more time.
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
        columns_per_block: int | None = None,
        weight: float = 1.0,
        teacher_output: str = "projection",
        student_output: str = "projection",
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, columns_per_block=columns_per_block, weight=weight, name=name)
        self.keep_wrong = check_share("keep_wrong", keep_wrong)
        self.teacher_outputs = (teacher_output,)
        self.student_outputs = (student_output,)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's kept rows and their weight, two scalars."""
        ranks, values = self._ranks_and_values(
            batch,
            tf.stop_gradient(batch.teacher[self.teacher_outputs[0]]),
            batch.student[self.student_outputs[0]],
        )
        kept = kept_rows(ranks, self.keep_wrong, batch.weights_of("transformed"))
        return weighted_sum(values, kept)

    def _ranks_and_values(
        self, batch: Batch, of_teacher: tf.Tensor, of_student: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        own = self._own_column(batch, of_student)
        if self.columns_per_block is None:
            teacher, student = (self._similarity(batch, p) for p in (of_teacher, of_student))
            values = losses.kl_divergence(teacher, student, self.temperature)
            return losses.label_rank(teacher, own), values
        teachers, students = (
            self._in_blocks(batch, p, self.columns_per_block) for p in (of_teacher, of_student)
        )
        values = blockwise_divergence(teachers, students, self.temperature)
        return blockwise_rank(teachers, own), values

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
        columns_per_block: None, or how many columns of the matrix are there at a time: past what
            fits memory, the same numbers (to rounding) for more time.
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
        columns_per_block: int | None = None,
        weight: float = 1.0,
        student_output: str = "projection",
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, columns_per_block=columns_per_block, weight=weight, name=name)
        self.student_outputs = (student_output,)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's transformed rows and their weight, two scalars."""
        projections = batch.student[self.student_outputs[0]]
        own = self._own_column(batch, projections)
        if self.columns_per_block is None:
            logits = self._similarity(batch, projections) / self.temperature
            values = losses.cross_entropy(own, logits)
        else:
            blocks = self._in_blocks(batch, projections, self.columns_per_block)
            values = blockwise_cross_entropy(blocks, own, self.temperature)
        return weighted_sum(values, batch.weights_of("transformed"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "student_output": self.student_outputs[0]}
