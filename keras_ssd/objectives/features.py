"""Hint, AttentionTransfer: the features of a teacher and a student, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.batch import Batch
from keras_ssd.losses import features
from keras_ssd.objectives.objective import Objective, OneOutputEach, weighted_sum


@keras.saving.register_keras_serializable(package="keras_ssd")
class Hint(OneOutputEach):
    """FitNet hints: the mean squared difference of two feature maps or embeddings.

    A mean over images of the mean over all entries. Both outputs have one shape: a student of
    another width or size gets a trainable regressor with `with_connector`.

    Args:
        weight: Weight of the term.
        teacher_output: Name of the teacher's features; in the paper a map half way.
        student_output: Name of the student's features, by default what `with_connector` gives.
        name: Name of the term's metric.

    Source: Romero et al. 2015 (arXiv:1412.6550), trained beside the cross-entropy in one stage with
    the weight 100 of the code of CRD. See `losses.hint_loss`.
    """

    def __init__(
        self,
        weight: float = 100.0,
        *,
        teacher_output: str = "embedding",
        student_output: str = "connector",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )

    def check_outputs(
        self,
        teacher: Mapping[str, Any] | None,
        student: Mapping[str, Any] | None,
        num_views: int,  # noqa: ARG002
    ) -> None:
        """Refuses features of different shapes."""
        if teacher is None or student is None:
            return
        names = self.teacher_outputs[0], self.student_outputs[0]
        shapes = tuple(teacher[names[0]].shape[1:]), tuple(student[names[1]].shape[1:])
        if not tf.TensorShape(shapes[0]).is_compatible_with(shapes[1]):
            advice = (
                f"make its connector for {shapes[0]}, or add one of another `name=` and read that."
                if "connector" in student
                else "give the student a connector, "
                f"`with_connector(student, {names[1]!r}, {shapes[0]})`, and read its output."
            )
            raise ValueError(
                f"`{self.name}` needs features of one shape, but {names[0]!r} of the teacher has "
                f"{shapes[0]} and {names[1]!r} of the student {shapes[1]}: {advice}"
            )

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's images and their weight, two scalars."""
        values = features.hint_loss(*self._rows(batch))
        return weighted_sum(values, batch.weights_of("plain"))


@keras.saving.register_keras_serializable(package="keras_ssd")
class AttentionTransfer(Objective):
    """Attention transfer (AT): where in the image the activations are strong.

    For each pair of feature maps the mean over images and positions of the squared difference of
    the normalised attention maps, `mean over channels of |f|^power`; the values of the pairs are
    summed. Channels may differ; of maps of different size the larger one is pooled.

    Args:
        weight: Weight of the term.
        teacher_outputs: Names of the teacher's feature maps; in the paper one a stage.
        student_outputs: As many names of the student's feature maps.
        power: Finite number >= 1.
        name: Name of the term's metric.

    Raises:
        TypeError: If the names are no sequence of strings.
        ValueError: If there are none or not as many on both sides, or `power` is no finite
            number >= 1.

    Source: Zagoruyko and Komodakis 2017 (arXiv:1612.03928); weight 1000 and the mean over positions
    of the code of CRD. See `losses.attention_loss`.
    """

    def __init__(
        self,
        weight: float = 1000.0,
        *,
        teacher_outputs: Sequence[str],
        student_outputs: Sequence[str],
        power: float = 2.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.teacher_outputs = _names("teacher_outputs", teacher_outputs)
        self.student_outputs = _names("student_outputs", student_outputs)
        if len(self.teacher_outputs) != len(self.student_outputs):
            raise ValueError(
                f"`teacher_outputs` and `student_outputs` are pairs, got {len(teacher_outputs)} "
                f"and {len(student_outputs)}: name as many maps of both networks."
            )
        self.power = features.check_power(power)

    def check_outputs(
        self,
        teacher: Mapping[str, Any] | None,
        student: Mapping[str, Any] | None,
        num_views: int,  # noqa: ARG002
    ) -> None:
        """Refuses outputs that are no feature maps."""
        for owner, name, shape in self._shapes(teacher, student):
            if len(shape) != 4:
                raise ValueError(
                    f"`{self.name}` compares feature maps (batch, height, width, channels), but "
                    f"{name!r} of the {owner} has shape {shape}: name outputs in front of "
                    "the pooling."
                )

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's images and all pairs, and the weight of the images."""
        pairs = zip(self.teacher_outputs, self.student_outputs, strict=True)
        values = sum(
            features.attention_loss(
                tf.stop_gradient(batch.select(batch.teacher[theirs], "plain")),
                batch.select(batch.student[ours], "plain"),
                self.power,
            )
            for theirs, ours in pairs
        )
        return weighted_sum(values, batch.weights_of("plain"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "teacher_outputs": list(self.teacher_outputs),
            "student_outputs": list(self.student_outputs),
            "power": self.power,
        }


def _names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`{argument}` must be a sequence of names, got {names!r}.")
    if not names:
        raise ValueError(f"`{argument}` must name at least one feature map.")
    return tuple(names)
