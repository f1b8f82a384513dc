"""A rehearsed training step: what the objectives were given, and each term with its gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.batch import Batch
from keras_ssd.distiller.gradients import whole_gradient
from keras_ssd.objectives import Objective

OWN = "student's own"  # regularisers, `add_loss` and `compile(loss=)`


@dataclasses.dataclass(frozen=True)
class RehearsedTerm:
    """A term of the student's loss, or of that of the teacher's head, on one batch.

    Attributes:
        name: The name under which it is shown, or `OWN`.
        weight: What the mean is multiplied by in the loss.
        mean: The bare mean.
        count: The weight of the rows that it counts; None for `OWN`.
        gradient: The gradient of the weighted mean: an array a trainable variable of who learns,
            None where the term does not reach it.
    """

    name: str
    weight: float
    mean: float
    count: float | None
    gradient: list[np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """A training step on one replica that changed nothing.

    Attributes:
        batch: What the objectives were given.
        terms: Those of the student's loss, its own only if it has any.
        head_terms: Those that train the teacher's head; none where it does not learn.
    """

    batch: Batch
    terms: list[RehearsedTerm]
    head_terms: list[RehearsedTerm]


@dataclasses.dataclass(frozen=True)
class TapedTerm:
    """A term under a tape that still records; the attributes are those of `RehearsedTerm`."""

    name: str
    weight: float
    mean: tf.Tensor
    count: tf.Tensor | None
    weighted: tf.Tensor

    @classmethod
    def of(
        cls, objective: Objective, total: tf.Tensor, count: tf.Tensor, name: str | None = None
    ) -> TapedTerm:
        """The term of an objective's sum and count, under the objective's name or another one."""
        mean = tf.math.divide_no_nan(total, count)
        weighted = objective.weight * mean
        return cls(name or objective.name, objective.weight, mean, count, weighted)

    def rehearsed(
        self, tape: tf.GradientTape, variables: Sequence[keras.Variable]
    ) -> RehearsedTerm:
        """The term with its gradient, by a persistent tape that has seen it."""
        return RehearsedTerm(
            name=self.name,
            weight=self.weight,
            mean=float(self.mean),
            count=None if self.count is None else float(self.count),
            gradient=whole_gradient(tape, self.weighted, variables),
        )
