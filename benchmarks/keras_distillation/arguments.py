"""Arguments that are honoured, refused or ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.distillation import DistillationLoss

import keras_ssd as ssd
from keras_distillation.networks import (
    BOTH,
    IMAGES,
    LABELS,
    TEMPERATURE,
    SameFeatures,
    Table,
    divergence,
    evaluate,
    feature,
    largest_change,
    network,
    ours,
    outcome,
    peer,
    step,
    teacher_network,
    trained,
)
from keras_ssd.objectives import HardLabels, SoftLabels

MAKERS = (peer, ours)
ACCEPTED = "accepted without a message"


def measure() -> list[Table]:
    """Weights, regularisers, arguments of the constructor."""
    rows = [
        *_sample_weights(),
        *_regularisers(),
        ("weight 7 for a single loss counts", *_single_weight()),
        ("projection layer of a loss, largest change in a step", *_projections()),
        ("weight -1 for a loss", *_weights_of(-1.0)),
        ("weight `numpy.float32(0.5)`", *_weights_of(np.float32(0.5))),
        ("weight `True`", *_weights_of(True)),
        ("a name for the student's side alone", *_one_name()),
        ("models that end in softmax", *_softmax()),
    ]
    return [Table("Arguments", BOTH, rows)]


def _sample_weights() -> list[tuple[object, ...]]:
    def moved(make: Callable[..., Any], **options: Any) -> str:
        model = make(compiled={"run_eagerly": True})
        before = trained(model)
        fitted = model.fit(IMAGES, LABELS, batch_size=12, verbose=0, **options)
        change = largest_change(before, trained(model))
        return f"{fitted.history['loss'][0]:.4g}; {change:.2g}"

    name = "{} of 0 for all: loss; largest change of a weight in a step"
    zeros, by_class = np.zeros(len(LABELS)), dict.fromkeys(range(3), 0.0)
    return [
        (name.format("`sample_weight`"), *(moved(make, sample_weight=zeros) for make in MAKERS)),
        (name.format("`class_weight`"), *(moved(make, class_weight=by_class) for make in MAKERS)),
    ]


class AddsThousand(layers.Layer):
    """Adds 1000 to the loss."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """The input."""
        self.add_loss(tf.constant(1000.0))
        return x


def _regularisers() -> list[tuple[object, ...]]:
    def shrunk(make: Callable[..., Any]) -> float:
        """Norm of the kernel after ten steps over that before; 0.8^10 by the regulariser alone."""
        student = network(regularizer=keras.regularizers.L2(10.0))
        kernel = next(v for v in student.trainable_variables if len(v.shape) == 4)
        before = float(np.linalg.norm(kernel))
        model = make(student=student, rate=0.01)
        for _ in range(10):
            step(model)
        return float(np.linalg.norm(kernel)) / before

    def adding(make: Callable[..., Any]) -> list[float]:
        model = make(student=network(first=AddsThousand()), rate=0.0)
        return [step(model)["loss"], evaluate(model)["loss"]]

    return [
        ("kernel under L2(10) after ten steps at rate 0.01 / before", *map(shrunk, MAKERS)),
        (
            "`loss` of a step and of an evaluation, where a layer adds 1000",
            *map(adding, MAKERS),
        ),
    ]


def _single_weight() -> tuple[str, str]:
    def theirs(weights: list[float] | None) -> float:
        options = {"student_loss_weight": 0.0, "distillation_loss_weights": weights}
        return step(peer(divergence(), rate=0.0, **options))["loss"]

    def mine(weight: float) -> float:
        return step(ours([SoftLabels(TEMPERATURE, weight=weight)], rate=0.0))["loss"]

    return f"{theirs([7.0]) / theirs(None):.3g} times", f"{mine(7.0) / mine(1.0):.3g} times"


class Projected(DistillationLoss):
    """Mean squared difference after a projection of the student's features."""

    def __init__(self) -> None:
        self.teacher_layer_name = self.student_layer_name = "features_1"
        self.projection = layers.Dense(8)
        self.projection.build((None, 8))

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **_: Any) -> tf.Tensor:
        """The loss."""
        difference = teacher_outputs - self.projection(student_outputs)
        return keras.ops.mean(keras.ops.square(difference))


def _projections() -> tuple[float, float]:
    loss = Projected()
    before = loss.projection.kernel.numpy()
    step(peer(loss))
    theirs = float(np.abs(loss.projection.kernel.numpy() - before).max())

    student = network()
    head = layers.Dense(8)
    outputs = {"logits": student.output, "projected": head(student.get_layer("pool").output)}
    student = keras.Model(student.input, outputs)
    before = head.kernel.numpy()
    teacher = ssd.named_outputs(teacher_network(), {"projected": "features_1"})
    model = ssd.Distiller(teacher, student, [HardLabels(), SameFeatures("projected")])
    model.compile(keras.optimizers.SGD(0.1))
    step(model)
    return theirs, float(np.abs(head.kernel.numpy() - before).max())


def _weights_of(weight: Any) -> tuple[object, object]:
    theirs = outcome(lambda: step(_weighted_peer(weight)) and ACCEPTED)
    return theirs, outcome(lambda: step(ours([SoftLabels(weight=weight)])) and ACCEPTED)


def _weighted_peer(weight: Any) -> keras.Model:
    if isinstance(weight, float) and weight < 0:
        return peer([divergence()], distillation_loss_weights=[weight])
    return peer(student_loss_weight=weight)


def _one_name() -> tuple[object, object]:
    """What is compared where only the student's layer is named; all are as wide as the logits."""

    def theirs() -> str:
        loss = feature()
        loss.teacher_layer_name = None
        loss.student_layer_name = "features_1"
        teacher, student = teacher_network(features=3), network(features=3)
        model = peer(loss, teacher=teacher, student=student, student_loss_weight=0.0, rate=0.0)
        shown = step(model)["loss"]
        outputs = float(np.mean((teacher(IMAGES) - student(IMAGES, training=True)) ** 2))
        compared = "final outputs" if np.isclose(shown, outputs, rtol=1e-3) else "the layer"
        return f"no message; compares the {compared}"

    def mine() -> None:
        ours([SoftLabels(student_output="features_1")])

    return outcome(theirs), outcome(mine)


def _softmax() -> tuple[object, object]:
    def made(make: Callable[..., Any]) -> str:
        options = {"activation": "softmax"}
        step(make(teacher=teacher_network(**options), student=network(**options)))
        return ACCEPTED

    return outcome(lambda: made(peer)), outcome(lambda: made(ours))
