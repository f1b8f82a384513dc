import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from keras_ssd.data.order import by_epoch
from keras_ssd.distiller import preflight
from keras_ssd.objectives import HardLabels, SimilarityTransfer
from keras_ssd.views import Rotations

from .tiny import (
    IMAGES,
    KD,
    LABELS,
    LABELS_ONLY,
    SSKD,
    assert_equal,
    differs,
    distiller,
    evaluate,
    fit,
    network,
    sgd,
    step,
    teacher_network,
    trained,
)

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
UNLABELED = np.where(np.arange(12) % 4 == 1, -1, LABELS)

# --- compile ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "sparse_categorical_crossentropy"}, "names mean the form that expects prob"),
        ({"loss": "mse"}, "names mean the form that expects probabilities: give an object"),
        ({"loss": keras.losses.SparseCategoricalCrossentropy()}, "`loss` .*expects probabilities"),
        ({"loss": keras.losses.sparse_categorical_crossentropy}, "`loss` .*expects probabilities"),
        ({"metrics": ["categorical_crossentropy"]}, "`metrics` .*expects probabilities"),
        ({"metrics": {"logits": "accuracy"}}, "`metrics` must be a list"),
        ({"metrics": [keras.metrics.Mean(name="hard_labels")]}, "Two metrics are named 'hard_la"),
    ],
)
def test_compile_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        distiller(LABELS_ONLY, **options)


def test_compile_without_a_loss_after_one_with_it():
    student = network(batch_norm=False, kernel_regularizer=keras.regularizers.L2(0.01))
    model = distiller(LABELS_ONLY, student=student, optimizer=sgd(0.0), loss=CROSS_ENTROPY)
    both = step(model)
    model.compile(optimizer=sgd(0.0), run_eagerly=True)
    alone = step(model)
    assert alone["loss"] > alone["hard_labels"]
    assert both["loss"] == pytest.approx(alone["loss"] + alone["hard_labels"])


def test_optimizer_holds_slots_of_the_student_alone():
    model = distiller(KD, optimizer=sgd(momentum=0.9))
    slots = [v for v in model.optimizer.variables if "velocity" in v.path]
    assert [s.shape for s in slots] == [v.shape for v in model.student.trainable_variables]


# --- What is shown in which phase -------------------------------------------------------------


def test_every_phase_shows_its_own_numbers():
    trained_once, model = (distiller(KD, graph=True, metrics=["accuracy"]) for _ in range(2))
    expected = fit(trained_once)
    assert expected.keys() == {
        "loss", "hard_labels", "soft_labels", "teacher_agreement", "accuracy",
    }  # fmt: skip

    tested = model.test_on_batch(IMAGES, LABELS, return_dict=True)
    assert tested.keys() == {"loss", "accuracy"}
    assert evaluate(model)["loss"] == pytest.approx(tested["loss"])
    assert fit(model) == expected

    history = fit(model, validation_data=(IMAGES, LABELS))
    shown = {name.removeprefix("val_"): v[0] for name, v in history.items() if "val_" in name}
    assert shown == evaluate(model)
    second = fit(trained_once)
    assert {name: history[name] for name in second} == second
    got = evaluate(model)
    in_order = model.evaluate(IMAGES, LABELS, batch_size=5, verbose=0)
    assert in_order == [got["loss"], got["accuracy"]]


def test_evaluation_before_compile():
    model = ssd.Distiller(student=network(), **LABELS_ONLY)
    for method in (model.evaluate, model.test_on_batch):
        with pytest.raises(ValueError, match=r"Call `compile\(\)` before"):
            method(IMAGES, LABELS)
    assert model.metrics == []


# --- fit --------------------------------------------------------------------------------------


def test_class_weight_is_a_weight_an_image():
    by_class, by_dataset, by_image = (distiller() for _ in range(3))
    of_class = {0: 0.5, 1: 2.0, 2: 0.0}
    fit(by_class, class_weight=of_class)
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(5)
    by_dataset.fit(dataset, class_weight=of_class, verbose=0)
    fit(by_image, sample_weight=np.array([of_class[label] for label in LABELS]))
    assert_equal(trained(by_class), trained(by_image))
    assert_equal(trained(by_dataset), trained(by_image))


