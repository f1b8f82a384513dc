import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.losses import kl_divergence
from keras_ssd.losses.decoupled import class_relation_loss, class_relations, decoupled_divergence

PRECISIONS = [("float64", 1e-9, 1e-12), ("float32", 2e-5, 2e-6)]
LABELS = [0, 3, 1, 2, 3, 0]


def normal(shape, seed=0, scale=2.0, dtype="float64"):
    return tf.constant(np.random.default_rng(seed).normal(0, scale, shape), dtype)


def value_and_gradient(loss, teacher, student):
    student = tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = tf.reduce_mean(loss(teacher, student))
    return value, tape.gradient(value, student)


def golden(case, dtype):
    return (tf.constant(case["inputs"][name], dtype) for name in ("teacher", "student"))


# --- decoupled_divergence ---------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("loss_zoo", "dkd"))
@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_golden_decoupled(case, dtype, rtol, atol):
    teacher, student = golden(case, dtype)
    params, labels = case["params"], case["inputs"]["labels"]

    def loss(teacher, student, alpha=params["alpha"], beta=params["beta"]):
        values = decoupled_divergence(teacher, student, labels, alpha, beta, params["temperature"])
        assert values.dtype == dtype
        assert values.shape == [len(labels)]
        return values

    value, gradient = value_and_gradient(loss, teacher, student)
    np.testing.assert_allclose(value, case["expected"]["value"], rtol, atol)
    np.testing.assert_allclose(gradient, case["gradients"]["student"], rtol, atol)
    target, other = (tf.reduce_mean(loss(teacher, student, *only)) for only in [(1, 0), (0, 1)])
    np.testing.assert_allclose(target, case["expected"]["target_term"], rtol, atol)
    np.testing.assert_allclose(other, case["expected"]["non_target_term"], rtol, atol)


def test_decoupled_by_hand():
    teacher, student = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.25, 0.5]])
    target = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    other = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    value = decoupled_divergence(teacher, student, [0], 2.0, 3.0, 1.0)
    np.testing.assert_allclose(value, [2 * target + 3 * other], rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_both_parts_make_the_kl_divergence(temperature):
    teacher, student = normal((2, 6, 4))
    target, other = (
        decoupled_divergence(teacher, student, LABELS, *only, temperature)
        for only in [(1.0, 0.0), (0.0, 1.0)]
    )
    rest = 1 - tf.gather(tf.nn.softmax(teacher / temperature), LABELS, batch_dims=1)
    expected = kl_divergence(teacher, student, temperature)
    np.testing.assert_allclose(target + rest * other, expected, rtol=1e-12)


def test_the_default_weights_are_1_and_8_at_temperature_4():
    teacher, student = normal((2, 6, 4))
    expected = decoupled_divergence(teacher, student, LABELS, 1.0, 8.0, 4.0)
    np.testing.assert_array_equal(decoupled_divergence(teacher, student, LABELS), expected)


def test_two_classes_have_no_others():
    teacher, student = normal((2, 6, 2))
    value, gradient = value_and_gradient(
        lambda *logits: decoupled_divergence(*logits, [0, 1, 0, 1, 1, 0], 0.0, 8.0),
        teacher,
        student,
    )
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros((6, 2)))


def test_decoupled_ignores_shifts():
    teacher, student = normal((2, 6, 4))
    shift = np.arange(6.0)[:, None]
    expected = decoupled_divergence(teacher, student, LABELS)
    shifted = decoupled_divergence(teacher + shift, student - shift, LABELS)
    np.testing.assert_allclose(shifted, expected, rtol=1e-12)


def test_labels_outside_count_as_the_nearest_class():
    teacher, student = normal((2, 6, 4))
    outside = decoupled_divergence(teacher, student, [-1, 4, -7, 9, 1, 2])
    inside = decoupled_divergence(teacher, student, [0, 3, 0, 3, 1, 2])
    np.testing.assert_array_equal(outside, inside)


EXTREMES = {  # name: (teacher, student)
    "agreement": ([200.0, -200.0, 0.0], [200.0, -200.0, 0.0]),
    "opposition": ([200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]),
    "more and less sure": ([110.0, 0.0, 0.0], [120.0, 0.0, 0.0]),
    "sure of another class": ([0.0, 200.0, -200.0], [0.0, -200.0, 200.0]),
    "impossible label": ([-math.inf, 1.0, 2.0], [0.0, 1.0, 2.0]),
    "impossible for the student": ([0.0, 1.0, 2.0], [0.0, -math.inf, 2.0]),
    "certain label": ([0.0, -math.inf, -math.inf], [0.0, 1.0, 2.0]),
    "zeros": ([0.0] * 3, [0.0] * 3),
    "one class": ([3.0], [-200.0]),
}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", EXTREMES)
def test_decoupled_is_finite(name, jit_compile):
    teacher, student = (tf.constant([row]) for row in EXTREMES[name])

    def loss(teacher, student):
        return decoupled_divergence(teacher, student, [0], temperature=1.0)

    compiled = tf.function(lambda *x: value_and_gradient(loss, *x), jit_compile=jit_compile)
    for result in compiled(teacher, student):
        assert np.isfinite(result).all(), result


