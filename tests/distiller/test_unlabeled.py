"""Unlabeled images: beside labelled ones (label -1, or a row of zeros), and alone."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from data.manifests import photos, write_manifest

import keras_ssd as ssd
from keras_ssd import data
from keras_ssd.data.order import epochs_of
from keras_ssd.objectives import (
    AuxiliaryLabels,
    AuxiliaryTransfer,
    HardLabels,
    Objective,
    SoftLabels,
    SymmetricSoftLabels,
)
from keras_ssd.views import Rotations

from . import hsakd, one_and_two, tiny
from .tiny import (
    IMAGES,
    LABELS,
    assert_equal,
    differs,
    evaluate,
    everything,
    fit,
    network,
    sgd,
    step,
    teacher_network,
    trained,
)

MIXED = np.where(np.arange(12) % 4 == 1, -1, LABELS)  # as a data set with a share of 0.25
UNLABELED = MIXED == -1
ONE_HOT = np.where(UNLABELED[:, None], 0, tiny.ONE_HOT)
NONE = np.full(12, -1)
WEIGHTS = np.linspace(0.5, 2, 12)

SELECTIVE = {"keep_wrong_labels": 0.5, "keep_wrong_similarity": 0.5}
METHODS = {
    "kd": lambda: ssd.presets.kd(padding=1),
    "sskd": lambda: ssd.presets.sskd(padding=1, **SELECTIVE),
    "hsakd_teacher": lambda: ssd.presets.hsakd_teacher(padding=1),
    "hsakd": lambda: ssd.presets.hsakd(padding=1),
    "combined": lambda: ssd.presets.combined(padding=1),
}
TEACHER_ALONE = ("hsakd_teacher",)  # needs none itself


def distiller(method, objectives=None, **compiled):
    """A compiled Distiller of a method, eager, perhaps with other objectives."""
    preset = METHODS[method]() | ({} if objectives is None else {"objectives": objectives})
    teacher = None if method in TEACHER_ALONE else hsakd.network(8, seed=0)
    model = ssd.Distiller(teacher, hsakd.network(), **preset)
    model.compile(**{"optimizer": sgd(0.02, momentum=0.9), "run_eagerly": True, **compiled})
    return model


def measured(**other):
    """Arguments of `compile` that go by labels."""
    nats = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="nats")
    return {"loss": cross_entropy(), "metrics": ["accuracy"], "weighted_metrics": [nats]} | other


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def finite(arrays):
    return all(np.isfinite(array).all() for array in arrays)


# --- Rows without a label reach no term that goes by labels -------------------------------------


class ByHand(Objective):
    """An objective that is told any label for unlabeled images, and the weight 0."""

    def __init__(self, objective):
        super().__init__(weight=objective.weight, name=objective.name)
        self.inner = objective
        for attribute in ("teacher_outputs", "student_outputs", "needs_labels", "needs_views"):
            setattr(self, attribute, getattr(objective, attribute))

    def __call__(self, batch):
        known = batch.labels_of("plain") >= 0
        weights = tf.where(known, batch.weights_of("plain"), 0)
        some = tf.where(known, batch.labels_of("plain"), 2)
        return self.inner(dataclasses.replace(batch, labels=some, sample_weight=weights))


@pytest.mark.parametrize("method", METHODS)
def test_terms_are_those_of_weight_0_by_hand(method):
    by_hand = [ByHand(o) if o.needs_labels else o for o in METHODS[method]()["objectives"]]
    assert any(isinstance(objective, ByHand) for objective in by_hand)
    models = distiller(method), distiller(method, by_hand)
    shown = [
        [step(model, IMAGES, MIXED, weights) for weights in (None, WEIGHTS)] for model in models
    ]
    for ours, theirs in zip(*shown, strict=True):
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-6)
    tiny.assert_close(trained(models[0]), trained(models[1]), 1e-6)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(teacher, student, temperature):
    teacher, student = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(teacher) * (teacher - student)).sum(-1)


def outputs_of(model, views):
    rows = np.stack([np.rot90(IMAGES, view, axes=(1, 2)) for view in range(views)], axis=1)
    outputs = model(rows.reshape(-1, 8, 8, 3), training=False)
    return {k: v.numpy().astype("float64").reshape(12, views, -1) for k, v in outputs.items()}


@pytest.mark.parametrize("kind", ["integers", "one-hot"])
def test_auxiliary_classifiers_against_numpy(kind):
    labels = MIXED if kind == "integers" else ONE_HOT
    objectives = [HardLabels(0.5), SoftLabels(2.0), AuxiliaryLabels(), AuxiliaryTransfer(3.0)]
    views = Rotations(crop=None, flip=False)
    model = ssd.Distiller(hsakd.network(8, seed=0), hsakd.network(), objectives, views)
    model.compile(sgd(), metrics=["accuracy"], weighted_metrics=["accuracy"], run_eagerly=True)
    student, teacher = outputs_of(model.student, 4), outputs_of(model.teacher, 4)

    weights, known = WEIGHTS, ~UNLABELED * WEIGHTS
    plain = student["logits"][:, 0]
    joint = 4 * MIXED[:, None] + np.arange(4)
    right = plain.argmax(-1) == MIXED
    expected = {
        "hard_labels": -log_softmax(plain)[np.arange(12), MIXED] @ known / known.sum(),
        "soft_labels": divergence(teacher["logits"][:, 0], plain, 2.0) @ weights / weights.sum(),
        "auxiliary_labels": 0,
        "auxiliary_transfer": 0,
        "accuracy": right[~UNLABELED].mean(),
        "weighted_accuracy": right @ known / known.sum(),
        "teacher_agreement": (teacher["logits"][:, 0].argmax(-1) == plain.argmax(-1)).mean(),
    }
    for head in ("auxiliary_1", "auxiliary_2"):
        logs = np.take_along_axis(log_softmax(student[head]), joint[..., None], -1)[..., 0]
        expected["auxiliary_labels"] -= logs.mean(1) @ known / known.sum()
        apart = divergence(teacher[head], student[head], 3.0).mean(1)
        expected["auxiliary_transfer"] += apart @ weights / weights.sum()
        hits = student[head].argmax(-1) == joint
        expected[f"{head}_joint_accuracy"] = hits[~UNLABELED].mean()
    expected["loss"] = 0.5 * expected["hard_labels"] + sum(
        expected[name] for name in ("soft_labels", "auxiliary_labels", "auxiliary_transfer")
    )
    got = step(model, IMAGES, labels, weights)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=2e-5), name


def test_loss_and_metrics_of_compile_against_numpy():
    top_2 = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")
    options = measured(metrics=["accuracy", top_2], optimizer=sgd(0.0))
    preset = {"objectives": [SymmetricSoftLabels()]}
    model = tiny.distiller(preset, student=network(batch_norm=False), **options)
    logits = model.student(IMAGES)["logits"].numpy().astype("float64")
    nats = -log_softmax(logits)[np.arange(12), MIXED]
    order = np.argsort(-logits, axis=-1)
    known = ~UNLABELED * WEIGHTS
    teacher = log_softmax(model.teacher(IMAGES)["logits"].numpy().astype("float64"))
    student = log_softmax(logits)
    apart = ((np.exp(teacher) - np.exp(student)) * (teacher - student)).sum(-1) / 2
    symmetric = apart @ WEIGHTS / WEIGHTS.sum()
    expected = {
        "accuracy": (order[:, 0] == MIXED)[~UNLABELED].mean(),
        "top_2": (order[:, :2] == MIXED[:, None]).any(-1)[~UNLABELED].mean(),
        "nats": nats @ known / known.sum(),
        "symmetric_soft_labels": symmetric,
        "loss": symmetric + nats @ known / 12,  # of `compile(loss=)`: unlabeled ones count 0
    }
    got = step(model, IMAGES, MIXED, WEIGHTS)
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["integers", "one-hot"])
@pytest.mark.parametrize("method", METHODS)
def test_no_labelled_image_in_a_batch(method, kind):
    options = measured()
    if kind == "one-hot":
        of_rows = keras.losses.CategoricalCrossentropy(from_logits=True)
        options = {"loss": of_rows, "metrics": ["accuracy"]}
    model = distiller(method, **options)
    before = trained(model)
    labels = NONE if kind == "integers" else np.zeros_like(ONE_HOT)
    got = step(model, IMAGES, labels)
    by_label = {o.name for o in model.objectives if o.needs_labels}
    shown = by_label | {name for name in got if name.endswith("accuracy")}
    assert {got[name] for name in shown} == {0}
    assert finite(everything(model))
    assert np.isfinite([*got.values()]).all()
    rest = sum(o.weight * got[o.name] for o in model.objectives if o.name not in by_label)
    assert got["loss"] == pytest.approx(rest, rel=1e-6)
    assert differs(trained(model), before) == (method != "hsakd_teacher")


def test_an_epoch_with_a_batch_of_no_labels_shows_the_mean_of_the_others():
    model = tiny.distiller(
        tiny.KD, student=network(batch_norm=False), optimizer=sgd(0.0), metrics=["accuracy"]
    )
    labels = np.where(np.arange(12) < 4, -1, LABELS)
    got = fit(model, IMAGES, labels, batch_size=4)
    logits = model.student(IMAGES)["logits"].numpy().astype("float64")[4:]
    nats = -log_softmax(logits)[np.arange(8), LABELS[4:]]
    assert got["hard_labels"][0] == pytest.approx(nats.mean(), rel=1e-5)
    assert got["accuracy"][0] == pytest.approx((logits.argmax(-1) == LABELS[4:]).mean())
    shown = evaluate(model, IMAGES, labels)
    assert shown["accuracy"] == pytest.approx(got["accuracy"][0])


# --- Two replicas -------------------------------------------------------------------------------

# Of the first batch of 10 the second replica gets no label, of the last one, of 3, neither does.
UNEQUAL = np.array([0, 1, 2, 0, 1, *[-1] * 5, 2, -1, 0, 1, 2, -1, 0, -1, -1, -1, *[-1] * 3])


@pytest.mark.parametrize("method", ["sskd", pytest.param("combined", marks=pytest.mark.slow)])
def test_replicas_with_unequal_numbers_of_labels(method, two_replicas, float64):
    def make():
        return distiller(method, run_eagerly=False, **measured())

    one, two = one_and_two.on_one_and_two(two_replicas, make)
    batches = one_and_two.batches(one_and_two.examples(23)[0], UNEQUAL, np.linspace(0.5, 2, 23))
    history = [model.fit(batches, epochs=2, verbose=0).history for model in (one, two)]
    one_and_two.assert_close(two.student.weights, one.student.weights, 1e-10)
    assert history[0].keys() == history[1].keys() >= {"hard_labels", "accuracy", "nats"}
    for name, expected in history[0].items():
        np.testing.assert_allclose(history[1][name], expected, rtol=1e-10, err_msg=name)


# --- A data set of both -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Some digits in 8x8 with labels, and others without."""
    labelled = data.load("digits", 16, 0, image_size=(8, 8)).few_shot(0.1)
    more = data.load("digits", 16, 0, seed=3, image_size=(8, 8)).few_shot(0.05, seed=1)
    return labelled.with_unlabeled(more, share=0.5)


