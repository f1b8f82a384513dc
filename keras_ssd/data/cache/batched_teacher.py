"""The teacher that is stored: what it says of the views of a batch of images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.data.fingerprints import fingerprint_of, frozen_to_be_known
from keras_ssd.layers.functional import is_functional
from keras_ssd.teacher import FrozenTeacher
from keras_ssd.views import Views

_LEAST_IMAGES = 2  # a row alone is multiplied in another order than those of a matrix


class BatchedTeacher:
    """A frozen teacher in batches of one fixed shape, filled up with black images.

    So what is said of an image depends neither on the others of its batch nor on how many they are.

    Args:
        teacher: A built Keras model, or a `FrozenTeacher` of one.
        views: From images to the rows that it sees.
        image_shape: Height, width and channels.
        batch_size: Images in a batch.
        outputs: Names of the outputs that are asked for; None for all.

    Attributes:
        name: The model's.
        fingerprint: SHA-256 of all that decides the outputs, whichever are asked for.
        shapes: What an image gives, by output: `[V, ...]`, and `[...]` where V is 1.

    Raises:
        TypeError: If `teacher` is no Keras model, or its preprocessing no layer.
        ValueError: If it is not built or not in inference mode, or lacks an output that is asked
            for, or one has not a row of known shape for each row.
    """

    def __init__(
        self,
        teacher: keras.Model | FrozenTeacher,
        views: Views,
        image_shape: tuple[int, int, int],
        batch_size: int,
        outputs: Collection[str] | None,
    ) -> None:
        frozen = frozen_to_be_known(teacher)
        model: Any = frozen.model
        if is_functional(model) and len(model.inputs) != 1:
            raise ValueError(
                f"The teacher {model.name!r} must take the images alone to be stored, got one of "
                f"{len(model.inputs)} inputs: store what it says elsewhere (`imported_teacher`)."
            )
        self.name = model.name
        self._frozen, self._views = frozen, views
        self._shape = (max(batch_size, _LEAST_IMAGES), *image_shape)
        self._run = self._traced(outputs)
        specs: Mapping[str, tf.Tensor] = self._run.structured_outputs
        self.shapes = {name: self._shape_of_image(name, x.shape) for name, x in specs.items()}
        self.fingerprint = fingerprint_of(frozen)

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Float32 outputs `[images, *shape]`.

        Args:
            images: uint8, at most `batch_size` of them.
            draws: Float32 `[images, num_draws]` of the views.
        """
        count = len(images)
        batch = np.zeros(self._shape, images.dtype)
        numbers = np.zeros((len(batch), self._views.num_draws), "float32")
        batch[:count], numbers[:count] = images, draws
        outputs = self._run(tf.constant(batch), tf.constant(numbers))
        return {
            name: np.asarray(rows, "float32").reshape(-1, *self.shapes[name])[:count]
            for name, rows in outputs.items()
        }

    def _traced(self, names: Collection[str] | None) -> Any:
        def run(images: tf.Tensor, draws: tf.Tensor) -> dict[str, tf.Tensor]:
            rows = self._views.apply(images, draws if self._views.num_draws else None)
            outputs = self._frozen(rows)
            missing = sorted(set(names or ()) - set(outputs))
            if missing:
                raise ValueError(
                    f"The teacher {self.name!r} has no output {missing[0]!r} to store, it has "
                    f"{sorted(outputs)}: name some of these in `outputs=`."
                )
            return {name: outputs[name] for name in sorted(names or outputs)}

        signature = [
            tf.TensorSpec(self._shape, tf.uint8),
            tf.TensorSpec((self._shape[0], self._views.num_draws), tf.float32),
        ]
        return tf.function(run, autograph=False).get_concrete_function(*signature)

    def _shape_of_image(self, name: str, shape: tf.TensorShape) -> tuple[int, ...]:
        views = self._views.num_views
        rows = self._shape[0] * views
        known = shape.rank is not None and shape[1:].is_fully_defined()
        if not known or shape.rank < 2 or shape[0] not in (None, rows):
            raise ValueError(
                f"The teacher's output {name!r} must be [rows, ...] of known shape to be stored, "
                f"got {shape} for {rows} rows: leave it out of `outputs=`."
            )
        return (*([views] if views > 1 else []), *shape[1:])
