"""SP, PKT, RKD and CC as objectives: rows, weights, replicas, what reaches the teacher."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import on_replicas

from keras_ssd.batch import Batch
from keras_ssd.collectives import all_sum
from keras_ssd.losses import relational
from keras_ssd.objectives.relational import (
    CorrelationCongruence,
    ProbabilisticTransfer,
    RelationalKnowledge,
    SimilarityPreserving,
)
from objectives.batches import EXACT, changed, loss_and_gradients, loss_of

OBJECTIVES = {
    "sp": SimilarityPreserving(),
    "pkt": ProbabilisticTransfer(),
    "rkd": RelationalKnowledge(),
    "cc": CorrelationCongruence(),
}
LOSSES = {
    "sp": relational.similarity_preserving_loss,
    "pkt": relational.probabilistic_transfer_loss,
    "rkd": lambda *arguments: (
        25 * relational.relational_distance_loss(*arguments)
        + 50 * relational.relational_angle_loss(*arguments)
    ),
    "cc": relational.correlation_congruence_loss,
}
each_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def random_batch(images=6, width=4, *, weights=None, views=2, dtype="float64"):
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, images * views, width))
    weights = None if weights is None else tf.constant(weights, tf.float32)
    outputs = ({"embedding": tf.constant(rows, dtype)} for rows in (teacher, student))
    return Batch(None, None, weights, *outputs, views)


def rows_of(images):
    return (2 * np.asarray(images, int)[:, None] + np.arange(2)).ravel()


def part_of(batch, images):
    """The batch of some images of a batch."""
    weights, rows = batch.sample_weight, rows_of(images)
    return changed(
        batch,
        sample_weight=None if weights is None else tf.gather(weights, images),
        teacher={"embedding": tf.gather(batch.teacher["embedding"], rows)},
        student={"embedding": tf.gather(batch.student["embedding"], rows)},
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_mean_is_the_loss_of_the_plain_rows(name):
    batch = random_batch(weights=[1.0, 0, 2, 1, 0.5, 1])
    total, count = OBJECTIVES[name](batch)
    assert float(count) == (1 if name == "cc" else 5)
    teacher, student = (rows["embedding"][::2] for rows in (batch.teacher, batch.student))
    expected = LOSSES[name](teacher, student, batch.sample_weight)
    np.testing.assert_allclose(total / count, expected, **EXACT)
    _, gradients = loss_and_gradients([OBJECTIVES[name]], batch)
    assert not np.any(gradients["embedding"][1::2])


@each_objective
def test_an_image_of_weight_0_vanishes(objective):
    whole, kept = random_batch(weights=[1.0, 0, 2, 1, 0, 0.5]), [0, 2, 3, 5]
    part = part_of(whole, kept)
    nothing = tf.constant(np.where(np.isin(np.arange(12) // 2, kept)[:, None], 0, np.nan))
    whole = changed(
        whole,
        teacher={"embedding": whole.teacher["embedding"] + nothing},
        student={"embedding": whole.student["embedding"] + nothing},
    )
    np.testing.assert_allclose(objective(whole), objective(part), **EXACT)
    _, gradients = loss_and_gradients([objective], whole)
    _, expected = loss_and_gradients([objective], part)
    found = tf.gather(gradients["embedding"], rows_of(kept))
    np.testing.assert_allclose(found, expected["embedding"], **EXACT)
    assert not np.any(tf.gather(gradients["embedding"], rows_of([1, 4])))


@each_objective
def test_no_weight_gives_0_and_a_gradient_of_0(objective):
    batch = random_batch(weights=[0.0] * 6, dtype="float32")
    assert [*map(float, objective(batch))] == [0, 0]
    _, gradients = loss_and_gradients([objective], batch)
    assert not np.any(gradients["embedding"])


def terms_on_replicas(strategy, objective, batch, first):
    """Shares of the loss and their gradients with respect to both networks, a replica each."""
    images = len(batch.sample_weight)
    shards = [part_of(batch, range(first)), part_of(batch, range(first, images))]

    def replica(weights, teacher, student):
        with tf.GradientTape() as tape:
            tape.watch([teacher, student])
            mine = changed(
                batch,
                sample_weight=weights,
                teacher={"embedding": teacher},
                student={"embedding": student},
            )
            total, count = objective(mine)
            share = tf.math.divide_no_nan(total, all_sum(count))
        none = tf.UnconnectedGradients.ZERO
        return share, *tape.gradient(share, [teacher, student], unconnected_gradients=none)

    weights = [shard.sample_weight for shard in shards]
    teacher = [shard.teacher["embedding"] for shard in shards]
    student = [shard.student["embedding"] for shard in shards]
    return on_replicas(strategy, replica, weights, teacher, student)


@each_objective
@pytest.mark.parametrize("first", [4, 0], ids=["4 and 3", "0 and 7"])
def test_two_replicas_are_one(two_replicas, objective, first):
    batch = random_batch(7, weights=[1.0, 0, 2, 1, 0.5, 1, 0])
    shares, *gradients = zip(*terms_on_replicas(two_replicas, objective, batch, first), strict=True)
    with tf.GradientTape() as tape:
        tape.watch([batch.teacher, batch.student])
        loss = loss_of([objective], batch) / objective.weight
    none = tf.UnconnectedGradients.ZERO
    expected = tape.gradient(loss, [batch.teacher, batch.student], unconnected_gradients=none)
    np.testing.assert_allclose(sum(shares), loss, **EXACT)
    for found, outputs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(tf.concat(found, 0), outputs["embedding"], **EXACT)


@each_objective
def test_what_reaches_the_teacher(objective):
    """Its head is trained by correlation congruence alone."""
    batch = random_batch()
    with tf.GradientTape() as tape:
        tape.watch(batch.teacher)
        loss = loss_of([objective], batch)
    reached = tape.gradient(loss, batch.teacher)["embedding"] is not None
    assert reached == isinstance(objective, CorrelationCongruence)
    assert reached == getattr(objective, "trains_teacher_head", False)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_images_matters_to_correlation_congruence_alone(name):
    batch = random_batch()
    means = [
        loss_of([OBJECTIVES[name]], part_of(batch, order))
        for order in (range(6), [3, 0, 5, 1, 4, 2])
    ]
    assert np.allclose(*means, rtol=1e-12) == (name != "cc")


@each_objective
def test_half_precision(objective):
    batch = random_batch(dtype="float16")
    total, count = objective(batch)
    assert total.dtype == count.dtype == tf.float32
    assert np.isfinite(total)
    _, gradients = loss_and_gradients([objective], batch)
    assert gradients["embedding"].dtype == tf.float16
    assert np.isfinite(gradients["embedding"]).all()


def test_precisions_of_the_networks_may_differ():
    batch = random_batch()
    student = {"embedding": tf.cast(batch.student["embedding"], tf.float32)}
    for objective in OBJECTIVES.values():
        found = loss_of([objective], changed(batch, student=student))
        np.testing.assert_allclose(found, loss_of([objective], batch), rtol=1e-4)


@pytest.mark.parametrize("known", [True, False], ids=["static", "any batch"])
@each_objective
def test_compiled_equals_eager(objective, known):
    batch = random_batch(4, weights=[1.0, 2, 1, 0])
    given = (batch.sample_weight, batch.teacher, batch.student)
    signature = tf.nest.map_structure(
        lambda x: tf.TensorSpec([x.shape[0] if known else None, *x.shape[1:]], x.dtype), given
    )

    @tf.function(jit_compile=True, input_signature=signature)
    def compiled(weights, teacher, student):
        mine = changed(batch, sample_weight=weights, teacher=teacher, student=student)
        return loss_and_gradients([objective], mine)

    loss, gradients = compiled(*given)
    expected_loss, expected = loss_and_gradients([objective], batch)
    np.testing.assert_allclose(loss, expected_loss, **EXACT)
    np.testing.assert_allclose(gradients["embedding"], expected["embedding"], **EXACT)


@pytest.mark.parametrize(
    ("distance_weight", "angle_weight"), [(2.0, 0.0), (0.0, 3.0), (2.0, 3.0), (0.0, 0.0)]
)
def test_the_parts_of_relational_knowledge(distance_weight, angle_weight):
    batch = random_batch()
    teacher, student = (rows["embedding"][::2] for rows in (batch.teacher, batch.student))
    expected = distance_weight * relational.relational_distance_loss(
        teacher, student
    ) + angle_weight * relational.relational_angle_loss(teacher, student)
    found = loss_of([RelationalKnowledge(distance_weight, angle_weight)], batch)
    np.testing.assert_allclose(found, expected, **EXACT)


def test_defaults():
    weights = {"sp": 3000, "pkt": 30000, "rkd": 1, "cc": 0.02}
    assert {name: objective.weight for name, objective in OBJECTIVES.items()} == weights
    assert (OBJECTIVES["rkd"].distance_weight, OBJECTIVES["rkd"].angle_weight) == (25, 50)
    assert OBJECTIVES["cc"].needs_equal_widths
    for objective in OBJECTIVES.values():
        assert objective.compares_images
        assert objective.teacher_outputs == objective.student_outputs == ("embedding",)


@each_objective
def test_serialisation(objective):
    options = {"teacher_output": "t", "student_output": "s", "weight": 0.5, "name": "mine"}
    if isinstance(objective, RelationalKnowledge):
        options |= {"distance_weight": 2.0, "angle_weight": 3.0}
    other = type(objective)(**options)
    read = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(other))
    assert read.get_config() == options
    assert vars(read) == vars(other)
    batch = random_batch()
    renamed = changed(
        batch,
        teacher={"t": batch.teacher["embedding"]},
        student={"s": batch.student["embedding"]},
    )
    same = {key: value for key, value in options.items() if not key.endswith("_output")}
    np.testing.assert_array_equal(read(renamed), type(objective)(**same)(batch))


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), True, "1", None], ids=repr)
@pytest.mark.parametrize("name", ["distance_weight", "angle_weight"])
def test_parts_have_finite_weights(name, weight):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, got"):
        RelationalKnowledge(**{name: weight})


def test_widths_of_neighbours_are_checked_before_training():
    teacher, student = ({"embedding": keras.KerasTensor((None, width))} for width in (3, 4))
    with pytest.raises(ValueError, match="needs outputs of one width"):
        CorrelationCongruence().check_outputs(teacher, student, 1)
    for name in ("sp", "pkt", "rkd"):
        OBJECTIVES[name].check_outputs(teacher, student, 1)
