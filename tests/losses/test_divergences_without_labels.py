"""The divergences of label-free distillation: one set of tests for all four."""

import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd import losses

DIVERGENCES = {
    "kl": losses.kl_divergence,
    "symmetric_kl": losses.symmetric_kl_divergence,
    "js": losses.jensen_shannon_divergence,
    "soft_ce": losses.soft_cross_entropy,
}
each = pytest.mark.parametrize("name", DIVERGENCES)
LN_2 = math.log(2)


def shares(logits, temperature=1.0):
    """Probabilities in float64, from the definition."""
    scaled = np.asarray(logits, "float64") / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def reference(name, teacher, student, temperature=1.0):
    """Class by class in float64, with shares instead of logarithms of shares."""
    values = []
    pairs = zip(shares(teacher, temperature), shares(student, temperature), strict=True)
    for q, p in pairs:
        kl = sum(b * math.log(b / a) for b, a in zip(q, p, strict=True))
        reverse = sum(a * math.log(a / b) for b, a in zip(q, p, strict=True))
        middle = (p + q) / 2
        js = sum(b * math.log(b / m) for b, m in zip(q, middle, strict=True)) / 2
        js += sum(a * math.log(a / m) for a, m in zip(p, middle, strict=True)) / 2
        cross = -sum(b * math.log(a) for b, a in zip(q, p, strict=True))
        value = {"kl": kl, "symmetric_kl": (kl + reverse) / 2, "js": js, "soft_ce": cross}[name]
        values.append(value if name == "soft_ce" else temperature**2 * value)
    return np.array(values)


def mean_and_gradients(name, teacher, student, temperature=1.0):
    teacher, student = tf.convert_to_tensor(teacher), tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        value = tf.reduce_mean(DIVERGENCES[name](teacher, student, temperature))
    return value, *tape.gradient(value, [teacher, student])


def normal(shape, scale=3.0, seed=0):
    """Logits of a teacher and of a student."""
    return np.random.default_rng(seed).normal(0, scale, (2, *shape))


GOLDEN = [
    pytest.param(name, case.values[0], id=case.id)
    for name in DIVERGENCES
    for case in golden_cases("ssld", name)
]


@pytest.mark.parametrize(("name", "case"), GOLDEN)
@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"), [("float64", 1e-9, 1e-12), ("float32", 2e-5, 2e-6)]
)
def test_golden(name, case, dtype, relative, absolute):
    teacher, student = (np.array(case["inputs"][part], dtype) for part in ("teacher", "student"))
    temperature = case["params"].get("temperature", 1.0)
    value, to_teacher, to_student = mean_and_gradients(name, teacher, student, temperature)
    assert value.dtype == dtype
    expected = case["expected"]
    if name == "js":
        expected = expected["value"]
        rows = DIVERGENCES[name](teacher, student, temperature) / temperature**2
        per_row = case["expected"]["per_row"]
        np.testing.assert_allclose(rows, per_row, rtol=relative, atol=absolute)
    np.testing.assert_allclose(value, expected, rtol=relative, atol=absolute)
    gradients = case["gradients"]
    np.testing.assert_allclose(to_student, gradients["student"], rtol=relative, atol=absolute)
    if "teacher" in gradients:
        np.testing.assert_allclose(to_teacher, gradients["teacher"], rtol=relative, atol=absolute)


@pytest.mark.parametrize("case", golden_cases("ssld", "reverse_kl"))
def test_the_reverse_divergence_is_the_divergence_with_exchanged_arguments(case):
    teacher, student = (np.array(case["inputs"][part]) for part in ("teacher", "student"))
    value, gradient, _ = mean_and_gradients("kl", student, teacher)
    np.testing.assert_allclose(value, case["expected"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, case["gradients"]["student"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kl", 0.130812035941),
        ("symmetric_kl", (0.130812035941 + 0.143841036226) / 2),
        ("js", 0.0338220755686),
        ("soft_ce", LN_2),
    ],
)
def test_two_classes_by_hand(name, expected):
    """Three to one against even."""
    value = DIVERGENCES[name](np.array([[math.log(3), 0.0]]), np.zeros((1, 2)))
    np.testing.assert_allclose(value, [expected], rtol=1e-11)


@each
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-5)])
def test_reference(name, temperature, dtype, tolerance):
    teacher, student = normal((20, 7)).astype(dtype)
    value = DIVERGENCES[name](teacher, student, temperature)
    expected = reference(name, teacher, student, temperature)
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