def of_digits(objectives, **compiled):
    options = {"units": 10, "batch_norm": False}
    model = ssd.Distiller(teacher_network(**options), network(**options), objectives)
    model.compile(optimizer=sgd(0.0), metrics=["accuracy"], **compiled)
    return model


def test_training_on_both(digits):
    model = of_digits([HardLabels(), SymmetricSoftLabels()])
    history = model.fit(digits.train, epochs=2, verbose=0).history
    for epoch in (0, 1):
        for variable in epochs_of(digits.train):
            variable.assign(epoch)
        whole = digits.train.unbatch().batch(16 * len(digits.train))
        images, labels = next(whole.as_numpy_iterator())
        known = labels >= 0
        assert known.mean() == 0.5
        logits = model.student.predict(images, verbose=0)["logits"].astype("float64")
        student, teacher = log_softmax(logits), log_softmax(model.teacher(images)["logits"].numpy())
        shown = {name: values[epoch] for name, values in history.items()}
        nats = -student[np.arange(len(labels)), labels][known].mean()
        assert shown["hard_labels"] == pytest.approx(nats, rel=1e-4)
        assert shown["accuracy"] == pytest.approx((logits.argmax(-1) == labels)[known].mean())
        apart = ((np.exp(teacher) - np.exp(student)) * (teacher - student)).sum(-1) / 2
        assert shown["symmetric_soft_labels"] == pytest.approx(apart.mean(), rel=1e-4)


