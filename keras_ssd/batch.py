"""Batch: all that an objective is given."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import tensorflow as tf

from keras_ssd.collectives import row_count

PEER = "peer_"  # what the names of a second network's outputs begin with
Rows = Literal["plain", "transformed", "all"]


def auxiliary_names(outputs: Mapping[str, Any]) -> list[str]:
    """The outputs `auxiliary_1`, `auxiliary_2`, ..., from the shallowest to the deepest."""
    numbers = [re.fullmatch(r"auxiliary_(\d+)", name) for name in outputs]
    found = sorted(int(number[1]) for number in numbers if number)
    return [f"auxiliary_{number}" for number in found]


def check_rows(which: str) -> None:
    """Refuses a name of rows that does not exist."""
    if which not in get_args(Rows):
        raise ValueError(f"Rows are one of {list(get_args(Rows))}, got {which!r}.")


@dataclasses.dataclass(frozen=True)
class Batch:
    """One replica's images, labels, weights and the outputs of both networks.

    Rows are image-major: row `i * num_views + v` is view `v` of image `i`, view 0 is the plain one.

    Attributes:
        images: The views that the networks saw, `[B * V, height, width, channels]`, or None.
        labels: Integers `[B]` (-1: unlabeled), or one-hot or soft `[B, C]` (all zero: unlabeled),
            or None.
        sample_weight: `[B]`, at least 0, or None for all ones. An image of weight 0 takes no part.
        teacher: Named outputs of the teacher, `[B * V, ...]` each; empty without a teacher.
        student: Named outputs of the student, `[B * V, ...]` each.
        num_views: V, the number of rows an image has.
        index: The images' places in their data set, integers `[B]`, or None.
        training: False in an evaluation, where an objective's state must stay as it is.
    """

    images: tf.Tensor | None
    labels: tf.Tensor | None
    sample_weight: tf.Tensor | None
    teacher: Mapping[str, tf.Tensor]
    student: Mapping[str, tf.Tensor]
    num_views: int
    index: tf.Tensor | None = None
    training: bool = True

    def select(self, tensor: tf.Tensor, which: Rows) -> tf.Tensor:
        """Picks rows by view.

        Args:
            tensor: `[B * V, ...]`.
            which: `"plain"` (view 0), `"transformed"` (views 1..V-1) or `"all"`.

        Returns:
            `[B, ...]`, `[B * (V - 1), ...]` or `[B * V, ...]`, image-major.
        """
        check_rows(which)
        if which == "all" or (which == "plain" and self.num_views == 1):
            return tensor
        # A reshape and a slice keep static shapes; a gather with computed indices does not.
        tail = tensor.shape[1:]
        by_image = tf.reshape(tensor, [-1, self.num_views, *tail])
        if which == "plain":
            return by_image[:, 0]
        return tf.reshape(by_image[:, 1:], [-1, *tail])

    def labels_of(self, which: Rows) -> tf.Tensor:
        """The label of each row: integers `[R]`, -1 where there is none.

        One-hot and soft labels give the class of their largest entry.

        Raises:
            ValueError: If the batch has no labels.
        """
        if self.labels is None:
            raise ValueError("This batch has no labels: give `fit` a `y`, or drop the objective.")
        labels = self.labels
        if labels.shape.rank == 2:
            classes = tf.argmax(labels, axis=-1, output_type=tf.int32)
            labels = tf.where(tf.reduce_sum(labels, axis=-1) > 0, classes, -1)
        return self._repeat(tf.cast(labels, tf.int32), which)

    def weights_of(self, which: Rows, labeled: bool = False) -> tf.Tensor:
        """The weight of each row.

        Args:
            which: `"plain"`, `"transformed"` or `"all"`.
            labeled: Give rows without a label the weight 0.

        Returns:
            Float tensor `[R]`: `sample_weight` of the row's image, 1 where there is none.
        """
        if self.sample_weight is None:
            rows = row_count(next(iter(self.student.values())))
            weights = tf.ones([rows // self.num_views])
        else:
            weights = self.sample_weight
        if labeled:
            weights *= tf.cast(self.labels_of("plain") >= 0, weights.dtype)
        return self._repeat(weights, which)

    def _repeat(self, per_image: tf.Tensor, which: Rows) -> tf.Tensor:
        check_rows(which)
        times = {"plain": 1, "transformed": self.num_views - 1, "all": self.num_views}[which]
        return per_image if times == 1 else tf.repeat(per_image, times, axis=0)
