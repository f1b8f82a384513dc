"""NoiseContrastive, CompositionalContrastive: embeddings against those of other classes' images."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_ssd import losses
from keras_ssd.arguments import check_temperature
from keras_ssd.batch import Batch
from keras_ssd.collectives import all_gather
from keras_ssd.losses.contrastive import known_labels, noise_contrastive_rows
from keras_ssd.objectives.objective import OneOutputEach, weighted_sum


class _Contrastive(OneOutputEach):
    """This replica's student rows against every replica's teacher rows."""

    needs_labels = True
    needs_equal_widths = True

    def _values(self, batch: Batch, temperature: float) -> tuple[tf.Tensor, tf.Tensor]:
        """The value of each of this replica's images, and 1 for those that take part."""
        teacher, student = self._rows(batch)
        labels = known_labels(batch.labels_of("plain"), student, batch.weights_of("plain"))
        columns = all_gather(teacher)
        values = noise_contrastive_rows(columns, student, all_gather(labels), labels, temperature)
        return values, tf.cast(labels >= 0, values.dtype)


@keras.saving.register_keras_serializable(package="keras_ssd")
class NoiseContrastive(_Contrastive):
    """NCE: the student's embedding finds the teacher's embeddings of its class, and no others.

    `losses.noise_contrastive_loss` over the images of the global batch, plain rows. Both embeddings
    have one width, for instance by `with_node_embedding`. Only images with a label and of weight
    above 0 take part; how large the weight is does not matter.

    Args:
        temperature: T > 0.
        weight: Weight of the term.
        teacher_output: Name of the teacher's embeddings.
        student_output: Name of the student's embeddings.
        name: Name of the term's metric.

    Source: the baseline "NCE" of Ma et al. 2022 (arXiv:2211.13264), after Chen et al. 2021
    (arXiv:2104.10955).
    """

    compares_images = True

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        weight: float = 1.0,
        teacher_output: str = "node",
        student_output: str = "node",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )
        self.temperature = check_temperature(temperature)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's images that take part, and their number, two scalars."""
        return weighted_sum(*self._values(batch, self.temperature))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="keras_ssd")
class CompositionalContrastive(_Contrastive):
    """CCL: `NoiseContrastive` at T = 0.1 plus the symmetric KL divergence of the classes at T = 1.

    `losses.compositional_contrastive_loss` over the images of the global batch, plain rows. Only
    images with a label and of weight above 0 take part; how large the weight is does not matter.

    Args:
        weight: Weight of the term.
        teacher_output: Name of the teacher's embeddings.
        student_output: Name of the student's embeddings, of the same width.
        teacher_logits: Name of the teacher's logits.
        student_logits: Name of the student's logits.
        name: Name of the term's metric.

    Source: the baseline "CCL" of Ma et al. 2022 (arXiv:2211.13264), after Chen et al. 2021
    (arXiv:2104.10955).
    """

    def __init__(
        self,
        weight: float = 1.0,
        *,
        teacher_output: str = "node",
        student_output: str = "node",
        teacher_logits: str = "logits",
        student_logits: str = "logits",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )
        self.teacher_outputs += (teacher_logits,)
        self.student_outputs += (student_logits,)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's images that take part, and their number, two scalars."""
        values, weights = self._values(batch, 0.1)
        divergences = losses.symmetric_kl_divergence(*self._rows(batch, place=1))
        return weighted_sum(values + tf.cast(divergences, values.dtype), weights)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "teacher_logits": self.teacher_outputs[1],
            "student_logits": self.student_outputs[1],
        }
