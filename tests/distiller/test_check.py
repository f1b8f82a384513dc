"""`Distiller.check` on images whose brightness is their class, so that a teacher needs no training.

The brightness of class c is 60 + 60 * c, its noise 10; a teacher that knows it compares the mean of
what its normalisation gives with the three brightnesses, normalised.
"""

import contextlib
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from keras_ssd.objectives import HardLabels, SoftLabels

from . import tiny
from .tiny import KD, LABELS_ONLY, everything, network, sgd

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(48) % 3
BRIGHTNESS = np.array([60.0, 120.0, 180.0])
IMAGES = np.clip(
    BRIGHTNESS[LABELS][:, None, None, None] + GENERATOR.normal(0, 10, (48, 8, 8, 3)), 0, 255
).astype("uint8")
MEAN, STD = [0.47] * 3, [0.2] * 3  # those of IMAGES


SCALE, OFFSET = 1 / 255 / np.array(STD), -np.array(MEAN) / STD


def knowing(scale=SCALE, offset=OFFSET, order=(0, 1, 2), channels=3):
    """A teacher that is right for images normalised by the true constants, whatever it does."""
    order = np.array(order)
    seen = (BRIGHTNESS / 255 - MEAN[0]) / STD[0]
    images = keras.Input((8, 8, 3))
    x = images if scale is None else layers.Rescaling(scale, offset)(images)
    x = layers.GlobalAveragePooling2D()(x)
    dense = layers.Dense(3)
    model = keras.Model(images, dense(x))
    kernel = np.zeros((3, 3))
    kernel[:channels] = 20 * seen[order] / channels
    dense.set_weights([kernel, -10 * seen[order] ** 2])
    return model


def plain(**options):
    """A student without a head."""
    model = network(**options)
    return keras.Model(model.inputs, model.output["logits"])


def compiled(teacher=None, preset=KD, student=None, **options):
    """A Distiller with a teacher that is right, unless another is given."""
    needs_head = any("projection" in o.student_outputs for o in preset["objectives"])
    student = student or (network() if needs_head else plain())
    model = ssd.Distiller(teacher or knowing(), student, **preset)
    model.compile(optimizer=options.pop("optimizer", None) or sgd(), run_eagerly=True, **options)
    return model


def check(model, images=IMAGES, labels=LABELS, batch_size=48, **options):
    return model.check(images, labels, batch_size=batch_size, **options)


pytestmark = pytest.mark.filterwarnings("ignore:The teacher has fewer parameters")


def test_nothing_to_warn_of(capsys):
    report = check(compiled())
    assert report.warnings == ()
    assert report.networks[0].accuracy == 1
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    assert printed.startswith("Nothing to warn of.\n\n48 images")
    assert repr(report) == "<CheckReport: 0 warning(s)>"


def test_table():
    table = str(check(compiled(optimizer=sgd(0.25))))
    line = r"48 images 8x8x3 in \d+..\d+, 48 rows; 1 steps an epoch, learning rate 0.25\n"
    assert re.search(f"\n\n{line}\n", table)
    lines = table.splitlines()
    teacher = next(line for line in lines if line.startswith("teacher "))
    assert re.search(r"float32 +raw +-?0.0\d \+- \d.\d\d +100.0 % +0.\d\d of 1.10", teacher)
    assert any(re.match(r"hard_labels +\d.* 0.5 +48 ", line) for line in lines)
    assert any(re.match(r"teacher agreement \d+.\d %$", line) for line in lines)


def test_changes_nothing():
    model = compiled(student=network(dropout=0.5))
    tiny.step(model, IMAGES, LABELS)
    before, shown = everything(model), model.get_metrics_result()
    check(model)
    tiny.assert_equal(everything(model), before)
    assert model.get_metrics_result() == shown


