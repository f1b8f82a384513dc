"""ContrastiveMemory: one embedding of every training image, of each network."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_ssd.losses.norms import unit_vectors


@keras.saving.register_keras_serializable(package="keras_ssd")
class ContrastiveMemory(keras.layers.Layer):
    """What `ContrastiveRepresentation` remembers: nothing of it is trained.

    Args:
        images: n, the number of training images.
        width: Width of an embedding.
        seed: Seed of the first banks.
        **options: Options of a Keras layer.

    Attributes:
        student_bank: `[n, width]`, at first uniform with rows about 1 long.
        teacher_bank: `[n, width]`, the same.
        constants: `[2]`, what the student's and the teacher's scores are divided by; 0 before the
            first batch.
        step: Number of training steps, which seeds the draws.
    """

    def __init__(self, images: int, width: int, seed: int = 0, **options: Any) -> None:
        floats = "float64" if keras.config.floatx() == "float64" else "float32"
        super().__init__(**{"dtype": floats, "autocast": False, **options})
        self.images, self.width, self.seed = images, width, seed
        limit = (3 / width) ** 0.5
        self.student_bank, self.teacher_bank = (
            self._remembered(
                name,
                (images, width),
                keras.initializers.RandomUniform(-limit, limit, seed=2 * seed + place),
            )
            for place, name in enumerate(("student_bank", "teacher_bank"))
        )
        self.constants = self._remembered("constants", (2,), "zeros")
        self.step = self._remembered("step", (), "zeros", dtype="int64")
        self.built = True

    def _remembered(self, name: str, shape: tuple[int, ...], start: Any, **options: Any) -> Any:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=start,
            trainable=False,
            aggregation="only_first_replica",  # all replicas assign the same
            **options,
        )

    def replace(self, places: tf.Tensor, embeddings: tf.Tensor, momentum: float) -> None:
        """Moves rows of both banks towards new embeddings, and counts the step.

        Args:
            places: int32 `[G]`, rows of the banks; -1 for nobody. Of equal ones, the last counts.
            embeddings: `[G, 2 * width]`, the student's and the teacher's side by side.
            momentum: Share of the old row in the new one.
        """
        positions = tf.range(tf.shape(places)[0])
        last = tf.math.unsorted_segment_max(positions, places, self.images)  # nobody is dropped
        # What is written to one row is the same every time, so that the order does not matter.
        rows = tf.maximum(places, 0)
        winner = tf.gather(last, rows)
        new = tf.gather(embeddings, tf.maximum(winner, 0))
        banks = (self.student_bank, self.teacher_bank)
        for bank, mine in zip(banks, tf.split(new, 2, axis=1), strict=True):
            values = tf.convert_to_tensor(bank.value)
            old = tf.gather(values, rows)
            moved = unit_vectors(momentum * old + (1 - momentum) * tf.cast(mine, old.dtype))
            # A step that is skipped for its NaN, as by a loss scale, leaves no NaN behind.
            is_finite = tf.reduce_all(tf.math.is_finite(moved), axis=1, keepdims=True)
            moved = tf.where((winner[:, None] >= 0) & is_finite, moved, old)
            bank.assign(tf.tensor_scatter_nd_update(values, rows[:, None], moved))
        self.step.assign(self.step.value + 1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"images": self.images, "width": self.width, "seed": self.seed}
        return {**super().get_config(), **own}
