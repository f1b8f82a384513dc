"""The order of training images: a function of a seed and the epoch that a callback sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

_PREFIX = "keras_ssd/epoch/"
_EPOCHS: dict[str, tf.Variable] = {}  # also keeps them alive: a data set does not own its variables


def by_epoch(
    elements: Callable[[tf.Tensor], tf.data.Dataset], seed: int, size: int
) -> tf.data.Dataset:
    """A data set whose elements depend on `(seed, epoch)`, the epoch read when an iterator starts.

    The epoch is 0 until `callbacks.FollowEpoch` sets it. The data set and whatever is derived from
    it (`.map`, `.take`, `.zip`, ...) carry the name of the variable in the public option
    `framework_type`, a list of labels that TensorFlow hands on and otherwise only counts: that is
    how `epochs_of` finds the variable again.

    Args:
        elements: From an int64 pair `(seed, epoch)` to a data set, in graph mode. Its randomness
            must come from that pair alone.
        seed: Integer >= 0.
        size: How many elements there are in an epoch.

    Returns:
        A data set of known cardinality `size`.
    """
    with tf.device("CPU:0"):
        epoch = tf.Variable(0, trainable=False, dtype=tf.int64, name="epoch")
    label = f"{_PREFIX}{len(_EPOCHS)}"
    _EPOCHS[label] = epoch
    options = tf.data.Options()
    options.framework_type = [label]
    once = tf.data.Dataset.range(1)
    dataset = once.flat_map(lambda _: elements(tf.stack([seed, epoch.read_value()])))
    return dataset.apply(tf.data.experimental.assert_cardinality(size)).with_options(options)


def epochs_of(dataset: object) -> list[tf.Variable]:
    """The epoch variables that a data set reads, through any chain of transformations.

    Args:
        dataset: Anything; what is no `tf.data.Dataset` reads none.

    Returns:
        The int64 variables made by `by_epoch`, each once; empty when there is none.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return []
    labels = dict.fromkeys(dataset.options().framework_type or [])
    return [_EPOCHS[label] for label in labels if label in _EPOCHS]


def check_seed(seed: int) -> None:
    """Raises ValueError unless `seed` is an integer in [0, 2^32), what NumPy's generator takes."""
    is_integer = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not is_integer or not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be an integer in [0, 2^32), got {seed!r}.")
