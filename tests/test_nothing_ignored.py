"""None of the defects of `keras.distillation` 3.15 is true here; read the names as a list.

docs/coming_from_keras_distillation.md tells the story, benchmarks/peer_defects.py measures it.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from distiller.tiny import (
    IMAGES,
    KD,
    LABELS,
    LABELS_ONLY,
    SSKD,
    Counter,
    assert_close,
    assert_equal,
    differs,
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
from keras import layers, ops

import keras_ssd as ssd
from keras_ssd.objectives import HardLabels, Objective, SimilarityTransfer, SoftLabels

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SOFT_LABELS_ONLY = {"objectives": [SoftLabels(3.0)]}


class SameFeatures(Objective):
    """A feature loss: mean squared difference of two vectors of one width."""

    teacher_outputs = student_outputs = ("projection",)

    def __call__(self, batch):
        difference = batch.teacher["projection"] - batch.student["projection"]
        weights = batch.weights_of("plain")
        return ops.sum(weights * ops.mean(difference**2, axis=-1)), ops.sum(weights)


WITH_FEATURES = {"objectives": [HardLabels(0.5), SoftLabels(3.0), SameFeatures()]}

# --- The loss of logits -----------------------------------------------------------------------

TEACHER, STUDENT = np.random.default_rng(0).normal(size=(2, 64, 10)).astype("float32")
TEACHER *= 4


def log_softmax(x):
    x = x.astype("float64") - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def closed_form(teacher, student, temperature):
    """Mean of T^2 KL, and its gradient."""
    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    value = temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean()
    return value, temperature * (np.exp(q) - np.exp(p)) / len(p)


def soft_labels(teacher, student, *temperature):
    """Value and gradient of the objective; without a temperature that of the default."""
    logits = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        batch = ssd.Batch(None, None, None, {"logits": tf.constant(teacher)}, {"logits": logits}, 1)
        total, count = SoftLabels(*temperature)(batch)
        value = total / count
    return value.numpy(), tape.gradient(value, logits).numpy()


def test_no_default_loss_without_softmax_and_factor():
    for given, temperature in (((), 4.0), ((3.0,), 3.0)):
        value, gradient = soft_labels(TEACHER, STUDENT, *given)
        expected, expected_gradient = closed_form(TEACHER, STUDENT, temperature)
        assert value == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-7)


def test_no_gradient_that_vanishes_with_the_temperature():
    cool, hot = (np.linalg.norm(soft_labels(TEACHER, STUDENT, t)[1]) for t in (50.0, 100.0))
    assert hot == pytest.approx(cool, rel=0.05)


def test_no_gradient_entries_that_are_clipped_away():
    assert np.all(soft_labels(TEACHER, STUDENT)[1] != 0)


def test_no_loss_that_a_constant_in_all_logits_changes():
    value, _ = soft_labels(TEACHER, STUDENT)
    assert soft_labels(TEACHER, STUDENT + 5)[0] == pytest.approx(value, rel=1e-5)


def test_no_constant_student_better_than_the_teacher_itself():
    itself, _ = soft_labels(TEACHER, TEACHER)
    constant, _ = soft_labels(TEACHER, np.full_like(TEACHER, 100))
    assert itself == pytest.approx(0, abs=1e-5)
    assert constant > 1


def test_no_student_that_learns_nothing_from_soft_labels_alone():
    model = distiller(SOFT_LABELS_ONLY, graph=True, optimizer=keras.optimizers.Adam(0.05))
    history = fit(model, batch_size=12, epochs=50)
    assert history["teacher_agreement"][-1] == 1
    assert history["soft_labels"][-1] < 0.1 * history["soft_labels"][0]


def test_no_name_of_a_loss_that_means_another_loss():
    with pytest.raises(ValueError, match="names mean the form that expects probabilities"):
        distiller(LABELS_ONLY, loss="kl_divergence")
    for not_ours in ("kl_divergence", keras.losses.CategoricalCrossentropy(from_logits=True)):
        with pytest.raises(TypeError, match="must hold Objective instances"):
            ssd.Distiller(student=network(), objectives=[not_ours])


def test_no_loss_that_saturates():
    far = np.array([[100.0, -100.0]], "float32")
    value, gradient = soft_labels(far, -far, 4.0)
    assert value == pytest.approx(800)
    np.testing.assert_allclose(gradient, [[-4, 4]], rtol=1e-5)


# --- Forwards and evaluations -----------------------------------------------------------------


def test_no_second_forward_for_features():
    of_student, of_teacher = Counter(), Counter()
    networks = {"student": network(first=of_student), "teacher": teacher_network(first=of_teacher)}
    several = [*WITH_FEATURES["objectives"], SameFeatures(name="again")]
    step(distiller({"objectives": several}, **networks))
    assert (of_student.calls.numpy(), of_teacher.calls.numpy()) == (1, 1)


def test_no_teacher_in_an_evaluation():
    of_teacher = Counter()
    model = distiller(WITH_FEATURES, teacher=teacher_network(first=of_teacher))
    evaluate(model)
    model.predict(IMAGES, verbose=0)
    assert of_teacher.calls.numpy() == 0


@pytest.mark.parametrize("evaluate_views", [False, True])
def test_no_evaluation_that_changes_the_student(evaluate_views):
    student = network(dropout=0.5)
    model = distiller(WITH_FEATURES, student=student, evaluate_views=evaluate_views)
    step(model)
    before = everything(model)
    first, second = evaluate(model), evaluate(model)  # dropout would tell them apart
    assert first == second
    assert_equal(everything(model), before)


def test_no_second_update_of_moving_statistics_in_a_step():
    once = network()
    once(IMAGES, training=True)
    model = distiller(WITH_FEATURES, optimizer=sgd(0.0))
    step(model)
    moved, expected = (
        [v.numpy() for v in each.variables if "moving" in v.path] for each in (model.student, once)
    )
    assert_close(moved, expected, 1e-5)


def test_no_second_dropout_mask_for_features():
    images = keras.Input((8, 8, 3))
    dropped = layers.Dropout(0.5)(layers.Flatten()(layers.Rescaling(1 / 255)(images)))
    head = layers.Dense(3)
    student = keras.Model(images, {"logits": head(dropped), "dropped": dropped})

    class OfOneMask(Objective):
        student_outputs = ("dropped", "logits")

        def __call__(self, batch):
            features = batch.student["dropped"]
            assert 0.3 < np.mean(features == 0) < 0.7
            np.testing.assert_allclose(head(features), batch.student["logits"], rtol=1e-4)
            return tf.reduce_sum(features), tf.constant(1.0)

    step(distiller({"objectives": [HardLabels(), OfOneMask()]}, student=student))


def test_no_short_last_batch_that_counts_as_a_full_one():
    model = distiller(KD, student=network(batch_norm=False), optimizer=sgd(0.0))
    expected = float(CROSS_ENTROPY(LABELS, model.predict(IMAGES, verbose=0)))
    shown = fit(model, batch_size=8)
    assert shown["hard_labels"][0] == pytest.approx(expected, rel=1e-5)
    assert evaluate(model)["loss"] == pytest.approx(expected, rel=1e-5)


# --- Arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["sample_weight", "class_weight"])
def test_no_weights_of_images_that_are_ignored(argument):
    nothing = {"sample_weight": np.zeros(12), "class_weight": dict.fromkeys(range(3), 0.0)}
    some = {"sample_weight": 1.0 * (LABELS > 0), "class_weight": {0: 0.0, 1: 1.0, 2: 1.0}}
    student = functools.partial(network, batch_norm=False)
    model = distiller(WITH_FEATURES, student=student())
    before = trained(model)
    shown = fit(model, batch_size=12, **{argument: nothing[argument]})
    assert shown["loss"] == [0]
    assert_equal(trained(model), before)

    weighted, without = (distiller(WITH_FEATURES, student=student()) for _ in range(2))
    fit(weighted, batch_size=12, **{argument: some[argument]})
    fit(without, IMAGES[LABELS > 0], LABELS[LABELS > 0], batch_size=12)
    assert_close(trained(weighted), trained(without), 1e-5)


def test_no_regulariser_that_is_ignored():
    student = network(bias_regularizer=keras.regularizers.L2(1.0), bias_initializer="ones")
    model = distiller({"objectives": [HardLabels(0.0)]}, student=student)
    bias = student.output["logits"]._keras_history.operation.bias
    assert step(model)["loss"] == pytest.approx(3)
    np.testing.assert_allclose(bias, 0.8, rtol=1e-6)  # 1 - 0.1 * 2


class AddsThousand(layers.Layer):
    """Adds 1000 to the loss."""

    def call(self, x):
        self.add_loss(tf.constant(1000.0))
        return x


def test_no_add_loss_that_is_ignored():
    model = distiller(WITH_FEATURES, student=network(first=AddsThousand()))
    assert step(model)["loss"] > 1000
    assert evaluate(model)["loss"] > 1000


def test_no_weight_of_a_single_loss_that_is_ignored():
    one, seven = (
        step(distiller({"objectives": [SoftLabels(weight=weight)]}))["loss"] for weight in (1, 7)
    )
    assert seven == pytest.approx(7 * one)


def test_no_projection_that_stays_as_it_was():
    """Trainable layers are heads of the student; a head that an objective reads moves."""
    model = distiller({"objectives": [SameFeatures()]})
    head = model.student.get_layer("head")
    before = head.kernel.numpy()
    step(model)
    assert differs([head.kernel.numpy()], [before])


@pytest.mark.parametrize("attribute", ["state", "projection"])
def test_no_layer_of_an_objective_that_stays_as_it_was_without_a_word(attribute):
    projection = layers.Dense(4)
    projection.build((None, 4))

    class Projected(SameFeatures):
        def __call__(self, batch):
            difference = batch.teacher["projection"] - projection(batch.student["projection"])
            return ops.sum(difference**2), ops.cast(ops.size(difference), "float32")

    objective = Projected()
    setattr(objective, attribute, projection)
    before = projection.kernel.numpy()
    try:
        step(distiller({"objectives": [HardLabels(), objective]}))
    except (ValueError, TypeError):
        return  # refused with a sentence, which is as good
    assert differs([projection.kernel.numpy()], [before])


@pytest.mark.parametrize("weight", [-1.0, True, float("nan"), "0.5"])
def test_no_weight_that_makes_no_sense(weight):
    with pytest.raises(ValueError, match="`weight` must be a finite number >= 0"):
        SoftLabels(weight=weight)


def test_no_number_of_numpy_that_is_refused():
    assert SoftLabels(np.float32(4), weight=np.float32(0.5)).weight == 0.5


def test_no_name_of_an_output_that_is_ignored():
    student, teacher = network(), teacher_network()
    wider = layers.Dense(3, name="second")(student.output["projection"])
    student = keras.Model(student.input, {**student.output, "second": wider})
    model = distiller({"objectives": [SoftLabels(student_output="second")]}, student=student)
    logits = student.output["logits"]._keras_history.operation
    before = [student.get_layer("second").kernel.numpy(), logits.kernel.numpy()]
    step(model)
    assert differs([student.get_layer("second").kernel.numpy()], before[:1])
    assert_equal([logits.kernel.numpy()], before[1:])
    with pytest.raises(ValueError, match="the student's output 'third', which the student lacks"):
        distiller({"objectives": [SoftLabels(student_output="third")]}, teacher=teacher)


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_no_softmax_that_is_taken_for_logits(part):
    networks = {"student": network(), "teacher": teacher_network()}
    networks[part] = (network if part == "student" else teacher_network)(activation="softmax")
    with pytest.raises(ValueError, match=f"The {part} ends in a softmax or sigmoid"):
        distiller(SOFT_LABELS_ONLY, **networks)


# --- Several replicas -------------------------------------------------------------------------


def cross_entropy(labels, logits):
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


@pytest.mark.parametrize(
    ("preset", "compiled"),
    [
        (WITH_FEATURES, {}),
        ({"objectives": [HardLabels(0.0)]}, {"loss": CROSS_ENTROPY}),
        ({"objectives": [HardLabels(0.0)]}, {"loss": cross_entropy}),
    ],
    ids=["objectives", "loss as an object", "loss as a function"],
)
def test_no_update_and_no_number_that_depends_on_the_replicas(two_replicas, preset, compiled):
    def run():
        student = network(batch_norm=False, kernel_regularizer=keras.regularizers.L2(0.1))
        model = distiller(preset, student=student, graph=True, metrics=["accuracy"], **compiled)
        before = trained(model)
        data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(12)
        shown = model.fit(data, verbose=0).history
        return [a - b for a, b in zip(trained(model), before, strict=True)], shown

    update, shown = run()
    with two_replicas.scope():
        update_of_two, shown_by_two = run()
    assert_close(update_of_two, update, 1e-4)
    assert {name: values[0] for name, values in shown_by_two.items()} == pytest.approx(
        {name: values[0] for name, values in shown.items()}, rel=1e-4
    )


# --- Files ------------------------------------------------------------------------------------


def test_no_teacher_in_a_file(tmp_path):
    teacher = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(1 / 128, -1)])
    for layer in (layers.Flatten(), layers.Dense(1000), layers.Dense(3)):
        teacher.add(layer)
    model = distiller(KD, teacher=teacher)
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "checkpoint.keras"))
    fit(model, callbacks=[checkpoint])
    model.save(tmp_path / "whole.keras")
    model.save_weights(tmp_path / "only.weights.h5")
    model.export(tmp_path / "exported")
    sizes = [file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()]
    assert len(sizes) > 4
    assert sum(sizes) < 4 * teacher.count_params()


def test_no_loaded_distiller_that_cannot_train_or_forgets_its_optimizer(tmp_path):
    def made():
        student = network(dropout=0.5)
        return distiller(SSKD, student=student, optimizer=keras.optimizers.Adam(0.05))

    whole = made()
    fit(whole, epochs=2)
    first = made()
    fit(first)
    first.save(tmp_path / "first.keras")
    loaded = keras.models.load_model(tmp_path / "first.keras")
    loaded.set_teacher(teacher_network())
    fit(loaded)
    assert_equal(everything(loaded), everything(whole))


def test_no_objective_that_stops_a_save(tmp_path):
    """An objective of one's own has the `get_config` of `Objective`."""
    model = distiller(WITH_FEATURES)
    fit(model, callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "own.keras"))])
    own = {"SameFeatures": SameFeatures}
    loaded = keras.models.load_model(tmp_path / "own.keras", custom_objects=own)
    assert [type(objective) for objective in loaded.objectives][-1] is SameFeatures