@pytest.mark.parametrize("graph", [False, True])
def test_shows_what_the_next_step_does(graph):
    """Values, agreement and gradient are those of the step that follows, augmentation included."""
    square = keras.regularizers.L2(0.1)
    student = network(kernel_regularizer=square, activity_regularizer=square)  # and `add_loss`
    model = ssd.Distiller(tiny.teacher_network(), student, **tiny.SSKD, seed=5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=sgd(1.0), metrics=["accuracy"], run_eagerly=not graph)
    tiny.step(model)
    report = check(model, tiny.IMAGES, tiny.LABELS)
    before = tiny.trained(model)
    shown = tiny.step(model)
    for term in report.terms[:-1]:
        assert term.value == pytest.approx(shown[term.name], rel=1e-5)
    assert report.terms[-1].name == "student's own"
    assert report.loss == pytest.approx(shown["loss"], rel=1e-5)
    assert report.agreement == pytest.approx(shown["teacher_agreement"])
    assert report.networks[1].accuracy == pytest.approx(shown["accuracy"])
    moved = np.concatenate(
        [(b - a).ravel() for b, a in zip(before, tiny.trained(model), strict=True)]
    )
    assert report.gradient == pytest.approx(np.linalg.norm(moved), rel=1e-4)


def test_gradients_of_the_terms_add_up():
    report = check(compiled())
    along = sum(term.gradient * term.cosine for term in report.terms)
    assert along == pytest.approx(report.gradient, rel=1e-6)
    assert all(-1 <= term.cosine <= 1 for term in report.terms)


def test_entropy_is_that_of_the_class_distributions():
    logits = np.log([[0.5, 0.25, 0.25]])
    report = check(compiled(lambda images: tf.tile(tf.constant(logits), [len(images), 1])))
    expected = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert report.networks[0].entropy == pytest.approx(expected, rel=1e-6)


def only_warning(report):
    assert len(report.warnings) == 1, report.warnings
    assert str(report).startswith(f"! {report.warnings[0][:40]}")
    return report.warnings[0]


def test_teacher_at_chance():
    random = np.random.default_rng(1).normal(size=(48, 3))
    warning = only_warning(check(compiled(lambda _: tf.constant(random))))
    assert re.match(r"The teacher is right in \d+ of 48 images, no more than chance", warning)


def test_teacher_that_always_says_one_class_is_at_chance():
    labels = np.where(np.arange(48) < 30, 2, LABELS)
    constant = np.tile([0.0, 0.0, 5.0], (48, 1))
    teacher = compiled(lambda _: tf.constant(constant))
    assert "no more than chance" in only_warning(check(teacher, labels=labels))
    other = compiled(lambda _: tf.constant(np.roll(constant, 1, axis=1)))
    assert "no more than chance" in only_warning(check(other, labels=labels))


def test_few_or_uneven_images_tell_nothing():
    """A teacher that is always right is not called one at chance."""
    assert check(compiled(), IMAGES[:3], LABELS[:3]).warnings == ()
    uneven = np.concatenate([np.flatnonzero(LABELS == 0), [1]])
    assert check(compiled(), IMAGES[uneven], LABELS[uneven], batch_size=17).warnings == ()
    weak = np.where(np.arange(48) % 2, LABELS, GENERATOR.integers(0, 3, 48))
    model = compiled(lambda _: tf.one_hot(weak, 3) * 9.0 - 4.0)
    assert check(model).warnings == ()


def test_a_teacher_that_knows_nothing_has_no_other_order():
    """Of 100 classes and 64 images every class is met about once."""
    numbers = np.random.default_rng(3)
    scores, labels = numbers.normal(size=(64, 100)), numbers.integers(0, 100, 64)
    rescale = layers.Rescaling(1 / 128, -1)
    student = keras.Sequential([rescale, layers.Flatten(), layers.Dense(100)])
    student.build((None, 8, 8, 3))
    model = compiled(lambda _: tf.constant(scores), student=student)
    report = check(model, IMAGES[np.arange(64) % 48], labels, batch_size=64)
    assert "no more than chance" in only_warning(report)


def test_images_of_weight_0_do_not_count():
    wrong = np.where(np.arange(48) < 24, LABELS, (LABELS + 1) % 3)
    weights = (np.arange(48) < 24).astype("float32")
    model = compiled()
    report = model.check(IMAGES, wrong, weights, batch_size=48)
    assert report.warnings == ()
    assert report.networks[0].accuracy == 1
    half = model.check(IMAGES[:24], LABELS[:24], batch_size=24)
    assert report.agreement == half.agreement
    assert report.networks[0].entropy == pytest.approx(half.networks[0].entropy)
    few = np.zeros(12, "float32")
    few[:5] = 1
    similar = compiled(tiny.teacher_network(), tiny.SSKD)
    report = similar.check(tiny.IMAGES, tiny.LABELS, few)
    assert any("images of the batch, and 5 tell it little" in w for w in report.warnings)


