import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from distiller.one_and_two import assert_close, batches, on_one_and_two
from replicas import on_replicas

import keras_ssd as ssd
from keras_ssd.batch import Batch
from keras_ssd.collectives import all_sum
from keras_ssd.losses.graph import edge_loss, embedding_graph_loss, node_loss
from keras_ssd.objectives import HardLabels
from keras_ssd.objectives.graph import EmbeddingGraph
from objectives.batches import (
    EXACT,
    changed,
    images_of,
    loss_and_gradients,
    mean_of,
    random_batch,
    rows_of,
    with_student,
    with_teacher,
)

NAMES = {"teacher_output": "projection", "student_output": "projection"}
OBJECTIVES = {
    "published": EmbeddingGraph(**NAMES),
    "mean": EmbeddingGraph(3.0, 0.5, normalization="mean", weight=2.0, **NAMES),
    "node": EmbeddingGraph(edge_weight=0, **NAMES),
    "edge": EmbeddingGraph(node_weight=0, **NAMES),
}
each_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def plain_nodes(batch):
    """What the objectives above read: view 0 of 4."""
    return batch.teacher["projection"][::4], batch.student["projection"][::4]


# Values


@pytest.mark.parametrize("case", golden_cases("ega", "ega"))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-5)])
def test_golden(case, dtype, tolerance):
    teacher, student = (
        {"node": tf.constant(case["inputs"][network], dtype)} for network in ("teacher", "student")
    )
    batch = Batch(None, None, None, teacher, student, num_views=1)
    weights = {name: case["params"][name] for name in ("node_weight", "edge_weight")}
    loss, gradients = loss_and_gradients([EmbeddingGraph(**weights)], batch)
    expected = case["expected"]
    expected = expected["value"] if isinstance(expected, dict) else expected
    assert loss.dtype == dtype
    np.testing.assert_allclose(loss, expected, rtol=tolerance)
    expected = case["gradients"]["student"]
    np.testing.assert_allclose(gradients["node"], expected, rtol=tolerance, atol=tolerance / 10)


def test_terms_of_the_plain_views():
    batch = random_batch()
    teacher, student = plain_nodes(batch)
    node, edge = float(node_loss(teacher, student)), float(edge_loss(teacher, student))
    expected = {
        "published": 0.8 * node + 0.24 * edge,
        "mean": (3 * node + 0.5 * edge) / 6,
        "node": 0.8 * node,
        "edge": 0.24 * edge,
    }
    for name, objective in OBJECTIVES.items():
        np.testing.assert_allclose(objective(batch), [expected[name], 1], rtol=1e-12)
        _, gradients = loss_and_gradients([objective], batch)
        moved = np.any(gradients["projection"], axis=1)
        np.testing.assert_array_equal(moved, np.arange(24) % 4 == 0)


@each_objective
def test_no_gradient_reaches_the_teacher(objective):
    batch = random_batch()
    with tf.GradientTape() as tape:
        tape.watch([batch.teacher, batch.student])
        total, _ = objective(batch)
    of_teacher, of_student = tape.gradient(total, [batch.teacher, batch.student])
    assert of_teacher["projection"] is None
    assert np.any(of_student["projection"])


def test_a_batch_given_twice_counts_more_than_twice_unless_divided():
    batch = random_batch()
    twice = images_of(batch, [*range(6)] * 2)
    edge = OBJECTIVES["edge"]
    np.testing.assert_allclose(mean_of(edge, twice), 2 * mean_of(edge, batch), rtol=1e-12)
    mean = EmbeddingGraph(0, 1, normalization="mean", **NAMES)
    np.testing.assert_allclose(mean_of(mean, twice), mean_of(mean, batch), rtol=1e-12)
    published = OBJECTIVES["published"]
    expected = embedding_graph_loss(*(tf.tile(nodes, [2, 1]) for nodes in plain_nodes(batch)))
    np.testing.assert_allclose(mean_of(published, twice), expected, rtol=1e-12)
    assert mean_of(published, twice) > 1.5 * mean_of(published, batch)


# Images that take no part


@each_objective
@pytest.mark.parametrize("outside", [1.0, math.nan])
def test_an_image_of_weight_0_vanishes(objective, outside):
    kept = [0, 2, 3, 5]
    whole = random_batch(sample_weight=[1.0, 0, 1, 2, 0, 0.5])
    part = changed(images_of(whole, kept), sample_weight=None)
    rows = np.ones([24, 1])
    rows[rows_of([1, 4])] = outside
    whole = with_student(whole, projection=whole.student["projection"] * rows)
    whole = with_teacher(whole, projection=whole.teacher["projection"] * rows)
    np.testing.assert_allclose(objective(whole), objective(part), **EXACT)
    _, gradients = loss_and_gradients([objective], whole)
    _, expected = loss_and_gradients([objective], part)
    found = gradients["projection"].numpy()
    assert not found[rows_of([1, 4])].any()
    np.testing.assert_allclose(found[rows_of(kept)], expected["projection"], **EXACT)


