"""Objectives that compare the class distributions of teacher and student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_ssd import losses
from keras_ssd.arguments import check_temperature
from keras_ssd.batch import Batch, Rows, check_rows
from keras_ssd.objectives.objective import (
    OneOutputEach,
    check_share,
    weighted_sum,
)
from keras_ssd.objectives.selection import kept_rows


class SoftenedLogits(OneOutputEach):
    """What soft labels share: a temperature, and logits of one class set."""

    needs_equal_widths = True

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        weight: float = 1.0,
        teacher_output: str = "logits",
        student_output: str = "logits",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )
        self.temperature = check_temperature(temperature)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


class _Divergence(SoftenedLogits):
    """A function of the two class distributions of each row, with no use for labels."""

    values: Callable[[tf.Tensor, tf.Tensor, float], tf.Tensor]  # of `losses`, a value a row

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        weight: float = 1.0,
        views: Rows = "plain",
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
        check_rows(views)
        self.views = views
        self.needs_views = views == "transformed"

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's rows and their weight, two scalars."""
        values = type(self).values(*self._rows(batch, self.views), self.temperature)
        return weighted_sum(values, batch.weights_of(self.views))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "views": self.views}


@keras.saving.register_keras_serializable(package="keras_ssd")
class SoftLabels(_Divergence):
    """Knowledge distillation: `T^2 KL(teacher || student)` of the softened classes, in nats.

    Args:
        temperature: T > 0.
        weight: Weight of the term.
        views: The rows that are compared: `"plain"`, `"transformed"` or `"all"`.
        teacher_output: Name of the teacher's logits.
        student_output: Name of the student's logits.
        name: Name of the term's metric.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; Xu et al. 2020 (arXiv:2006.07114),
    `loss_kd`. A mean over rows of a sum over classes; the paper's cross-entropy form has the same
    gradient.
    """

    values = staticmethod(losses.kl_divergence)

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        weight: float = 1.0,
        views: Rows = "plain",
        teacher_output: str = "logits",
        student_output: str = "logits",
        name: str | None = None,
    ) -> None:
        super().__init__(
            temperature,
            weight=weight,
            views=views,
            teacher_output=teacher_output,
            student_output=student_output,
            name=name,
        )


class _SymmetricDivergence(_Divergence):
    """One that does not tell teacher from student; without a temperature as a rule."""

    def __init__(
        self,
        weight: float = 1.0,
        *,
        temperature: float = 1.0,
        views: Rows = "plain",
        teacher_output: str = "logits",
        student_output: str = "logits",
        name: str | None = None,
    ) -> None:
        super().__init__(
            temperature,
            weight=weight,
            views=views,
            teacher_output=teacher_output,
            student_output=student_output,
            name=name,
        )


@keras.saving.register_keras_serializable(package="keras_ssd")
class SymmetricSoftLabels(_SymmetricDivergence):
    """Label-free distillation: half the sum of both KL divergences, times T^2, in nats.

    Labels, if there are any, change nothing.

    Args:
        weight: Weight of the term.
        temperature: T > 0.
        views: The rows that are compared: `"plain"`, `"transformed"` or `"all"`.
        teacher_output: Name of the teacher's logits.
        student_output: Name of the student's logits.
        name: Name of the term's metric.

    Source: SSLD (Cui et al. 2021, arXiv:2103.05959), as its programs compute it; see
    `losses.symmetric_kl_divergence` for what differs.
    """

    values = staticmethod(losses.symmetric_kl_divergence)


@keras.saving.register_keras_serializable(package="keras_ssd")
class JensenShannon(_SymmetricDivergence):
    """The Jensen-Shannon divergence of the softened classes, times T^2, in nats.

    Near agreement it is a quarter of `SymmetricSoftLabels`: exchange them with another `weight`.

    Args:
        weight: Weight of the term.
        temperature: T > 0.
        views: The rows that are compared: `"plain"`, `"transformed"` or `"all"`.
        teacher_output: Name of the teacher's logits.
        student_output: Name of the student's logits.
        name: Name of the term's metric.

    Source: Lin 1991; what the name of SSLD's loss says and no program of it computes.
    """

    values = staticmethod(losses.jensen_shannon_divergence)


@keras.saving.register_keras_serializable(package="keras_ssd")
class SoftCrossEntropy(_Divergence):
    """Cross-entropy of the student with the teacher's softened classes, in nats; no T^2.

    The gradient is that of `SoftLabels` with `weight / T^2`; the value is larger by the teacher's
    entropy. The targets are the teacher's: there is no label smoothing to combine them with.

    Args:
        temperature: T > 0.
        weight: Weight of the term.
        views: The rows that are compared: `"plain"`, `"transformed"` or `"all"`.
        teacher_output: Name of the teacher's logits.
        student_output: Name of the student's logits.
        name: Name of the term's metric.

    Source: the newer recipes of PaddleClas called "ssld" (`CELoss` with soft labels), which smooth
    the teacher's raw logits where they are given a label smoothing.
    """

    values = staticmethod(losses.soft_cross_entropy)


@keras.saving.register_keras_serializable(package="keras_ssd")
class SelectiveSoftLabels(SoftenedLogits):
    """`T^2 KL(teacher || student)` of the transformed rows that the teacher gets nearly right.

    All rows that the teacher classifies correctly are kept, and of the others the share
    `keep_wrong` that has the label highest among its classes. The mean is over the kept rows;
    images without a label take no part, whatever the share.

    Args:
        temperature: T > 0.
        keep_wrong: Share in 0..1 of the wrong rows that is kept, best ranks first.
        weight: Weight of the term.
        teacher_output: Name of the teacher's logits.
        student_output: Name of the student's logits.
        name: Name of the term's metric.

    Source: Xu et al. 2020 (arXiv:2006.07114), sections 3.2 and 3.3, `loss_tf`.
    """

    needs_labels = True
    needs_views = True

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        keep_wrong: float = 1.0,
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
        self.keep_wrong = check_share("keep_wrong", keep_wrong)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's kept rows and their weight, two scalars."""
        teacher, student = self._rows(batch, "transformed")
        ranks = losses.label_rank(teacher, batch.labels_of("transformed"))
        weights = batch.weights_of("transformed", labeled=True)
        values = losses.kl_divergence(teacher, student, self.temperature)
        return weighted_sum(values, kept_rows(ranks, self.keep_wrong, weights))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "keep_wrong": self.keep_wrong}