def test_labels_of_one_class_tell_nothing():
    warning = only_warning(check(compiled(), labels=np.full(48, 1)))
    assert warning.startswith("All labels of this batch are class 1")


@pytest.mark.parametrize("order", [[1, 2, 0], [0, 2, 1]])
def test_classes_in_another_order(order):
    warning = only_warning(check(compiled(knowing(order=order))))
    wrong = sum(16 for place, number in enumerate(order) if place != number)
    assert f"another order than the labels: it is right in {48 - wrong} of 48" in warning
    assert "and in 48 when its classes are renumbered" in warning
    said = order.index(2)  # the teacher's number for label 2
    assert f"{said} where the label is 2" in warning


NORMALIZED = ((IMAGES / 255 - MEAN) / STD).astype("float32")
VALUES = {
    "in 0..1": (IMAGES / 255).astype("float32"),
    "in -1..1": (IMAGES / 127.5 - 1).astype("float32"),
    "in 0..255": IMAGES.astype("float32"),
}
CONSTANTS = {"in 0..1": (0.0, 1.0), "in -1..1": (0.5, 0.5), "in 0..255": (0.0, 1 / 255)}


@pytest.mark.parametrize(
    ("words", "given_images"),
    [
        ("in 0..1", NORMALIZED),
        ("in 0..255", NORMALIZED),
        ("in -1..1", VALUES["in 0..255"]),
    ],
)
def test_teacher_that_was_trained_with_other_values(words, given_images):
    mean, std = CONSTANTS[words]
    scale = np.array([std] * 3) / STD
    offset = (np.array([mean] * 3) - MEAN) / STD
    given, dense = keras.Input((8, 8, 3)), layers.Dense(3)  # no layer that normalises
    teacher = keras.Model(given, knowing(None)(dense(given)))
    dense.set_weights([np.diag(scale), offset])
    assert check_accuracy(teacher, VALUES[words]) == 1
    report = check(compiled(teacher, student=floating()), images=given_images)
    assert f"when it sees them {words}: normalise them" in " ".join(report.warnings)


def floating():
    """A student without a layer that normalises."""
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layers.Dense(3)(layers.Flatten()(images)))


def check_accuracy(teacher, images):
    return (np.argmax(teacher(images), axis=1) == LABELS).mean()


def test_teacher_that_was_trained_with_normalised_images():
    report = check(compiled(knowing(None), student=floating()), images=VALUES["in 0..1"])
    assert "with mean 0 and deviation 1 a channel" in only_warning(report)


def test_teacher_for_the_other_order_of_colours():
    coloured = IMAGES.copy()
    coloured[..., 1:] = 0
    teacher = knowing(channels=1)
    report = check(compiled(teacher), images=coloured[..., ::-1])
    assert any(
        "when it sees them with red and blue exchanged: " in warning for warning in report.warnings
    )


def test_mean_and_deviation_exchanged():
    """In teacher and student: by what the constants give, and by what the teacher then knows."""
    mean, std = np.array(STD), np.array(MEAN)
    scale, offset = 1 / 255 / std, -mean / std
    report = check(compiled(knowing(scale, offset)))
    seen = "with mean 0 and deviation 1 a channel, behind its own normalisation: normalise them"
    assert seen in report.warnings[0]
    assert "The teacher 'functional" in report.warnings[1]
    assert "mean and deviation are exchanged" in report.warnings[1]
    student = ssd.models.build("resnet8", num_classes=3, input_shape=(8, 8, 3), mean=mean, std=std)
    assert "The student 'resnet8' turns" in only_warning(check(compiled(student=student)))
    images = keras.Input((8, 8, 3))
    normalize = layers.Normalization(mean=255 * mean, variance=np.square(255 * std))
    adapted = keras.Model(images, layers.Dense(3)(layers.Flatten()(normalize(images))))
    assert "should give about 0 and 1" in only_warning(check(compiled(student=adapted)))


