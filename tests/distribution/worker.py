"""One worker of a job: `-m distribution.worker FOLDER HOW`, HOW a name of `HOW` below."""

import os
import pathlib
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from distiller.one_and_two import examples, network, sgd

import keras_ssd as ssd

EPOCHS = 4


class DieIn(keras.callbacks.Callback):
    """Ends the process in the middle of the epoch, as the system does."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        self.now = None

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        if (self.now, batch) == (self.epoch, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def train(strategy, folder, dies=None):
    """Trains with backups, logs and checkpoints, and writes this worker's weights."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        teacher, student = network(8, "own", seed=0), network(8, "own")
        distiller = ssd.Distiller(teacher, student, **ssd.presets.sskd())
        distiller.compile(sgd(use_ema=True), metrics=["accuracy"])
    data = tf.data.Dataset.from_tensor_slices(examples(36)).batch(12)
    callbacks = [
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
        keras.callbacks.ModelCheckpoint(folder / "last.keras"),
        *([] if dies is None else [DieIn(dies)]),
        ssd.callbacks.Backup(folder / "backup"),
    ]
    distiller.fit(data, validation_data=data, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    ssd.export_student(distiller, folder / "student")
    index = strategy.cluster_resolver.task_id
    np.savez(folder / f"weights_{index}.npz", *distiller.student.get_weights())


def backups_of_their_own(strategy, folder):
    """Each worker has a folder that the other one does not see; one of them holds an epoch."""
    index = strategy.cluster_resolver.task_id
    own = folder / f"backup_{index}"
    if index == 0:
        own.mkdir()
        (own / "epoch_000002.weights.h5").touch()
    with strategy.scope():
        distiller = ssd.Distiller(student=network(4), **ssd.presets.labels_only())
        distiller.compile(sgd())
    data = tf.data.Dataset.from_tensor_slices(examples(4)).batch(4)
    distiller.fit(data, verbose=0, callbacks=[ssd.callbacks.Backup(own)])


def distiller(strategy, folder):
    """A Distiller of which nothing is wrong but the strategy."""
    with strategy.scope():
        ssd.Distiller(student=network(4), **ssd.presets.labels_only())


def dense_model(strategy, folder):
    """A plain model with a metric, whose sums Keras adds up over the workers."""
    with strategy.scope():
        model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
        model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.ones([4, 3]), np.ones([4, 2]), batch_size=4, verbose=0)


def plain_model(strategy, folder):
    """A plain model on 8-bit images, with validation, which Keras trains under our strategy."""
    with strategy.scope():
        model = keras.Sequential([keras.Input([8, 8, 3]), keras.layers.Flatten()])
        model.add(keras.layers.Dense(3))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices(examples(10)).batch(4)
    model.fit(data, validation_data=data, verbose=0)


def files_are_there(strategy, folder):
    """What has just been saved can be read on every worker."""
    with strategy.scope():
        saved = ssd.Distiller(student=network(4), **ssd.presets.labels_only())
        saved.compile(sgd())
    saved.save_weights(folder / "saved.weights.h5")
    saved.load_weights(folder / "saved.weights.h5")
    with ssd.distribution.chief_path(folder / "slow.txt", strategy) as path:
        if ssd.distribution.is_chief(strategy):
            time.sleep(1)  # the others are here long before
        path.write_text("there")
    assert (folder / "slow.txt").read_text() == "there"


def keras_backups(strategy, folder):
    """The backups of Keras, which all workers would write."""
    with strategy.scope():
        distiller = ssd.Distiller(student=network(4), **ssd.presets.labels_only())
        distiller.compile(sgd())
    backup = keras.callbacks.BackupAndRestore(folder / "of_keras")
    distiller.fit(*examples(4), verbose=0, callbacks=[backup])


def another_strategy(strategy, folder):
    """A second strategy in a process, whose collectives TensorFlow would take for the first's."""
    with ssd.distribution.get_strategy("multi_worker").scope():
        model = keras.Sequential([keras.Input([5]), keras.layers.Dense(3)])
    assert model.distribute_strategy is strategy


def tell(*attempts):
    """Makes attempts one after the other, and prints what is raised."""

    def attempt_all(strategy, folder):
        for attempt in attempts:
            try:
                attempt(strategy, folder)
            except Exception as error:  # whatever it is: the test looks at it
                words = f"{type(error).__name__}: {error}".partition("\n")[0]
            else:
                words = "nothing"
            print(f"{attempt.__name__}: {words}", flush=True)

    return attempt_all


def ours():
    """The strategy that users take."""
    return ssd.distribution.get_strategy("multi_worker", timeout=120)


def dies_if(strategy, victim):
    """The epoch in which this worker dies, or None."""
    return 2 if strategy.cluster_resolver.task_id == victim else None


HOW = {  # name: (strategy, what is done under it)
    "whole": (ours, train),
    "first dies": (ours, lambda strategy, folder: train(strategy, folder, dies_if(strategy, 0))),
    "second dies": (ours, lambda strategy, folder: train(strategy, folder, dies_if(strategy, 1))),
    "mistakes": (
        ours,
        tell(
            plain_model,
            dense_model,
            another_strategy,
            files_are_there,
            keras_backups,
            backups_of_their_own,
        ),
    ),
    "bare": (tf.distribute.MultiWorkerMirroredStrategy, tell(distiller, dense_model)),
}


if __name__ == "__main__":
    make_strategy, work = HOW[sys.argv[2]]
    work(make_strategy(), pathlib.Path(sys.argv[1]))
