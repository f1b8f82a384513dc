"""Arguments that many losses and objectives are given, each checked in one place."""

from __future__ import annotations

import math
import numbers

import tensorflow as tf


def check_weight(name: str, weight: float) -> float:
    """Refuses weights that are no finite number >= 0."""
    if not (is_number(weight) and 0 <= weight < math.inf):
        raise ValueError(f"`{name}` must be a finite number >= 0, got {weight!r}.")
    return float(weight)


def check_temperature(temperature: float) -> float:
    """Refuses temperatures that are no finite number > 0."""
    if not (is_number(temperature) and 0 < temperature < math.inf):
        raise ValueError(f"`temperature` must be a finite number > 0, got {temperature!r}.")
    return float(temperature)


def is_number(value: object) -> bool:
    """Whether a value is a real number, and not True or False."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_option(name: str, option: str, known: tuple[str, ...]) -> None:
    """Refuses options that are not among the known ones."""
    if option not in known:
        raise ValueError(f"`{name}` must be one of {list(known)}, got {option!r}.")


def class_labels(labels: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Labels as int32, one a row.

    Raises:
        TypeError: If they are no integers.
        ValueError: If there is not one a row.
    """
    labels, rows = tf.convert_to_tensor(labels), tf.convert_to_tensor(rows)
    if not labels.dtype.is_integer:
        raise TypeError(f"`labels` must be integers [batch], got {labels.dtype.name}.")
    if labels.shape.rank != 1 or not labels.shape.is_compatible_with(rows.shape[:1]):
        raise ValueError(
            f"`labels` must be one class a row, shape {tuple(rows.shape[:1])}, got "
            f"{tuple(labels.shape)}: take the argmax of one-hot rows."
        )
    return tf.cast(labels, tf.int32)
