"""Callbacks for `fit`."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.data.order import epochs_of


class FollowEpoch(keras.callbacks.Callback):
    """Tells a training set of `data.load` which epoch runs, so that each has an order of its own.

    The order is a function of the seed given to `data.load` and the epoch alone, so that
    `fit(initial_epoch=e)` sees what a run from epoch 0 would have seen. The `Distiller` adds this
    callback by itself; a plain `model.fit` is given it:

        data = ssd.data.load("digits", batch_size=64)
        follow = ssd.callbacks.FollowEpoch(data.train)
        model.fit(data.train, epochs=10, callbacks=[follow])

    Without it every epoch has the order of epoch 0. A data set derived from a training set (by
    `.map`, `.take`, `.zip` and the like) is followed just as well.

    Keras carries one iterator on from epoch to epoch when `steps_per_epoch` differs from the number
    of batches; the order then depends on where the run began, which is warned about.

    Args:
        dataset: `Splits.train` or a data set derived from it: the one that `fit` is given.

    Raises:
        ValueError: If the order of `dataset` follows no epoch.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        super().__init__()
        self._epochs = epochs_of(dataset)
        if not self._epochs:
            raise ValueError(
                "FollowEpoch needs the `train` of `data.load` or a tf.data.Dataset derived from "
                f"it, got a {type(dataset).__name__} that follows no epoch: leave the callback out."
            )
        self._batches = int(dataset.cardinality())

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Warns where Keras' epochs will not be those of the data set."""
        steps, epochs = self.params.get("steps"), self.params.get("epochs", 1)
        if self._batches > 0 and steps not in (None, self._batches) and epochs > 1:
            warnings.warn(
                f"An epoch has {steps} steps but the training set {self._batches} batches, so "
                "epochs begin in the middle of an order and a resumed run sees other images: leave "
                "`steps_per_epoch` out, or give `fit` and FollowEpoch `data.train.take(steps)`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Sets the epoch; an iterator reads it when its first batch is asked for."""
        for variable in self._epochs:
            variable.assign(epoch)


def followed(callbacks: Any, dataset: Any) -> Any:
    """The callbacks given to `fit`, with a `FollowEpoch` where the data set needs one more.

    Args:
        callbacks: None, a callback, a list of them, or a `keras.callbacks.CallbackList`.
        dataset: What `fit` trains on.

    Returns:
        A list, or the `CallbackList` that was given.
    """
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.tree.flatten(callbacks or [])
    present = getattr(callbacks, "callbacks", callbacks)
    if epochs_of(dataset) and not any(isinstance(one, FollowEpoch) for one in present):
        follow = FollowEpoch(dataset)
        follow.set_params(getattr(callbacks, "params", None) or {})
        present.append(follow)
    return callbacks
