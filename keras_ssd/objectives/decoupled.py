"""DecoupledSoftLabels (DKD), ClassRelations (DIST): soft labels taken apart."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_ssd.arguments import check_not_negative
from keras_ssd.batch import Batch
from keras_ssd.collectives import all_gather
from keras_ssd.losses.blocks import kept_of, only_kept
from keras_ssd.losses.decoupled import class_relations, decoupled_divergence, image_relations
from keras_ssd.objectives.objective import weighted_sum
from keras_ssd.objectives.soft_labels import SoftenedLogits


@keras.saving.register_keras_serializable(package="keras_ssd")
class DecoupledSoftLabels(SoftenedLogits):
    """Decoupled knowledge distillation (DKD): the label against the rest, and the rest by itself.

    `T^2 (target_weight * KL(b_t || b_s) + other_weight * KL(o_t || o_s))` of the plain rows, in
    nats; see `losses.decoupled_divergence`. Unlabeled images take no part.

    The authors raise the weight of the term linearly over the first 20 epochs. A step does not know
    its epoch, so that is a callback. It has the step traced again each time it changes the weight,
    because a weight is a constant of the traced step: here at the start of each of 20 epochs.

        class WarmUp(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch < 20:
                    objective.weight = (epoch + 1) / 20
                    self.model.make_train_function(force=True)

    Args:
        target_weight: Finite number >= 0 (alpha in the paper).
        other_weight: Finite number >= 0 (beta in the paper); the authors take 8, 6 or 2 on
            CIFAR-100, depending on the networks, and 0.5 with T = 1 on ImageNet.
        temperature: T > 0.
        weight: Weight of the term.
        teacher_output: Name of the teacher's logits.
        student_output: Name of the student's logits.
        name: Name of the term's metric.

    Source: Zhao et al. 2022 (arXiv:2203.08679), equation 7, and the authors' code.
    """

    needs_labels = True

    def __init__(
        self,
        target_weight: float = 1.0,
        *,
        other_weight: float = 8.0,
        temperature: float = 4.0,
        weight: float = 1.0,
        teacher_output: str = "logits",
        student_output: str = "logits",
        name: str | None = None,
    ) -> None:
        super().__init__(
            temperature,
            weight=weight,
            teacher_output=teacher_output,
            student_output=student_output,
            name=name,
        )
        self.target_weight = check_not_negative("target_weight", target_weight)
        self.other_weight = check_not_negative("other_weight", other_weight)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's labeled rows and their weight, two scalars."""
        teacher, student = self._rows(batch)
        values = decoupled_divergence(
            teacher,
            student,
            batch.labels_of("plain"),
            self.target_weight,
            self.other_weight,
            self.temperature,
        )
        return weighted_sum(values, batch.weights_of("plain", labeled=True))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "target_weight": self.target_weight,
            "other_weight": self.other_weight,
        }


@keras.saving.register_keras_serializable(package="keras_ssd")
class ClassRelations(SoftenedLogits):
    """DIST: the student's probabilities should correlate with the teacher's, not equal them.

    `T^2 (inter_weight * (1 - rho of each image) + intra_weight * (1 - rho of each class))` of the
    plain rows; see `losses.class_relation_loss`. The first part is a mean over images, weighted by
    `sample_weight`; the second is one of the classes over the global batch, where an image of
    weight above 0 counts as one. A batch of one image gives the second part no gradient.

    Args:
        inter_weight: Finite number >= 0 (beta in the paper).
        intra_weight: Finite number >= 0 (gamma in the paper).
        temperature: T > 0.
        weight: Weight of the term.
        teacher_output: Name of the teacher's logits.
        student_output: Name of the student's logits.
        name: Name of the term's metric.

    Source: Huang et al. 2022 (arXiv:2205.10536), equations 9 to 11, and the defaults of the
    authors' code.
    """

    def __init__(
        self,
        inter_weight: float = 1.0,
        *,
        intra_weight: float = 1.0,
        temperature: float = 1.0,
        weight: float = 1.0,
        teacher_output: str = "logits",
        student_output: str = "logits",
        name: str | None = None,
    ) -> None:
        super().__init__(
            temperature,
            weight=weight,
            teacher_output=teacher_output,
            student_output=student_output,
            name=name,
        )
        self.inter_weight = check_not_negative("inter_weight", inter_weight)
        self.intra_weight = check_not_negative("intra_weight", intra_weight)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's rows and their weight, two scalars."""
        weights = batch.weights_of("plain")
        teacher, student = (
            only_kept(logits, kept_of(logits, weights)) for logits in self._rows(batch)
        )
        total, count = weighted_sum(image_relations(teacher, student, self.temperature), weights)
        gathered = all_gather(teacher), all_gather(student)
        intra = class_relations(*gathered, self.temperature, all_gather(weights))
        # Every replica has the same second part: times its count, it is in the mean once.
        return self.inter_weight * total + self.intra_weight * intra * count, count

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "inter_weight": self.inter_weight,
            "intra_weight": self.intra_weight,
        }