def test_check_of_a_data_set_of_both(digits):
    report = of_digits([HardLabels(), SymmetricSoftLabels()]).check(digits.train)
    assert (report.images, report.steps_per_epoch) == (16, len(digits.train))
    assert [(term.name, term.rows) for term in report.terms] == [
        ("hard_labels", 8),
        ("symmetric_soft_labels", 16),
    ]


# --- `check` ------------------------------------------------------------------------------------


BRIGHT = np.arange(60) % 3  # the class of an image is its brightness
PICTURES = np.clip(
    60 + 60 * BRIGHT[:, None, None, None] + np.random.default_rng(0).normal(0, 5, (60, 8, 8, 3)),
    0,
    255,
).astype("uint8")
HALF = np.where(np.arange(60) % 2 == 0, BRIGHT, -1)


def knowing(shift=0):
    """A teacher that tells the brightness, its classes moved by `shift`."""

    def teacher(images):
        brightness = tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2, 3))[:, None]
        centers = 60 + 60 * tf.cast((tf.range(3) + shift) % 3, tf.float32)
        return -tf.square(brightness - centers) / 500

    return teacher


def checked(teacher, labels, *, objectives=None, images=PICTURES):
    headless = keras.Model((whole := network()).inputs, whole.output["logits"])
    model = ssd.Distiller(teacher, headless, objectives or [HardLabels(), SoftLabels()])
    model.compile(sgd(), run_eagerly=True)
    return model.check(images, labels, batch_size=60)


