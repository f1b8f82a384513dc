"""ContrastiveRepresentation (CRD): embeddings against a memory of all training images."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.arguments import check_count, check_option, check_temperature
from keras_ssd.batch import Batch
from keras_ssd.collectives import all_gather, all_sum
from keras_ssd.losses.contrastive import contrastive_representation_loss
from keras_ssd.losses.norms import unit_vectors
from keras_ssd.losses.precision import at_least_float32
from keras_ssd.objectives.contrastive_memory import ContrastiveMemory
from keras_ssd.objectives.negatives import ImagesByClass
from keras_ssd.objectives.objective import (
    OneOutputEach,
    check_share,
    weighted_sum,
)

Positives = Literal["self", "class"]
_LOWEST_TEMPERATURE = 0.03  # exp(2 / T) times the number of images stays inside float32
_NOBODY = -1


@keras.saving.register_keras_serializable(package="keras_ssd")
class ContrastiveRepresentation(OneOutputEach):
    """Contrastive representation distillation (CRD), with a memory of every training image.

    Each network's embedding of an image must tell the other network's remembered embedding of the
    image from those of K images of other classes. `s = exp(bank . v / T) / Z` are the scores of a
    unit vector v, Z is such that the first batch's scores have the mean 1 / n and never changes,
    and the value is `losses.contrastive_representation_loss` of the student's scores with the
    teacher's bank plus that of the teacher's with the student's. After a training step the rows of
    the batch's images become `normalize(momentum * row + (1 - momentum) * v)` in both banks; of an
    image that is in the global batch twice, the last one counts. An image of weight 0 takes no
    part and is not remembered. The plain rows are read.

    The gradient reaches both embeddings: the linear layers that make them are heads of the student
    and of the teacher (`Distiller(teacher_head=)`), both trained.

    `x` must hold `index`, the place of each image in `labels` (`data.Splits.with_index` gives
    both); an image with the index -1 takes no part. The indices of an evaluation with
    `evaluate_views=True` must be those of training images, too. An index outside stops the run;
    under XLA, which drops assertions, the loss turns NaN. The classes are those of `labels`; `y` is
    not read. All draws are functions of the seed, the step and the place in the global batch.

    A step computes the scores of all n images and picks those that were drawn: several times as
    fast on a CPU as gathering B * K rows of the banks. The banks are saved with the Distiller,
    `2 * n * width` numbers. Make the objective inside the scope of a `tf.distribute` strategy.

    Args:
        labels: The class of every training image by its index, integers `[n]` of at least two
            classes.
        negatives: K >= 1 images of other classes for each image; where there are fewer, some are
            drawn more than once.
        temperature: T, at least 0.03.
        momentum: Share in 0..1 of the old row in the new one.
        positives: `"self"`: the image itself; `"class"`: a random image of its class.
        width: Width of both embeddings.
        seed: Seed of the first banks and of the draws.
        weight: Weight of the term.
        teacher_output: Name of the teacher's embeddings.
        student_output: Name of the student's embeddings.
        name: Name of the term's metric.

    Raises:
        TypeError: If labels are no integers.
        ValueError: If labels are missing (-1) or an option is out of its range.

    Source: Tian et al. 2020 (arXiv:1910.10699), section 3, and the authors' code. There, repeated
    images in a batch are remembered in any order, and negatives come from the data pipeline.
    """

    trains_teacher_head = True
    state: ContrastiveMemory

    def __init__(
        self,
        labels: Any,
        *,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        positives: Positives = "self",
        width: int = 128,
        seed: int = 0,
        weight: float = 0.8,
        teacher_output: str = "node",
        student_output: str = "node",
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_output=teacher_output, student_output=student_output, weight=weight, name=name
        )
        self.temperature = check_temperature(temperature)
        if temperature < _LOWEST_TEMPERATURE:
            raise ValueError(
                f"`temperature` must be at least {_LOWEST_TEMPERATURE}, got {temperature}: scores "
                "exp(cosine / T) would leave the range of float32."
            )
        check_option("positives", positives, get_args(Positives))
        self.momentum = check_share("momentum", momentum)
        self.positives = positives
        self.seed = check_count("seed", seed, smallest=0)
        self.images = ImagesByClass(
            labels, check_count("negatives", negatives), positives == "class"
        )
        width = check_count("width", width)
        self.state = ContrastiveMemory(len(self.images.labels), width, self.seed)

    def check_outputs(
        self,
        teacher: Mapping[str, Any] | None,
        student: Mapping[str, Any] | None,
        num_views: int,  # noqa: ARG002 (plain rows alone are read)
    ) -> None:
        """Refuses embeddings that are not as wide as the memory."""
        for owner, name, shape in self._shapes(teacher, student):
            if len(shape) != 2 or shape[-1] != self.state.width:
                raise ValueError(
                    f"`{self.name}` remembers embeddings of width {self.state.width}, but "
                    f"{name!r} of the {owner} has shape {shape}: give the {owner} a "
                    "head of that width, or choose `width=`."
                )

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's images and their weight, two scalars."""
        index = self._index(batch)
        weights = batch.weights_of("plain")
        weights = tf.where(index == _NOBODY, tf.zeros_like(weights), weights)
        index, is_known = self._inside(index, weights)
        teacher, student = (
            unit_vectors(at_least_float32(rows, "embeddings")) for rows in self._rows(batch)
        )
        teacher = tf.cast(teacher, student.dtype)
        step = tf.convert_to_tensor(self.state.step.value)
        drawn = self.images.draw(index, tf.stack([tf.constant(self.seed, tf.int64), step]))
        scores = (
            self._scores(self.state.teacher_bank, student, drawn),
            self._scores(self.state.student_bank, teacher, drawn),
        )
        constants = self._constants(scores, weights, batch.training)
        num_images = len(self.images.labels)
        values = sum(
            contrastive_representation_loss(each / constant, num_images)
            for each, constant in zip(scores, constants, strict=True)
        )
        if batch.training:
            places = all_gather(tf.where((weights > 0) & is_known, index, _NOBODY))
            seen = tf.concat([student, teacher], axis=1)
            self.state.replace(places, all_gather(tf.stop_gradient(seen)), self.momentum)
        total, count = weighted_sum(values, weights)
        unknown = all_sum(tf.reduce_sum(tf.cast(~is_known, tf.int32)))
        return tf.where(unknown > 0, tf.constant(np.nan, total.dtype), total), count

    def _index(self, batch: Batch) -> tf.Tensor:
        """The images' indices, int64 `[B]`."""
        if batch.index is None:
            raise ValueError(
                f"`{self.name}` needs to know which image is which, and the data does not tell: "
                'give `x` as {"image": images, "index": index}, the place of each image in '
                "`labels`."
            )
        index = tf.convert_to_tensor(batch.index)
        if not index.dtype.is_integer or index.shape.rank != 1:
            raise ValueError(
                f"`{self.name}` needs an `index` of one integer an image, got {index.dtype.name} "
                f"of shape {tuple(index.shape)}."
            )
        return tf.cast(index, tf.int64)

    def _inside(self, index: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The indices, moved inside, and whether they were or do not matter."""
        last = len(self.images.labels) - 1
        is_known = ((index >= 0) & (index <= last)) | (weights <= 0)
        with tf.control_dependencies(self._assertions(is_known, index)):
            return tf.cast(tf.clip_by_value(index, 0, last), tf.int32), is_known

    def _assertions(self, is_known: tf.Tensor, index: tf.Tensor) -> list[tf.Operation]:
        """What stops the run where an image is not one of those that have a label."""
        fits = tf.reduce_all(is_known)
        words = (
            f"`{self.name}` has the labels of images 0..{len(self.images.labels) - 1}, got an "
            "`index` from"
        )
        lowest, highest = tf.reduce_min(index), tf.reduce_max(index)
        if not tf.executing_eagerly():
            return [tf.debugging.Assert(fits, [words, lowest, "to", highest])]
        if not fits:
            raise tf.errors.InvalidArgumentError(
                None, None, f"{words} {lowest.numpy()} to {highest.numpy()}."
            )
        return []

    def _scores(self, bank: keras.Variable, embeddings: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
        """Scores `[B, 1 + K]`, not divided yet."""
        bank = tf.cast(tf.convert_to_tensor(bank.value), embeddings.dtype)
        cosines = tf.matmul(embeddings, bank, transpose_b=True)
        return tf.exp(tf.gather(cosines, drawn, batch_dims=1) / self.temperature)

    def _constants(
        self, scores: tuple[tf.Tensor, tf.Tensor], weights: tf.Tensor, training: bool
    ) -> list[tf.Tensor]:
        """What both scores are divided by; where that is not set, it is of these scores."""
        constants = tf.convert_to_tensor(self.state.constants.value)
        kept = tf.cast(weights > 0, constants.dtype)
        sums = [tf.cast(tf.reduce_mean(each, axis=1), constants.dtype) for each in scores]
        sums = [tf.stop_gradient(weighted_sum(each, kept)[0]) for each in sums]
        *sums, images = all_sum([*sums, tf.reduce_sum(kept)])
        fresh = tf.math.divide_no_nan(tf.stack(sums) * len(self.images.labels), images)
        constants = tf.where(constants > 0, constants, fresh)
        if training:
            self.state.constants.assign(constants)
        constants = tf.where(constants > 0, constants, tf.ones_like(constants))
        return [tf.cast(each, scores[0].dtype) for each in tf.unstack(constants)]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the labels as compressed text."""
        packed = zlib.compress(self.images.labels.astype("<i4").tobytes())
        return {
            **super().get_config(),
            "labels": base64.b64encode(packed).decode("ascii"),
            "negatives": self.images.negatives,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "positives": self.positives,
            "width": self.state.width,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ContrastiveRepresentation:
        """The objective of a `get_config`, with new banks."""
        packed = base64.b64decode(config["labels"])
        return cls(**{**config, "labels": np.frombuffer(zlib.decompress(packed), "<i4")})