def channels(means, deviations):
    """32 images whose channels have these means and deviations."""
    signs = np.where(np.arange(32 * 64).reshape(32, 8, 8) % 2, 1.0, -1.0)[..., None]
    return (np.array(means) + np.array(deviations) * signs).astype("float32")


@pytest.mark.parametrize(
    ("means", "deviations", "warns"),
    [
        ([0, 0, 0.39], [1, 1, 1], False),
        ([0, 0, -0.41], [1, 1, 1], True),
        ([0, 0, 0], [1, 1, 0.56], False),
        ([0, 0, 0], [1, 1, 0.54], True),
        ([0, 0, 0], [1, 1.79, 1], False),
        ([0, 0, 0], [1, 1.81, 1], True),
    ],
)
def test_limits_of_what_is_about_0_and_1(means, deviations, warns):
    """On 32 images; fewer are not judged."""
    images = keras.Input((8, 8, 3))
    normalize = layers.Rescaling([0.02, 0.02, 0.02], -2.56)
    student = keras.Model(images, layers.Dense(3)(layers.Flatten()(normalize(images))))
    model = ssd.Distiller(student=student, **LABELS_ONLY)
    model.compile()
    for count in (31, 32):
        report = model.check(128 + 50 * channels(means, deviations)[:count], LABELS[:count])
        constants = [w for w in report.warnings if "should give about 0 and 1" in w]
        assert len(constants) == (warns and count == 32)


def test_one_scale_for_all_channels_is_no_standardisation():
    """Networks for 0..1 and -1..1 are no mistake."""
    inner = knowing(None)
    images = keras.Input((8, 8, 3))
    unit = layers.Rescaling(1 / 255)(images)
    dense = layers.Dense(3)
    teacher = keras.Model(images, inner(dense(unit)))
    dense.set_weights([np.diag(1 / np.array(STD)), -np.array(MEAN) / STD])
    assert check(compiled(teacher)).warnings == ()


@pytest.mark.parametrize(
    ("mean", "normalises", "warns"), [(None, False, True), (None, True, False), (0.5, False, False)]
)
def test_images_that_a_teachers_preprocessing_leaves_raw(mean, normalises, warns):
    images = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 128, -1)(images) if normalises else images
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    statistics = (None, None) if mean is None else ([mean] * 3, [mean] * 3)
    first = ssd.layers.ImagePreprocessing(8, *statistics)
    teacher = ssd.freeze(keras.Model(images, layers.Dense(3)(x)), preprocessing=first)
    found = "its ImagePreprocessing leaves images in 0..255" in " ".join(
        check(compiled(teacher)).warnings
    )
    assert found == warns


def test_values_that_fit_no_network():
    report = check(compiled(), images=NORMALIZED)
    text = " ".join(report.warnings)
    assert "The student 'functional" in text
    assert "normalises raw images (0..255) itself, but the images lie in -" in text


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_softmax_ending(part):
    """A softmax that only a call shows: those of functional models are refused before."""

    class Hidden(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, images):
            return keras.ops.softmax(self.inner(images))

    inner = {"teacher": knowing(), "student": floating()}
    inner[part] = Hidden(inner[part])
    inner[part](IMAGES.astype("float32"))
    report = check(compiled(inner["teacher"], student=inner["student"]))
    assert f"The {part} returns probabilities, and logits are needed" in " ".join(report.warnings)


def test_sigmoid_ending():
    """Only of the teacher: a fresh student's logits may well lie there."""
    logits = np.random.default_rng(2).normal(size=(48, 3))
    model = compiled(lambda _: tf.sigmoid(tf.constant(logits)))
    assert any("scores all lie in 0..1, as of a sigmoid" in w for w in check(model).warnings)
    student = plain(kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(0.5))
    assert not any("sigmoid" in w for w in check(compiled(student=student)).warnings)


def test_images_with_nan():
    images = VALUES["in 0..1"].copy()
    images[5, 3, 3, 1] = np.nan
    report = check(compiled(), images)
    assert (
        report.warnings[0] == "Some of these images hold NaN or infinite values: mend them first."
    )
    assert not any("is it trained" in warning for warning in report.warnings)


