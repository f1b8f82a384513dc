"""Callbacks for `fit`."""

from __future__ import annotations

import os
import pathlib
import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.data.order import epochs_of
from keras_ssd.distribution import MultiWorkerStrategy, check_same, chief_path, is_chief
from keras_ssd.whole_files import replaced_when_complete


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


class Backup(keras.callbacks.Callback):
    """Keeps what a run needs to go on after each epoch; a run that is cut goes on there.

    The same lines started again, in a new process or not, give what an undisturbed run gives, bit
    for bit: weights, batch-norm statistics, random states, optimizer (velocity, averages, step and
    with it schedule and views) and the epoch, which the order of `Splits.train` follows. An epoch
    that was cut is begun again. A run that is done trains nothing more and has its last weights.

    `keras.callbacks.BackupAndRestore` does the same with two files, one behind the other: killed
    between the two it repeats an epoch without a word, killed in the second it starts no more; and
    it deletes both when the run is done, so that the run begins anew.

    Of several workers the chief writes and all read, so that the folder must be one that they
    share; each of them gives this callback.

    Not kept are what other callbacks remember (put this one last), an order of images that is
    shuffled otherwise, and the random state of a teacher with dropout under
    `teacher_batch_norm="batch_update"`.

    Args:
        folder: A folder for this run alone, made if it is not there. It holds one file,
            `epoch_000012.weights.h5` after 12 epochs.

    Raises:
        ValueError: If `folder` is no path of a folder; in `fit`, if the file is of a run with
            another student or optimizer, or cannot be read.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        super().__init__()
        if not isinstance(folder, str | os.PathLike) or pathlib.Path(folder).is_file():
            raise ValueError(f"`folder` must be the path of a folder for this run, got {folder!r}.")
        self._folder = pathlib.Path(folder)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Goes back to the end of the last epoch that was kept."""
        kept = self._kept()
        epoch = max(kept, default=0)
        check_same(self.model.distribute_strategy, "The last epoch of the backups", epoch)
        if not kept:
            return
        if not self.model.optimizer.built:  # a plain model's, until its first step
            self.model.optimizer.build(self.model.trainable_variables)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Skipping variable loading")
            try:
                self.model.load_weights(kept[epoch])
            except (UserWarning, ValueError) as error:
                raise ValueError(
                    f"{kept[epoch]} was written by a run with another student or optimizer: make "
                    "them as then, or give each run a folder of its own."
                ) from error
            except OSError as error:
                raise ValueError(
                    f"{kept[epoch]} cannot be read, as it was cut off or changed: delete it, and "
                    "the run begins anew."
                ) from error
        self.model._initial_epoch = epoch  # as Keras' own callback; nothing public does it

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Keeps this epoch in place of those before."""
        strategy = self.model.distribute_strategy
        name = self._folder / f"epoch_{epoch + 1:06d}.weights.h5"
        with chief_path(name, strategy) as path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_when_complete(path) as partial:
                keras.Model.save_weights(self.model, partial)  # a Distiller's asks for the chief
        if is_chief(strategy):
            for other in set(self._kept().values()) - {name}:
                other.unlink()

    def _kept(self) -> dict[int, pathlib.Path]:
        files = self._folder.glob("epoch_*.weights.h5")
        return {int(path.name[len("epoch_") :].partition(".")[0]): path for path in files}


_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)


def of_this_worker(callbacks: Any, strategy: tf.distribute.Strategy) -> Any:
    """The callbacks given to `fit`, without those that only write logs where the chief does.

    Args:
        callbacks: A list of callbacks, or a `keras.callbacks.CallbackList`.
        strategy: The strategy of `fit`.

    Returns:
        The same, changed.

    Raises:
        ValueError: If one of them cannot work with several workers.
    """
    present = getattr(callbacks, "callbacks", callbacks)
    restores = any(isinstance(one, keras.callbacks.BackupAndRestore) for one in present)
    if restores and isinstance(strategy, MultiWorkerStrategy):
        raise ValueError(
            "`keras.callbacks.BackupAndRestore` writes and deletes the same files on all workers: "
            "use `keras_ssd.callbacks.Backup(folder)`."
        )
    if not is_chief(strategy):
        present[:] = [one for one in present if not isinstance(one, _WRITERS)]
    return callbacks


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
