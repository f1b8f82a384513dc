"""Learning-rate schedules given in epochs, for any Keras optimizer.

Optimizers count steps, so every schedule is told how many steps an epoch has. Epochs count from 0:
epoch 150 is the first at the reduced rate of `steps_at(..., epochs=[150], ...)`. The rate is
computed in float64, so that float64 weights see it to the last digit; optimizers cast it to the
type of each weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_ssd.arguments import check_count, check_not_negative, is_integer


def steps_at(
    learning_rate: float, *, epochs: Sequence[int], factor: float = 0.1, steps_per_epoch: int
) -> LearningRateSchedule:
    """A rate that is multiplied by `factor` at the start of each of `epochs`.

    Args:
        learning_rate: Rate of epoch 0, a finite number >= 0.
        epochs: Strictly increasing epochs, from 0. Empty: the rate stays.
        factor: Finite number > 0 that the rate is multiplied by; the default is the papers'.
        steps_per_epoch: Optimizer steps an epoch, >= 1.

    Returns:
        A serialisable schedule: step to rate.

    Raises:
        ValueError: If an argument is out of its range.

    Source: `MultiStepLR` as SSKD, CRD and HSAKD use it; epochs 150, 180 and 210 of 240 in Xu et
    al. 2020, arXiv:2006.07114, on CIFAR-100. The running value is multiplied, as there.
    """
    check_not_negative("learning_rate", learning_rate)
    check_count("steps_per_epoch", steps_per_epoch)
    if not 0 < factor < math.inf:  # also refuses NaN
        raise ValueError(f"`factor` must be a finite number > 0, got {factor}.")
    epochs = list(epochs)
    increasing = all(before < after for before, after in zip([-1, *epochs], epochs, strict=False))
    if not increasing or not all(is_integer(epoch) for epoch in epochs):
        raise ValueError(
            f"`epochs` must be strictly increasing whole numbers from 0 up, got {epochs}."
        )
    rates = [float(learning_rate)]
    for _ in epochs:
        rates.append(rates[-1] * factor)
    return PiecewiseRate([int(epoch) * int(steps_per_epoch) for epoch in epochs], rates)


def cosine(
    learning_rate: float, *, epochs: int, steps_per_epoch: int, final: float = 0.0
) -> LearningRateSchedule:
    """A rate that falls along half a cosine from `learning_rate` to `final`, step by step.

    `final + (learning_rate - final) * (1 + cos(pi * step / steps)) / 2` over the
    `steps = epochs * steps_per_epoch`, and `final` from then on.

    Args:
        learning_rate: Rate of the first step, a finite number >= 0.
        epochs: Epochs until `final` is reached, >= 1 (without those of a warm-up).
        steps_per_epoch: Optimizer steps an epoch, >= 1.
        final: Rate at the end, a finite number >= 0.

    Returns:
        A serialisable schedule: step to rate.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, section 3, without restarts; SSLD.
    """
    check_not_negative("learning_rate", learning_rate)
    check_not_negative("final", final)
    check_count("epochs", epochs)
    check_count("steps_per_epoch", steps_per_epoch)
    return CosineRate(float(learning_rate), int(epochs) * int(steps_per_epoch), float(final))


def warm_up(
    schedule: LearningRateSchedule, *, epochs: int, steps_per_epoch: int, start: float = 0.0
) -> LearningRateSchedule:
    """Raises the rate in a straight line from `start` to where `schedule` begins, then follows it.

    Step `s` of the `W = epochs * steps_per_epoch` steps of warm-up has the rate
    `start + (schedule(0) - start) * s / W`; step `W + s` has `schedule(s)`. So **the epochs of
    `schedule` count from the end of the warm-up**: with 5 epochs of warm-up, `epochs=[150]` in
    `steps_at` is epoch 155 of the training.

    Args:
        schedule: What follows, from this module or from Keras.
        epochs: Epochs of warm-up, >= 1.
        steps_per_epoch: Optimizer steps an epoch, >= 1.
        start: Rate of the first step, a finite number >= 0.

    Returns:
        A serialisable schedule: step to rate.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If `schedule` is no `LearningRateSchedule`.

    Source: SSLD's recipes. HSAKD's code counts milestones from the end of the warm-up, too, but
    its ramp is one step ahead: `(s + 1) / W`.
    """
    if not isinstance(schedule, LearningRateSchedule):
        raise TypeError(
            f"`schedule` must be a LearningRateSchedule, got {schedule!r}: a constant rate is "
            "`steps_at(0.05, epochs=[], steps_per_epoch=...)`."
        )
    check_count("epochs", epochs)
    check_count("steps_per_epoch", steps_per_epoch)
    check_not_negative("start", start)
    return WarmUpRate(schedule, int(epochs) * int(steps_per_epoch), float(start))


def rate_dtype() -> str:
    """The dtype of a learning rate: float64, or float32 on TPUs, which have no float64."""
    on_tpu = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)
    return "float32" if on_tpu else "float64"


@keras.saving.register_keras_serializable(package="keras_ssd")
class PiecewiseRate(LearningRateSchedule):
    """What `steps_at` returns: `rates[k]` from step `boundaries[k - 1]` on."""

    def __init__(self, boundaries: Sequence[int], rates: Sequence[float]) -> None:
        self.boundaries = list(boundaries)
        self.rates = list(rates)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The rate of optimizer step `step`, counted from 0."""
        passed = ops.cast(step, "int64") >= ops.convert_to_tensor(self.boundaries, "int64")
        rates = ops.convert_to_tensor(self.rates, rate_dtype())
        return ops.take(rates, ops.sum(ops.cast(passed, "int32")))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"boundaries": self.boundaries, "rates": self.rates}


@keras.saving.register_keras_serializable(package="keras_ssd")
class CosineRate(LearningRateSchedule):
    """What `cosine` returns."""

    def __init__(self, learning_rate: float, steps: int, final: float) -> None:
        self.learning_rate = learning_rate
        self.steps = steps
        self.final = final

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The rate of optimizer step `step`, counted from 0."""
        progress = ops.minimum(ops.cast(step, rate_dtype()) / self.steps, 1.0)
        height = (1.0 + ops.cos(math.pi * progress)) / 2.0
        return self.final + (self.learning_rate - self.final) * height

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"learning_rate": self.learning_rate, "steps": self.steps, "final": self.final}


@keras.saving.register_keras_serializable(package="keras_ssd")
class WarmUpRate(LearningRateSchedule):
    """What `warm_up` returns."""

    def __init__(self, schedule: LearningRateSchedule, steps: int, start: float) -> None:
        self.schedule = schedule
        self.steps = steps
        self.start = start

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The rate of optimizer step `step`, counted from 0."""
        step = ops.cast(step, "int64")
        rate = ops.cast(self.schedule(ops.maximum(step - self.steps, 0)), rate_dtype())
        progress = ops.cast(step, rate_dtype()) / self.steps
        return ops.where(step < self.steps, self.start + (rate - self.start) * progress, rate)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "steps": self.steps, "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WarmUpRate:
        """The schedule that `get_config` describes."""
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(**{**config, "schedule": schedule})