def test_decoupled_does_not_round_confidence_away():
    value = decoupled_divergence(
        tf.constant([[110.0, 0.0, 0.0]]), tf.constant([[0.0, 120.0, 0.0]]), [0], 1.0, 0.0, 1.0
    )
    np.testing.assert_allclose(value, [120.0], rtol=1e-6)


def test_decoupled_refuses_what_does_not_fit():
    logits, other = np.zeros((2, 3)), np.zeros((2, 4))
    with pytest.raises(ValueError, match="teacher has 3 classes and the student 4"):
        decoupled_divergence(logits, other, [0, 1])
    with pytest.raises(ValueError, match="one class a row, shape \\(2,\\), got \\(1,\\)"):
        decoupled_divergence(logits, logits, [0])
    with pytest.raises(ValueError, match="got \\(2, 3\\): take the argmax of one-hot rows"):
        decoupled_divergence(logits, logits, np.zeros((2, 3), int))
    with pytest.raises(TypeError, match="`labels` must be integers"):
        decoupled_divergence(logits, logits, [0.0, 1.0])
    with pytest.raises(TypeError, match="`student_logits` must be floating point"):
        decoupled_divergence(logits, np.zeros((2, 3), int), [0, 1])
    for name in ("target_weight", "other_weight"):
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, got nan"):
            decoupled_divergence(logits, logits, [0, 1], **{name: math.nan})


# --- class_relation_loss ----------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("loss_zoo", "dist"))
@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_golden_relations(case, dtype, rtol, atol):
    teacher, student = golden(case, dtype)
    params = case["params"]

    def loss(teacher, student):
        weights = params["beta"], params["gamma"]
        value = class_relation_loss(teacher, student, *weights, params["temperature"])
        assert value.dtype == dtype
        return value

    value, gradient = value_and_gradient(loss, teacher, student)
    np.testing.assert_allclose(value, case["expected"]["value"], rtol, atol)
    np.testing.assert_allclose(gradient, case["gradients"]["student"], rtol, atol)
    inter = class_relation_loss(teacher, student, 1.0, 0.0, params["temperature"])
    intra = class_relation_loss(teacher, student, 0.0, 1.0, params["temperature"])
    np.testing.assert_allclose(inter, case["expected"]["inter_class"], rtol, atol)
    np.testing.assert_allclose(intra, case["expected"]["intra_class"], rtol, atol)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_relations_by_numpy(temperature):
    teacher, student = normal((2, 7, 5)).numpy()
    p, q = (np.exp(z / temperature) for z in (teacher, student))
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    value = class_relation_loss(teacher, student, 0.7, 1.3, temperature)
    np.testing.assert_allclose(value, temperature**2 * (0.7 * inter + 1.3 * intra), rtol=1e-5)


def test_equal_logits_cost_nothing():
    logits = normal((6, 5), dtype="float32")
    for loss in (class_relation_loss, lambda *x: decoupled_divergence(*x, [0, 4, 2, 1, 1, 3])):
        value, gradient = value_and_gradient(loss, logits, logits)
        assert abs(float(value)) < 1e-6
        assert np.isfinite(gradient).all()


def test_relations_change_with_the_scale_of_logits_and_not_with_the_order_of_images():
    teacher, student = normal((2, 6, 5))
    value = class_relation_loss(teacher, student)
    assert abs(float(class_relation_loss(teacher, 2 * student) - value)) > 1e-3
    order = [3, 0, 5, 1, 2, 4]
    shuffled = class_relation_loss(tf.gather(teacher, order), tf.gather(student, order))
    np.testing.assert_allclose(shuffled, value, rtol=1e-12)


def test_images_of_weight_0_take_no_part():
    teacher, student = normal((2, 6, 5))
    kept = [0, 2, 3]
    weights = tf.constant([1.0, 0, 2, 0.5, 0, 0])

    def part(teacher, student):
        return class_relation_loss(teacher, student, 0.7, 1.3, 2.0)

    expected, wanted = value_and_gradient(part, tf.gather(teacher, kept), tf.gather(student, kept))
    value, gradient = value_and_gradient(
        lambda *x: class_relation_loss(*x, 0.7, 1.3, 2.0, weights), teacher, student
    )
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(tf.gather(gradient, kept), wanted, rtol=1e-10, atol=1e-14)
    assert not np.any(tf.gather(gradient, [1, 4, 5]))
    value, gradient = value_and_gradient(
        lambda *x: class_relation_loss(*x, weights=tf.zeros(6)), teacher, student
    )
    assert float(value) == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_image_of_weight_0_may_be_nan(jit_compile):
    teacher, student = normal((2, 4, 5), dtype="float32").numpy()
    weights = tf.constant([1.0, 0, 2, 0])

    @tf.function(jit_compile=jit_compile)
    def results(teacher, student):
        return value_and_gradient(
            lambda *x: class_relation_loss(*x, weights=weights), teacher, student
        )

    expected, wanted = results(teacher, student)
    teacher[1] = student[3] = math.nan
    value, gradient = results(teacher, student)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient, wanted)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("loss", ["dkd", "inter", "intra"])
