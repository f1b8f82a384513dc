"""EmbeddingGraph: the images of a batch as a graph that teacher and student should share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import keras
import tensorflow as tf

from keras_ssd.arguments import check_not_negative, check_option
from keras_ssd.batch import Batch
from keras_ssd.collectives import all_gather, all_sum, replica_rows, row_count
from keras_ssd.losses import graph
from keras_ssd.losses.norms import safe_root
from keras_ssd.objectives.objective import OneOutputEach

Normalization = Literal["none", "mean"]
Scope = Literal["global", "local"]


@keras.saving.register_keras_serializable(package="keras_ssd")
class EmbeddingGraph(OneOutputEach):
    """Embedding graph alignment (EGA): `node_weight * ||N - I|| + edge_weight * ||E_t - E_s||`.

    The nodes of an image are the embeddings that both networks give its plain view, in one width;
    their Pearson correlations make the matrices: N between teacher and student, E within each.
    Constant nodes correlate with nothing. The norms are roots of sums over all pairs of images
    (`losses.node_loss`, `losses.edge_loss`), no means over images: `sample_weight` says who takes
    part (weight above 0) and nothing else, and a larger batch weighs more against a cross-entropy.
    A batch of one image gives the node term alone. No gradient reaches the teacher's nodes.

    Args:
        node_weight: Finite number >= 0; 0 leaves the node term and its cost out.
        edge_weight: Finite number >= 0; 0 leaves the edge term and its cost out.
        normalization: `"none"`, as published, or `"mean"`: each norm is divided by the number of
            images that take part (with B images, multiply both weights by B for the same loss).
        scope: `"global"`: the graph is that of the global batch, so that replicas equal one device;
            a replica computes its own rows of the matrices. `"local"`: another loss, the mean over
            replicas of the loss of each one's own images, without the pairs across replicas.
        weight: Weight of the term.
        teacher_output: Name of the teacher's nodes.
        student_output: Name of the student's nodes.
        name: Name of the term's metric.

    Raises:
        ValueError: If a weight is no finite number >= 0, or an option is unknown.

    Source: Ma et al. 2022 (arXiv:2211.13264), equations 7 and 8, and the authors' training program
    for the weights. They clear what the loss sends to the teacher's head: the same as no gradient.
    """

    needs_equal_widths = True

    def __init__(
        self,
        node_weight: float = 0.8,
        edge_weight: float = 0.24,
        *,
        normalization: Normalization = "none",
        scope: Scope = "global",
        weight: float = 1.0,
        teacher_output: str = "node",
        student_output: str = "node",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )
        self.node_weight = check_not_negative("node_weight", node_weight)
        self.edge_weight = check_not_negative("edge_weight", edge_weight)
        check_option("normalization", normalization, get_args(Normalization))
        check_option("scope", scope, get_args(Scope))
        self.normalization = normalization
        self.scope = scope
        self.compares_images = self.node_weight == 0  # one image has a node to meet, and no edge

    def check_outputs(
        self,
        teacher: Mapping[str, Any] | None,
        student: Mapping[str, Any] | None,
        num_views: int,
    ) -> None:
        """Refuses nodes that are not one vector an image, too narrow, or of two widths."""
        for owner, name, shape in self._shapes(teacher, student):
            graph.check_nodes(shape, f"the {owner}'s output {name!r}")
        super().check_outputs(teacher, student, num_views)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of the global batch and 1, or 0 and 0 where no image takes part."""
        weights = batch.weights_of("plain")
        teacher, student = self._rows(batch)
        student = graph.unit_rows(student, "student_nodes", weights)
        teacher = graph.unit_rows(teacher, "teacher_nodes", weights)
        teacher = tf.cast(teacher, student.dtype)  # stored outputs may have another precision
        images = self._sum(tf.reduce_sum(tf.cast(weights > 0, student.dtype)))
        total = self._norms(teacher, student, weights)
        if self.normalization == "mean":
            total /= tf.maximum(images, 1)
        return total, tf.cast(images > 0, total.dtype)

    def _norms(self, teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Both norms, weighted; 0 where all rows are 0 because no image takes part."""
        is_global = self.scope == "global"
        columns = all_gather(student) if is_global else student
        total = tf.zeros([], student.dtype)
        if self.node_weight:
            start = replica_rows(row_count(teacher))[0] if is_global else 0
            squares = graph.node_squares(teacher, columns, start, weights)
            total += self.node_weight * safe_root(self._sum(squares))
        if self.edge_weight:
            teacher_columns = all_gather(teacher) if is_global else teacher
            squares = graph.edge_squares(teacher, student, teacher_columns, columns)
            total += self.edge_weight * safe_root(self._sum(squares))
        return total

    def _sum(self, value: tf.Tensor) -> tf.Tensor:
        return all_sum(value) if self.scope == "global" else value

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "node_weight": self.node_weight,
            "edge_weight": self.edge_weight,
            "normalization": self.normalization,
            "scope": self.scope,
        }