def test_no_backup_that_wants_a_call_by_hand(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch == 1:
                raise KeyboardInterrupt

    whole, interrupted, resumed = (distiller(KD) for _ in range(3))
    fit(whole, epochs=2)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, epochs=2, callbacks=[backup, Interrupt()])
    fit(resumed, epochs=2, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    assert_equal(everything(resumed), everything(whole))


# --- What fits --------------------------------------------------------------------------------


def test_no_features_that_must_be_equally_wide():
    """There is no loss of features at one place yet; similarities take any two widths."""
    student = network()
    narrow = layers.Dense(2)(student.output["projection"])
    student = keras.Model(student.input, {"logits": student.output["logits"], "projection": narrow})
    preset = {"objectives": [SimilarityTransfer(keep_wrong=1.0)], "views": SSKD["views"]}
    model = distiller(preset, student=student)
    before = trained(model)
    assert np.isfinite(step(model)["loss"])
    assert differs(trained(model), before)


def nested(seed):
    """A classifier on a backbone."""
    inner = network(seed=seed)
    pool = next(each for each in inner.layers if isinstance(each, layers.GlobalAveragePooling2D))
    backbone = keras.Model(inner.input, pool.output, name="backbone")
    images = keras.Input((8, 8, 3), dtype="uint8")
    return keras.Model(images, layers.Dense(3)(backbone(images))), f"backbone/{pool.name}"


@pytest.mark.parametrize("whole", [False, True], ids=["inner layer", "backbone"])
def test_no_nested_layer_out_of_reach(whole):
    networks = []
    for seed in (0, 1):
        model, path = nested(seed)
        tap = {"projection": "backbone" if whole else path}
        networks.append(ssd.named_outputs(model, tap))
    model = distiller({"objectives": [SameFeatures()]}, student=networks[0], teacher=networks[1])
    before = trained(model)
    step(model)
    assert differs(trained(model), before)


def test_no_teacher_that_must_take_images_of_the_students_size():
    teacher = ssd.models.build("resnet8", num_classes=3, input_shape=(16, 16, 3))
    resized = keras.Sequential([layers.Resizing(16, 16), layers.Rescaling(1 / 255)])
    model = ssd.Distiller(teacher, network(), **KD, teacher_preprocessing=resized)
    model.compile(sgd(), run_eagerly=True)
    assert np.isfinite(step(model)["soft_labels"])


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_no_teacher_that_must_compute_in_the_students_dtype(dtype):
    keras.config.set_dtype_policy(dtype)
    teacher = teacher_network()
    keras.config.set_dtype_policy("float32")
    assert np.isfinite(step(distiller(KD, teacher=teacher))["soft_labels"])


def test_no_infinite_loss_in_float16():
    keras.config.set_dtype_policy("mixed_float16")
    model = distiller(KD, teacher=teacher_network(), student=network())
    assert np.isfinite([step(model)["loss"] for _ in range(3)]).all()
    far = np.array([[40_000, -40_000]], "float16")
    assert soft_labels(far, -far, 1.0)[0] == pytest.approx(80_000)  # beyond float16


def test_no_flag_of_the_teacher_that_changes():
    teacher = teacher_network()
    frozen = teacher_network()
    frozen.trainable = False
    for given, flag in ((teacher, True), (frozen, False)):
        step(distiller(KD, teacher=given))
        assert given.trainable is flag
        assert all(layer.trainable is flag for layer in given.layers)


def test_no_layer_frozen_because_the_teacher_has_it_too():
    student = network()
    shared = next(each for each in student.layers if isinstance(each, layers.Conv2D))
    wide = layers.Flatten()(shared.output)
    teacher = keras.Model(student.input, layers.Dense(3)(layers.Dense(60)(wide)))
    model = distiller(KD, student=student, teacher=teacher)
    before, said = trained(model), model.teacher(IMAGES)["logits"].numpy()
    step(model)
    assert differs(trained(model)[:1], before[:1])  # the shared kernel
    assert shared.trainable
    assert_equal([model.teacher(IMAGES)["logits"].numpy()], [said])  # a copy of the shared weights


def test_no_loss_of_labels_where_there_are_none():
    model = distiller(SOFT_LABELS_ONLY, metrics=["accuracy"])
    before = trained(model)
    shown = fit(model, labels=None)
    assert shown.keys() == {"loss", "soft_labels", "teacher_agreement"}
    assert differs(trained(model), before)
