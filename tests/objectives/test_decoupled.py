import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from distiller.tiny import IMAGES, LABELS, network, sgd, teacher_network
from replicas import on_replicas

import keras_ssd as ssd
from keras_ssd.batch import Batch
from keras_ssd.losses.decoupled import class_relation_loss, decoupled_divergence
from keras_ssd.objectives.decoupled import ClassRelations, DecoupledSoftLabels
from objectives.batches import loss_and_gradients, mean_of, random_batch, with_student

DKD = DecoupledSoftLabels(0.7, other_weight=2.0, temperature=3.0, weight=0.5)
DIST = ClassRelations(0.7, intra_weight=1.3, temperature=2.0, weight=0.5)
BOTH = pytest.mark.parametrize("objective", [DKD, DIST], ids=["DKD", "DIST"])
PRECISIONS = [("float64", 1e-9, 1e-12), ("float32", 2e-5, 2e-6)]


def logits_batch(teacher, student, labels=None, weights=None, dtype=None):
    def each(rows):
        return {"logits": tf.constant(rows, dtype) if dtype else tf.convert_to_tensor(rows)}

    labels = None if labels is None else tf.constant(labels)
    weights = None if weights is None else tf.constant(weights, tf.float32)
    return Batch(None, labels, weights, each(teacher), each(student), 1)


@pytest.mark.parametrize("function", ["dkd", "dist"])
@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_goldens(function, dtype, rtol, atol):
    for parameter in golden_cases("loss_zoo", function):
        (case,) = parameter.values
        inputs, params = case["inputs"], case["params"]
        if function == "dkd":
            objective = DecoupledSoftLabels(params["alpha"], other_weight=params["beta"])
        else:
            objective = ClassRelations(params["beta"], intra_weight=params["gamma"])
        objective.temperature = params["temperature"]
        batch = logits_batch(
            inputs["teacher"], inputs["student"], inputs.get("labels"), None, dtype
        )
        loss, gradients = loss_and_gradients([objective], batch)
        np.testing.assert_allclose(loss, case["expected"]["value"], rtol, atol)
        np.testing.assert_allclose(gradients["logits"], case["gradients"]["student"], rtol, atol)


def test_dkd_is_a_weighted_mean_over_labeled_images():
    batch = random_batch(labels=[2, -1, 0, 1, 3, 4], sample_weight=[1.0, 5, 0, 2, 0.5, 1])
    rows = [0, 3, 4, 5]
    teacher, student = (
        tf.gather(outputs["logits"][::4], rows) for outputs in (batch.teacher, batch.student)
    )
    values = decoupled_divergence(teacher, student, [2, 1, 3, 4], 0.7, 2.0, 3.0)
    total, count = DKD(batch)
    np.testing.assert_allclose(total, np.sum(values * [1, 2, 0.5, 1]), rtol=1e-12)
    assert float(count) == 4.5
    one_hot = np.eye(5)[[2, 0, 0, 1, 3, 4]] * [[1], [0], [1], [1], [1], [1]]
    other = dataclasses.replace(batch, labels=tf.constant(one_hot))
    np.testing.assert_array_equal(DKD(other), (total, count))


def test_dist_weighs_images_and_not_classes():
    batch = random_batch(sample_weight=[1.0, 3, 0, 2, 0.5, 1])
    rows = [0, 1, 3, 4, 5]
    teacher, student = (
        tf.gather(outputs["logits"][::4], rows) for outputs in (batch.teacher, batch.student)
    )
    inter = [
        class_relation_loss(teacher[i : i + 1], student[i : i + 1], 1.0, 0.0, 2.0) for i in range(5)
    ]
    intra = class_relation_loss(teacher, student, 0.0, 1.0, 2.0)
    expected = 0.7 * np.average(inter, weights=[1, 3, 2, 0.5, 1]) + 1.3 * intra
    np.testing.assert_allclose(mean_of(DIST, batch), expected, rtol=1e-10)


