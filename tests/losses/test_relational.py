"""Relational losses: golden values, definitions written out, invariances, degenerate batches."""

import itertools
import re

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.losses.relational import (
    correlation_congruence_loss,
    probabilistic_transfer_loss,
    relational_angle_loss,
    relational_distance_loss,
    similarity_preserving_loss,
)

LOSSES = {
    "sp": similarity_preserving_loss,
    "cc": correlation_congruence_loss,
    "pkt": probabilistic_transfer_loss,
    "distance": relational_distance_loss,
    "angle": relational_angle_loss,
}
ANY_WIDTH = {name: loss for name, loss in LOSSES.items() if name != "cc"}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
of_any_width = pytest.mark.parametrize("loss", ANY_WIDTH.values(), ids=ANY_WIDTH)
both_modes = pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])


def features(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def value_and_gradients(loss, teacher, student, weights=None):
    teacher, student = tf.convert_to_tensor(teacher), tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        value = loss(teacher, student, weights)
    return value, *tape.gradient(value, [teacher, student])


# Values


def golden_loss(case):
    name, params = case["function"], case["params"]
    if name != "rkd":
        return LOSSES[name]
    parts = (
        (params["distance_weight"], relational_distance_loss),
        (
            params["angle_weight"],
            relational_angle_loss,
        ),
    )
    return lambda *arguments: sum(weight * loss(*arguments) for weight, loss in parts)


GOLDEN = [case for name in ("sp", "cc", "pkt", "rkd") for case in golden_cases("loss_zoo", name)]


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", {"rtol": 1e-9, "atol": 1e-12}), ("float32", {"rtol": 2e-5, "atol": 2e-6})],
    ids=["float64", "float32"],
)
def test_golden(case, dtype, tolerance):
    teacher, student = (np.array(case["inputs"][who], dtype) for who in ("teacher", "student"))
    value, _, gradient = value_and_gradients(golden_loss(case), teacher, student)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, case["expected"], **tolerance)
    np.testing.assert_allclose(gradient, case["gradients"]["student"], **tolerance)


@pytest.mark.parametrize("case", golden_cases("loss_zoo", "rkd_distance_full_mean"))
def test_a_mean_over_the_diagonal_too_is_another_factor(case):
    teacher, student = (np.array(case["inputs"][who]) for who in ("teacher", "student"))
    images = len(teacher)
    ours = float(relational_distance_loss(teacher, student))
    if case["name"].endswith("b6_d8"):  # no difference is above 1, so the factor comes out squared
        assert ours * (images / (images - 1)) ** 2 == pytest.approx(case["expected"], rel=1e-5)
    assert ours < case["expected"]


def cosine(a, b):
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norms if norms else 0.0