@each_objective
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_image_gives_0_and_a_gradient_of_0(objective, dtype):
    batch = random_batch(dtype=dtype, sample_weight=[0.0] * 6)
    total, count = objective(batch)
    loss, gradients = loss_and_gradients([objective], batch)
    assert float(total) == float(count) == float(loss) == 0
    np.testing.assert_array_equal(gradients["projection"], np.zeros([24, 8]))


def test_one_image_has_a_node_to_learn_and_no_edge():
    one = random_batch(1)
    expected = np.corrcoef(*(nodes[0] for nodes in plain_nodes(one)))[0, 1]
    np.testing.assert_allclose(mean_of(OBJECTIVES["node"], one), 0.8 * abs(expected - 1), 1e-10)
    assert mean_of(OBJECTIVES["edge"], one) < 1e-14
    compares = {name: objective.compares_images for name, objective in OBJECTIVES.items()}
    assert compares == {"published": False, "mean": False, "node": False, "edge": True}


# Replicas


def on_two(strategy, objective, batch, first):
    """What each replica returns, and its gradients of the term; `first` images on the first."""
    images = len(batch.labels)
    shards = [images_of(batch, range(first)), images_of(batch, range(first, images))]
    tensors = ("sample_weight", "teacher", "student")

    def replica(weights, teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            mine = changed(
                batch, labels=None, sample_weight=weights, teacher=teacher, student=student
            )
            total, count = objective(mine)
            share = tf.math.divide_no_nan(total, all_sum(count))
        return total, count, share, tape.gradient(share, student["projection"])

    parts = [[getattr(shard, name) for shard in shards] for name in tensors]
    return on_replicas(strategy, replica, *parts)


@pytest.mark.parametrize("first", [4, 0], ids=["4 and 3", "0 and 7"])
@pytest.mark.parametrize("name", ["published", "mean"])
def test_two_replicas_are_one(two_replicas, name, first):
    objective = OBJECTIVES[name]
    batch = random_batch(7, sample_weight=[1.0, 0, 2, 1, 0.5, 1, 0])
    results = on_two(two_replicas, objective, batch, first)
    expected = mean_of(objective, batch)
    for total, count, _, _ in results:
        np.testing.assert_allclose([total, count], [expected, 1], **EXACT)
    np.testing.assert_allclose(sum(share for _, _, share, _ in results), expected, **EXACT)
    _, gradients = loss_and_gradients([objective], batch)
    found = objective.weight * tf.concat([gradient for *_, gradient in results], 0)
    np.testing.assert_allclose(found, gradients["projection"], **EXACT)


def test_replicas_without_a_weighted_image_give_nothing(two_replicas):
    batch = random_batch(5, sample_weight=[0.0] * 5)
    for total, count, share, gradient in on_two(two_replicas, OBJECTIVES["published"], batch, 3):
        assert float(total) == float(count) == float(share) == 0
        assert not np.any(gradient)


@pytest.mark.parametrize("normalization", ["none", "mean"])
def test_the_local_scope_is_the_mean_of_the_replicas_losses(two_replicas, normalization):
    local = EmbeddingGraph(scope="local", normalization=normalization, **NAMES)
    batch = random_batch(7, sample_weight=[1.0, 0, 2, 1, 0.5, 1, 0])
    parts = [images_of(batch, range(4)), images_of(batch, range(4, 7))]
    expected = [mean_of(local, part) for part in parts]
    results = on_two(two_replicas, local, batch, 4)
    np.testing.assert_allclose([total for total, *_ in results], expected, **EXACT)
    np.testing.assert_allclose(sum(share for _, _, share, _ in results), np.mean(expected), **EXACT)
    for part, (*_, gradient) in zip(parts, results, strict=True):
        _, alone = loss_and_gradients([local], part)
        np.testing.assert_allclose(gradient, alone["projection"] / 2, **EXACT)
    assert abs(np.mean(expected) - mean_of(local, batch)) > 0.01


def test_a_replica_without_images_is_no_part_of_a_local_mean(two_replicas):
    local = EmbeddingGraph(scope="local", **NAMES)
    batch = random_batch(5, sample_weight=[1.0, 1, 1, 0, 0])
    results = on_two(two_replicas, local, batch, 3)
    assert [float(count) for _, count, _, _ in results] == [1, 0]
    np.testing.assert_allclose(results[0][2], mean_of(local, batch), **EXACT)


# A Distiller

IMAGES = np.random.default_rng(0).integers(0, 256, (13, 4, 4, 3)).astype("uint8")
LABELS = np.arange(13) % 3
WEIGHTS = np.array([1.0, 0, 2, 1, 1, 0.5, 1, 0, 1, 1, 1, 0, 1], "float32")


def student(node=4):
    keras.utils.set_random_seed(1)
    images = keras.Input((4, 4, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 128, -1)(images))
    x = keras.layers.Dense(6, "tanh")(x)
    outputs = {"logits": keras.layers.Dense(3)(x), "node": keras.layers.Dense(node, name="node")(x)}
    return keras.Model(images, outputs)


def distiller(objective, **compiled):
    model = ssd.Distiller(student=student(), objectives=[HardLabels(), objective])
    model.compile(ssd.optimizers.SGD(0.05, momentum=0.9), **compiled)
    return model


def with_teacher_nodes(images, dtype="float32", shape=(4,)):
    nodes = np.random.default_rng(2).normal(size=(len(images), *shape)).astype(dtype)
    return {"image": images, "teacher": {"node": nodes}}


@pytest.mark.parametrize(
    ("dtype", "normalization", "losses", "weights"),
    [("float64", "none", 1e-10, 1e-10), ("float32", "mean", 1e-4, 1e-3)],
)
def test_a_distiller_on_two_replicas_is_one_on_one(
    two_replicas, dtype, normalization, losses, weights
):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    objective = EmbeddingGraph(normalization=normalization)
    one, two = on_one_and_two(two_replicas, lambda: distiller(objective))
    before = [weight.numpy() for weight in one.student.weights]
    data = batches(with_teacher_nodes(IMAGES, dtype), LABELS, WEIGHTS, size=5)
    history = [model.fit(data, verbose=0).history for model in (one, two)]
    assert two.optimizer.iterations == 3
    assert history[0].keys() >= {"loss", "hard_labels", "embedding_graph"}
    for name, value in history[0].items():
        np.testing.assert_allclose(history[1][name], value, rtol=losses)
    assert_close(two.student.weights, one.student.weights, weights)
    assert all(np.any(a != b.numpy()) for a, b in zip(before, one.student.weights, strict=True))


def test_training_draws_the_students_nodes_to_the_teachers():
    model = distiller(EmbeddingGraph(weight=0.5))
    data = batches(with_teacher_nodes(IMAGES), LABELS, size=13)
    shown = model.fit(data, epochs=12, verbose=0).history["embedding_graph"]
    assert shown[-1] < 0.85 * shown[0]


def test_stored_nodes_may_have_another_precision():
    values = []
    for dtype in ("float64", "float32", "float16"):
        model = distiller(EmbeddingGraph(), run_eagerly=True)
        data = batches(with_teacher_nodes(IMAGES, dtype), LABELS, size=13)
        values += model.fit(data, verbose=0).history["embedding_graph"]
    np.testing.assert_allclose(values, values[0], rtol=1e-2)
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)


