"""Runs that are cut and go on, an epoch at a time: `callbacks.Backup`, and Keras' own."""

import functools
import itertools
import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

import keras_ssd as ssd
from keras_ssd.callbacks import Backup

from .tiny import KD, assert_equal, differs, distiller, everything, network, sgd

EPOCHS = 2
BATCHES = 2


def training_set():
    """One of `data.load`, whose order follows the epoch, for the networks of `tiny`."""
    train = ssd.data.load("digits", batch_size=32, validation=0).few_shot(0.06).train
    assert len(train) == BATCHES
    return train.map(lambda image, label: (image[:, ::2, ::2], label % 3))


@pytest.fixture(scope="module")
def images():
    return training_set()


def rate(epochs=EPOCHS):
    falling = ssd.schedules.cosine(0.1, epochs=epochs - 1, steps_per_epoch=BATCHES)
    return ssd.schedules.warm_up(falling, epochs=1, steps_per_epoch=BATCHES)


KINDS = {  # options of the optimizer, dtype policy
    "plain": ({}, "float32"),
    "averages": ({"use_ema": True, "ema_momentum": 0.5}, "float32"),
    "loss scale": ({}, "mixed_float16"),
}


def made(kind="plain", graph=False):
    """All that has a state: crops, dropout, batch normalisation, momentum, a schedule by step."""
    options, policy = KINDS[kind]
    keras.config.set_dtype_policy(policy)
    student = network(dropout=0.5)
    keras.config.set_dtype_policy("float32")
    preset = ssd.presets.labels_only(padding=1)
    optimizer = sgd(rate(), momentum=0.9, weight_decay=1e-3, **options)
    return distiller(preset, student=student, optimizer=optimizer, graph=graph)


class Cut(keras.callbacks.Callback):
    """Interrupts a run at the end of an epoch, or after the first batch of it."""

    def __init__(self, epoch, inside=False):
        super().__init__()
        self.epoch, self.inside, self.now = epoch, inside, 0

    def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        if self.inside and self.now == self.epoch:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        if epoch == self.epoch:
            raise KeyboardInterrupt


def run(model, images, *callbacks, epochs=EPOCHS):
    return model.fit(images, epochs=epochs, verbose=0, callbacks=[*callbacks])


def cut(model, images, backup, *where):
    with pytest.raises(KeyboardInterrupt):
        run(model, images, backup, Cut(*where))
    return model


@pytest.fixture(scope="module")
def undisturbed(images):
    """From the kind of a run to all its variables at the end, and its history."""

    @functools.cache
    def done(kind):
        model = made(kind)
        history = run(model, images).history
        return everything(model), history

    return done


KERAS = keras.callbacks.BackupAndRestore
CUTS = [  # kind, callback, epoch, whether inside it; the first ones are fast enough for every day
    ("plain", Backup, 0, False),
    ("plain", Backup, 1, True),
    ("averages", Backup, 1, True),
    ("loss scale", Backup, 1, True),
    ("plain", KERAS, 1, True),
]
REST = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in itertools.product(KINDS, (Backup, KERAS), (0, 1), (False, True))
    if case not in CUTS
]


@pytest.mark.parametrize(("kind", "callback", "epoch", "inside"), [*CUTS, *REST])
def test_a_run_that_was_cut_ends_as_an_undisturbed_one(
    kind, callback, epoch, inside, undisturbed, images, tmp_path
):
    expected, history = undisturbed(kind)
    cut(made(kind), images, callback(tmp_path / "run"), epoch, inside)
    keras.utils.set_random_seed(99)
    resumed = made(kind)
    rest = run(resumed, images, callback(tmp_path / "run"))
    assert_equal(everything(resumed), expected)
    assert rest.epoch == [*range(epoch if inside else epoch + 1, EPOCHS)]
    for name, values in rest.history.items():
        assert values == history[name][rest.epoch[0] :]


def test_the_same_distiller_goes_on_as_well(undisturbed, images, tmp_path):
    model = cut(made(), images, Backup(tmp_path), 1, True)
    run(model, images, Backup(tmp_path))
    assert_equal(everything(model), undisturbed("plain")[0])


def test_a_run_that_is_done_trains_nothing_more(undisturbed, images, tmp_path):
    """Its weights are the averages, as at its end."""
    run(made("averages"), images, Backup(tmp_path))
    again = made("averages")
    assert run(again, images, Backup(tmp_path)).epoch == []
    assert_equal(everything(again), undisturbed("averages")[0])


@pytest.mark.parametrize("callback", [Backup, KERAS])
def test_the_next_fit_begins_at_its_own_first_epoch(callback, images, tmp_path):
    model = cut(made(), images, callback(tmp_path / "run"), 0)
    run(model, images, callback(tmp_path / "run"))
    assert run(model, images, epochs=1).epoch == [0]