@pytest.mark.parametrize("views", [{"crop": True, "flip": False}, {"crop": False, "flip": True}])
def test_stored_outputs_of_images_that_views_change(views):
    stored = {"logits": knowing()(IMAGES.astype("float32")).numpy()}
    model = compiled(None, ssd.presets.kd(**views, padding=1))
    with pytest.raises(ValueError, match="would see other pixels"):
        check(model, images={"image": IMAGES, "teacher": stored})


@pytest.mark.parametrize(("spread", "warns"), [(1.0, False), (0.3, True)])
def test_projections_that_point_one_way(spread, warns):
    """A fresh head has a mean cosine of 0.6 to 0.7, a trained one about 0."""
    projections = spread * np.random.default_rng(0).normal(size=(192, 8)) + (spread < 1)

    def teacher(rows):
        return {"logits": tf.zeros([len(rows), 3]), "projection": tf.constant(projections)}

    report = check(compiled(teacher, tiny.SSKD))
    assert warns == any("point one way (mean cosine 0." in w for w in report.warnings)
    assert not any("point one way" in w for w in check(compiled(teacher, KD)).warnings)


@pytest.mark.parametrize("trained", [(), (1,), (1, 2)])
def test_auxiliary_classifiers_that_nobody_has_trained(trained):
    """A trained one is right in class and view for a third of the rows, here."""
    joint = 4 * np.repeat(LABELS, 4) + np.tile(np.arange(4), 48)
    numbers = np.random.default_rng(0)

    def teacher(rows):
        labels = np.repeat(LABELS, len(rows) // 48)  # the images alone, or their views
        outputs = {"logits": tf.one_hot(labels, 3) * 9.0}
        for head in (1, 2):
            logits = numbers.normal(size=(192, 12))
            known = np.arange(0, 192, 3) if head in trained else []
            logits[known, joint[known]] = 9
            outputs[f"auxiliary_{head}"] = tf.constant(logits, tf.float32)
        return outputs

    student = network()
    heads = {
        name: layers.Dense(12, name=name)(student.output["projection"])
        for name in ("auxiliary_1", "auxiliary_2")
    }
    student = keras.Model(student.input, {"logits": student.output["logits"], **heads})
    found = check(compiled(teacher, ssd.presets.hsakd(padding=1), student)).warnings
    untrained = ", ".join(f"auxiliary_{head}" for head in (1, 2) if head not in trained)
    expected = [f"The teacher's {untrained} tell class and view"] if untrained else []
    assert [w[: len(e)] for w, e in zip(found, expected, strict=True)] == expected


def test_scores_that_are_no_numbers():
    report = check(compiled(lambda _: tf.fill([48, 3], math.nan)))
    text = " ".join(report.warnings)
    assert "The teacher gives NaN or infinite logits" in text
    assert "`soft_labels` or its gradient is NaN" in text


@pytest.mark.parametrize(("images", "warns"), [(1, True), (7, True), (8, False)])
def test_batch_too_small_for_similarity(images, warns):
    model = compiled(tiny.teacher_network(), tiny.SSKD)
    report = check(model, tiny.IMAGES[:images], tiny.LABELS[:images])
    text = " ".join(report.warnings)
    assert warns == (
        f"`similarity_transfer` compares each view with the images of the batch, and {images}"
        in text
    )
    assert "compares each view" not in " ".join(check(compiled(), IMAGES[:2], LABELS[:2]).warnings)


def zero_gradient(report, name):
    return next(w for w in report.warnings if w.startswith(f"`{name}` has no gradient"))


def test_term_without_weight():
    preset = {"objectives": [HardLabels(), SoftLabels(weight=0)]}
    assert "its weight is 0" in zero_gradient(check(compiled(preset=preset)), "soft_labels")


def test_term_that_counts_no_row():
    report = check(compiled(), labels=np.full(48, -1))
    assert "no row of this batch counts" in zero_gradient(report, "hard_labels")
    assert report.networks[0].accuracy is None


def test_term_that_reaches_nothing():
    student = network()
    for layer in student.layers:
        layer.trainable = layer.name == "head"
    report = check(compiled(student=student))
    assert "depends on no trainable variable" in zero_gradient(report, "hard_labels")
    assert "2 trainable variables of the student are reached by no term" in report.warnings[-1]
    assert "head/kernel, head/bias." in report.warnings[-1]


def test_term_at_its_minimum():
    only = {"objectives": [Nothing()]}
    assert "at its minimum, or a layer is dead" in zero_gradient(
        check(compiled(preset=only)), "nothing"
    )


class Nothing(ssd.objectives.Objective):
    """The logits times 0."""

    student_outputs = ("logits",)

    def __call__(self, batch):
        logits = batch.student["logits"]
        return tf.reduce_sum(0 * logits), tf.cast(tf.shape(logits)[0], logits.dtype)


def test_small_gradient_of_a_float16_student_is_not_zero():
    student = plain()
    keras.config.set_dtype_policy("mixed_float16")
    half = plain()
    keras.config.set_dtype_policy("float32")
    tiny_weight = {"objectives": [HardLabels(weight=1e-6)]}
    expected = check(compiled(student=student, preset=tiny_weight)).gradient
    got = check(compiled(student=half, preset=tiny_weight))
    assert got.networks[-1].precisions == ("float16",)
    assert got.gradient == pytest.approx(expected, rel=0.05)


def test_large_gradient_of_a_float16_student_is_finite():
    """A gradient that overflows where it is scaled by 2^12."""
    keras.config.set_dtype_policy("mixed_float16")
    student = plain()
    keras.config.set_dtype_policy("float32")
    small, large = (
        check(compiled(student=student, preset={"objectives": [Times(factor)]}))
        for factor in (1.0, 300.0)
    )
    assert large.warnings == ()
    assert large.gradient == pytest.approx(300 * small.gradient, rel=0.05)


class Times(ssd.objectives.Objective):
    """A mean of the logits, many times over."""

    student_outputs = ("logits",)

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def __call__(self, batch):
        return self.factor * tf.reduce_sum(batch.student["logits"]), 48


def test_sparse_gradients():
    """Those of an `Embedding`, as in the networks that attend to places."""
    images = keras.Input((8, 8, 3))
    places = layers.Embedding(64, 3)(np.arange(64)[None])
    x = layers.Reshape((64, 3))(layers.Rescaling(1 / 255)(images)) + places
    student = keras.Model(images, layers.Dense(3)(layers.Flatten()(x)))
    report = check(compiled(student=student))
    assert report.warnings == ()
    assert report.gradient > 0


def test_precision_of_each_network():
    model = ssd.models.build("resnet8", num_classes=3, input_shape=(8, 8, 3), mean=MEAN, std=STD)
    half = ssd.freeze(model, dtype="bfloat16")
    student = ssd.models.build(
        "resnet8", num_classes=3, input_shape=(8, 8, 3), dtype="mixed_bfloat16"
    )
    teacher, student = check(compiled(half, student=student)).networks
    assert teacher.precisions == ("bfloat16", "float32")
    assert student.precisions == ("bfloat16", "float32")
    assert (teacher.expects, student.expects) == ("raw", "normalised")


def test_stored_teacher():
    stored = knowing()(IMAGES.astype("float32")).numpy()
    report = check(compiled(None, KD), images={"image": IMAGES, "teacher": {"logits": stored}})
    assert report.networks[0].name == ""
    wrong = compiled(knowing(order=(1, 2, 0)), KD)  # which does not run
    report = check(wrong, images={"image": IMAGES, "teacher": {"logits": stored}})
    teacher = report.networks[0]
    assert (teacher.part, teacher.accuracy, teacher.name) == ("stored teacher", 1, "")
    assert report.warnings == ()


def test_teacher_of_other_classes():
    """Accuracy and agreement mean nothing; what remains is shown."""
    teacher = tiny.network(units=5)
    only_similar = {**tiny.SSKD, "objectives": [ssd.objectives.SimilarityTransfer()]}
    report = check(compiled(teacher, only_similar))
    assert report.agreement is None
    assert [network.accuracy is None for network in report.networks] == [True, False]
    assert report.networks[0].classes == 5


def test_teacher_with_preprocessing():
    teacher = ssd.freeze(
        knowing(None), preprocessing=lambda x: (tf.cast(x, "float32") / 255 - 0.47) / 0.2
    )
    report = check(compiled(teacher))
    assert report.warnings == ()
    assert report.networks[0].expects == "preprocessing"


@pytest.mark.parametrize(
    "preprocessing",
    [
        lambda x: tf.gather((np.arange(256) / 255 - 0.47) / 0.2, tf.cast(x, tf.int32)),
        lambda x: (tf.cast(x, "float32") / 255 - 0.47) / 0.2 if x.dtype.is_integer else 1 / 0,
    ],
)
def test_functions_that_take_whole_numbers_alone(preprocessing):
    teacher = ssd.freeze(knowing(None), preprocessing=preprocessing)
    assert check(compiled(teacher)).warnings == ()


def test_other_values_behind_a_layer_that_resizes():
    """A teacher for images with mean 0 and deviation 1 is given raw ones in its size."""
    teacher = ssd.freeze(knowing(None), preprocessing=layers.Resizing(8, 8))
    warning = check(compiled(teacher)).warnings[0]
    assert "in 48 when it sees them with mean 0 and deviation 1 a channel: " in warning


def test_function_for_a_batch_of_one_size():
    inner = knowing()
    teacher = tf.function(inner, input_signature=[tf.TensorSpec([48, 8, 8, 3], tf.uint8)])
    some = np.where(np.arange(48) < 40, LABELS, -1)
    report = check(compiled(teacher), labels=some)
    assert report.warnings == ()
    assert report.networks[0].accuracy == 1


def test_normalisation_of_each_pixel_behind_another_size():
    images = keras.Input((8, 8, 3))
    normalize = layers.Normalization(
        axis=(1, 2, 3), mean=np.zeros((4, 4, 3)), variance=np.ones((4, 4, 3))
    )
    x = normalize(layers.Resizing(4, 4)(images))
    student = keras.Model(images, layers.Dense(3)(layers.Flatten()(x)))
    report = check(compiled(student=student))
    assert report.warnings == ()
    assert (report.networks[1].expects, report.networks[1].seen) == ("raw", None)


@pytest.mark.parametrize(
    "count", [1, np.float64(1), tf.constant(1)], ids=["int", "float64", "tensor"]
)
def test_a_count_of_any_kind(count):
    """`(value, 1)` is what an objective of the whole batch returns."""

    class Whole(ssd.objectives.Objective):
        student_outputs = ("logits",)

        def __call__(self, batch):
            return tf.reduce_mean(batch.student["logits"] ** 2), count

    model = compiled(preset={"objectives": [Whole()]})
    value = check(model).terms[0].value
    assert tiny.step(model, IMAGES, LABELS)["whole"] == pytest.approx(value, rel=1e-5)


def test_a_total_for_each_row_is_refused():
    class Rows(ssd.objectives.Objective):
        student_outputs = ("logits",)

        def __call__(self, batch):
            return batch.student["logits"][:, 0], 1

    model = compiled(preset={"objectives": [Rows()]})
    for run in (check, lambda m: tiny.step(m, IMAGES, LABELS)):
        with pytest.raises(ValueError, match=r"`rows` must return two scalars.*\(48,\) and \(\)"):
            run(model)


def test_no_teacher():
    report = check(labels_only())
    assert [network.part for network in report.networks] == ["student"]
    assert report.agreement is None


def labels_only():
    model = ssd.Distiller(student=plain(), **LABELS_ONLY)
    model.compile(optimizer=sgd())
    return model


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return IMAGES[:12], LABELS[:12]


class Endless(Batches):
    @property
    def num_batches(self):
        return None


@pytest.mark.parametrize(
    ("data", "images", "steps"),
    [
        ((IMAGES, LABELS), 32, 2),
        ((IMAGES, LABELS, None, np.int64(16)), 16, 3),
        ((tf.constant(IMAGES), tf.constant(LABELS)), 32, 2),
        (({"image": IMAGES}, LABELS), 32, 2),
        ((tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16),), 16, 3),
        ((tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat(),), 48, None),
        ((Batches(),), 12, 4),
        ((Endless(),), 12, None),
    ],
)
def test_kinds_of_data(data, images, steps):
    report = labels_only().check(*data)
    assert (report.images, report.steps_per_epoch) == (images, steps)
    assert report.terms[0].rows == images