@BOTH
def test_an_image_of_weight_0_gets_no_gradient(objective):
    batch = random_batch(sample_weight=[1.0, 0, 1, 1, 0, 1])
    _, gradients = loss_and_gradients([objective], batch)
    moved = np.any(gradients["logits"], axis=1)
    np.testing.assert_array_equal(np.flatnonzero(moved), [0, 8, 12, 20])
    assert not np.any(gradients["projection"])


def test_an_image_of_weight_0_may_be_nan():
    weights = [1.0, 0, 2, 0]
    teacher, student = np.random.default_rng(0).normal(size=(2, 4, 5))
    expected, wanted = loss_and_gradients([DIST], logits_batch(teacher, student, None, weights))
    teacher[1] = student[3] = math.nan
    loss, gradients = loss_and_gradients([DIST], logits_batch(teacher, student, None, weights))
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(gradients["logits"], wanted["logits"])


@BOTH
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_weight_gives_0_and_a_gradient_of_0(objective, dtype):
    batch = random_batch(dtype=dtype, sample_weight=[0.0] * 6)
    loss, gradients = loss_and_gradients([objective], batch)
    np.testing.assert_array_equal(objective(batch), [0, 0])
    assert float(loss) == 0
    assert not np.any(gradients["logits"])


def test_dkd_without_a_label_is_nothing_and_without_labels_an_error():
    loss, gradients = loss_and_gradients([DKD], random_batch(labels=[-1] * 6))
    assert float(loss) == 0
    assert not np.any(gradients["logits"])
    assert DKD.needs_labels
    assert not DIST.needs_labels
    with pytest.raises(ValueError, match="This batch has no labels"):
        DKD(dataclasses.replace(random_batch(), labels=None))
    assert math.isfinite(mean_of(DIST, dataclasses.replace(random_batch(), labels=None)))


@BOTH
def test_no_gradient_reaches_the_teacher(objective):
    batch = random_batch()
    with tf.GradientTape() as tape:
        tape.watch(batch.teacher)
        total, _ = objective(batch)
    gradients = tape.gradient(total, batch.teacher).values()
    assert not any(np.any(gradient) for gradient in gradients if gradient is not None)
    assert not objective.trains_teacher_head


@BOTH
def test_equal_logits_cost_nothing(objective):
    batch = random_batch(dtype="float32")
    batch = with_student(batch, logits=batch.teacher["logits"])
    loss, gradients = loss_and_gradients([objective], batch)
    assert abs(float(loss)) < 1e-5
    assert np.isfinite(gradients["logits"]).all()


@BOTH
@pytest.mark.parametrize("scale", [0.0, 200.0, -200.0])
@pytest.mark.parametrize("images", [1, 3])
def test_extremes_are_finite(objective, scale, images):
    rows = tf.constant(scale * np.eye(4)[:images], tf.float32)
    loss, gradients = loss_and_gradients(
        [objective], logits_batch(200 * tf.eye(4)[:images], rows, [3] * images)
    )
    assert math.isfinite(loss)
    assert np.isfinite(gradients["logits"]).all()


@BOTH
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_halves_are_computed_in_float32(objective, dtype):
    halves = random_batch(dtype=dtype)
    floats = dataclasses.replace(
        halves,
        teacher={name: tf.cast(tensor, tf.float32) for name, tensor in halves.teacher.items()},
        student={name: tf.cast(tensor, tf.float32) for name, tensor in halves.student.items()},
    )
    assert objective(halves)[0].dtype == tf.float32
    np.testing.assert_array_equal(objective(halves), objective(floats))
    _, gradients = loss_and_gradients([objective], halves)
    assert gradients["logits"].dtype == dtype


