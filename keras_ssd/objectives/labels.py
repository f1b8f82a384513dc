"""HardLabels: cross-entropy with the labels."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_ssd import losses
from keras_ssd.batch import Batch
from keras_ssd.objectives.objective import Objective, check_share, weighted_sum


@keras.saving.register_keras_serializable(package="keras_ssd")
class HardLabels(Objective):
    """Cross-entropy of the plain rows with their labels, in nats.

    Labels are integers or one-hot or soft rows; unlabeled images take no part.

    Args:
        weight: Weight of the term.
        label_smoothing: Share in 0..1 of the target that is spread evenly over the classes.
        student_output: Name of the student's logits.
        name: Name of the term's metric.

    Source: Xu et al. 2020 (arXiv:2006.07114), `loss_ce`; label smoothing: Szegedy et al. 2016.
    """

    needs_labels = True

    def __init__(
        self,
        weight: float = 1.0,
        *,
        label_smoothing: float = 0.0,
        student_output: str = "logits",
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        self.student_outputs = (student_output,)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's labeled rows and their weight, two scalars."""
        logits = batch.select(batch.student[self.student_outputs[0]], "plain")
        classes = batch.labels_of("plain")
        soft = batch.labels is not None and batch.labels.shape.rank == 2
        labels = batch.labels if soft else classes
        values = losses.cross_entropy(labels, logits, self.label_smoothing)
        return weighted_sum(values, batch.weights_of("plain", labeled=True))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "student_output": self.student_outputs[0],
        }
