import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from replicas import on_replicas

from keras_ssd.batch import Batch
from keras_ssd.losses.contrastive import compositional_contrastive_loss, noise_contrastive_loss
from keras_ssd.objectives.contrastive import CompositionalContrastive, NoiseContrastive
from objectives.batches import loss_and_gradients, mean_of

NCE, CCL = NoiseContrastive(0.3, weight=0.5), CompositionalContrastive(0.7)
BOTH = pytest.mark.parametrize("objective", [NCE, CCL], ids=["NCE", "CCL"])
PRECISIONS = [("float64", 1e-9, 1e-12), ("float32", 2e-5, 2e-6)]
LABELS = [0, 1, 0, 2, 1, 0]


def batch_of(teacher, student, labels=LABELS, weights=None, views=1):
    weights = None if weights is None else tf.constant(weights, tf.float32)
    return Batch(None, tf.constant(labels), weights, dict(teacher), dict(student), views)


def random_batch(images=6, *, labels=LABELS, weights=None, dtype="float64", scale=1.0, views=1):
    generator = np.random.default_rng(0)
    both = [
        {
            "node": tf.cast(scale * generator.normal(size=(images * views, 4)), dtype),
            "logits": tf.cast(scale * generator.normal(size=(images * views, 3)), dtype),
        }
        for _ in range(2)
    ]
    return batch_of(*both, labels, weights, views)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
@pytest.mark.parametrize("function", ["nce", "ccl"])
def test_goldens(function, dtype, rtol, atol):
    for parameter in golden_cases("loss_zoo", function):
        (case,) = parameter.values
        inputs, networks = case["inputs"], []
        for name in ("teacher", "student"):
            outputs = {"node": inputs[name], "logits": inputs.get(f"{name}_logits")}
            networks.append({k: tf.constant(v, dtype) for k, v in outputs.items() if v is not None})
        objective = (
            NoiseContrastive(case["params"]["temperature"])
            if function == "nce"
            else CompositionalContrastive()
        )
        loss, gradients = loss_and_gradients([objective], batch_of(*networks, inputs["labels"]))
        np.testing.assert_allclose(loss, case["expected"], rtol, atol)
        for name, expected in case["gradients"].items():
            found = gradients["node" if name == "student" else "logits"]
            np.testing.assert_allclose(found, expected, rtol, atol)


def test_values_are_those_of_the_losses():
    batch = random_batch(labels=[0, -1, 0, 2, 1, 0], weights=[1.0, 1, 3, 0, 0.5, 2])
    nodes = batch.teacher["node"], batch.student["node"]
    logits = batch.teacher["logits"], batch.student["logits"]
    taking_part = tf.constant([1, 0, 1, 0, 1, 1])
    value = noise_contrastive_loss(*nodes, LABELS, 0.3, taking_part)
    np.testing.assert_allclose(mean_of(NCE, batch), value, rtol=1e-12)
    value = compositional_contrastive_loss(*nodes, LABELS, *logits, 0.1, taking_part)
    np.testing.assert_allclose(mean_of(CCL, batch), value, rtol=1e-12)


@BOTH
def test_who_takes_no_part_gets_no_gradient(objective):
    batch = random_batch(labels=[0, -1, 0, 2, 1, 0], weights=[1.0, 1, 3, 0, 0.5, 2])
    _, gradients = loss_and_gradients([objective], batch)
    for gradient in gradients.values():
        moved = np.flatnonzero(np.any(gradient, axis=1))
        assert list(moved) in ([0, 2, 4, 5], [])
    assert np.any(gradients["node"])
    assert np.any(gradients["logits"]) == (objective is CCL)


@BOTH
def test_nobody_gives_0_and_a_gradient_of_0(objective):
    for batch in (random_batch(weights=[0.0] * 6), random_batch(labels=[-1] * 6)):
        loss, gradients = loss_and_gradients([objective], batch)
        assert float(loss) == 0
        assert float(objective(batch)[1]) == 0
        assert not any(np.any(gradient) for gradient in gradients.values())


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
def test_only_the_plain_rows_are_read(objective):
    views = random_batch(views=3)
    plain = dataclasses.replace(
        views,
        num_views=1,
        teacher={name: rows[::3] for name, rows in views.teacher.items()},
        student={name: rows[::3] for name, rows in views.student.items()},
    )
    np.testing.assert_array_equal(objective(views), objective(plain))


@BOTH
def test_the_length_of_the_students_embeddings_does_not_matter(objective):
    batch = random_batch()
    scaled = {**batch.student, "node": 7.0 * batch.student["node"]}
    scaled = dataclasses.replace(batch, student=scaled)
    np.testing.assert_allclose(mean_of(objective, scaled), mean_of(objective, batch), rtol=1e-10)


@BOTH
def test_degenerate_batches_are_finite(objective):
    zeros = random_batch(scale=0.0, dtype="float32")
    one = random_batch(1, labels=[2], dtype="float32")
    one_class = random_batch(labels=[1] * 6, dtype="float32", scale=200.0)
    for batch in (zeros, one, one_class):
        loss, gradients = loss_and_gradients([objective], batch)
        assert math.isfinite(loss)
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    if objective.compares_images:
        assert float(loss_and_gradients([objective], one)[0]) == pytest.approx(0, abs=1e-7)
    assert NCE.compares_images
    assert not CCL.compares_images  # its divergence teaches by one image


