import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd
from keras_ssd.objectives import HardLabels

from .tiny import (
    IMAGES,
    KD,
    LABELS,
    LABELS_ONLY,
    assert_equal,
    distiller,
    evaluate,
    everything,
    fit,
    network,
    sgd,
    step,
    teacher_network,
    trained,
)


def chancy():
    """Random views, dropout, batch normalisation, momentum: everything that has a state."""
    student = network(dropout=0.5)
    return distiller(student=student, graph=True, optimizer=sgd(0.05, momentum=0.9))


def all_variables(model):
    values = [v.value for v in [*model.variables, *model.optimizer.variables]]
    return tf.train.Checkpoint(variables=values)


def from_keras_file(folder):
    model = keras.models.load_model(folder / "model.keras")
    model.set_teacher(teacher_network())
    return model


def from_weights(folder):
    model = chancy()
    model.load_weights(folder / "model.weights.h5")
    return model


def from_checkpoint(folder):
    model = chancy()
    all_variables(model).read(str(folder / "checkpoint")).assert_consumed()
    return model


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder with what was saved after two epochs, and all variables after two more."""
    folder = tmp_path_factory.mktemp("saved")
    model = chancy()
    fit(model, epochs=2)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    all_variables(model).write(str(folder / "checkpoint"))
    fit(model, epochs=2)
    return folder, everything(model)


@pytest.mark.parametrize("read", [from_keras_file, from_weights, from_checkpoint])
def test_a_resumed_run_is_the_uninterrupted_one(read, interrupted):
    folder, expected = interrupted
    model = read(folder)
    keras.utils.set_random_seed(99)
    fit(model, epochs=2)
    assert_equal(everything(model), expected)


def test_random_states_make_the_difference(interrupted):
    folder, expected = interrupted
    model = from_keras_file(folder)
    (state,) = (v for v in model.variables if "seed" in v.path)
    state.assign(state + 1)
    fit(model, epochs=2)
    assert any((one != other).any() for one, other in zip(everything(model), expected, strict=True))


class Interrupt(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        if epoch == 1:
            raise KeyboardInterrupt


def test_backup_and_restore(tmp_path):
    def run(*callbacks):
        model = distiller(KD, student=network(dropout=0.5), optimizer=sgd(momentum=0.9))
        try:
            fit(model, epochs=4, callbacks=[*callbacks])
        except KeyboardInterrupt:
            return None
        return everything(model)

    backup = tmp_path / "backup"
    assert run(keras.callbacks.BackupAndRestore(backup), Interrupt()) is None
    assert_equal(run(keras.callbacks.BackupAndRestore(backup)), run())


def test_model_checkpoint(tmp_path):
    model = distiller(LABELS_ONLY)
    path = tmp_path / "best.keras"
    keep = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    fit(model, callbacks=[keep], validation_data=(IMAGES, LABELS))
    assert_equal(everything(keras.models.load_model(path)), everything(model))


# --- What a file holds ------------------------------------------------------------------------


def test_compiled_settings_survive(tmp_path):
    model = distiller(
        {"objectives": [HardLabels(0.5, label_smoothing=0.1, name="smooth")], "seed": 7},
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)],
        weighted_metrics=["accuracy"],
        evaluate_views=True,
    )
    step(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = evaluate(model)
    assert {"accuracy", "weighted_accuracy", "smooth"} < expected.keys()
    assert evaluate(loaded) == expected
    assert loaded.seed == 7
    assert loaded.run_eagerly
    assert step(loaded) == step(model)
    assert_equal(everything(loaded), everything(model))


def test_views_and_objectives_survive(interrupted):
    model = from_keras_file(interrupted[0])
    fresh = chancy()
    assert model.views.get_config() == fresh.views.get_config()
    assert [o.get_config() for o in model.objectives] == [o.get_config() for o in fresh.objectives]
    assert type(model.optimizer) is ssd.optimizers.SGD


def test_loss_scale_survives(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = distiller(LABELS_ONLY)
    keras.config.set_dtype_policy("float32")
    step(model)
    model.optimizer.dynamic_scale.assign(64)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(loaded.optimizer.inner_optimizer, ssd.optimizers.SGD)
    assert_equal(everything(loaded), everything(model))
    assert step(loaded) == step(model)


def test_uncompiled_distiller_is_loaded_uncompiled(tmp_path):
    model = ssd.Distiller(student=network(), **LABELS_ONLY)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.compiled
    assert_equal(trained(loaded), trained(model))


def test_loaded_distiller_asks_for_its_teacher(interrupted):
    model = keras.models.load_model(interrupted[0] / "model.keras")
    with pytest.raises(ValueError, match=r"the Distiller has none.*set_teacher"):
        fit(model)


def test_file_of_another_student(tmp_path, interrupted):
    model = distiller(LABELS_ONLY)  # without dropout: no random state
    with pytest.raises(ValueError, match="holds 1 random states and this Distiller has 0"):
        model.load_weights(interrupted[0] / "model.weights.h5")


# --- How a file is written --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"), [("save", "m.keras"), ("save_weights", "m.weights.h5")]
)
def test_a_save_that_fails_leaves_the_earlier_file(method, name, tmp_path, monkeypatch):
    model = distiller(LABELS_ONLY)
    path = tmp_path / name
    getattr(model, method)(path)
    earlier = path.read_bytes()

    def broken(self, filepath, **options):
        with open(filepath, "wb") as file:
            file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(keras.Model, method, broken)
    with pytest.raises(OSError, match="no space left"):
        getattr(model, method)(path)
    assert path.read_bytes() == earlier
    assert os.listdir(tmp_path) == [name]


def test_overwriting(tmp_path):
    model = distiller(LABELS_ONLY)
    path = tmp_path / "m.keras"
    for _ in range(2):
        step(model)
        model.save(str(path))
    assert_equal(trained(keras.models.load_model(path)), trained(model))
    assert os.listdir(tmp_path) == ["m.keras"]


# --- Export -----------------------------------------------------------------------------------


def test_export_hands_its_options_on(tmp_path):
    model = distiller(LABELS_ONLY)
    model.export(tmp_path / "student", outputs="probabilities", class_names=["a", "b", "c"])
    exported = tf.saved_model.load(tmp_path / "student")
    assert list(exported.signatures["serving_default"].structured_outputs) == ["probabilities"]
    assert (tmp_path / "student" / "assets" / "class_names.txt").read_text() == "a\nb\nc\n"


@pytest.mark.parametrize("options", [{}, {"verbose": False}])
def test_export_is_the_student_alone(options, tmp_path):
    model = distiller(KD)
    step(model)
    model.export(tmp_path / "student", **options)
    exported = tf.saved_model.load(tmp_path / "student")
    serve = exported.signatures["serving_default"]
    (argument,) = serve.structured_input_signature[1]
    got = serve(**{argument: tf.constant(IMAGES)})
    assert len(got) == 1
    (logits,) = got.values()
    np.testing.assert_allclose(logits, model.predict(IMAGES, verbose=0), rtol=1e-5)
    head = model.student.get_layer("head")
    names = tf.train.list_variables(str(tmp_path / "student" / "variables" / "variables"))
    held = {tuple(shape) for _, shape in names}
    assert tuple(model.student.layers[-2].kernel.shape) in held
    assert tuple(head.kernel.shape) not in held