@pytest.mark.parametrize(
    "labels",
    [UNLABELED, tf.constant(UNLABELED), np.eye(4)[UNLABELED][:, :3]],
    ids=["array", "tensor", "one-hot"],
)
def test_class_weight_with_unlabeled_images(labels):
    model = distiller(LABELS_ONLY)
    with pytest.raises(ValueError, match="`class_weight` has no weight for unlabeled images"):
        fit(model, labels=labels, class_weight={0: 1.0, 1: 1.0, 2: 1.0})


def test_order_follows_the_epoch():
    def elements(seed_and_epoch):
        label = tf.cast(seed_and_epoch[1] % 3, tf.int32)
        return tf.data.Dataset.from_tensors((IMAGES[:4], tf.fill([4], label)))

    model = distiller(LABELS_ONLY, student=network(batch_norm=False), optimizer=sgd(0.0))
    data = by_epoch(elements, seed=0, size=1)
    losses = model.fit(data, epochs=3, verbose=0).history["loss"]
    resumed = model.fit(data, epochs=3, initial_epoch=2, verbose=0).history["loss"]
    by_label = [evaluate(model, IMAGES[:4], np.full(4, label))["loss"] for label in range(3)]
    assert losses == pytest.approx(by_label)
    assert resumed == pytest.approx(by_label[2:])
    callbacks = [ssd.callbacks.FollowEpoch(data)]
    again = model.fit(data, epochs=3, verbose=0, callbacks=callbacks).history["loss"]
    assert again == losses


# --- Values that do not fit -------------------------------------------------------------------


def without_rescaling():
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layers.Dense(3)(layers.Flatten()(images)))


UNIT = (IMAGES / 255).astype("float32")
MISFITS = [
    (network, UNIT, r"normalises raw images \(0..255\) itself, but the images lie in 0..1"),
    (network, UNIT * 4 - 2, "normalises raw images .* -2..2"),
    (without_rescaling, IMAGES, "has no layer that normalises, but the images lie in 0..255"),
]


@pytest.mark.parametrize("form", ["array", "dataset", "dict"])
@pytest.mark.parametrize(("make", "images", "message"), MISFITS)
def test_values_that_do_not_fit_warn_once(make, images, message, form):
    model = distiller(LABELS_ONLY, student=make())
    given = {"image": images} if form == "dict" else images
    if form == "dataset":
        given = tf.data.Dataset.from_tensor_slices((images, LABELS)).batch(6)
    labels = None if form == "dataset" else LABELS
    with pytest.warns(UserWarning, match=message) as caught:
        model.fit(given, labels, verbose=0)
    assert len(caught) == 1
    model.fit(given, labels, verbose=0)  # a warning would be an error


@pytest.mark.parametrize(
    ("make", "images"),
    [(network, IMAGES), (without_rescaling, UNIT), (without_rescaling, UNIT * 4 - 2)],
)
def test_values_that_fit(make, images):
    fit(distiller(LABELS_ONLY, student=make()), images)


def test_values_of_the_teacher():
    teacher = network(30)
    model = distiller(KD, student=without_rescaling(), teacher=teacher)
    with pytest.warns(UserWarning, match="The teacher .* normalises raw images"):
        fit(model, UNIT)
    model = ssd.Distiller(
        teacher=teacher,
        student=without_rescaling(),
        **KD,
        teacher_preprocessing=layers.Rescaling(255),
    )
    model.compile(optimizer=sgd(), run_eagerly=True)
    fit(model, UNIT)


