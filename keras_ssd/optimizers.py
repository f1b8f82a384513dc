"""Stochastic gradient descent as the papers ran it."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_ssd.schedules import rate_dtype


@keras.saving.register_keras_serializable(package="keras_ssd")
class SGD(keras.optimizers.Optimizer):
    """SGD with momentum and L2 weight decay, the recurrence that the papers' numbers stand on.

    For a weight `w` with gradient `g`, velocity `v` (0 at the start) and rate `lr`:

        d = g + weight_decay * w
        v = momentum * v + d
        w = w - lr * (d + momentum * v if nesterov else v)

    `keras.optimizers.SGD` differs twice: its velocity contains the rate, so that after a drop of
    the rate old gradients keep acting at the old one; and its `weight_decay` shrinks the weights
    directly, without going through the velocity.

    The rate is held in float64 (float32 on TPUs), so that float64 weights see it exactly.

    Args:
        learning_rate: Finite number >= 0 (0 leaves every weight bit for bit as it is), a
            `LearningRateSchedule` such as those of `keras_ssd.schedules`, or a function without
            arguments.
        momentum: Number in 0..1.
        weight_decay: Finite number >= 0. Acts on **every** trainable weight, biases and batch
            normalisation included, except those named to `exclude_from_weight_decay`; after
            clipping.
        nesterov: Whether the step looks ahead along the velocity. Needs `momentum`.
        **options: Whatever else `keras.optimizers.Optimizer` takes: `clipnorm`, `clipvalue`,
            `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Raises:
        ValueError: If an argument is out of its range or unknown.

    Source: `torch.optim.SGD` (dampening 0), which SSKD, CRD and HSAKD use with momentum 0.9 and
    weight decay 5e-4 (Xu et al. 2020, arXiv:2006.07114). A weight without gradient is skipped,
    a gradient of zeros still decays its weight: as there.
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], Any],
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Any,  # Keras' own, checked by Keras
    ) -> None:
        _check(momentum=momentum, weight_decay=weight_decay)
        if momentum > 1:
            raise ValueError(f"`momentum` must lie in 0..1, got {momentum}.")
        if nesterov and momentum == 0:
            raise ValueError("`nesterov=True` needs a `momentum` > 0: set both or neither.")
        is_constant = not callable(learning_rate)
        if is_constant:
            _check(learning_rate=learning_rate)
        # Keras would hold a constant in its default float type, float32: a function makes it wait.
        rate = (lambda: learning_rate) if is_constant else learning_rate
        super().__init__(rate, weight_decay=float(weight_decay), **options)
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)
        if is_constant:
            self._learning_rate = self.add_variable(
                (),
                initializer=lambda shape, dtype: tf.fill(shape, tf.constant(learning_rate, dtype)),
                dtype=rate_dtype(),
                aggregation="only_first_replica",
                name="learning_rate",
            )

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates one velocity a weight; none without momentum."""
        if self.built:
            return
        super().build(variables)
        if self.momentum:
            self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Moves one weight by one step."""
        # Numbers multiply tensors as they are: `ops.cast(0.9, "float64")` passes through float32.
        step = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            step = step + self.weight_decay * variable
        if self.momentum:
            velocity = self._velocities[self._get_variable_index(variable)]
            moved = self.momentum * velocity + step
            self.assign(velocity, moved)
            step = step + self.momentum * moved if self.nesterov else moved
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        """Keras' decay, which goes past the velocity: `update_step` has its own."""

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}


def _check(**numbers: Any) -> None:
    for name, value in numbers.items():
        if not (isinstance(value, Real) and 0 <= float(value) < math.inf):  # also refuses NaN
            raise ValueError(f"`{name}` must be a finite number >= 0, got {value!r}.")