@pytest.mark.parametrize("kind", ["integers", "one-hot"])
def test_check_measures_labelled_images_alone(kind):
    wrong = np.where(np.arange(60) < 10, (BRIGHT + 1) % 3, BRIGHT)  # where the teacher is wrong
    labels = np.where(HALF >= 0, wrong, -1)
    rows = np.where(labels[:, None] >= 0, np.eye(3, dtype="float32")[labels], 0)
    report = checked(knowing(), labels if kind == "integers" else rows)
    assert report.warnings == ()
    assert report.networks[0].accuracy == pytest.approx(25 / 30)
    assert [term.rows for term in report.terms] == [30, 60]


def test_check_finds_a_teacher_of_chance_or_of_another_order_by_labelled_images():
    chance = np.where(HALF >= 0, np.random.default_rng(1).permutation(BRIGHT), -1)
    (finding,) = checked(knowing(), chance).warnings
    assert "of 30 images, no more than chance explains" in finding
    (finding,) = checked(knowing(shift=1), HALF).warnings
    assert "right in 0 of 30 images, and in 30 when its classes are renumbered" in finding


@pytest.mark.parametrize("labels", [None, np.full(60, -1)], ids=["bare", "all -1"])
def test_check_of_images_alone(labels):
    report = checked(knowing(shift=1), labels, objectives=[SymmetricSoftLabels()])
    assert report.warnings == ()  # nothing tells that it is wrong
    assert [network.accuracy for network in report.networks] == [None, None]
    assert report.agreement is not None
    assert [term.rows for term in report.terms] == [60]
    assert report.terms[0].value > 0
    assert " %" not in str(report).split("teacher agreement")[0]


def test_check_of_a_label_term_on_images_alone():
    with pytest.raises(ValueError, match="`hard_labels` needs labels, and the data has none"):
        checked(knowing(), None)
    (finding,) = checked(knowing(), np.full(60, -1)).warnings
    assert "no row of this batch counts for it" in finding


# --- Images alone -------------------------------------------------------------------------------