def test_nan_stays_nan(loss, side, jit_compile):
    function = {
        "dkd": lambda *x: tf.reduce_mean(decoupled_divergence(*x, LABELS)),
        "inter": lambda *x: class_relation_loss(*x, 1.0, 0.0),
        "intra": lambda *x: class_relation_loss(*x, 0.0, 1.0),
    }[loss]
    compiled = tf.function(function, jit_compile=jit_compile)
    for rows in (slice(None), 3):
        pair = normal((2, 6, 5), dtype="float32").numpy()
        pair[side][rows] = math.nan
        assert math.isnan(compiled(*map(tf.constant, pair)))


def test_one_image_has_nothing_to_correlate_a_class_with():
    teacher, student = normal((2, 1, 5))
    assert float(class_relation_loss(teacher, student, 0.0, 1.0)) == 1
    np.testing.assert_allclose(class_relations(teacher, student, 3.0), 9.0)


def test_two_classes_correlate_wholly():
    same = class_relation_loss(np.array([[2.0, 0.0]]), np.array([[1.0, -1.0]]), 1.0, 0.0)
    opposite = class_relation_loss(np.array([[2.0, 0.0]]), np.array([[-1.0, 1.0]]), 1.0, 0.0)
    np.testing.assert_allclose([same, opposite], [0, 2], atol=1e-7)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    "rows",
    [np.zeros((3, 4)), 200.0 * np.eye(3, 4) - 100, np.ones((3, 1)) * [200, 0, 0, -200], [[1.0, 2]]],
    ids=["zeros", "sure", "equal rows", "one image"],
)
def test_relations_are_finite(rows, jit_compile):
    teacher = tf.constant(rows, tf.float32)
    compiled = tf.function(
        lambda *x: value_and_gradient(class_relation_loss, *x), jit_compile=jit_compile
    )
    for student in (teacher, -teacher):
        for result in compiled(teacher, student):
            assert np.isfinite(result).all(), result


def test_relations_refuse_what_does_not_fit():
    logits = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"must have the same shape, got \(2, 3\) and \(1, 3\)"):
        class_relation_loss(logits, np.zeros((1, 3)))
    with pytest.raises(TypeError, match="`teacher_logits` must be floating point"):
        class_relation_loss(np.zeros((2, 3), int), logits)
    for name in ("inter_weight", "intra_weight"):
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, got -1"):
            class_relation_loss(logits, logits, **{name: -1})


# --- both -------------------------------------------------------------------------------------


def decoupled(teacher, student, temperature=2.0):
    return decoupled_divergence(teacher, student, LABELS, temperature=temperature)


def relations(teacher, student, temperature=2.0):
    return class_relation_loss(teacher, student, temperature=temperature)


BOTH = pytest.mark.parametrize("loss", [decoupled, relations])


@BOTH
@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_positive(loss, temperature):
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, got"):
        loss(np.zeros((6, 4)), np.zeros((6, 4)), temperature)


@BOTH
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_halves_are_computed_in_float32(loss, dtype):
    teacher, student = (tf.cast(each, dtype) for each in normal((2, 6, 4), scale=30.0))
    value = loss(teacher, student)
    assert value.dtype == tf.float32
    assert np.isfinite(value).all()
    floats = loss(tf.cast(teacher, tf.float32), tf.cast(student, tf.float32))
    np.testing.assert_array_equal(value, floats)


@BOTH
def test_precisions_may_differ(loss):
    teacher, student = normal((2, 6, 4))
    expected = loss(teacher, student)
    np.testing.assert_allclose(loss(tf.cast(teacher, tf.float32), student), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(teacher, tf.cast(student, tf.float32)), expected, rtol=1e-5)


@BOTH
def test_compiled_equals_eager(loss):
    teacher, student = normal((2, 6, 4))
    signature = [tf.TensorSpec([None, 4], tf.float64)] * 2
    compiled = tf.function(
        lambda *x: value_and_gradient(loss, *x), jit_compile=True, input_signature=signature
    )
    for found, expected in zip(
        compiled(teacher, student), value_and_gradient(loss, teacher, student), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("classes", [4, 100, 1000])
def test_a_classifier_that_says_one_thing_gets_no_gradient_of_relations(classes):
    """Of 1e8 in the published code: a network that begins with zeros would leap."""
    teacher = tf.constant(np.random.default_rng(0).normal(size=(6, classes)), tf.float32)
    student = tf.Variable(tf.zeros([6, classes]))
    with tf.GradientTape() as tape:
        value = class_relation_loss(teacher, student)
    assert value == 2.0
    assert not np.any(tape.gradient(value, student))
