"""Every number that `fit` and `evaluate` show, and which of them are shown when."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.distiller.compiled_metrics import CompiledMetrics, is_better_up

RESERVED = ("loss", "teacher_agreement")


class Trackers:
    """Means over an epoch: the loss, one a term, the teacher's agreement, the user's metrics.

    A plain object, so that Keras saves none of it. What is shown is found out when a step is
    traced: a metric that has seen no labels is not shown, nor is a term during a plain evaluation.

    Args:
        terms: Names of the objectives.
        diagnostics: Names of what objectives show beside their values.
        metrics: What `compile` was given.
        weighted_metrics: What `compile` was given.
    """

    def __init__(
        self,
        terms: Sequence[str],
        diagnostics: Sequence[str],
        metrics: Any,
        weighted_metrics: Any,
    ) -> None:
        self.loss = keras.metrics.Mean(name="loss")
        self.terms = {name: keras.metrics.Mean(name=name) for name in terms}
        self.agreement = keras.metrics.Mean(name="teacher_agreement")
        self.diagnostics = {name: keras.metrics.Mean(name=name) for name in diagnostics}
        taken = [*RESERVED, *terms, *self.diagnostics]
        self.compiled = CompiledMetrics(metrics, weighted_metrics, taken)
        self._shown = {True: [self.loss, *self.terms.values()], False: []}
        self._training = True

    @property
    def all(self) -> list[keras.metrics.Metric]:
        """Every tracker, shown or not."""
        return [
            self.loss,
            *self.terms.values(),
            *self.diagnostics.values(),
            self.agreement,
            *self.compiled.all,
        ]

    @property
    def shown(self) -> list[keras.metrics.Metric]:
        """The trackers of the phase that is on: training, or evaluation."""
        return self._shown[self._training]

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """While it lasts, `shown` is what an evaluation shows."""
        before, self._training = self._training, False
        try:
            yield
        finally:
            self._training = before

    def show(
        self, *, loss: bool, terms: bool, diagnostics: bool, agreement: bool, compiled: bool
    ) -> None:
        """Sets what the phase that is on shows."""
        self._shown[self._training] = [
            *([self.loss] if loss else []),
            *(self.terms.values() if terms else []),
            *(self.diagnostics.values() if diagnostics else []),
            *([self.agreement] if agreement else []),
            *(self.compiled.all if compiled else []),
        ]

    def set_modes(self, callbacks: Iterable[keras.callbacks.Callback]) -> None:
        """Tells callbacks with `mode="auto"` which way is better for what they monitor.

        Keras finds that out itself only for metrics that it holds itself.
        """
        up = [
            self.agreement,
            *(metric for name, metric in self.diagnostics.items() if "accuracy" in name),
            *(metric for metric in self.compiled.all if is_better_up(metric)),
        ]
        better = {metric.name: "min" for metric in self.all} | {m.name: "max" for m in up}
        for callback in callbacks:
            monitor = str(getattr(callback, "monitor", "")).removeprefix("val_")
            if getattr(callback, "mode", None) == "auto" and monitor in better:
                callback.mode = better[monitor]

    def update_means(self, sums: dict[str, tuple[tf.Tensor, tf.Tensor]]) -> None:
        """Adds a step's sums and counts: an epoch's mean is all its sums over all its counts."""
        means = {**self.terms, **self.diagnostics}
        for name, (total, count) in sums.items():
            means[name].update_state(tf.math.divide_no_nan(total, count), sample_weight=count)

    def update_agreement(
        self, teacher_logits: tf.Tensor, student_logits: tf.Tensor, weights: tf.Tensor
    ) -> None:
        """Adds the share of images that teacher and student put into one class."""
        agree = tf.argmax(teacher_logits, axis=-1) == tf.argmax(student_logits, axis=-1)
        counted = tf.cast(weights > 0, weights.dtype)
        self.agreement.update_state(tf.cast(agree, weights.dtype), sample_weight=counted)