def test_a_batch_of_one_image_trains_nodes_and_is_refused_for_edges_alone():
    x = with_teacher_nodes(IMAGES[:1])
    model = distiller(EmbeddingGraph(), run_eagerly=True)
    assert math.isfinite(model.train_on_batch(x, LABELS[:1], return_dict=True)["embedding_graph"])
    model = distiller(EmbeddingGraph(node_weight=0), run_eagerly=True)
    with pytest.raises(ValueError, match="this batch holds one image"):
        model.train_on_batch(x, LABELS[:1])


# Outputs that do not fit


def teacher_of(rank=2, width=4):
    images = keras.Input((4, 4, 3))
    x = keras.layers.Flatten()(images)
    node = keras.layers.Dense(width)(x if rank == 2 else keras.layers.RepeatVector(7)(x))
    return keras.Model(images, {"logits": keras.layers.Dense(3)(x), "node": node})


MISFITS = {  # name: (teacher, student, message)
    "tokens": (
        lambda: teacher_of(rank=3),
        student,
        r"the teacher's output 'node' has shape \(None, 7, 4\): pool tokens with Global",
    ),
    "width 1": (lambda: teacher_of(width=1), lambda: student(1), "'node' has width 1: give both"),
    "width 1 of the student": (teacher_of, lambda: student(1), "student's output 'node' has width"),
    "widths": (lambda: teacher_of(width=5), student, "outputs of one width, .* has 5 .* student 4"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_networks_that_do_not_fit_are_refused_at_construction(name):
    teacher, pupil, message = MISFITS[name]
    with pytest.raises(ValueError, match=message):
        ssd.Distiller(teacher(), pupil(), [EmbeddingGraph()])


def test_a_students_nodes_are_checked_before_a_teacher_is_known():
    with pytest.raises(ValueError, match="the student's output 'node' has width 1"):
        ssd.Distiller(student=student(1), objectives=[EmbeddingGraph()])


@pytest.mark.parametrize(
    ("shape", "message"),
    [((7, 4), "the teacher's output 'node' has shape"), ((5,), "outputs of one width")],
)
def test_stored_nodes_that_do_not_fit_are_refused(shape, message):
    model = distiller(EmbeddingGraph(), run_eagerly=True)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(with_teacher_nodes(IMAGES, shape=shape), LABELS)


# Precision, compilation and cost


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_halves_are_computed_in_float32(dtype, scale):
    floats = random_batch(dtype="float32")
    halves = with_student(floats, projection=tf.cast(scale * floats.student["projection"], dtype))
    halves = with_teacher(halves, projection=tf.cast(scale * floats.teacher["projection"], dtype))
    objective = OBJECTIVES["published"]
    total, count = objective(halves)
    assert total.dtype == count.dtype == tf.float32
    assert abs(float(total - objective(floats)[0])) < 2e-2
    _, gradients = loss_and_gradients([objective], halves)
    assert gradients["projection"].dtype == dtype
    assert np.isfinite(tf.cast(gradients["projection"], tf.float32)).all()


@pytest.mark.parametrize("static", [True, False])
def test_compiled_equals_eager_without_retracing(static):
    objective, traces = OBJECTIVES["mean"], []
    images = 4 if static else None
    rows = 16 if static else None
    nodes = tf.TensorSpec([rows, 8], tf.float64)
    signature = [tf.TensorSpec([images], tf.float32), nodes, nodes]

    @tf.function(jit_compile=True, input_signature=signature)
    def compiled(weights, teacher, student):
        traces.append(weights)
        mine = changed(
            random_batch(4),
            labels=None,
            sample_weight=weights,
            teacher={"projection": teacher},
            student={"projection": student},
        )
        total, count = objective(mine)
        assert total.shape == count.shape == ()
        loss, gradients = loss_and_gradients([objective], mine)
        return total, count, loss, gradients["projection"]

    for seed, weights in enumerate([[1.0, 2, 0, 1], [0.0, 0, 0, 0]]):
        batch = random_batch(4, sample_weight=weights, seed=seed)
        found = compiled(
            batch.sample_weight, batch.teacher["projection"], batch.student["projection"]
        )
        loss, gradients = loss_and_gradients([objective], batch)
        expected = [*objective(batch), loss, gradients["projection"]]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, **EXACT)
    assert len(traces) == 1


@pytest.mark.parametrize(("name", "products"), [("published", 3), ("node", 1), ("edge", 2)])
def test_a_weight_of_0_takes_the_cost_of_a_term_away(name, products):
    traced = tf.function(lambda: OBJECTIVES[name](random_batch())).get_concrete_function()
    kinds = [operation.type for operation in traced.graph.get_operations()]
    assert sum("MatMul" in kind for kind in kinds) == products


def test_both_weights_0_is_nothing():
    total, count = EmbeddingGraph(0, 0, **NAMES)(random_batch())
    assert (float(total), float(count)) == (0, 1)


# Construction


def test_defaults_are_those_of_the_authors_training_program():
    assert EmbeddingGraph().get_config() == {
        "node_weight": 0.8,
        "edge_weight": 0.24,
        "normalization": "none",
        "scope": "global",
        "weight": 1.0,
        "teacher_output": "node",
        "student_output": "node",
        "name": "embedding_graph",
    }
    assert not EmbeddingGraph.needs_labels
    assert not EmbeddingGraph.needs_views


def test_serialisation():
    objective = EmbeddingGraph(
        0.5,
        0.1,
        normalization="mean",
        scope="local",
        weight=2.0,
        teacher_output="a",
        student_output="b",
        name="mine",
    )
    read = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert type(read) is EmbeddingGraph
    assert read.get_config() == objective.get_config()
    assert vars(read) == vars(objective)
    assert (read.teacher_outputs, read.student_outputs) == (("a",), ("b",))


@pytest.mark.parametrize("name", ["node_weight", "edge_weight", "weight"])
@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, True, "1", None], ids=repr)
def test_weights_are_finite_numbers(name, weight):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, got"):
        EmbeddingGraph(**{name: weight})


@pytest.mark.parametrize(("name", "known"), [("normalization", "none"), ("scope", "global")])
def test_options_are_known(name, known):
    with pytest.raises(ValueError, match=rf"`{name}` must be one of \['{known}', .*got 'batch'"):
        EmbeddingGraph(**{name: "batch"})
