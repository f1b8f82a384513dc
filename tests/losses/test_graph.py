import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.losses.graph import (
    edge_loss,
    embedding_graph_loss,
    node_loss,
    pearson_correlation,
)

LOSSES = {"node": node_loss, "edge": edge_loss, "total": embedding_graph_loss}
PRECISIONS = [  # as golden/ega.json asks for
    ("float64", {"rtol": 1e-9, "atol": 1e-12}),
    ("float32", {"rtol": 2e-5, "atol": 2e-6}),
]
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), PRECISIONS, ids=["float64", "float32"]
)


def normal(*shape, seed=0, dtype="float64"):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(loss, teacher, student, **options):
    teacher, student = tf.convert_to_tensor(teacher), tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        value = loss(teacher, student, **options)
    gradients = tape.gradient(value, [teacher, student])
    return value.numpy(), *(gradient.numpy() for gradient in gradients)


def assert_finite(*results):
    assert all(np.isfinite(result).all() for result in results), results


# Golden values and closed forms


def golden_loss(case):
    function = {"ega": embedding_graph_loss, "ega_node": node_loss, "ega_edge": edge_loss}
    weights = {name: case["params"][name] for name in case["params"] if name.endswith("weight")}
    return function[case["function"]], weights


@pytest.mark.parametrize(
    "case", [case for name in ("ega", "ega_node", "ega_edge") for case in golden_cases("ega", name)]
)
@each_precision
def test_golden(case, dtype, tolerance):
    teacher, student = (tf.constant(case["inputs"][key], dtype) for key in ("teacher", "student"))
    loss, weights = golden_loss(case)
    value, of_teacher, of_student = value_and_gradients(loss, teacher, student, **weights)
    expected = case["expected"]
    if isinstance(expected, dict):
        edges = pearson_correlation(teacher, teacher), pearson_correlation(student, student)
        np.testing.assert_allclose(edges[0], expected["teacher_edges"], **tolerance)
        np.testing.assert_allclose(edges[1], expected["student_edges"], **tolerance)
        nodes = pearson_correlation(teacher, student)
        np.testing.assert_allclose(nodes, expected["node_matrix"], **tolerance)
        np.testing.assert_allclose(node_loss(teacher, student), expected["node"], **tolerance)
        np.testing.assert_allclose(edge_loss(teacher, student), expected["edge"], **tolerance)
        expected = expected["value"]
    assert value.dtype == dtype
    np.testing.assert_allclose(value, expected, **tolerance)
    np.testing.assert_allclose(of_student, case["gradients"]["student"], **tolerance)
    np.testing.assert_allclose(of_teacher, case["gradients"]["teacher"], **tolerance)


