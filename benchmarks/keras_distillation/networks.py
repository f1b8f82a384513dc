"""What both sides of `peer_defects.py` are given, and how results are shown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.distillation import Distiller as PeerDistiller
from keras.distillation import FeatureDistillation, LogitsDistillation

import keras_ssd as ssd
from keras_ssd.objectives import HardLabels, Objective, SoftLabels

CLASSES, TEMPERATURE = 3, 3.0
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype("float32")
LABELS = np.arange(12) % CLASSES
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Table:
    """Quantities beside each other.

    Args:
        title: What is measured.
        columns: Whose column it is.
        rows: A name and one value a column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def markdown(self) -> str:
        """The table in Markdown."""
        head = ["", *self.columns]
        lines = [
            head,
            ["---"] * len(head),
            *([str(row[0]), *map(shown, row[1:])] for row in self.rows),
        ]
        return "\n".join([f"**{self.title}**\n", *(f"| {' | '.join(line)} |" for line in lines)])


BOTH = ("keras.distillation", "keras_ssd")


def shown(value: object) -> str:
    """A number to four digits, several of them, or words."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    if isinstance(value, bool | int | str):
        return str(value)
    return f"{float(value):.4g}"  # type: ignore[arg-type]


def outcome(attempt: Callable[[], object]) -> object:
    """What an attempt gives ("works" for nothing), or the first words of the error."""
    try:
        result = attempt()
    except Exception as error:  # whatever the library raises is the result
        words = re.sub(r"\s+", " ", re.sub(r" at 0x\w+", "", str(error))).replace("|", "/")
        words = words if len(words) <= 100 else words[:97] + "..."
        return f"{type(error).__name__}: `{words.replace('`', chr(39))}`"
    return "works" if result is None else result


class Counter(layers.Layer):
    """Hands its input on and counts, inside the graph, its calls and those with `training=True`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls, self.training_calls = tf.Variable(0), tf.Variable(0)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The input."""
        self.calls.assign_add(1)
        self.training_calls.assign_add(1 if training else 0)
        return x

    def reset(self) -> None:
        """Counts from 0."""
        self.calls.assign(0)
        self.training_calls.assign(0)


def network(
    width: int = 4,
    *,
    seed: int = 0,
    size: int = 8,
    first: layers.Layer | None = None,
    batch_norm: bool = True,
    dropout: float = 0.0,
    features: int = 8,
    activation: str | None = None,
    dtype: str | None = None,
    regularizer: keras.regularizers.Regularizer | None = None,
) -> keras.Model:
    """Raw images `[B, size, size, 3]` to 3 logits, with layers `features_1` and `features_2`."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 128, -1)(images)
    x = x if first is None else first(x)
    x = layers.Conv2D(width, 3, strides=2, kernel_regularizer=regularizer, dtype=dtype)(x)
    x = layers.BatchNormalization(momentum=0.9, dtype=dtype)(x) if batch_norm else x
    x = layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(layers.ReLU(dtype=dtype)(x))
    x = layers.Dropout(dropout, dtype=dtype)(x)
    x = layers.Dense(features, name="features_1", dtype=dtype)(x)
    x = layers.Dense(features, "relu", name="features_2", dtype=dtype)(x)
    wide = keras.initializers.RandomNormal(stddev=1.0)
    options = {"kernel_initializer": wide, "activation": activation, "dtype": dtype}
    return keras.Model(images, layers.Dense(CLASSES, name="logits", **options)(x))


def teacher_network(width: int = 8, **options: Any) -> keras.Model:
    """The same, wider."""
    return network(width, **{"seed": 1, **options})


class SameFeatures(Objective):
    """Mean squared difference of one vector of the teacher and one of the student."""

    def __init__(self, output: str, **options: Any) -> None:
        super().__init__(**options)
        self.teacher_outputs = self.student_outputs = (output,)

    def __call__(self, batch: ssd.Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over the images and their weight."""
        output = self.student_outputs[0]
        teacher = ssd.losses.at_least_float32(batch.teacher[output], output)
        student = ssd.losses.at_least_float32(batch.student[output], output)
        values = tf.reduce_mean(tf.square(teacher - student), axis=-1)
        weights = batch.weights_of("plain")
        return tf.reduce_sum(values * weights), tf.reduce_sum(weights)


def divergence() -> LogitsDistillation:
    """The divergence of softened classes, as `keras.distillation` computes it when told to."""
    return LogitsDistillation(TEMPERATURE, loss=keras.losses.KLDivergence())


def feature(name: str = "features_1", loss: Any = "mse") -> FeatureDistillation:
    """A feature loss of `keras.distillation`."""
    return FeatureDistillation(loss, teacher_layer_name=name, student_layer_name=name)


def peer(
    losses: Any = None,
    *,
    teacher: keras.Model | None = None,
    student: keras.Model | None = None,
    loss: Any = CROSS_ENTROPY,
    rate: float = 0.1,
    compiled: dict[str, Any] | None = None,
    **options: Any,
) -> PeerDistiller:
    """A compiled `keras.distillation.Distiller`, by default with the right divergence."""
    model = PeerDistiller(
        teacher or teacher_network(), student or network(), losses or divergence(), **options
    )
    model.compile(keras.optimizers.SGD(rate), loss, **(compiled or {}))
    return model


def ours(
    objectives: Sequence[Objective] | None = None,
    *,
    teacher: Any = None,
    student: keras.Model | None = None,
    rate: float = 0.1,
    compiled: dict[str, Any] | None = None,
    **options: Any,
) -> ssd.Distiller:
    """A compiled Distiller, by default with half labels and half divergence."""
    if objectives is None:
        objectives = [HardLabels(0.5), SoftLabels(TEMPERATURE, weight=0.5)]
    teacher, student = teacher or teacher_network(), student or network()
    taps = {n: n for o in objectives if isinstance(o, SameFeatures) for n in o.student_outputs}
    if taps:
        teacher, student = ssd.named_outputs(teacher, taps), ssd.named_outputs(student, taps)
    model = ssd.Distiller(teacher, student, objectives, **options)
    model.compile(keras.optimizers.SGD(rate), **(compiled or {}))
    return model


def step(model: keras.Model, **options: Any) -> dict[str, float]:
    """One training step on all images; what it shows."""
    return model.train_on_batch(IMAGES, LABELS, return_dict=True, **options)


def evaluate(model: keras.Model, batch_size: int = 12) -> dict[str, float]:
    """An evaluation on all images."""
    return model.evaluate(IMAGES, LABELS, batch_size=batch_size, verbose=0, return_dict=True)


def trained(model: Any) -> list[np.ndarray]:
    """Copies of what training may move in the student."""
    return [variable.numpy() for variable in model.student.trainable_variables]


def largest_change(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """The largest difference of a number."""
    return max(float(np.abs(a - b).max()) for a, b in zip(after, before, strict=True))