def test_a_second_stage_has_its_own_step_momentum_and_rate(images):
    model = made()
    run(model, images, epochs=1)
    student = [v.numpy() for v in model.student.variables]
    model.compile(sgd(rate(), momentum=0.9))
    assert_equal([v.numpy() for v in model.student.variables], student)
    optimizer = model.optimizer
    assert optimizer.iterations == 0
    assert optimizer.learning_rate == 0
    assert all(not v.numpy().any() for v in optimizer.variables if "velocity" in v.path)
    assert run(model, images, epochs=1).epoch == [0]
    assert optimizer.iterations == BATCHES


def test_a_folder_holds_the_last_epoch_alone(images, tmp_path):
    folder = tmp_path / "new" / "run"
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
            seen.append(os.listdir(folder))

    run(made(), images, Backup(folder), Look(), epochs=2)
    assert seen == [["epoch_000001.weights.h5"], ["epoch_000002.weights.h5"]]


def test_a_kill_while_files_change_leaves_a_run_that_goes_on(images, tmp_path):
    """Between the new file and the removal of the old one, or while a new one is written."""
    cut(made(), images, Backup(tmp_path), 1)
    (tmp_path / "epoch_000001.weights.h5").write_bytes(b"old")
    (tmp_path / ".partial-epoch_000003.weights.h5").write_bytes(b"half")
    assert run(made(), images, Backup(tmp_path), epochs=3).epoch == [2]
    assert os.listdir(tmp_path) == ["epoch_000003.weights.h5"]


def test_a_backup_of_another_run_is_refused(images, tmp_path):
    cut(made(), images, Backup(tmp_path), 0)
    others = [
        distiller(KD, student=network(dropout=0.5)),  # an optimizer without momentum
        distiller(KD, student=network(3, dropout=0.5), optimizer=sgd(momentum=0.9)),
    ]
    for model in others:
        with pytest.raises(ValueError, match="written by a run with another student or optimizer"):
            run(model, images, Backup(tmp_path))


def test_a_plain_model_of_keras_is_kept_as_well(tmp_path):
    def model():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(sgd(momentum=0.9), loss="mse")
        return model

    data = np.array([[1.0, 2.0], [3.0, 4.0]]), np.ones((2, 1))
    options = {"shuffle": False, "verbose": 0, "epochs": 2}
    whole, resumed = model(), model()
    whole.fit(*data, **options)
    with pytest.raises(KeyboardInterrupt):
        model().fit(*data, callbacks=[Backup(tmp_path), Cut(0)], **options)
    resumed.fit(*data, callbacks=[Backup(tmp_path)], **options)
    assert_equal(resumed.get_weights(), whole.get_weights())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "averages"])
def test_on_two_replicas(kind, images, two_replicas, tmp_path):
    def on_both():
        with two_replicas.scope():
            return made(kind, graph=True)

    whole = on_both()
    run(whole, images)
    cut(on_both(), images, Backup(tmp_path), 1, True)
    resumed = on_both()
    assert run(resumed, images, Backup(tmp_path)).epoch == [1]
    assert_equal(everything(resumed), everything(whole))


@pytest.mark.slow
def test_killed_processes_end_as_one_that_lives(tmp_path):
    """Three processes: the first two are killed in the midst of an epoch."""
    program = textwrap.dedent("""
        import os, signal, sys
        import keras, numpy as np
        from distiller.test_backup import Backup, made, run, training_set

        class Kill(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if self.model.optimizer.iterations == int(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)

        model = made()
        run(model, training_set(), Backup(sys.argv[1]), Kill())
        np.savez(sys.argv[3], *[v.numpy() for v in [*model.variables, *model.optimizer.variables]])
    """)

    def start(folder, step):
        arguments = [tmp_path / folder, str(step), tmp_path / f"{folder}.npz"]
        paths = os.pathsep.join(["tests", os.environ.get("PYTHONPATH", ".")])
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            check=False,
        ).returncode

    codes = [start("cut", step) for step in (1, BATCHES + 1, -1)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert start("whole", -1) == 0
    got, expected = (np.load(tmp_path / f"{name}.npz") for name in ("cut", "whole"))
    assert_equal([got[name] for name in expected], [expected[name] for name in expected])


def test_what_was_kept_makes_the_difference(images, tmp_path):
    """A run that begins anew at the same epoch has other weights: the tests above see it."""
    expected = made()
    run(expected, images)
    fresh = made()
    fresh.fit(images, initial_epoch=1, epochs=EPOCHS, verbose=0)
    assert differs(everything(fresh), everything(expected))


@pytest.mark.parametrize("left", [0, 100, -100])
def test_a_backup_that_was_cut_off_is_named(images, tmp_path, left):
    cut(made(), images, Backup(tmp_path), 0)
    (path,) = tmp_path.glob("*.h5")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"000001.weights.h5 cannot be read.* delete it, and the"):
        run(made(), images, Backup(tmp_path), epochs=2)


@pytest.mark.parametrize("folder", [None, 3, __file__])
def test_a_folder_of_backups_must_be_one(folder):
    with pytest.raises(ValueError, match="`folder` must be the path of a folder for this run, got"):
        Backup(folder)