def smooth_l1(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def expected_sp(teacher, student):
    matrices = []
    for rows in (teacher, student):
        products = [[np.sum(a * b) for b in rows] for a in rows]
        matrices.append([np.array(row) / np.linalg.norm(row) for row in products])
    return np.mean(np.square(np.subtract(*matrices)))


def expected_cc(teacher, student):
    errors = np.abs(teacher - student)
    return np.mean([np.sum(a * b) for a, b in itertools.pairwise(errors)])


def expected_pkt(teacher, student):
    target, answer = (
        [[(cosine(a, b) + 1) / 2 for b in rows] for a in rows] for rows in (teacher, student)
    )
    target, answer = (np.array(k) / np.sum(k, axis=1, keepdims=True) for k in (target, answer))
    return np.mean(target * np.log(target / answer))


def expected_distance(teacher, student):
    matrices = []
    for rows in (teacher, student):
        lengths = [[np.linalg.norm(a - b) for b in rows] for a in rows]
        matrices.append(lengths / np.mean([d for row in lengths for d in row if d > 0]))
    return np.mean([smooth_l1(x) for x in np.ravel(matrices[0] - matrices[1])])


def expected_angle(teacher, student):
    triples = itertools.product(range(len(teacher)), repeat=3)
    return np.mean(
        [
            smooth_l1(
                cosine(student[j] - student[i], student[k] - student[i])
                - cosine(teacher[j] - teacher[i], teacher[k] - teacher[i])
            )
            for i, j, k in triples
        ]
    )


EXPECTED = {
    "sp": expected_sp,
    "cc": expected_cc,
    "pkt": expected_pkt,
    "distance": expected_distance,
    "angle": expected_angle,
}


@both_modes
@pytest.mark.parametrize("name", LOSSES)
def test_definition(name, jit_compile):
    """19 images are two chunks of angles."""
    teacher = features(19, 4)
    student = features(19, 4 if name == "cc" else 3, seed=1)
    student[2] = 40 * student[3]  # distances that differ by more than 1
    compiled = tf.function(LOSSES[name], jit_compile=jit_compile)
    value = compiled(tf.constant(teacher), tf.constant(student))
    tolerance = 1e-4 if name == "pkt" else 1e-12  # its epsilons
    np.testing.assert_allclose(value, EXPECTED[name](teacher, student), rtol=tolerance)


@each_loss
def test_features_are_flattened(loss):
    teacher, student = features(5, 2, 3, 2), features(5, 2, 3, 2, seed=1)
    flat = loss(teacher.reshape(5, 12), student.reshape(5, 12))
    np.testing.assert_allclose(loss(teacher, student), flat, rtol=1e-13)


@pytest.mark.parametrize("name", ["sp", "cc", "distance", "angle"])
def test_teacher_and_student_may_be_exchanged(name):
    """So the gradient that reaches a teacher is right, too."""
    teacher, student = features(5, 4), features(5, 4, seed=1)
    value, of_teacher, of_student = value_and_gradients(LOSSES[name], teacher, student)
    exchanged = value_and_gradients(LOSSES[name], student, teacher)
    for result, other in zip((value, of_student, of_teacher), exchanged, strict=True):
        np.testing.assert_allclose(result, other, rtol=1e-10, atol=1e-14)


# Invariances


@each_loss
def test_equal_networks_cost_nothing(loss):
    rows = features(6, 4, dtype="float32")
    for result in value_and_gradients(loss, rows, rows.copy()):
        np.testing.assert_allclose(result, 0, atol=1e-6)


@of_any_width
@pytest.mark.parametrize("factor", [1e-2, 1e3])
def test_the_scale_of_the_student_does_not_matter(loss, factor):
    teacher, student = features(6, 4), features(6, 3, seed=1)
    np.testing.assert_allclose(loss(teacher, factor * student), loss(teacher, student), rtol=1e-4)


def test_the_scale_matters_to_correlation_congruence():
    teacher, student = features(6, 4), features(6, 4, seed=1)
    scaled = correlation_congruence_loss(3 * teacher, 3 * student)
    np.testing.assert_allclose(scaled, 9 * correlation_congruence_loss(teacher, student))


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_images_matters_to_correlation_congruence_alone(name):
    teacher, student, order = features(6, 4), features(6, 4, seed=1), [3, 0, 5, 1, 4, 2]
    value = LOSSES[name](teacher, student)
    permuted = LOSSES[name](teacher[order], student[order])
    assert np.allclose(value, permuted, rtol=1e-12) == (name != "cc")


# Images that take no part


@both_modes
@each_loss
def test_an_image_of_weight_0_is_not_there(loss, jit_compile):
    teacher, student, kept = features(7, 4), features(7, 4, seed=1), [0, 2, 3, 5]
    expected = value_and_gradients(loss, teacher[kept], student[kept])
    teacher[1] = np.nan
    student[[4, 6]] = np.nan
    weights = tf.constant([1.0, 0, 2, 0.5, 0, 1, 0])

    @tf.function(jit_compile=jit_compile)
    def compiled(teacher, student, weights):
        return value_and_gradients(loss, teacher, student, weights)

    value, *gradients = compiled(teacher, student, weights)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    for gradient, part in zip(gradients, expected[1:], strict=True):
        np.testing.assert_allclose(gradient.numpy()[kept], part, rtol=1e-10, atol=1e-14)
        assert not np.delete(gradient, kept, axis=0).any()


@pytest.mark.parametrize("kept", [0, 1])
@each_loss
def test_no_image_and_one_image_cost_nothing(loss, kept):
    weights = tf.constant([0.0, kept, 0.0])
    results = value_and_gradients(
        loss, features(3, 4, dtype="float32"), features(3, 4, seed=1, dtype="float32"), weights
    )
    for result in results:
        np.testing.assert_array_equal(result, np.zeros_like(result))


# Degenerate features

ROWS = features(6, 4, dtype="float32")
DEGENERATE = {
    "zeros": np.zeros_like(ROWS),
    "a zero row": ROWS * [[1], [1], [0], [1], [1], [1]],
    "duplicate rows": ROWS[[0, 1, 1, 2, 0, 3]],
    "all rows equal": np.repeat(ROWS[:1], 6, axis=0),
    "opposite rows": np.outer([1, -1, 2, -2, 3, -3], ROWS[0]),
    "tiny": 1e-20 * ROWS,
    "large": 1e4 * ROWS,
}


@both_modes
@pytest.mark.parametrize("rows", [slice(None), 2], ids=["all", "a row"])
@each_loss
def test_nan_stays_nan(loss, rows, jit_compile):
    broken = features(6, 4, seed=1, dtype="float32")
    broken[rows] = np.nan
    compiled = tf.function(loss, jit_compile=jit_compile)
    for pair in ((ROWS, broken), (broken, ROWS)):
        assert np.isnan(compiled(*map(tf.constant, pair)))


@both_modes
@each_loss
def test_value_and_gradients_are_finite(loss, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def results(teacher, student):
        return value_and_gradients(loss, teacher, student)

    for rows in DEGENERATE.values():
        rows = rows.astype("float32")
        for pair in ((ROWS, rows), (rows, ROWS), (rows, rows.copy())):
            for result in results(*pair):
                assert np.isfinite(result).all()


@each_loss
def test_a_batch_of_one_image_costs_nothing(loss):
    for result in value_and_gradients(loss, ROWS[:1], ROWS[1:2]):
        np.testing.assert_array_equal(result, np.zeros_like(result))


@each_loss
def test_a_zero_vector_is_safe(loss):
    student = features(5, 4, seed=1, dtype="float32")
    student[2] = 0
    value, _, gradient = value_and_gradients(loss, features(5, 4, dtype="float32"), student)
    assert np.isfinite(value)
    assert np.abs(gradient).max() < 100


def test_a_cosine_that_rounds_to_below_minus_one():
    """Affinities of opposite rows are 0, and the logarithm must not see less."""
    rows = np.stack([features(300, seed=seed, dtype="float32") for seed in range(20)])
    for row in rows:
        value = probabilistic_transfer_loss(ROWS[:2], np.stack([row, -row]))
        assert np.isfinite(value)


# Precision and memory


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_loss
def test_halves_are_computed_in_float32(loss, dtype):
    teacher, student = (
        tf.cast(30 * features(5, 300, seed=seed), dtype) for seed in (0, 1)
    )  # sums of squares are beyond float16
    value = loss(teacher, student)
    assert value.dtype == tf.float32
    exact = loss(tf.cast(teacher, "float64"), tf.cast(student, "float64"))
    np.testing.assert_allclose(value, exact, rtol=1e-3)


@each_loss
def test_precisions_may_differ(loss):
    teacher, student = features(5, 4, dtype="float32"), features(5, 4, seed=1)
    expected = loss(teacher.astype("float64"), student)
    np.testing.assert_allclose(loss(teacher, student), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(student, teacher), loss(student, 1.0 * teacher), rtol=1e-5)


@each_loss
def test_any_number_of_images(loss):
    specs = [tf.TensorSpec([None, 4]), tf.TensorSpec([None, 4]), tf.TensorSpec([None])]
    compiled = tf.function(
        lambda *arguments: value_and_gradients(loss, *arguments), input_signature=specs
    )
    for images in (1, 5, 18):
        teacher, student = features(2, images, 4, dtype="float32")
        expected = value_and_gradients(loss, teacher, student)
        found = compiled(teacher, student, np.ones(images, "float32"))
        for result, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-6)


def test_angles_are_held_in_chunks():
    """No buffer of the compiled step holds more than 16 images' angles: 4 MB for 256 images."""
    images, width = 256, 128

    @tf.function(jit_compile=True)
    def step(teacher, student):
        return value_and_gradients(relational_angle_loss, teacher, student)

    rows = tf.zeros([images, width])
    program = step.experimental_get_compiler_ir(rows, rows)(stage="hlo")
    shapes = re.findall(r"f32\[([\d,]+)\]", program)
    sizes = [np.prod([int(size) for size in shape.split(",")]) for shape in shapes]
    assert max(sizes) == 16 * images * images


# Mistakes


def test_widths_of_neighbours_must_agree():
    with pytest.raises(ValueError, match="have width 3 and the student's 4: give both a head"):
        correlation_congruence_loss(np.zeros((2, 3)), np.zeros((2, 4)))


@each_loss
def test_mistakes(loss):
    with pytest.raises(ValueError, match="must have the same images, got 2 and 3 rows"):
        loss(np.zeros((2, 4)), np.zeros((3, 4)))
    with pytest.raises(TypeError, match="`student` must be floating point"):
        loss(np.zeros((2, 4)), np.zeros((2, 4), "int32"))
    with pytest.raises(ValueError, match=r"one number an image, shape \(2,\), got \(2, 1\)"):
        loss(np.zeros((2, 4)), np.zeros((2, 4)), np.ones((2, 1)))
    compiled = tf.function(loss)
    maps = tf.TensorSpec([2, None, 4, 3])
    with pytest.raises(ValueError, match=r"`teacher` must have a known shape but for the batch"):
        compiled.get_concrete_function(maps, maps)
