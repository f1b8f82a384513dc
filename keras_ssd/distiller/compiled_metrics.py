"""The metrics that a user gives to `compile`, fed with labels and plain logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


class CompiledMetrics:
    """Metrics that leave unlabeled images out.

    Keras gives no weight to `metrics=`, so an unlabeled image would count there; and it resolves
    `"accuracy"` by the shape of the first labels it sees. Both are decided here.

    Args:
        metrics: Get the weight 1 for labeled images, 0 for others.
        weighted_metrics: Get that times `sample_weight`.
        reserved: Names that are taken.
    """

    def __init__(self, metrics: Any, weighted_metrics: Any, reserved: Sequence[str]) -> None:
        self.plain = [_resolve(metric) for metric in _as_list("metrics", metrics)]
        self.weighted = [_resolve(m) for m in _as_list("weighted_metrics", weighted_metrics)]
        names = [metric.name for metric in self.plain]
        for metric in self.weighted:
            if metric.name in names:
                metric.name = f"weighted_{metric.name}"
        every_name = [*reserved, *(metric.name for metric in self.all)]
        twice = sorted({name for name in every_name if every_name.count(name) > 1})
        if twice:
            raise ValueError(f"Two metrics are named {twice[0]!r}: give one another `name=`.")

    @property
    def all(self) -> list[keras.metrics.Metric]:
        """Every metric, in the order in which they were given."""
        return [*self.plain, *self.weighted]

    def update(
        self, labels: tf.Tensor, logits: tf.Tensor, labeled: tf.Tensor, weights: tf.Tensor
    ) -> None:
        """Adds a batch.

        Args:
            labels: Integers `[B]`, or rows `[B, C]`.
            logits: `[B, C]` of the plain images.
            labeled: `[B]`, 1 where the image has a label.
            weights: `[B]`, `labeled` times `sample_weight`.
        """
        labels = tf.maximum(labels, 0)
        for metric in self.plain:
            metric.update_state(labels, logits, sample_weight=labeled)
        for metric in self.weighted:
            metric.update_state(labels, logits, sample_weight=weights)


def refuse_probability_form(argument: str, given: Any) -> None:
    """Refuses losses and metrics that expect probabilities, where the student gives logits."""
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    plain = name.lower().replace("_", "")
    of_keras = isinstance(given, str) or given.__module__.startswith("keras.")
    by_name = of_keras and any(word in plain for word in ("entropy", "bce", "kld"))
    if not getattr(given, "from_logits", not by_name):
        raise ValueError(
            f"`{argument}` {name!r} expects probabilities, and the student gives logits: use a "
            "class of `keras.losses` or `keras.metrics` that takes `from_logits=True`."
        )


def _as_list(argument: str, metrics: Any) -> list:
    if isinstance(metrics, dict):
        raise ValueError(
            f"`{argument}` must be a list: the student's logits are the one output it measures."
        )
    return (
        []
        if metrics is None
        else list(metrics)
        if isinstance(metrics, (list, tuple))
        else [metrics]
    )


def _resolve(metric: str | keras.metrics.Metric | Callable) -> keras.metrics.Metric:
    if metric in ("accuracy", "acc"):
        return keras.metrics.MeanMetricWrapper(_is_right, name=str(metric))
    refuse_probability_form("metrics", metric)
    resolved = keras.metrics.get(metric)
    if isinstance(resolved, keras.metrics.Metric):
        return resolved
    return keras.metrics.MeanMetricWrapper(resolved, name=resolved.__name__)


def _is_right(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    if labels.shape.rank == 2:
        labels = tf.argmax(labels, axis=-1)
    guesses = tf.argmax(logits, axis=-1)
    return tf.cast(tf.equal(tf.cast(labels, guesses.dtype), guesses), keras.config.floatx())


def is_better_up(metric: keras.metrics.Metric) -> bool:
    """Whether a larger value is better: shares of right answers, and what Keras says of its own."""
    known = getattr(metric, "_direction", None)  # Keras' own note for callbacks
    return known == "up" or (known is None and metric.name.endswith(("accuracy", "acc")))
