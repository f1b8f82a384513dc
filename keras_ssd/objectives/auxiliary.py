"""AuxiliaryLabels, AuxiliaryTransfer: what auxiliary classifiers say of class and view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd import losses
from keras_ssd.arguments import check_temperature
from keras_ssd.batch import Batch, auxiliary_names
from keras_ssd.losses.joint_labels import Rule
from keras_ssd.objectives.objective import Objective, weighted_sum

_RULES: dict[str, Rule] = {
    "class_accuracy": "sum_logits",
    "class_accuracy_marginal": "marginal",
    "class_accuracy_known_rotation": "known_rotation",
}
_DIAGNOSTICS = ("joint_accuracy", *_RULES, "rotation_accuracy")


class _Auxiliary(Objective):
    """What both objectives below share: views, and how right the student's heads are."""

    needs_views = True
    student_outputs = ("auxiliary_1",)

    def __init__(self, *, weight: float, diagnostics: bool, name: str | None) -> None:
        super().__init__(weight=weight, name=name)
        if not isinstance(diagnostics, bool):
            raise ValueError(f"`diagnostics` must be True or False, got {diagnostics!r}.")
        self.show_diagnostics = diagnostics

    def check_outputs(
        self,
        teacher: Mapping[str, Any] | None,
        student: Mapping[str, Any] | None,
        num_views: int,
    ) -> None:
        """Refuses heads that are not classes x views wide."""
        for owner, outputs in (("teacher", teacher), ("student", student)):
            if outputs is None or (owner == "teacher" and not self.teacher_outputs):
                continue
            if "logits" not in outputs:
                continue  # a teacher of which only the heads were stored
            classes = outputs["logits"].shape[-1]
            for name in auxiliary_names(outputs):
                width = outputs[name].shape[-1]
                if width != classes * num_views:
                    raise ValueError(
                        f"`{self.name}` needs heads of {classes} classes x {num_views} views = "
                        f"{classes * num_views} columns, but {name!r} of the {owner} has {width}: "
                        f"build them with `with_auxiliary_classifiers(..., num_views={num_views})`."
                    )

    def diagnostic_names(self, student: Mapping[str, Any]) -> Sequence[str]:
        """Five accuracies a head."""
        if not self.show_diagnostics:
            return ()
        return [f"{head}_{name}" for head in auxiliary_names(student) for name in _DIAGNOSTICS]

    def diagnostics(self, batch: Batch) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """How many labeled rows are right, and how many there are."""
        if batch.labels is None or not self.show_diagnostics:
            return {}
        counted = batch.weights_of("all", labeled=True) > 0
        right = {
            f"{head}_{name}": hits
            for head in auxiliary_names(batch.student)
            for name, hits in _hits(batch, batch.student[head]).items()
        }
        return {
            name: weighted_sum(tf.cast(hits, tf.float32), tf.cast(counted, tf.float32))
            for name, hits in right.items()
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "diagnostics": self.show_diagnostics}


@keras.saving.register_keras_serializable(package="keras_ssd")
class AuxiliaryLabels(_Auxiliary):
    """Cross-entropy of every auxiliary classifier with class and view, in nats.

    Read are the student's outputs `auxiliary_1`, `auxiliary_2`, ... of all rows; the joint label of
    view v of an image of class c is `num_views * c + v`. The values of the heads are summed.
    Unlabeled images take no part.

    Args:
        weight: Weight of the term.
        diagnostics: Whether five accuracies a head are shown, over all labeled rows: of class and
            view (`auxiliary_1_joint_accuracy`), of the class alone by the sum of its logits
            (`..._class_accuracy`, the number that the authors' program prints), by its marginal
            probability (`..._class_accuracy_marginal`) and within the known view
            (`..._class_accuracy_known_rotation`), and of the view (`..._rotation_accuracy`). A
            subclassed student, whose heads are known only while it runs, shows none.
        name: Name of the term's metric.

    Source: Yang et al. 2021 (arXiv:2107.13715), equation 1, second term.
    """

    needs_labels = True

    def __init__(
        self, weight: float = 1.0, *, diagnostics: bool = True, name: str | None = None
    ) -> None:
        super().__init__(weight=weight, diagnostics=diagnostics, name=name)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's labeled rows and heads, and the weight of the rows."""
        soft = batch.labels is not None and batch.labels.shape.rank == 2
        labels = batch.labels if soft else batch.labels_of("plain")
        joint = losses.joint_labels(labels, batch.num_views)
        heads = [batch.student[name] for name in auxiliary_names(batch.student)]
        values = sum(losses.cross_entropy(joint, head) for head in heads)
        return weighted_sum(values, batch.weights_of("all", labeled=True))


@keras.saving.register_keras_serializable(package="keras_ssd")
class AuxiliaryTransfer(_Auxiliary):
    """`T^2 KL(teacher || student)` of every pair of auxiliary classifiers, in nats.

    Head l of the student (`auxiliary_l`) learns from head l of the teacher on all rows; the values
    of the heads are summed. Both must have as many heads, of as many columns.

    Args:
        temperature: T > 0.
        weight: Weight of the term.
        diagnostics: As in `AuxiliaryLabels`; only where the data has labels.
        name: Name of the term's metric.

    Source: Yang et al. 2021 (arXiv:2107.13715), equation 3, and the authors' code for T^2.
    """

    teacher_outputs = ("auxiliary_1",)

    def __init__(
        self,
        temperature: float = 3.0,
        *,
        weight: float = 1.0,
        diagnostics: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, diagnostics=diagnostics, name=name)
        self.temperature = check_temperature(temperature)

    def check_outputs(
        self,
        teacher: Mapping[str, Any] | None,
        student: Mapping[str, Any] | None,
        num_views: int,
    ) -> None:
        """Refuses heads that do not pair off, or are not classes x views wide."""
        if teacher is not None and student is not None:
            theirs, ours = auxiliary_names(teacher), auxiliary_names(student)
            if theirs != ours:
                raise ValueError(
                    f"`{self.name}` pairs the heads of both networks, but the teacher has "
                    f"{len(theirs)} ({', '.join(theirs)}) and the student {len(ours)} "
                    f"({', '.join(ours)}): choose as many `taps=` in "
                    "`with_auxiliary_classifiers`."
                )
            for name in ours:
                widths = teacher[name].shape[-1], student[name].shape[-1]
                if widths[0] != widths[1]:
                    raise ValueError(
                        f"`{self.name}` needs heads of one width, but {name!r} has {widths[0]} "
                        f"columns in the teacher and {widths[1]} in the student: both need the "
                        "same classes and views."
                    )
        super().check_outputs(teacher, student, num_views)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's rows and heads, and the weight of the rows."""
        values = sum(
            losses.kl_divergence(
                tf.stop_gradient(batch.teacher[name]), batch.student[name], self.temperature
            )
            for name in auxiliary_names(batch.student)
        )
        return weighted_sum(values, batch.weights_of("all"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


def _hits(batch: Batch, joint_logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Which rows a head gets right, Boolean tensors `[B * V]` by diagnostic."""
    views = batch.num_views
    joint = losses.joint_labels(batch.labels_of("plain"), views)
    classes, view = joint // views, joint % views
    hits = {"joint_accuracy": _argmax(joint_logits) == joint}
    for name, rule in _RULES.items():
        hits[name] = _argmax(losses.class_scores(joint_logits, views, rule)) == classes
    hits["rotation_accuracy"] = _argmax(losses.view_scores(joint_logits, views)) == view
    return hits


def _argmax(scores: tf.Tensor) -> tf.Tensor:
    return tf.argmax(scores, axis=-1, output_type=tf.int32)