def test_arrays_are_seen_evenly():
    """Sorted images of three classes show all three."""
    order = np.argsort(LABELS, kind="stable")
    report = check(compiled(), IMAGES[order], LABELS[order], batch_size=6)
    assert report.warnings == ()
    assert report.terms[0].rows == 6


def test_sample_weight_counts():
    weights = np.where(LABELS == 0, 0.5, 0.0).astype("float32")
    report = compiled().check(IMAGES, LABELS, weights, batch_size=48)
    assert report.terms[0].rows == 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (((x for x in [(IMAGES, LABELS)]),), "this generator: it would be used up"),
        ((IMAGES, LABELS[:5]), r"as many, got \[5, 48\]"),
        ((IMAGES, LABELS, None, 0), "`batch_size` must be an integer >= 1, got 0"),
        ((IMAGES, LABELS, None, 2.5), "`batch_size` must be an integer >= 1, got 2.5"),
        (
            (tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(99, drop_remainder=True),),
            "needs a batch",
        ),
        ((IMAGES[:0], LABELS[:0]), "give a tf.data set"),
        ((None,), "needs a batch"),
        (({},), "needs a batch"),
        ((IMAGES,), "`hard_labels` needs labels"),
    ],
)
def test_refuses(data, message):
    with pytest.raises(ValueError, match=message):
        labels_only().check(*data)