@each
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-6)])
def test_where_both_agree(name, dtype, bound):
    teacher = normal((30, 10))[0].astype(dtype)
    value = DIVERGENCES[name](teacher, teacher + 0)
    q = shares(teacher)
    entropy = -(q * np.log(q)).sum(axis=1) if name == "soft_ce" else np.zeros(30)
    np.testing.assert_allclose(value, entropy, atol=bound, rtol=1e-6)
    _, _, gradient = mean_and_gradients(name, teacher, teacher + 0)
    np.testing.assert_allclose(gradient, 0, atol=bound)


@pytest.mark.parametrize("name", ["symmetric_kl", "js"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_symmetry(name, temperature):
    teacher, student = normal((12, 6))
    one = DIVERGENCES[name](teacher, student, temperature)
    other = DIVERGENCES[name](student, teacher, temperature)
    np.testing.assert_allclose(one, other, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bounds_of_a_thousand_rows(dtype):
    scales = np.geomspace(0.1, 200, 1000)[:, None]
    teacher, student = (normal((1000, 8), 1.0) * scales).astype(dtype)
    kl, symmetric, js, cross = (f(teacher, student).numpy() for f in DIVERGENCES.values())
    assert (js >= 0).all()
    assert (js <= LN_2 + 1e-6).all()
    assert (symmetric >= 2 * js - 1e-6).all()
    assert (kl >= -1e-6).all()
    assert (cross >= kl - 1e-4).all()
    assert js.max() > 0.69
    assert symmetric.max() > 100


def test_nearly_equal_rows():
    teacher = normal((50, 10), 1.0)[0]
    student = teacher + 1e-3 * normal((50, 10), 1.0, seed=1)[0]
    ratio = losses.jensen_shannon_divergence(teacher, student)
    ratio /= losses.symmetric_kl_divergence(teacher, student)
    assert ((ratio >= 0.2499) & (ratio <= 0.2501)).numpy().all()


@each
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-5)])
def test_constants_a_row_change_nothing(name, dtype, bound):
    teacher, student = normal((10, 5), 1.0).astype(dtype)
    shift = np.linspace(-50, 50, 10, dtype=dtype)[:, None]
    expected = DIVERGENCES[name](teacher, student)
    for moved in [(teacher + shift, student), (teacher, student + shift)]:
        np.testing.assert_allclose(DIVERGENCES[name](*moved), expected, atol=10 * bound, rtol=bound)


@each
def test_permutations(name):
    teacher, student = normal((6, 5))
    value, _, gradient = mean_and_gradients(name, teacher, student)
    classes, rows = [3, 0, 4, 1, 2], [5, 4, 0, 1, 2, 3]
    for pick in [np.s_[:, classes], np.s_[rows]]:
        picked, _, moved = mean_and_gradients(name, teacher[pick], student[pick])
        np.testing.assert_allclose(picked, value, rtol=1e-12)
        np.testing.assert_allclose(moved, gradient.numpy()[pick], atol=1e-14)


def closed_gradient(name, teacher, student):
    """Per row: section 2.2 of the specification of SSLD."""
    q, p = shares(teacher), shares(student)
    middle = (p + q) / 2

    def log_ratio(other):
        mean = (p * np.log(p / other)).sum(axis=1, keepdims=True)
        return p * (np.log(p / other) - mean)

    return {
        "kl": p - q,
        "soft_ce": p - q,
        "symmetric_kl": (p - q + log_ratio(q)) / 2,
        "js": log_ratio(middle) / 2,
    }[name]


@each
def test_gradient(name):
    teacher, student = normal((4, 6))
    _, _, gradient = mean_and_gradients(name, teacher, student)
    np.testing.assert_allclose(4 * gradient, closed_gradient(name, teacher, student), atol=1e-12)
    step = 1e-5
    for row, column in np.ndindex(student.shape):
        moved = np.zeros_like(student)
        moved[row, column] = step
        up, down = (reference(name, teacher, student + s * moved) for s in (1, -1))
        central = (up - down).sum() / (2 * step)
        np.testing.assert_allclose(4 * gradient[row, column], central, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "symmetric_kl", "js"])
def test_the_temperature_squared_keeps_the_gradient(name):
    teacher, student = normal((4, 6))
    with_factor = np.linalg.norm(mean_and_gradients(name, teacher, student, 4.0)[2])
    without = np.linalg.norm(mean_and_gradients(name, teacher / 4, student / 4)[2]) / 4
    np.testing.assert_allclose(with_factor / without, 16, rtol=1e-10)


EXTREMES = {  # name: (teacher, student)
    "opposite 200": ([200.0, 0.0, -200.0], [-200.0, 0.0, 200.0]),
    "opposite 1000": ([1e3, -1e3, 0.0], [-1e3, 1e3, 0.0]),
    "equal 1000": ([1e3, -1e3, 0.0], [1e3, -1e3, 0.0]),
    "impossible for both": ([0.0, 1.0, -math.inf], [1.0, 0.0, -math.inf]),
    "impossible for the teacher": ([0.0, 1.0, -math.inf], [1.0, 0.0, 2.0]),
    "impossible for the student": ([0.0, 1.0, 2.0], [1.0, 0.0, -math.inf]),
    "impossible throughout": ([-math.inf] * 3, [-math.inf] * 3),
}