H = np.array([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
V = np.array([[3.0, -1, 0.5, 2]])
CLOSED_FORMS = {  # name: (teacher, student, node, edge)
    "equal and uncorrelated": (H, H, 0, 0),
    "opposite": (H, -H, 2 * math.sqrt(3), 0),
    "shifted by one image": (H, H[[1, 2, 0]], math.sqrt(6), 0),
    "scaled and moved": (H, H * [[0.1], [2], [30]] + [[-5], [0], [70]], 0, 0),
    "an image twice": (V[[0, 0]], V[[0, 0]], math.sqrt(2), 0),
    "an image and its opposite": (V * [[1], [-1]], V * [[1], [-1]], math.sqrt(2), 0),
    "correlated here, opposite there": (V[[0, 0]], V * [[1], [-1]], math.sqrt(6), 2 * math.sqrt(2)),
    "one image": (H[:1], np.array([[1.0, 0, -1, 0]]), 1 - math.sqrt(0.5), 0),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form(name):
    teacher, student, node, edge = CLOSED_FORMS[name]
    np.testing.assert_allclose(node_loss(teacher, student), node, atol=1e-14)
    np.testing.assert_allclose(edge_loss(teacher, student), edge, atol=1e-14)
    expected = 0.8 * node + 0.24 * edge
    np.testing.assert_allclose(embedding_graph_loss(teacher, student), expected, atol=1e-14)
    expected = 2 * node + 0.5 * edge
    total = embedding_graph_loss(teacher, student, node_weight=2, edge_weight=0.5)
    np.testing.assert_allclose(total, expected, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_correlations_are_those_of_numpy(dtype, tolerance):
    generator = np.random.default_rng(0)
    rows, columns = (generator.normal(3, 2, (n, 7)).astype(dtype) for n in (9, 4))
    correlations = pearson_correlation(rows, columns)
    assert correlations.dtype == dtype
    expected = np.corrcoef(np.concatenate([rows, columns]).astype("float64"))
    np.testing.assert_allclose(correlations, expected[:9, 9:], atol=tolerance)
    nodes = pearson_correlation(rows[:4], columns) - np.eye(4)
    np.testing.assert_allclose(
        node_loss(rows[:4], columns), np.sqrt(np.sum(np.square(nodes))), rtol=tolerance
    )
    edges = expected[:4, :4] - expected[9:, 9:]
    np.testing.assert_allclose(
        edge_loss(rows[:4], columns), np.sqrt(np.sum(np.square(edges))), rtol=tolerance
    )


@each_loss
def test_gradients_are_those_of_finite_differences(loss):
    nodes = [normal(4, 5, seed=1), normal(4, 5, seed=2)]
    theoretical, numerical = tf.test.compute_gradient(loss, nodes, delta=1e-5)
    for exact, approximate in zip(theoretical, numerical, strict=True):
        np.testing.assert_allclose(exact, approximate, rtol=1e-7, atol=1e-9)


# Invariances and sizes


@each_loss
def test_teacher_and_student_may_be_exchanged(loss):
    teacher, student = normal(6, 5), normal(6, 5, seed=1)
    value, of_teacher, of_student = value_and_gradients(loss, teacher, student)
    swapped = value_and_gradients(loss, student, teacher)
    for one, other in zip((value, of_student, of_teacher), swapped, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


@each_loss
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_each_node_may_be_scaled_and_moved(loss, dtype, tolerance):
    generator = np.random.default_rng(1)
    teacher, student = generator.normal(size=(2, 8, 16))
    value = float(loss(teacher, student))
    for network in (0, 1):
        nodes = [teacher.astype(dtype), student.astype(dtype)]
        scaled, moved = list(nodes), list(nodes)
        scaled[network] = nodes[network] * np.geomspace(1e-3, 1e3, 8, dtype=dtype)[:, None]
        moved[network] = nodes[network] + np.linspace(-100, 100, 8, dtype=dtype)[:, None]
        assert abs(float(loss(*scaled)) - value) < tolerance
        assert abs(float(loss(*moved)) - value) < tolerance
        turned = [teacher, student]
        turned[network] = turned[network] * [[-1.0], *[[1.0]] * 7]
        assert abs(float(loss(*turned)) - value) > 0.01


@each_loss
def test_permuting_images_permutes_gradients(loss):
    teacher, student, order = normal(5, 4), normal(5, 4, seed=1), [3, 0, 4, 1, 2]
    value, of_teacher, of_student = value_and_gradients(loss, teacher, student)
    permuted = value_and_gradients(loss, *(tf.gather(t, order) for t in (teacher, student)))
    np.testing.assert_allclose(permuted[0], value, rtol=1e-12)
    np.testing.assert_allclose(permuted[1], of_teacher[order], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(permuted[2], of_student[order], rtol=1e-12, atol=1e-15)


def test_permuting_the_student_alone_keeps_only_the_sizes_of_its_edges():
    teacher, student, order = normal(5, 8), normal(5, 8, seed=1), [3, 0, 4, 1, 2]
    permuted = tf.gather(student, order)
    assert abs(float(node_loss(teacher, permuted) - node_loss(teacher, student))) > 0.01
    squares = [tf.reduce_sum(pearson_correlation(s, s) ** 2) for s in (student, permuted)]
    np.testing.assert_allclose(*squares, rtol=1e-12)


@pytest.mark.parametrize("width", [4, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bounds(width, seed):
    images = 12
    teacher, student = normal(images, width, seed=seed), normal(images, width, seed=seed + 10)
    least, most = math.sqrt(images - width + 1), math.sqrt(4 * images + images * (images - 1))
    assert least <= float(node_loss(teacher, student)) <= most
    assert least <= float(node_loss(teacher, teacher)) <= most
    assert 0 <= float(edge_loss(teacher, student)) <= 2 * math.sqrt(images * (images - 1))


def test_size_of_independent_nodes():
    teacher, student = normal(64, 256), normal(64, 256, seed=1)
    assert 8.7 < float(node_loss(teacher, student)) < 9.2
    assert 5.3 < float(edge_loss(teacher, student)) < 5.95


def test_no_mean_is_taken_over_images():
    teacher, student = normal(4, 6), normal(4, 6, seed=1)
    twice = [tf.concat([nodes, nodes], 0) for nodes in (teacher, student)]
    np.testing.assert_allclose(edge_loss(*twice), 2 * edge_loss(teacher, student), rtol=1e-12)
    nodes = pearson_correlation(teacher, student).numpy()
    expected = math.sqrt(4 * np.sum(nodes**2) - 4 * np.trace(nodes) + 8)
    np.testing.assert_allclose(node_loss(*twice), expected, rtol=1e-12)


# Images that take no part


@each_loss
@pytest.mark.parametrize("outside", [0.0, 5.0, math.nan, math.inf])
@pytest.mark.parametrize("kind", ["float64", "int32", "bool"])
def test_an_image_of_weight_0_vanishes(loss, outside, kind):
    kept = [0, 2, 3]
    teacher, student = normal(5, 6).numpy(), normal(5, 6, seed=1).numpy()
    value, *gradients = value_and_gradients(loss, teacher[kept], student[kept])
    teacher[[1, 4]] = student[[1, 4]] = outside
    weights = np.array([1, 0, 1, 1, 0]).astype(kind)
    masked, *of_masked = value_and_gradients(loss, teacher, student, weights=weights)
    np.testing.assert_allclose(masked, value, rtol=1e-12)
    for gradient, expected in zip(of_masked, gradients, strict=True):
        np.testing.assert_allclose(gradient[kept], expected, rtol=1e-12, atol=1e-15)
        assert not gradient[[1, 4]].any()


@each_loss
def test_a_weight_is_0_or_not(loss):
    teacher, student = normal(3, 4), normal(3, 4, seed=1)
    weighted = loss(teacher, student, weights=tf.constant([0.1, 2.0, 30.0]))
    np.testing.assert_array_equal(weighted, loss(teacher, student))


@each_loss
def test_no_image_gives_0_and_a_gradient_of_0(loss):
    results = value_and_gradients(loss, normal(3, 4), normal(3, 4, seed=1), weights=[0, 0, 0])
    assert not any(np.any(result) for result in results)
    assert float(loss(np.zeros((0, 4)), np.zeros((0, 4)))) == 0


# What gave NaN, and what lost digits

CONSTANT = {  # name: (entries, repeated, dtype, width)
    "zeros": (0.0, "float32", 16),
    "zeros, float64": (0.0, "float64", 16),
    "not zero": (0.3, "float32", 16),
    "not zero, float64": (0.1, "float64", 16),
    "wide": (0.7, "float32", 4096),
    "wide and large": (1e5 / 3, "float32", 4096),
    "large": (1e20, "float32", 16),
    "up to rounding": ([0.3, np.nextafter(np.float32(0.3), 1)], "float32", 16),
    "up to rounding, float64": ([0.3, 0.3 + 1e-13], "float64", 16),
    "subnormal": ([1e-40, 2e-39], "float32", 16),
}


@functools.cache
def compiled(jit_compile):
    """All matrices, and both losses with their gradients; compiled once a shape."""

    @tf.function(jit_compile=jit_compile)
    def matrices_and_losses(teacher, student):
        pairs = [(teacher, student), (teacher, teacher), (student, student)]
        matrices = [pearson_correlation(rows, columns) for rows, columns in pairs]
        return matrices, tensors(node_loss, teacher, student), tensors(edge_loss, teacher, student)

    return matrices_and_losses


def tensors(loss, teacher, student):
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        value = loss(teacher, student)
    return value, *tape.gradient(value, [teacher, student])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_node_correlates_with_nothing(name, jit_compile):
    entries, dtype, width = CONSTANT[name]
    teacher, student = normal(4, width).numpy(), normal(4, width, seed=1).numpy()
    teacher[2] = student[1] = np.resize(entries, width)
    teacher, student = (tf.constant(nodes.astype(dtype)) for nodes in (teacher, student))
    matrices, *losses = compiled(jit_compile)(teacher, student)
    with np.errstate(all="ignore"):
        expected = np.corrcoef(np.concatenate([teacher, student]).astype("float64"))
    expected[[2, 5]] = expected[:, [2, 5]] = 0
    expected = expected[:4, 4:], expected[:4, :4], expected[4:, 4:]
    for matrix, reference in zip(matrices, expected, strict=True):
        np.testing.assert_allclose(matrix, reference, atol=1e-5)
        np.testing.assert_array_equal(matrix.numpy()[reference == 0], 0)
    norms = np.linalg.norm(expected[0] - np.eye(4)), np.linalg.norm(expected[1] - expected[2])
    for norm, (value, of_teacher, of_student) in zip(norms, losses, strict=True):
        np.testing.assert_allclose(value, norm, rtol=1e-5)
        assert_finite(of_teacher, of_student)
        np.testing.assert_array_equal(np.any(of_teacher, axis=1), [True, True, False, True])
        np.testing.assert_array_equal(np.any(of_student, axis=1), [True, False, True, True])


@each_loss
def test_all_nodes_constant(loss):
    student = np.ones((3, 4), "float32")
    value, *gradients = value_and_gradients(loss, 2 * student, student)
    node = math.sqrt(3)
    expected = {node_loss: node, edge_loss: 0, embedding_graph_loss: 0.8 * node}[loss]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert not any(gradient.any() for gradient in gradients)


def test_a_student_that_is_constant_everywhere_has_the_teachers_edges_left():
    teacher = normal(3, 4)
    expected = np.linalg.norm(np.corrcoef(teacher.numpy()))
    np.testing.assert_allclose(edge_loss(teacher, np.ones((3, 4))), expected, rtol=1e-12)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("scale", [1e-25, 1e-30, 1e20, 1e30])
def test_tiny_and_huge_nodes_are_those_of_ordinary_size(scale, jit_compile):
    teacher, student = (normal(4, 16, seed=seed, dtype="float32") for seed in (0, 1))
    factors = tf.constant([[1.0], [scale], [1.0], [1.0]])
    _, *expected = compiled(jit_compile)(teacher, student)
    _, *found = compiled(jit_compile)(teacher * factors, student * factors)
    for (value, *gradients), (reference, *references) in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-5)
        for gradient, of_ordinary in zip(gradients, references, strict=True):
            assert_finite(gradient)
            np.testing.assert_allclose(gradient * factors, of_ordinary, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exponent", range(-30, 38))
def test_entries_of_any_size(exponent):
    rows = normal(3, 512).numpy()
    rows /= np.abs(rows).max(axis=1, keepdims=True)  # in -1..1, so that all of them exist
    rows += 2
    scaled = (rows * 10.0**exponent).astype("float32")
    exact = np.corrcoef(scaled.astype("float64"))
    np.testing.assert_allclose(pearson_correlation(scaled, scaled), exact, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exponent", [-99, 0, 1, 100])
def test_a_power_of_two_changes_no_bit(exponent, dtype):
    rows = normal(4, 9, dtype=dtype).numpy() + np.array(1000, dtype)
    found = pearson_correlation(np.ldexp(rows, exponent), rows)
    np.testing.assert_array_equal(found, pearson_correlation(rows, rows))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rows", [slice(None), 1, (1, 2)], ids=["all", "a row", "an entry"])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_stays_nan(rows, side, jit_compile):
    pair = [normal(4, 16, seed=seed, dtype="float32").numpy() for seed in (0, 1)]
    pair[side][rows] = math.nan
    _, (node, *_), (edge, *_) = compiled(jit_compile)(*map(tf.constant, pair))
    assert math.isnan(node)
    assert math.isnan(edge)


@pytest.mark.parametrize(("offset", "tolerance"), [(1e3, 1e-6), (1e5, 1e-5)])
def test_what_stands_beside_a_large_mean_is_not_rounded_further(offset, tolerance):
    rows, columns = (normal(32, 64, seed=seed).numpy() + offset for seed in (0, 1))
    rows, columns = rows.astype("float32"), columns.astype("float32")
    exact = pearson_correlation(rows.astype("float64"), columns.astype("float64"))
    np.testing.assert_allclose(pearson_correlation(rows, columns), exact, atol=tolerance)


def test_nodes_beside_a_mean_are_not_taken_for_constant():
    rows = np.array([[1, 1, 1, 1 - 1e-5], [1, 1, 1 - 1e-5, 1]], "float32")
    np.testing.assert_allclose(pearson_correlation(rows, rows), [[1, -1 / 3], [-1 / 3, 1]], 1e-2)


@each_loss
def test_width_1_is_refused(loss):
    with pytest.raises(ValueError, match=r"a width of at least 2 .* `teacher_nodes` has width 1"):
        loss(np.ones((3, 1)), np.ones((3, 1)))


@each_loss
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_with_width_2_all_correlations_are_1_or_minus_1(loss, dtype):
    teacher, student = normal(6, 2, dtype=dtype), normal(6, 2, seed=1, dtype=dtype)
    np.testing.assert_allclose(abs(pearson_correlation(teacher, student)), 1, rtol=1e-6)
    value, *gradients = value_and_gradients(loss, teacher, student)
    assert_finite(value)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_image_has_a_node_and_no_edge(seed, dtype):
    teacher, student = normal(1, 8, seed=seed, dtype=dtype), normal(1, 8, seed=9, dtype=dtype)
    value, *gradients = value_and_gradients(node_loss, teacher, student)
    correlation = np.corrcoef(teacher[0], student[0])[0, 1]
    np.testing.assert_allclose(value, abs(correlation - 1), rtol=1e-5)
    assert_finite(*gradients)
    assert gradients[1].any()
    value, *gradients = value_and_gradients(edge_loss, teacher, student)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_student_equal_to_its_teacher_has_no_edge_to_learn(dtype, jit_compile):
    nodes = normal(4, 16, dtype=dtype)
    _, of_nodes, of_edges = compiled(jit_compile)(nodes, nodes + 0)
    for result in of_edges:
        np.testing.assert_array_equal(result, np.zeros_like(result))
    expected = np.linalg.norm(np.corrcoef(nodes) - np.eye(4))
    np.testing.assert_allclose(of_nodes[0], expected, rtol=1e-5)
    assert_finite(*of_nodes)


def test_equal_and_uncorrelated_nodes_have_a_gradient_of_0():
    results = value_and_gradients(embedding_graph_loss, H, H)
    assert not any(np.any(result) for result in results)


# Precision and compilation


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4 / 5])
def test_halves_are_computed_in_float32(dtype, scale):
    floats = [scale * normal(8, 32, seed=seed, dtype="float32") for seed in (0, 1)]
    halves = [tf.cast(nodes, dtype) for nodes in floats]
    value, *gradients = tensors(embedding_graph_loss, *halves)
    assert value.dtype == tf.float32
    assert abs(float(value - embedding_graph_loss(*floats))) < 2e-2
    same = [tf.cast(nodes, tf.float32) for nodes in halves]
    np.testing.assert_array_equal(value, embedding_graph_loss(*same))
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert_finite(tf.cast(gradient, tf.float32))


@each_loss
def test_precisions_may_differ(loss):
    teacher, student = normal(4, 6), normal(4, 6, seed=1)
    mixed = loss(tf.cast(teacher, tf.float32), student)
    assert mixed.dtype == tf.float64
    np.testing.assert_allclose(mixed, loss(teacher, student), rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_equals_eager_without_retracing(jit_compile):
    traces = []

    @tf.function(jit_compile=jit_compile)
    def step(teacher, student, weights):
        traces.append(teacher)
        loss = functools.partial(embedding_graph_loss, weights=weights)
        return tensors(loss, teacher, student)

    for seed, weights in enumerate([[1.0, 1, 1, 1], [1.0, 0, 1, 1], [0.0, 0, 0, 0]]):
        nodes = normal(4, 6, seed=seed), normal(4, 6, seed=seed + 10)
        found = step(*nodes, tf.constant(weights))
        expected = value_and_gradients(embedding_graph_loss, *nodes, weights=weights)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
    assert len(traces) == 1


@each_loss
def test_the_number_of_images_may_be_unknown(loss):
    signature = [tf.TensorSpec([None, 6], tf.float64)] * 2
    traced = tf.function(loss, input_signature=signature)
    for images in (3, 5):
        nodes = normal(images, 6), normal(images, 6, seed=1)
        np.testing.assert_allclose(traced(*nodes), loss(*nodes), rtol=1e-12)


def matrix_products(**weights):
    """How many products of matrices the loss makes."""
    compiled = tf.function(lambda t, s: embedding_graph_loss(t, s, **weights))
    graph = compiled.get_concrete_function(*[tf.TensorSpec([4, 6])] * 2).graph
    return sum(
        operation.type in ("MatMul", "BatchMatMulV2") for operation in graph.get_operations()
    )


def test_a_weight_of_0_takes_a_term_and_its_cost_away():
    teacher, student = normal(4, 6), normal(4, 6, seed=1)
    nodes = embedding_graph_loss(teacher, student, edge_weight=0)
    np.testing.assert_allclose(nodes, 0.8 * node_loss(teacher, student), rtol=1e-12)
    edges = embedding_graph_loss(teacher, student, node_weight=0)
    np.testing.assert_allclose(edges, 0.24 * edge_loss(teacher, student), rtol=1e-12)
    assert float(embedding_graph_loss(teacher, student, 0, 0)) == 0
    assert matrix_products() == 3
    assert matrix_products(edge_weight=0) == 1
    assert matrix_products(node_weight=0) == 2


# Mistakes


@each_loss
def test_widths_must_agree(loss):
    with pytest.raises(ValueError, match="width 8 and the student's 16: give both a head of one"):
        loss(np.ones((3, 8)), np.ones((3, 16)))


def test_widths_of_rows_and_columns_must_agree():
    with pytest.raises(ValueError, match="Rows have width 8 and columns width 16"):
        pearson_correlation(np.ones((3, 8)), np.ones((2, 16)))


@each_loss
def test_images_must_be_the_same(loss):
    with pytest.raises(ValueError, match="the same images, got 3 and 4 rows"):
        loss(np.ones((3, 8)), np.ones((4, 8)))


@pytest.mark.parametrize("shape", [(8,), (3, 7, 8), (3, 2, 2, 8)])
def test_nodes_are_one_vector_an_image(shape):
    with pytest.raises(ValueError, match=r"`student_nodes` has shape .* GlobalAveragePooling1D"):
        embedding_graph_loss(np.ones((3, 8)), np.ones(shape))
    with pytest.raises(ValueError, match=r"`columns` has shape .* GlobalAveragePooling1D"):
        pearson_correlation(np.ones((3, 8)), np.ones(shape))


def test_shapes_are_checked_while_tracing():
    traced = tf.function(node_loss)
    with pytest.raises(ValueError, match="width 3 and the student's 4"):
        traced.get_concrete_function(tf.TensorSpec([None, 3]), tf.TensorSpec([None, 4]))
    with pytest.raises(ValueError, match="`teacher_nodes` has shape <unknown>"):
        traced.get_concrete_function(tf.TensorSpec(None), tf.TensorSpec([None, 4]))


@pytest.mark.parametrize("shape", [(3, 1), (1,), (4,), ()])
def test_weights_are_one_number_an_image(shape):
    with pytest.raises(ValueError, match=r"`weights` must be one number an image, shape \(3,\)"):
        edge_loss(np.ones((3, 8)), np.ones((3, 8)), weights=np.ones(shape))


@pytest.mark.parametrize("name", ["node_weight", "edge_weight"])
@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, True, "1", None], ids=repr)
def test_the_weight_of_a_term_is_a_finite_number(name, weight):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, got"):
        embedding_graph_loss(np.ones((3, 8)), np.ones((3, 8)), **{name: weight})


def test_integers_are_refused():
    with pytest.raises(TypeError, match="`student_nodes` must be floating point"):
        node_loss(np.ones((3, 8)), np.ones((3, 8), "int32"))
