"""The order of training images: a function of a seed and the epoch that a callback sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_ssd.arguments import is_integer

_PREFIX = "keras_ssd/epoch/"
_EPOCHS: dict[str, tf.Variable] = {}  # also keeps them alive: a data set does not own its variables


def by_epoch(
    elements: Callable[[tf.Tensor], tf.data.Dataset],
    seed: int,
    size: int,
    per_epoch: int | None = None,
) -> tf.data.Dataset:
    """A data set whose elements depend on `(seed, epoch)`, the epoch read when an iterator starts.

    Round k of the elements is `elements((seed, k))`. An epoch is a round, or, where `per_epoch` is
    given, the next so many elements of all rounds one after another.

    The epoch is 0 until `callbacks.FollowEpoch` sets it. The data set and whatever is derived from
    it (`.map`, `.take`, `.zip`, ...) carry the name of the variable in the public option
    `framework_type`, a list of labels that TensorFlow hands on and otherwise only counts: that is
    how `epochs_of` finds the variable again.

    Args:
        elements: From an int64 pair `(seed, round)` to a data set, in graph mode. Its randomness
            must come from that pair alone.
        seed: Integer >= 0.
        size: How many elements there are in a round.
        per_epoch: How many there are in an epoch, >= 1; None for a round.

    Returns:
        A data set of known cardinality `per_epoch`.
    """
    count = size if per_epoch is None else per_epoch
    with tf.device("CPU:0"):
        epoch = tf.Variable(0, trainable=False, dtype=tf.int64, name="epoch")
    label = f"{_PREFIX}{len(_EPOCHS)}"
    _EPOCHS[label] = epoch
    options = tf.data.Options()
    options.framework_type = [label]
    # Workers share the rows of each batch; by files each would have an order of its own.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA

    def of_epoch(_: tf.Tensor) -> tf.data.Dataset:
        start = epoch.read_value() * count
        rounds = tf.data.Dataset.range(start // size, (start + count - 1) // size + 1)
        endless = rounds.flat_map(lambda number: elements(tf.stack([seed, number])))
        return endless.skip(start % size).take(count)

    dataset = tf.data.Dataset.range(1).flat_map(of_epoch)
    return dataset.apply(tf.data.experimental.assert_cardinality(count)).with_options(options)


def permuted(rows: np.ndarray | tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """The rows in an order that two integers decide, the same on every machine."""
    return tf.random.experimental.stateless_shuffle(rows, seeds, alg="philox")


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
    if not is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be an integer in [0, 2^32), got {seed!r}.")