@each
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_value_and_gradients_are_finite(name, jit_compile, dtype, extreme):
    teacher, student = (tf.constant([row], dtype) for row in EXTREMES[extreme])
    compiled = tf.function(mean_and_gradients, jit_compile=jit_compile)
    value, *gradients = compiled(name, teacher, student)
    assert value.dtype == tf.float32
    assert np.isfinite(value)
    if not (dtype == "float16" and extreme.startswith("impossible for the")):  # of 1e30 in float16
        for gradient in gradients:
            assert np.isfinite(tf.cast(gradient, tf.float32)).all(), gradient


def test_contradiction_teaches():
    teacher, student = (tf.constant([row]) for row in EXTREMES["opposite 200"])
    value, _, gradient = mean_and_gradients("symmetric_kl", teacher, student)
    np.testing.assert_allclose(value, 400, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5]], atol=1e-6)


def with_epsilon(teacher, student, epsilon, *, over_entries=False):
    """The published form on probabilities; as its program does it, a mean over all entries."""
    p, q = tf.nn.softmax(student), tf.nn.softmax(teacher)
    one = q * tf.math.log((q + epsilon) / (p + epsilon))
    other = p * tf.math.log((p + epsilon) / (q + epsilon))
    if over_entries:
        return tf.reduce_mean((one + other) * p.shape[-1] / 2)
    return tf.reduce_mean(tf.reduce_sum((one + other) / 2, axis=-1))


@pytest.mark.parametrize("case", golden_cases("ssld", "symmetric_kl_eps"))
def test_the_published_form_with_an_epsilon(case):
    """What it computes, and that ours is the same where no probability is small."""
    teacher, student = (tf.constant(case["inputs"][p], tf.float64) for p in ("teacher", "student"))
    epsilon = case["params"]["epsilon"]
    value = with_epsilon(teacher, student, epsilon)
    np.testing.assert_allclose(value, case["expected"], rtol=1e-9, atol=1e-12)
    over_entries = with_epsilon(teacher, student, epsilon, over_entries=True)
    np.testing.assert_allclose(value, over_entries, rtol=1e-12, atol=1e-15)
    if min(shares(teacher).min(), shares(student).min()) > 1e-3:
        ours = tf.reduce_mean(losses.symmetric_kl_divergence(teacher, student))
        np.testing.assert_allclose(ours, value, rtol=1e-5, atol=1e-12)


def test_the_published_form_does_not_learn_from_contradiction():
    teacher, student = (tf.constant([row]) for row in EXTREMES["opposite 200"])
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = with_epsilon(teacher, student, 1e-12)
    np.testing.assert_allclose(value, 27.6310, atol=1e-4)
    assert not tape.gradient(value, student).numpy().any()


@each
@pytest.mark.parametrize("classes", [2, 3, 1000, 22_000])
def test_any_number_of_classes(name, classes):
    teacher, student = normal((3, classes), 2.0).astype("float32")
    value = DIVERGENCES[name](teacher, student)
    np.testing.assert_allclose(value, reference(name, teacher, student), rtol=1e-5, atol=1e-6)
    closed = [np.pad(x, [(0, 0), (0, 4)], constant_values=-np.inf) for x in (teacher, student)]
    np.testing.assert_allclose(DIVERGENCES[name](*closed), value, rtol=1e-5, atol=1e-6)


@each
def test_compiled_equals_eager_and_is_traced_once(name):
    traces = []

    @tf.function(jit_compile=True)
    def compiled(teacher, student):
        traces.append(1)
        return mean_and_gradients(name, teacher, student, 2.0)

    for seed in range(10):
        teacher, student = (tf.constant(x, tf.float32) for x in normal((5, 7), seed=seed))
        pairs = zip(
            compiled(teacher, student),
            mean_and_gradients(name, teacher, student, 2.0),
            strict=True,
        )
        for got, expected in pairs:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


@each
def test_errors(name):
    function = DIVERGENCES[name]
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, got 0"):
        function(np.zeros((2, 3)), np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match="teacher has 10 classes and the student 12"):
        function(np.zeros((2, 10)), np.zeros((2, 12)))
    with pytest.raises(ValueError, match="must have the same shape"):
        function(np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(TypeError, match="`student_logits` must be floating point"):
        function(np.zeros((2, 3)), np.zeros((2, 3), "int64"))
