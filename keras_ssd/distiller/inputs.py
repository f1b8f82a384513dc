"""What `fit` hands to a step, brought into one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.distiller.teacher_head import shown_name
from keras_ssd.losses import at_least_float32
from keras_ssd.teacher import named
from keras_ssd.views import Views

_NO_CLASS = tf.int32.min


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One replica's part of a batch.

    Attributes:
        images: `[B, height, width, channels]`.
        labels: int32 `[B]`, or floats `[B, C]`, or None.
        sample_weight: Floats `[B]`, or None.
        index: Integers `[B]`, or None.
        teacher: Outputs of a teacher that ran before, `[B, ...]` each (`[B, V, ...]` with V > 1
            views an image), or None.
        draws: Random numbers of each image that its views are made of, float32 `[B, num_draws]` by
            the `fingerprint` of the views, or None.
    """

    images: tf.Tensor
    labels: tf.Tensor | None
    sample_weight: tf.Tensor | None
    index: tf.Tensor | None
    teacher: Mapping[str, tf.Tensor] | None
    draws: Mapping[str, tf.Tensor] | None = None

    @classmethod
    def of(cls, data: Any) -> Inputs:
        """Reads `x`, `(x, y)` or `(x, y, sample_weight)`; x may be a dict with `image`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = tf.nest.map_structure(tf.convert_to_tensor, x)  # `train_on_batch` hands arrays on
        rest = x if isinstance(x, Mapping) else {}
        images = images_of(x)
        return cls(
            images=images,
            labels=None if y is None else _labels(y),
            sample_weight=None if sample_weight is None else _weights(sample_weight),
            index=rest.get("index"),
            teacher=named(rest["teacher"], "stored teacher") if "teacher" in rest else None,
            draws=_draws(rest["draws"]) if "draws" in rest else None,
        )

    def rows(self, views: Views, images: tf.Tensor, seed: tf.Tensor | None) -> tf.Tensor:
        """The rows that views make of the images: of the draws that came along, or of a seed.

        Raises:
            ValueError: If the teacher's outputs were stored for other pixels than these would be.
        """
        if self.draws is None:
            if self.teacher is not None and seed is not None and views.num_draws:
                raise ValueError(
                    f"The teacher's outputs are stored, and `{type(views).__name__}` views crop or "
                    "flip at random, so that the student would see other pixels than the teacher "
                    "did: store them with `data.cached_teacher(..., views=)`, or turn crop and "
                    "flip off."
                )
            return views(images, seed)
        if views.fingerprint not in self.draws:
            raise ValueError(
                "The draws of the data are of other views (or of other arguments of theirs) than "
                f"the Distiller's `{type(views).__name__}`: give both the same, such as "
                '`cached_teacher(..., views=preset["views"])`.'
            )
        draws = self.draws[views.fingerprint]
        if draws.shape.rank != 2 or draws.shape[1] != views.num_draws:
            raise ValueError(
                f"Draws of `{type(views).__name__}` views must be [images, {views.num_draws}], got "
                f"shape {draws.shape}: make them with `views.draw`."
            )
        return views.apply(images, draws if views.num_draws else None)

    def teacher_rows(self, num_views: int) -> dict[str, tf.Tensor]:
        """The stored teacher outputs as rows `[B * V, ...]`."""
        rows = {}
        for name, tensor in (self.teacher or {}).items():
            if num_views > 1 and (tensor.shape.rank < 3 or tensor.shape[1] != num_views):
                raise ValueError(
                    f"The stored teacher output {name!r} must be [images, {num_views}, ...], one "
                    f"row a view, got shape {tuple(tensor.shape)}: store what the teacher says of "
                    "every view, or use `views=Plain()`."
                )
            joined = num_views > 1
            rows[name] = tf.reshape(tensor, [-1, *tensor.shape[2:]]) if joined else tensor
        return rows


def images_of(x: Any) -> tf.Tensor:
    """The images of an `x`, which is a tensor or a dict with `image`."""
    if isinstance(x, Mapping):
        if "image" not in x:
            raise ValueError(f"A dict of inputs must hold `image`, got the keys {sorted(x)}.")
        unknown = sorted(set(x) - {"image", "index", "teacher", "draws"})
        if unknown:
            raise ValueError(
                "A dict of inputs holds `image`, `index`, `teacher` and `draws`, got "
                f"{unknown[0]!r}, too: labels are `y`, the second of a pair (`as_supervised=True` "
                "in TFDS)."
            )
        x = x["image"]
    if not hasattr(x, "shape"):
        raise ValueError(f"`x` must be images or a dict with `image`, got a {type(x).__name__}.")
    shape = tf.TensorShape(x.shape)
    if shape.rank != 4:
        raise ValueError(f"Images must be [batch, height, width, channels], got shape {shape}.")
    return x


def _draws(draws: Any) -> dict[str, tf.Tensor]:
    if not isinstance(draws, Mapping):
        raise ValueError(
            "`draws` must be a dict from the `fingerprint` of views to numbers, got a "
            f"{type(draws).__name__}: write `{{views.fingerprint: numbers}}`."
        )
    return dict(draws)


def _labels(y: Any) -> tf.Tensor:
    labels = tf.convert_to_tensor(y)
    if labels.shape.rank == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape.rank == 1:
        whole = tf.cast(labels, tf.int32)
        # A float that is no class goes on as a label that is out of range.
        return tf.where(tf.cast(whole, labels.dtype) == labels, whole, _NO_CLASS)
    if labels.shape.rank == 2:
        return _floats(labels)
    raise ValueError(
        "Labels must be integers [batch] or one-hot rows [batch, classes], got shape "
        f"{labels.shape}."
    )


def _weights(sample_weight: Any) -> tf.Tensor:
    weights = _floats(tf.convert_to_tensor(sample_weight))
    if weights.shape.rank == 2 and weights.shape[1] == 1:
        weights = weights[:, 0]
    if weights.shape.rank != 1:
        raise ValueError(f"`sample_weight` must be one number an image, got shape {weights.shape}.")
    return weights


def _floats(tensor: tf.Tensor) -> tf.Tensor:
    return at_least_float32(tensor if tensor.dtype.is_floating else tf.cast(tensor, tf.float32))


def check_inputs(distiller: Any, inputs: Inputs) -> None:
    """Refuses a batch that lacks what a Distiller's terms read."""
    for objective in distiller.objectives:
        if objective.needs_labels and inputs.labels is None:
            raise ValueError(
                f"`{objective.name}` needs labels, and the data has none: give `y`, or drop "
                "the objective."
            )
        if objective.teacher_outputs and distiller.teacher is None and inputs.teacher is None:
            raise ValueError(
                f"`{objective.name}` reads a teacher, and the Distiller has none: give it one "
                "with `Distiller(teacher=...)` or `set_teacher(teacher)`; a saved Distiller "
                "holds no teacher."
            )
    for objective in distiller.teacher_objectives:
        if objective.needs_labels and inputs.labels is None:
            raise ValueError(
                f"`{shown_name(objective)}` trains the teacher's head on labels, and the data "
                "has none: give `y`, or use a head that is not trained."
            )
    if distiller.teacher_views is not None and inputs.teacher is not None:
        raise ValueError(
            "`teacher_views` make the images of a teacher that runs, and the data holds stored "
            "outputs: leave one of them out (`presets.ega(shared_view=True)` has none)."
        )
    batch_norm = "inference" if distiller.teacher is None else distiller.teacher.batch_norm
    if batch_norm != "inference" and inputs.teacher is not None:
        raise ValueError(
            f"`teacher_batch_norm={batch_norm!r}` is of a teacher that runs, and the data holds "
            "stored outputs: leave one of them out."
        )
    if distiller.teacher_head is not None and distiller.teacher is None and inputs.teacher is None:
        raise ValueError(
            "The teacher's head reads a teacher, and the Distiller has none: give it one with "
            "`Distiller(teacher=...)` or `set_teacher(teacher)`; a saved Distiller holds none."
        )
    if distiller.loss is not None and inputs.labels is None:
        raise ValueError("`compile(loss=)` needs labels, and the data has none: give `y`.")


def with_known_size(images: tf.Tensor, student: keras.Model) -> tf.Tensor:
    """The images with the size that the student's input declares, where the data leaves it open."""
    size = getattr(student, "input_shape", None)
    if images.shape[1:].is_fully_defined() or not isinstance(size, tuple):
        return images
    fits = [tf.shape(images)[k] == size[k] for k in range(1, len(size)) if size[k] is not None]
    found = [f"The student takes images {size[1:]}, got", tf.shape(images)[1:]]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(fits), found)]):
        return tf.ensure_shape(tf.identity(images), [None, *size[1:]])