def test_refuses_what_is_not_compiled():
    model = ssd.Distiller(student=network(), **LABELS_ONLY)
    with pytest.raises(ValueError, match=r"Call `compile\(\)` before you check"):
        model.check(IMAGES, LABELS)


def test_labels_out_of_range_are_one_sentence():
    sentence = r"^Labels must be -1 \(unlabeled\) or 0..2, got values from 5 to 7\.$"
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        labels_only().check(IMAGES, LABELS + 5)
    assert re.match(sentence, error.value.message)


def test_two_replicas_check_the_whole_batch_on_one(two_replicas):
    expected = check(compiled(tiny.teacher_network(), tiny.SSKD, network(seed=3)))
    with two_replicas.scope():
        model = compiled(tiny.teacher_network(), tiny.SSKD, network(seed=3))
        with pytest.raises(ValueError, match=r"Leave the scope of the tf\.distribute strategy"):
            check(model)
    report = check(model)
    assert report.replicas == 2
    assert ", 2 replicas\n" in str(report)
    assert [term.value for term in report.terms] == pytest.approx(
        [term.value for term in expected.terms], rel=1e-5
    )
    assert report.gradient == pytest.approx(expected.gradient, rel=1e-5)


class Counting:
    """A data set that counts how often it is begun."""

    def __init__(self):
        self.begun = tf.Variable(0)

    def dataset(self, images):
        def begin(_):
            self.begun.assign_add(1)
            return tf.data.Dataset.from_tensor_slices((images, LABELS)).batch(16)

        batches = tf.data.Dataset.range(1).flat_map(begin)
        return batches.apply(tf.data.experimental.assert_cardinality(3))


@pytest.mark.parametrize(("check", "begun"), [(True, 3), (False, 2)])
def test_fit_looks_at_values_once_or_not_at_all(check, begun):
    """Images in 0..1 for a student that takes raw ones; two calls of `fit`."""
    model, counting = labels_only(), Counting()
    data = counting.dataset(VALUES["in 0..1"])
    with pytest.warns(UserWarning, match="normalises raw") if check else contextlib.nullcontext():
        model.fit(data, verbose=0, check=check)
    model.fit(data, verbose=0, check=check)
    assert counting.begun.numpy() == begun


def test_fit_looks_again_at_another_teacher_and_not_at_one_that_does_not_run():
    unscaled = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    model = compiled()
    model.fit(IMAGES, LABELS, verbose=0)
    model.set_teacher(unscaled)
    stored = {"image": IMAGES, "teacher": {"logits": np.zeros((48, 3), "float32")}}
    model.fit(stored, LABELS, verbose=0)
    model.set_teacher(unscaled)
    with pytest.warns(UserWarning, match="The teacher .* has no layer that normalises"):
        model.fit(IMAGES, LABELS, verbose=0)
