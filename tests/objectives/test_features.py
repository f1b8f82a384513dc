"""Hint and AttentionTransfer: rows, weights, pairs of maps, replicas, what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import on_replicas

from keras_ssd.batch import Batch
from keras_ssd.collectives import all_sum
from keras_ssd.losses.features import attention_loss, hint_loss
from keras_ssd.objectives.features import AttentionTransfer, Hint
from objectives.batches import EXACT, changed, loss_and_gradients, loss_of

MAPS = {"teacher_outputs": ["shallow", "deep"], "student_outputs": ["first", "second"]}
OBJECTIVES = {
    "hint": Hint(teacher_output="deep", student_output="second"),
    "attention": AttentionTransfer(**MAPS),
}
each_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def random_batch(images=5, *, weights=None, dtype="float64"):
    """Two views of each image; the second pair of maps has one shape."""
    generator = np.random.default_rng(0)

    def draw(*shape):
        return tf.constant(generator.normal(size=(2 * images, *shape)), dtype)

    teacher = {"shallow": draw(5, 5, 6), "deep": draw(2, 2, 3)}
    student = {"first": draw(3, 3, 4), "second": draw(2, 2, 3)}
    weights = None if weights is None else tf.constant(weights, tf.float32)
    return Batch(None, None, weights, teacher, student, 2)


def row_values(name, batch):
    teacher, student = batch.teacher, batch.student
    if name == "hint":
        return hint_loss(teacher["deep"][::2], student["second"][::2])
    pairs = (("shallow", "first"), ("deep", "second"))
    return sum(attention_loss(teacher[t][::2], student[s][::2]) for t, s in pairs)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_weighted_mean_over_plain_rows(name):
    weights = [1.0, 0, 2, 1, 0.5]
    batch = random_batch(weights=weights)
    values = row_values(name, batch)
    nothing = tf.where(tf.range(10) // 2 == 1, np.nan, tf.zeros([], tf.float64))
    rest = {k: v + nothing[:, None, None, None] for k, v in batch.teacher.items()}
    total, count = OBJECTIVES[name](changed(batch, teacher=rest))
    np.testing.assert_allclose(total, np.sum(values * np.array(weights)), **EXACT)
    assert float(count) == 4.5
    _, gradients = loss_and_gradients([OBJECTIVES[name]], batch)
    assert np.any(gradients["second"][::4])
    assert not np.any(gradients["second"][1::2])
    assert not np.any(gradients["second"][2])
    assert np.any(gradients["first"]) == (name == "attention")


@each_objective
def test_no_weight_gives_0_and_a_gradient_of_0(objective):
    batch = random_batch(weights=[0.0] * 5)
    assert [*map(float, objective(batch))] == [0, 0]
    _, gradients = loss_and_gradients([objective], batch)
    assert not any(np.any(gradient) for gradient in gradients.values())


@each_objective
def test_no_gradient_reaches_the_teacher(objective):
    batch = random_batch()
    with tf.GradientTape() as tape:
        tape.watch(batch.teacher)
        loss = loss_of([objective], batch)
    assert not any(g is not None for g in tape.gradient(loss, batch.teacher).values())


@each_objective
def test_two_replicas_are_one(two_replicas, objective):
    batch = random_batch(weights=[1.0, 0, 2, 1, 0.5])

    def replica(weights, teacher, student):
        total, count = objective(
            changed(batch, sample_weight=weights, teacher=teacher, student=student)
        )
        return total / all_sum(count)

    cut = [slice(0, 3), slice(3, None)]
    rows = [slice(0, 6), slice(6, None)]
    weights = [batch.sample_weight[part] for part in cut]
    teacher = [{k: v[part] for k, v in batch.teacher.items()} for part in rows]
    student = [{k: v[part] for k, v in batch.student.items()} for part in rows]
    shares = on_replicas(two_replicas, replica, weights, teacher, student)
    expected = loss_of([objective], batch) / objective.weight
    np.testing.assert_allclose(sum(shares), expected, **EXACT)


@each_objective
def test_half_precision_and_compilation(objective):
    batch = random_batch(dtype="float16", weights=[1.0, 0, 2, 1, 0.5])

    @tf.function(jit_compile=True)
    def compiled(teacher, student):
        return loss_and_gradients([objective], changed(batch, teacher=teacher, student=student))

    loss, gradients = compiled(batch.teacher, batch.student)
    expected, of_eager = loss_and_gradients([objective], batch)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, gradient in gradients.items():
        assert gradient.dtype == tf.float16
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, of_eager[name], rtol=2e-3, atol=1e-3)


def test_power():
    batch = random_batch()
    cubes = AttentionTransfer(teacher_outputs=["deep"], student_outputs=["second"], power=3)
    values = attention_loss(batch.teacher["deep"][::2], batch.student["second"][::2], 3)
    np.testing.assert_allclose(cubes(batch)[0], np.sum(values), **EXACT)


def test_defaults():
    assert (Hint().weight, Hint().teacher_outputs, Hint().student_outputs) == (
        100,
        ("embedding",),
        ("connector",),
    )
    assert (AttentionTransfer(**MAPS).weight, AttentionTransfer(**MAPS).power) == (1000, 2)


@pytest.mark.parametrize(
    "objective",
    [
        Hint(0.5, teacher_output="t", student_output="s", name="mine"),
        AttentionTransfer(0.5, **MAPS, power=3, name="mine"),
    ],
    ids=OBJECTIVES,
)
def test_serialisation(objective):
    read = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert vars(read) == vars(objective)
    assert read.get_config() == objective.get_config()
    assert (read.weight, read.name) == (0.5, "mine")


# Mistakes


def outputs(**shapes):
    return {name: keras.KerasTensor((None, *shape)) for name, shape in shapes.items()}


def test_shapes_of_hints_are_checked_before_training():
    student = outputs(connector=(4, 4, 5))
    advice = (
        r"'embedding' of the teacher has \(2, 2, 5\) and 'connector' of the student \(4, 4, 5\): "
        r"make its connector for \(2, 2, 5\), or add one of another `name=` and read that\."
    )
    with pytest.raises(ValueError, match=advice):
        Hint().check_outputs(outputs(embedding=(2, 2, 5)), student, 1)
    advice = r"give the student a connector, `with_connector\(student, 'embedding', \(2, 2, 5\)\)`"
    with pytest.raises(ValueError, match=advice):
        Hint(student_output="embedding").check_outputs(
            outputs(embedding=(2, 2, 5)), outputs(embedding=(4, 4, 5)), 1
        )
    Hint().check_outputs(outputs(embedding=(4, 4, 5)), student, 1)
    Hint().check_outputs(outputs(embedding=(None, None, 5)), student, 1)
    Hint().check_outputs(None, student, 1)


def test_attention_is_of_maps():
    objective = AttentionTransfer(teacher_outputs=["a"], student_outputs=["b"])
    map_, vector = (4, 4, 5), (5,)
    for who, teacher, student in (("teacher", vector, map_), ("student", map_, vector)):
        with pytest.raises(ValueError, match=rf"of the {who} has shape \(None, 5\): name outputs"):
            objective.check_outputs(outputs(a=teacher), outputs(b=student), 1)
    objective.check_outputs(outputs(a=map_), outputs(b=map_), 1)
    objective.check_outputs(None, outputs(b=map_), 1)


def test_mistaken_names():
    with pytest.raises(TypeError, match="`student_outputs` must be a sequence of names, got 'b'"):
        AttentionTransfer(teacher_outputs=["a"], student_outputs="b")
    with pytest.raises(ValueError, match="are pairs, got 2 and 1: name as many maps"):
        AttentionTransfer(teacher_outputs=["a", "b"], student_outputs=["c"])
    with pytest.raises(ValueError, match="`teacher_outputs` must name at least one"):
        AttentionTransfer(teacher_outputs=[], student_outputs=[])
    with pytest.raises(ValueError, match="`power` must be a finite number >= 1, got 0"):
        AttentionTransfer(**MAPS, power=0)