@BOTH
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_halves_are_computed_in_float32(objective, dtype):
    halves = random_batch(dtype=dtype, scale=300.0)
    floats = dataclasses.replace(
        halves,
        teacher={name: tf.cast(tensor, tf.float32) for name, tensor in halves.teacher.items()},
        student={name: tf.cast(tensor, tf.float32) for name, tensor in halves.student.items()},
    )
    assert objective(halves)[0].dtype == tf.float32
    np.testing.assert_array_equal(objective(halves), objective(floats))
    _, gradients = loss_and_gradients([objective], halves)
    for gradient in gradients.values():
        assert gradient.dtype == dtype
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


@BOTH
def test_a_stored_teacher_may_have_another_precision(objective):
    batch = random_batch()
    stored = {name: tf.cast(rows, tf.float32) for name, rows in batch.teacher.items()}
    mixed = mean_of(objective, dataclasses.replace(batch, teacher=stored))
    np.testing.assert_allclose(mixed, mean_of(objective, batch), rtol=1e-5)


@BOTH
def test_compiled_equals_eager(objective):
    batch = random_batch(labels=[0, -1, 0, 2, 1, 0], weights=[1.0, 1, 3, 0, 0.5, 2])
    given = (batch.labels, batch.sample_weight, batch.teacher, batch.student)
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), given)

    @tf.function(jit_compile=True, input_signature=specs)
    def compiled(labels, weights, teacher, student):
        return loss_and_gradients([objective], Batch(None, labels, weights, teacher, student, 1))

    for found, expected in zip(
        tf.nest.flatten(compiled(*given)),
        tf.nest.flatten(loss_and_gradients([objective], batch)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@BOTH
@pytest.mark.parametrize("split", [3, 5, 6], ids=["halves", "uneven", "empty"])
def test_replicas_equal_one_device(two_replicas, objective, split):
    batch = random_batch(labels=[0, -1, 0, 2, 1, 0], weights=[1.0, 1, 3, 0, 0.5, 2])
    count = objective(batch)[1]
    loss, gradients = loss_and_gradients([objective], batch)

    def share(labels, weights, teacher, node, logits):
        student = {"node": node, "logits": logits}
        teacher = {"node": teacher[:, :4], "logits": teacher[:, 4:]}
        with tf.GradientTape() as tape:
            tape.watch(student)
            total, own = objective(Batch(None, labels, weights, teacher, student, 1))
            value = objective.weight * total / tf.cast(count, total.dtype)
        unconnected = tf.UnconnectedGradients.ZERO
        return value, own, tape.gradient(value, student, unconnected_gradients=unconnected)

    teacher = tf.concat([batch.teacher["node"], batch.teacher["logits"]], axis=1)
    tensors = (batch.labels, batch.sample_weight, teacher, *map(batch.student.get, gradients))
    shards = [[each[:split], each[split:]] for each in tensors]
    values, counts, parts = zip(*on_replicas(two_replicas, share, *shards), strict=True)
    np.testing.assert_allclose(sum(values), loss, rtol=1e-10)
    np.testing.assert_allclose(sum(counts), count, rtol=1e-12)
    for name, expected in gradients.items():
        found = tf.concat([part[name] for part in parts], 0)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


@BOTH
def test_config_round_trip(objective):
    names = {"teacher_output": "tn", "student_output": "sn"}
    if objective is CCL:
        names |= {"teacher_logits": "tl", "student_logits": "sl"}
    renamed = type(objective)(**{**objective.get_config(), **names})
    for each in (objective, renamed):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(each))
        assert type(again) is type(objective)
        assert again.get_config() == each.get_config()
        assert vars(again) == vars(each)
    batch = random_batch()
    other = dataclasses.replace(
        batch,
        teacher={f"t{name[0]}": rows for name, rows in batch.teacher.items()},
        student={f"s{name[0]}": rows for name, rows in batch.student.items()},
    )
    np.testing.assert_array_equal(renamed(other), objective(batch))


def test_defaults():
    nodes = {"weight": 1.0, "teacher_output": "node", "student_output": "node"}
    assert NoiseContrastive().get_config() == {
        **nodes,
        "name": "noise_contrastive",
        "temperature": 0.1,
    }
    assert CompositionalContrastive().get_config() == {
        **nodes,
        "name": "compositional_contrastive",
        "teacher_logits": "logits",
        "student_logits": "logits",
    }


@BOTH
def test_what_is_refused(objective):
    with pytest.raises(ValueError, match="This batch has no labels"):
        objective(dataclasses.replace(random_batch(), labels=None))
    assert objective.needs_labels
    widths = {"node": keras.Input((4,)), "logits": keras.Input((3,))}
    with pytest.raises(ValueError, match="needs outputs of one width"):
        objective.check_outputs({**widths, "node": keras.Input((5,))}, widths, 1)
    with pytest.raises(ValueError, match="`weight` must be a finite number >= 0"):
        type(objective)(weight=-1)


def test_a_temperature_must_be_positive():
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, got 0"):
        NoiseContrastive(0)