@BOTH
def test_compiled_equals_eager(objective):
    batch = random_batch(4, labels=[2, 0, -1, 1], sample_weight=[1.0, 2, 1, 0])
    given = (batch.labels, batch.sample_weight, batch.teacher, batch.student)
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), given)

    @tf.function(jit_compile=True, input_signature=specs)
    def compiled(labels, weights, teacher, student):
        mine = Batch(None, labels, weights, teacher, student, 4)
        loss, gradients = loss_and_gradients([objective], mine)
        return loss, gradients["logits"]

    loss, gradients = loss_and_gradients([objective], batch)
    for found, expected in zip(compiled(*given), (loss, gradients["logits"]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@BOTH
@pytest.mark.parametrize("split", [3, 5, 6], ids=["halves", "uneven", "empty"])
def test_replicas_equal_one_device(two_replicas, objective, split):
    teacher, student = tf.unstack(tf.constant(np.random.default_rng(0).normal(0, 2, (2, 6, 4))))
    labels, weights = [2, 0, -1, 1, 3, 3], [1.0, 2, 0.5, 0, 1, 1]
    batch = logits_batch(teacher, student, labels, weights)

    def share(teacher, student, labels, weights, count):
        with tf.GradientTape() as tape:
            tape.watch(student)
            mine = Batch(None, labels, weights, {"logits": teacher}, {"logits": student}, 1)
            total, own = objective(mine)
            value = objective.weight * total / tf.cast(count, total.dtype)
        return value, own, tape.gradient(value, student)

    loss, gradients = loss_and_gradients([objective], batch)
    count = objective(batch)[1]
    tensors = (teacher, student, batch.labels, batch.sample_weight)
    shards = [[each[:split], each[split:]] for each in tensors]
    values, counts, parts = zip(
        *on_replicas(two_replicas, share, *shards, [count, count]), strict=True
    )
    np.testing.assert_allclose(sum(counts), count, rtol=1e-12)
    np.testing.assert_allclose(sum(values), loss, rtol=1e-10)
    np.testing.assert_allclose(tf.concat(parts, 0), gradients["logits"], rtol=1e-10, atol=1e-14)


@BOTH
def test_config_round_trip(objective):
    options = {**objective.get_config(), "teacher_output": "t", "student_output": "s"}
    for each in (objective, type(objective)(**options)):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(each))
        assert type(again) is type(objective)
        assert again.get_config() == each.get_config()
        assert vars(again) == vars(each)
    batch = random_batch()
    renamed = dataclasses.replace(
        batch, teacher={"t": batch.teacher["logits"]}, student={"s": batch.student["logits"]}
    )
    np.testing.assert_array_equal(type(objective)(**options)(renamed), objective(batch))


def test_defaults():
    shared = {"weight": 1.0, "teacher_output": "logits", "student_output": "logits"}
    assert DecoupledSoftLabels().get_config() == {
        **shared,
        "name": "decoupled_soft_labels",
        "target_weight": 1.0,
        "other_weight": 8.0,
        "temperature": 4.0,
    }
    assert ClassRelations().get_config() == {
        **shared,
        "name": "class_relations",
        "inter_weight": 1.0,
        "intra_weight": 1.0,
        "temperature": 1.0,
    }


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "1", None], ids=repr)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DecoupledSoftLabels, "target_weight"),
        (DecoupledSoftLabels, "other_weight"),
        (ClassRelations, "inter_weight"),
        (ClassRelations, "intra_weight"),
        (ClassRelations, "weight"),
    ],
)
def test_weights_must_be_finite_numbers(kind, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, got"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", [DecoupledSoftLabels, ClassRelations])
def test_a_temperature_must_be_positive(kind):
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, got 0"):
        kind(temperature=0)


@BOTH
def test_class_counts_must_agree(objective):
    teacher, student = {"logits": keras.Input((10,))}, {"logits": keras.Input((12,))}
    with pytest.raises(ValueError, match="teacher has 10 classes and the student 12"):
        objective.check_outputs(teacher, student, 1)


def test_the_warm_up_of_the_docstring():
    objective = DecoupledSoftLabels()
    model = ssd.Distiller(teacher_network(), network(), [ssd.objectives.HardLabels(), objective])
    model.compile(sgd(0.0))
    shown = []

    class WarmUp(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch < 20:
                objective.weight = (epoch + 1) / 20
                self.model.make_train_function(force=True)

        def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
            shown.append((logs["loss"] - logs["hard_labels"]) / logs["decoupled_soft_labels"])

    model.fit(
        IMAGES, LABELS, batch_size=12, epochs=22, initial_epoch=18, verbose=0, callbacks=[WarmUp()]
    )
    np.testing.assert_allclose(shown, [0.95, 1, 1, 1], rtol=1e-4)