class Bare(keras.utils.PyDataset):
    """Four images a batch, and nothing else."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return IMAGES[4 * index : 4 * index + 4]


def generator():
    while True:
        yield from ((IMAGES[start : start + 4],) for start in (0, 4, 8))  # Keras wants tuples


TENSORS = tf.data.Dataset.from_tensor_slices(IMAGES)
TUPLES = TENSORS.map(lambda image: (image,))
DICTS = TENSORS.map(lambda image: {"image": image})
BARE = {
    "arrays": lambda: {"x": IMAGES, "batch_size": 4},
    "tensors": lambda: {"x": tf.constant(IMAGES), "batch_size": 4},
    "a dict": lambda: {"x": {"image": IMAGES}, "batch_size": 4},
    "tf.data": lambda: {"x": TENSORS.batch(4)},
    "tf.data of tuples": lambda: {"x": TUPLES.batch(4)},
    "tf.data of dicts": lambda: {"x": DICTS.batch(4)},
    "PyDataset": lambda: {"x": Bare()},
    "generator": lambda: {"x": generator(), "steps_per_epoch": 3},
}
LABEL_FREE = {
    "symmetric": [SymmetricSoftLabels()],
    "heads": [SoftLabels(views="all"), AuxiliaryTransfer(diagnostics=False)],
}


def label_free(objectives="symmetric", **compiled):
    keras.utils.set_random_seed(0)  # that of the dropout
    views = Rotations(padding=1) if objectives == "heads" else None
    student = hsakd.network(dropout=0.3, batch_norm="own")
    model = ssd.Distiller(hsakd.network(8, seed=0), student, LABEL_FREE[objectives], views)
    model.compile(**{"optimizer": sgd(0.02, momentum=0.9), "metrics": ["accuracy"], **compiled})
    return model


@pytest.mark.parametrize("kind", BARE)
def test_images_alone_in_every_form(kind):
    model = label_free(run_eagerly=True)
    history = model.fit(**BARE[kind](), epochs=2, shuffle=False, verbose=0).history
    assert history.keys() == {"loss", "symmetric_soft_labels", "teacher_agreement"}
    expected = label_free(run_eagerly=True)
    expected.fit(IMAGES, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert_equal(everything(model), everything(expected))


@pytest.mark.parametrize("objectives", LABEL_FREE)
def test_labels_change_nothing(objectives):
    """Crops, dropout and batch normalisation; labels are in metrics alone."""
    permuted = np.random.default_rng(0).permutation(LABELS)
    expected = None
    for labels in (None, LABELS, permuted, np.zeros(12, "int32"), MIXED, tiny.ONE_HOT):
        model = label_free(objectives, run_eagerly=True)
        history = fit(model, IMAGES, labels, batch_size=6)
        assert ("accuracy" in history) == (labels is not None)
        expected = everything(model) if expected is None else expected
        assert_equal(everything(model), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_labels_change_nothing_in_graphs(jit_compile):
    models = [label_free(jit_compile=jit_compile) for _ in range(2)]
    for model, labels in zip(models, (None, LABELS), strict=True):
        fit(model, IMAGES, labels, batch_size=4, epochs=2)
    assert_equal(everything(models[0]), everything(models[1]))


def test_labels_that_come_now_and_then_change_nothing():
    models = label_free(run_eagerly=True), label_free(run_eagerly=True)
    for labels in (LABELS, None):
        fit(models[0], IMAGES, labels, batch_size=4)
        fit(models[1], IMAGES, None, batch_size=4)
    assert_equal(everything(models[0]), everything(models[1]))


@pytest.mark.parametrize("beside_labels", [False, True])
def test_a_manifest_epoch_by_epoch(tmp_path, beside_labels):
    """A run that goes on after an epoch sees what an undisturbed one sees."""
    pool = photos(tmp_path, range(60, 80), shape=(8, 8, 3))
    manifest = write_manifest(tmp_path / "mined.jsonl", list(pool.read()))
    splits = data.load(manifest, 4)
    if beside_labels:
        labelled = data.load("digits", 4, 0, image_size=(8, 8)).few_shot(0.01)
        splits = labelled.with_unlabeled(splits, share=0.5)
    train = splits.train
    if beside_labels:  # three classes are enough here
        train = train.map(lambda images, labels: (images, tf.minimum(labels, 2)))
    whole, cut = label_free(run_eagerly=True), label_free(run_eagerly=True)
    whole.fit(train, epochs=2, verbose=0)
    for epoch in (0, 1):
        cut.fit(train, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
    assert_equal(everything(cut), everything(whole))


def test_images_alone_on_two_replicas(two_replicas, float64):
    def make():
        teacher = one_and_two.network(8, "own", seed=0)
        model = ssd.Distiller(teacher, one_and_two.network(4), [SymmetricSoftLabels()])
        model.compile(one_and_two.sgd(), metrics=["accuracy"])
        return model

    one, two = one_and_two.on_one_and_two(two_replicas, make)
    images = tf.data.Dataset.from_tensor_slices(one_and_two.examples(23)[0]).batch(10)
    history = [model.fit(images, epochs=2, verbose=0).history for model in (one, two)]
    one_and_two.assert_close(two.student.weights, one.student.weights, 1e-10)
    assert history[0].keys() == history[1].keys()
    np.testing.assert_allclose(history[1]["loss"], history[0]["loss"], rtol=1e-10)


@pytest.mark.parametrize(
    ("objectives", "loss", "message"),
    [
        ([HardLabels(), SoftLabels()], None, "`hard_labels` needs labels, and the data has none"),
        (
            [SoftLabels()],
            cross_entropy(),
            r"`compile\(loss=\)` needs labels, and the data has none",
        ),
    ],
)
def test_what_needs_labels_says_so(objectives, loss, message):
    model = tiny.distiller({"objectives": objectives}, loss=loss)
    with pytest.raises(ValueError, match=message):
        model.fit(TENSORS.batch(4), verbose=0)