def test_teacher_that_is_smaller_than_the_student():
    with pytest.warns(UserWarning, match=r"fewer parameters \(139\) than the student \(207\)"):
        ssd.Distiller(teacher=network(), student=teacher_network(), **KD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ssd.Distiller(teacher=teacher_network(), student=network(), **SSKD)
        heads = ssd.models.build("resnet8", num_classes=3, input_shape=(8, 8, 3))
        plain = ssd.models.build("resnet14", num_classes=3, input_shape=(8, 8, 3))
        student = ssd.with_auxiliary_classifiers(heads)
        assert plain.count_params() < student.count_params()
        ssd.Distiller(teacher=plain, student=student, **KD)


def test_teacher_without_logits():
    whole = teacher_network()
    teacher = keras.Model(whole.input, {"projection": whole.output["projection"]})
    objectives = [HardLabels(), SimilarityTransfer()]
    model = ssd.Distiller(teacher, network(), objectives, Rotations(padding=1))
    model.compile(optimizer="sgd", run_eagerly=True)
    before = trained(model)
    fit(model)
    assert differs(trained(model), before)


# --- Names, custom layers, callbacks --------------------------------------------------------------


def test_a_term_may_have_the_name_of_the_evaluations_loss():
    named = {"objectives": [HardLabels(0.1, name="cross_entropy")]}
    shown = evaluate(distiller(named))
    assert shown == {"loss": pytest.approx(evaluate(distiller(LABELS_ONLY))["loss"], rel=1e-6)}


def test_a_softmax_teacher_may_teach_similarities():
    teacher = teacher_network(activation="softmax")
    preset = {"objectives": [SimilarityTransfer()], "views": Rotations(padding=1)}
    assert np.isfinite(step(distiller(preset, teacher=teacher))["loss"])


@keras.saving.register_keras_serializable(package="test_distiller")
class Block(keras.layers.Layer):
    """A custom layer that holds another layer, which no `.layers` lists."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def test_layers_inside_custom_layers_are_found():
    student = network(first=Block(keras.layers.BatchNormalization(dtype="mixed_float16")))
    assert preflight.per_replica_batch_norm(student)
    model = distiller(LABELS_ONLY, student=student)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_order_follows_the_epoch_in_a_callback_list():
    data = ssd.data.load("digits", batch_size=500, validation=0)
    model = distiller(LABELS_ONLY, student=ssd.models.build("resnet8", data.info))
    callbacks = keras.callbacks.CallbackList([keras.callbacks.History()], model=model)
    model.fit(data.train, callbacks=callbacks, epochs=1, verbose=0)
    assert any(isinstance(c, ssd.callbacks.FollowEpoch) for c in callbacks.callbacks)


@pytest.mark.parametrize("label", [0.5, float("nan")])
def test_a_label_that_is_no_class(label):
    model = distiller(LABELS_ONLY)
    before = trained(model)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Labels must be -1 .* or 0\.\.2"):
        step(model, labels=np.where(LABELS == 0, label, LABELS))
    assert_equal(trained(model), before)


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping("val_accuracy"),
        keras.callbacks.EarlyStopping("teacher_agreement"),
        keras.callbacks.EarlyStopping("soft_labels"),
        keras.callbacks.ReduceLROnPlateau("val_sparse_top_k_categorical_accuracy"),
    ],
    ids=lambda callback: callback.monitor,
)
def test_callbacks_know_which_way_is_better(callback):
    metrics = ["accuracy", "sparse_top_k_categorical_accuracy"]
    model = distiller(KD, metrics=metrics)
    fit(model, callbacks=[callback], validation_data=(IMAGES, LABELS), epochs=2)
    worse, better = (1.0, 0.5) if callback.monitor == "soft_labels" else (0.5, 1.0)
    assert callback.monitor_op(better, worse)


def test_the_best_checkpoint_is_that_of_the_best_accuracy(tmp_path):
    path = tmp_path / "best.keras"
    callback = keras.callbacks.ModelCheckpoint(
        str(path), monitor="val_accuracy", save_best_only=True
    )
    model = distiller(LABELS_ONLY, metrics=["accuracy"])
    fit(model, callbacks=[callback], validation_data=(IMAGES, LABELS))
    assert path.is_file()


def test_a_data_set_without_a_batch():
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(64, drop_remainder=True)
    with pytest.raises(ValueError, match="The data set holds no batch: use a smaller batch size"):
        distiller(LABELS_ONLY).fit(data)
