"""Objective: the contract between a method and the Distiller."""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.arguments import check_not_negative, is_number
from keras_ssd.batch import Batch, Rows


class Objective(abc.ABC):
    """A weighted mean over the rows of a batch, computed from named outputs.

    Called with a `Batch`, an objective returns `(total, count)`: the sum over this replica's rows
    and the weight of those rows, without the objective's own `weight`. The Distiller's loss term is
    `weight * (sum over replicas of total) / (sum over replicas of count)`, 0 when the count is 0.
    An objective that is a function of the whole global batch computes it on gathered tensors and
    returns `(value, 1)`.

    Args:
        weight: Finite number >= 0 that the term is multiplied by in the loss. The metric of the
            term shows the bare mean.
        name: Name of the term's metric. Default: the class name in snake case.

    Attributes:
        teacher_outputs: Names of the teacher's outputs that are read.
        student_outputs: Names of the student's outputs that are read.
        needs_labels: Whether a batch without labels is an error.
        needs_views: Whether transformed views are read.
        needs_equal_widths: Whether the outputs read must be equally wide in teacher and student.
        compares_images: Whether a batch of one image teaches nothing.
        trains_teacher_head: Whether the gradient reaches the teacher's trainable head, if there is
            one: without it the head's outputs are constants, as the teacher's are.
        state: A `keras.Layer` whose non-trainable variables are saved with the Distiller, or None.
            What is trained is a head of the student.
    """

    teacher_outputs: tuple[str, ...] = ()
    student_outputs: tuple[str, ...] = ()
    needs_labels = False
    needs_views = False
    needs_equal_widths = False
    compares_images = False
    trains_teacher_head = False
    state: keras.layers.Layer | None = None

    def __init__(self, *, weight: float = 1.0, name: str | None = None) -> None:
        self.weight = check_not_negative("weight", weight)
        self.name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @abc.abstractmethod
    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's rows and their weight, two scalars."""

    def check_outputs(
        self,
        teacher: Mapping[str, Any] | None,
        student: Mapping[str, Any] | None,
        num_views: int,
    ) -> None:
        """Refuses outputs that do not fit, here in width; a Distiller asks before it trains.

        Args:
            teacher: Named outputs (symbolic or real) of the teacher, None where not known yet.
            student: The same of the student.
            num_views: Rows of an image.

        Raises:
            ValueError: One sentence on what must hold.
        """
        if not self.needs_equal_widths or teacher is None or student is None:
            return
        pairs = zip(self.teacher_outputs, self.student_outputs, strict=True)
        for teacher_name, student_name in pairs:
            widths = teacher[teacher_name].shape[-1], student[student_name].shape[-1]
            if widths[0] != widths[1] and "logits" not in (teacher_name, student_name):
                raise ValueError(
                    f"`{self.name}` needs outputs of one width, but {teacher_name!r} of the "
                    f"teacher has {widths[0]} and {student_name!r} of the student {widths[1]}: "
                    "give the student a head as wide as the teacher's output."
                )
            if widths[0] != widths[1]:
                raise ValueError(
                    f"`{self.name}` compares class distributions, but the teacher has "
                    f"{widths[0]} classes and the student {widths[1]}: give both one class set, "
                    "or use objectives that compare images, such as SimilarityTransfer."
                )

    def _shapes(
        self, teacher: Mapping[str, Any] | None, student: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, str, tuple[int | None, ...]]]:
        """Owner, name and shape of each output that is read, where known."""
        sides = (
            ("teacher", teacher, self.teacher_outputs),
            ("student", student, self.student_outputs),
        )
        for owner, outputs, names in sides:
            if outputs is not None:
                yield from ((owner, name, tuple(outputs[name].shape)) for name in names)

    def diagnostic_names(self, student: Mapping[str, Any]) -> Sequence[str]:
        """Names of what `diagnostics` gives for a student of these named outputs: nothing."""
        return ()

    def diagnostics(self, batch: Batch) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """More means to show, by name, each a sum and a count: no part of the loss."""
        return {}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"weight": self.weight, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Objective:
        """The objective of a `get_config`."""
        return cls(**config)


class OneOutputEach(Objective):
    """An objective that reads one output of each network (a class may add one more).

    Args:
        teacher_output: Name of the teacher's output.
        student_output: Name of the student's output.
        weight: Weight of the term.
        name: Name of the term's metric.
    """

    def __init__(
        self,
        *,
        teacher_output: str,
        student_output: str,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.teacher_outputs = (teacher_output,)
        self.student_outputs = (student_output,)

    def _rows(
        self, batch: Batch, which: Rows = "plain", place: int = 0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows of both; the teacher's are constants, unless its head is trained."""
        teacher = batch.select(batch.teacher[self.teacher_outputs[place]], which)
        student = batch.select(batch.student[self.student_outputs[place]], which)
        return teacher if self.trains_teacher_head else tf.stop_gradient(teacher), student

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "teacher_output": self.teacher_outputs[0],
            "student_output": self.student_outputs[0],
        }


def check_share(name: str, share: float) -> float:
    """Refuses shares that are no number in 0..1."""
    if not (is_number(share) and 0 <= share <= 1):
        raise ValueError(f"`{name}` must be a number in 0..1, got {share!r}.")
    return float(share)


def weighted_sum(values: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum of the weighted values and sum of the weights; a value of weight 0 may be NaN."""
    weights = tf.cast(weights, values.dtype)
    weighted = tf.where(weights > 0, values * weights, tf.zeros_like(values))
    return tf.reduce_sum(weighted), tf.reduce_sum(weights)
