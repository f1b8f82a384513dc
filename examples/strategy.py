"""`--strategy`: on which devices, workers or TPU a script trains, and which worker writes files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf
from absl import flags

import keras_ssd as ssd

_STRATEGY = flags.DEFINE_string(
    "strategy", "default", "default, mirrored, multi_worker (TF_CONFIG), tpu[:ADDRESS] or auto."
)
_Function = TypeVar("_Function", bound=Callable)


@functools.cache
def strategy() -> tf.distribute.Strategy:
    """The strategy of the flag; the first call comes before anything of TensorFlow runs."""
    try:
        return ssd.distribution.get_strategy(_STRATEGY.value)
    except (ValueError, TimeoutError, RuntimeError) as error:
        raise SystemExit(f"--strategy={_STRATEGY.value}: {error}") from None


def in_scope(function: _Function) -> _Function:
    """The function in the strategy's scope: what builds networks and Distillers."""

    @functools.wraps(function)
    def scoped(*args, **options):
        with strategy().scope():
            return function(*args, **options)

    return scoped


def is_chief() -> bool:
    """Whether this worker writes the files."""
    return ssd.distribution.is_chief(strategy())


def given_precision() -> str | None:
    """The dtype policy where it cannot be measured; None where one process decides by itself."""
    if isinstance(strategy(), tf.distribute.TPUStrategy):
        return "mixed_bfloat16"
    workers = isinstance(strategy(), ssd.distribution.MultiWorkerStrategy)
    return "float32" if workers else None
