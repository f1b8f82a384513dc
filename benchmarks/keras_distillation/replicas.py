"""One step on two logical devices against the same step on one, the global batch held fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.distillation import DistillationLoss, LogitsDistillation

from keras_distillation.networks import (
    CROSS_ENTROPY,
    IMAGES,
    LABELS,
    TEMPERATURE,
    SameFeatures,
    Table,
    feature,
    network,
    ours,
    peer,
    trained,
)
from keras_ssd.objectives import HardLabels, SoftLabels


class OwnMean(DistillationLoss):
    """A custom loss that returns a mean, as its documentation asks."""

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **_: Any) -> tf.Tensor:
        """The loss."""
        return keras.ops.mean(keras.ops.square(teacher_outputs - student_outputs))


ALONE = {"student_loss_weight": 0.0}
PEERS: Mapping[str, Callable[..., keras.Model]] = {
    "cross-entropy as an object, labels alone": lambda **o: peer(student_loss_weight=1.0, **o),
    "`KLDivergence()`, half labels": peer,
    "`MeanSquaredError()` of a feature": lambda **o: peer(
        feature(loss=keras.losses.MeanSquaredError()), **ALONE, **o
    ),
    'the default `"kl_divergence"`': lambda **o: peer(LogitsDistillation(3.0), **ALONE, **o),
    '`"mse"` of a feature (default)': lambda **o: peer(feature(), **ALONE, **o),
    "custom loss that returns a mean": lambda **o: peer(OwnMean(), **ALONE, **o),
    "labels' loss as a function": lambda **o: peer(
        student_loss_weight=1.0, loss=_cross_entropy, **o
    ),
}
OURS: Mapping[str, Callable[..., keras.Model]] = {
    "`HardLabels()`": lambda **o: ours([HardLabels()], **o),
    "`HardLabels(0.5)` and `SoftLabels(3.0, weight=0.5)`": ours,
    "an objective of one's own, of a feature": lambda **o: ours([SameFeatures("features_1")], **o),
    "`SoftLabels(3.0)`": lambda **o: ours([SoftLabels(TEMPERATURE)], **o),
    "`compile(loss=)` an object": lambda **o: ours(
        [HardLabels(0.0)], compiled={"loss": CROSS_ENTROPY}, **o
    ),
    "`compile(loss=)` a function": lambda **o: ours(
        [HardLabels(0.0)], compiled={"loss": _cross_entropy}, **o
    ),
}


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def measure() -> list[Table]:
    """A table a side."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    tables = []
    for who, contestants in (("keras.distillation", PEERS), ("keras_ssd", OURS)):
        rows = [(name, *_compared(strategy, make)) for name, make in contestants.items()]
        columns = ("size of the update, two / one", "metrics, two / one")
        tables.append(Table(f"{who}: one step on two replicas over that on one", columns, rows))
    return tables


def _compared(
    strategy: tf.distribute.Strategy, make: Callable[..., keras.Model]
) -> tuple[str, str]:
    update, shown = _step(make(student=network(batch_norm=False)))
    with strategy.scope():
        model = make(student=network(batch_norm=False))
    update_of_two, shown_by_two = _step(model)
    size = np.linalg.norm(update_of_two) / np.linalg.norm(update)
    ratios = (f"{name} {shown_by_two[name] / value:.2f}" for name, value in shown.items() if value)
    return f"{size:.2f}", ", ".join(ratios)


def _step(model: keras.Model) -> tuple[np.ndarray, dict[str, float]]:
    before = trained(model)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(len(IMAGES))
    history = model.fit(data, shuffle=False, verbose=0).history
    change = [(a - b).ravel() for a, b in zip(trained(model), before, strict=True)]
    return np.concatenate(change), {name: values[0] for name, values in history.items()}
