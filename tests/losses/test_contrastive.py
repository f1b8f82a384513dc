import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.losses import symmetric_kl_divergence
from keras_ssd.losses.contrastive import (
    compositional_contrastive_loss,
    contrastive_representation_loss,
    noise_contrastive_loss,
)

PRECISIONS = [("float64", 1e-9, 1e-12), ("float32", 2e-5, 2e-6)]
LABELS = [0, 1, 0, 2, 1, 0]


def normal(shape, seed=0, scale=1.0, dtype="float64"):
    return tf.constant(np.random.default_rng(seed).normal(0, scale, shape), dtype)


def value_and_gradients(loss, *inputs):
    inputs = [tf.convert_to_tensor(each) for each in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = loss(*inputs)
    return value, *tape.gradient(value, inputs)


# --- noise_contrastive_loss, compositional_contrastive_loss -----------------------------------


@pytest.mark.parametrize("case", golden_cases("loss_zoo", "nce"))
@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_golden_nce(case, dtype, rtol, atol):
    inputs, temperature = case["inputs"], case["params"]["temperature"]
    value, gradient = value_and_gradients(
        lambda student: noise_contrastive_loss(
            tf.constant(inputs["teacher"], dtype), student, inputs["labels"], temperature
        ),
        tf.constant(inputs["student"], dtype),
    )
    assert value.dtype == dtype
    np.testing.assert_allclose(value, case["expected"], rtol, atol)
    np.testing.assert_allclose(gradient, case["gradients"]["student"], rtol, atol)


@pytest.mark.parametrize("case", golden_cases("loss_zoo", "ccl"))
@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_golden_ccl(case, dtype, rtol, atol):
    inputs, params = case["inputs"], case["params"]
    assert params["jsd_temperature"] == 1
    value, *gradients = value_and_gradients(
        lambda student, logits: compositional_contrastive_loss(
            tf.constant(inputs["teacher"], dtype),
            student,
            inputs["labels"],
            tf.constant(inputs["teacher_logits"], dtype),
            logits,
            params["nce_temperature"],
        ),
        tf.constant(inputs["student"], dtype),
        tf.constant(inputs["student_logits"], dtype),
    )
    np.testing.assert_allclose(value, case["expected"], rtol, atol)
    for name, gradient in zip(("student", "student_logits"), gradients, strict=True):
        np.testing.assert_allclose(gradient, case["gradients"][name], rtol, atol)


def reference(teacher, student, labels, temperature):
    """Pair by pair, from the definition."""
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (student, teacher))
    total = 0.0
    for i, row in enumerate(a):
        shares = np.exp([(1 - np.sum((row - b_j) ** 2) / 2) / temperature for b_j in b])
        shares /= shares.sum()
        same = [-math.log(s + 1e-10) for s, j in zip(shares, labels, strict=True) if j == labels[i]]
        other = [
            -math.log(1 - s + 1e-10) for s, j in zip(shares, labels, strict=True) if j != labels[i]
        ]
        total += np.mean(same) + (np.mean(other) if other else 0.0)
    return total / len(labels)


@pytest.mark.parametrize("labels", [LABELS, [3] * 6, list(range(6))], ids=["some", "one", "all"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nce_by_pairs(labels, temperature):
    teacher, student = normal((2, 6, 4)).numpy()
    value = noise_contrastive_loss(teacher, student, labels, temperature)
    np.testing.assert_allclose(
        value, reference(teacher, student, labels, temperature), rtol=1e-10, atol=1e-12
    )


def ccl(teacher, student, labels=LABELS, temperature=0.1, weights=None, logits=None):
    logits = normal((2, 6, 3), seed=1, dtype=student.dtype) if logits is None else logits
    return compositional_contrastive_loss(teacher, student, labels, *logits, temperature, weights)


def test_ccl_adds_the_symmetric_divergence():
    teacher, student = normal((2, 6, 4))
    logits = normal((2, 6, 3), seed=1)
    expected = noise_contrastive_loss(teacher, student, LABELS) + tf.reduce_mean(
        symmetric_kl_divergence(*logits)
    )
    np.testing.assert_allclose(ccl(teacher, student), expected, rtol=1e-12)


def test_the_default_temperature_is_a_tenth():
    teacher, student = normal((2, 6, 4))
    expected = noise_contrastive_loss(teacher, student, LABELS, 0.1)
    assert float(noise_contrastive_loss(teacher, student, LABELS)) == float(expected)


@pytest.mark.parametrize("loss", [noise_contrastive_loss, ccl])
def test_lengths_and_order_do_not_matter(loss):
    teacher, student = normal((2, 6, 4))
    value = loss(teacher, student, LABELS)
    lengths = tf.constant([[0.1], [7], [30], [2], [1e-3], [1]], tf.float64)
    np.testing.assert_allclose(loss(teacher / lengths, student * lengths, LABELS), value, 1e-10)
    order = [3, 0, 5, 1, 2, 4]
    shuffled = noise_contrastive_loss(
        tf.gather(teacher, order), tf.gather(student, order), tf.gather(LABELS, order)
    )
    np.testing.assert_allclose(shuffled, noise_contrastive_loss(teacher, student, LABELS), 1e-12)


OUTSIDE = {
    "weight": (LABELS, [1.0, 0, 0.5, 2, 0, 0]),
    "label": ([0, -1, 0, 2, -1, -1], None),
    "both": ([0, 1, 0, 2, -1, -1], [1.0, 0, 1, 1, 1, 0]),
}


@pytest.mark.parametrize("loss", [noise_contrastive_loss, ccl])
@pytest.mark.parametrize("name", OUTSIDE)
def test_images_that_take_no_part_might_as_well_not_be_there(loss, name):
    labels, weights = OUTSIDE[name]
    teacher, student = normal((2, 6, 4))
    kept = [0, 2, 3]
    logits = {} if loss is noise_contrastive_loss else {"logits": normal((2, 6, 3), seed=1)}
    part = {key: tf.gather(value, kept, axis=1) for key, value in logits.items()}
    expected, *wanted = value_and_gradients(
        lambda *x: loss(*x, [0, 0, 2], **part), tf.gather(teacher, kept), tf.gather(student, kept)
    )
    broken = np.where(np.isin(np.arange(6), kept)[:, None], student, np.nan)
    weights = None if weights is None else tf.constant(weights)
    value, *gradients = value_and_gradients(
        lambda *x: loss(*x, labels, weights=weights, **logits), teacher, broken
    )
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for gradient, some in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(tf.gather(gradient, kept), some, rtol=1e-10, atol=1e-14)
        assert not np.any(tf.gather(gradient, [1, 4, 5]))


@pytest.mark.parametrize("loss", [noise_contrastive_loss, ccl])
def test_nobody_takes_part(loss):
    teacher, student = normal((2, 6, 4), dtype="float32")
    for labels, weights in ([-1] * 6, None), (LABELS, tf.zeros([6])):
        value, *gradients = value_and_gradients(
            lambda *x, i=labels, w=weights: loss(*x, i, weights=w), teacher, student
        )
        assert float(value) == 0
        assert not np.any(gradients)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("loss", [noise_contrastive_loss, ccl])
def test_nan_stays_nan(loss, side, jit_compile):
    options = {} if loss is noise_contrastive_loss else {"logits": [*np.ones((2, 6, 3), "float32")]}
    compiled = tf.function(lambda *x: loss(*x, LABELS, **options), jit_compile=jit_compile)
    for rows in (slice(None), 3):
        pair = normal((2, 6, 4), dtype="float32").numpy()
        pair[side][rows] = math.nan
        assert math.isnan(compiled(*map(tf.constant, pair)))


def test_crd_of_nan_is_nan():
    scores = np.ones((3, 4), "float32")
    scores[0, 0] = scores[2, 3] = math.nan
    values = contrastive_representation_loss(scores, 10)
    np.testing.assert_array_equal(np.isnan(values), [True, False, True])


DEGENERATE = {  # name: (teacher, student, labels)
    "zeros": (np.zeros((4, 3)), np.zeros((4, 3)), [0, 1, 0, 1]),
    "a zero": (np.eye(4, 3), np.eye(4, 3), [0, 1, 0, 1]),
    "duplicates": (np.ones((4, 3)), np.ones((4, 3)), [0, 1, 0, 1]),
    "opposite": (np.eye(4), -np.eye(4), [0, 1, 2, 3]),
    "one class": (np.eye(4), np.ones((4, 4)), [2] * 4),
    "one image": (np.ones((1, 3)), -np.ones((1, 3)), [5]),
    "huge": (1e18 * np.eye(4), 1e18 * np.eye(4), [0, 1, 0, 1]),
}


@pytest.mark.parametrize(
    ("jit_compile", "temperature"), [(False, 1e-3), (False, 0.1), (True, 1e-3)]
)
@pytest.mark.parametrize("name", DEGENERATE)
def test_contrasts_are_finite(name, jit_compile, temperature):
    *rows, labels = DEGENERATE[name]
    sure = 200.0 * np.eye(len(labels), 5) - 100 * (np.arange(5) == 4)
    logits = tf.constant([sure, -sure], tf.float32)

    def loss(teacher, student, logits):
        return noise_contrastive_loss(teacher, student, labels, temperature) + ccl(
            teacher, student, labels, temperature, logits=tf.unstack(logits)
        )

    compiled = tf.function(lambda *x: value_and_gradients(loss, *x), jit_compile=jit_compile)
    for result in compiled(*(tf.constant(each, tf.float32) for each in rows), logits):
        assert np.isfinite(result).all(), result


@pytest.mark.parametrize("loss", [noise_contrastive_loss, ccl])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_halves_are_computed_in_float32(loss, dtype):
    teacher, student = (tf.cast(each, dtype) for each in normal((2, 6, 4), scale=300.0))
    logits = tf.cast(normal((2, 6, 3)), tf.float32)
    more = {} if loss is noise_contrastive_loss else {"logits": logits}
    value, *gradients = value_and_gradients(lambda *x: loss(*x, LABELS, **more), teacher, student)
    assert value.dtype == tf.float32
    floats = loss(tf.cast(teacher, tf.float32), tf.cast(student, tf.float32), LABELS, **more)
    assert float(value) == float(floats)
    assert all(gradient.dtype == dtype for gradient in gradients)
    assert all(np.isfinite(tf.cast(gradient, tf.float32)).all() for gradient in gradients)


@pytest.mark.parametrize("loss", [noise_contrastive_loss, ccl])
def test_compiled_equals_eager(loss):
    teacher, student = normal((2, 6, 4))
    logits = normal((2, 6, 3))
    more = {} if loss is noise_contrastive_loss else {"logits": tf.unstack(logits)}
    weights = tf.constant([1.0, 0, 1, 1, 1, 1])
    signature = [tf.TensorSpec([None, 4], tf.float64)] * 2

    def both(*rows):
        return value_and_gradients(lambda *x: loss(*x, LABELS, weights=weights, **more), *rows)

    compiled = tf.function(both, jit_compile=True, input_signature=signature)
    for found, expected in zip(compiled(teacher, student), both(teacher, student), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, True])
def test_a_temperature_must_be_positive(temperature):
    for loss in (noise_contrastive_loss, ccl):
        with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, got"):
            loss(*normal((2, 6, 4)), LABELS, temperature)


def test_what_does_not_fit_is_refused():
    rows = np.zeros((6, 4))
    with pytest.raises(ValueError, match="have width 5 and the student's 4: give both a head"):
        noise_contrastive_loss(np.zeros((6, 5)), rows, LABELS)
    with pytest.raises(ValueError, match="one class a row"):
        noise_contrastive_loss(rows, rows, [0])
    with pytest.raises(TypeError, match="`labels` must be integers"):
        noise_contrastive_loss(rows, rows, [0.0] * 6)
    with pytest.raises(TypeError, match="`student` must be floating point"):
        noise_contrastive_loss(rows, np.zeros((6, 4), int), LABELS)
    with pytest.raises(ValueError, match="teacher has 3 classes and the student 2"):
        compositional_contrastive_loss(rows, rows, LABELS, np.zeros((6, 3)), np.zeros((6, 2)))


# --- contrastive_representation_loss ----------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("loss_zoo", "crd_contrast"))
@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_golden_crd(case, dtype, rtol, atol):
    def loss(scores):
        values = contrastive_representation_loss(scores, case["params"]["n_data"])
        assert values.shape == scores.shape[:1]
        assert values.dtype == dtype
        return tf.reduce_mean(values)

    value, gradient = value_and_gradients(loss, tf.constant(case["inputs"]["student"], dtype))
    np.testing.assert_allclose(value, case["expected"], rtol, atol)
    np.testing.assert_allclose(gradient, case["gradients"]["student"], rtol, atol)


def test_crd_by_hand():
    value = contrastive_representation_loss(np.array([[0.2, 0.1, 0.3]]), 10)
    terms = [0.2 / (0.4 + 1e-7), 0.2 / (0.3 + 1e-7), 0.2 / (0.5 + 1e-7)]
    np.testing.assert_allclose(value, [-np.log(terms).sum()], rtol=1e-12)


def test_crd_keeps_small_terms_in_float32():
    scores = np.random.default_rng(0).uniform(1e-6, 3e-5, (2, 16385))
    exact = contrastive_representation_loss(scores, 50000)
    found = contrastive_representation_loss(scores.astype("float32"), 50000)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_crd_of_halves_and_compiled():
    scores = tf.cast(np.random.default_rng(0).uniform(0.01, 1, (3, 6)), tf.float16)
    expected = contrastive_representation_loss(tf.cast(scores, tf.float32), 9)
    compiled = tf.function(lambda x: contrastive_representation_loss(x, 9), jit_compile=True)
    assert compiled(scores).dtype == tf.float32
    np.testing.assert_array_equal(contrastive_representation_loss(scores, 9), expected)
    np.testing.assert_allclose(compiled(scores), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_crd_needs_negatives(shape):
    with pytest.raises(ValueError, match="with at least one negative, got shape"):
        contrastive_representation_loss(np.ones(shape), 9)


def test_crd_needs_images():
    with pytest.raises(ValueError, match="`num_images` must be > 0, got 0"):
        contrastive_representation_loss(np.ones((3, 2)), 0)
    with pytest.raises(TypeError, match="`scores` must be floating point"):
        contrastive_representation_loss(np.ones((3, 2), int), 9)


def compositional(teacher, student, labels, **options):
    logits = (
        normal((6, 3), seed=3, dtype=teacher.dtype),
        normal((6, 3), seed=4, dtype=teacher.dtype),
    )
    return compositional_contrastive_loss(teacher, student, labels, *logits, **options)


LOSSES = [noise_contrastive_loss, compositional]


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_each_image(loss):
    teacher, student = (normal((6, 4), seed) for seed in (1, 2))
    kept = [1, 1, 0, 1, 0, 1]
    expected = loss(teacher, student, LABELS, weights=np.float64(kept))
    np.testing.assert_array_equal(loss(teacher, student, LABELS, weights=np.bool_(kept)), expected)
    np.testing.assert_array_equal(loss(teacher, student, LABELS, weights=kept), expected)
    for wrong in ([0.0], [1.0] * 5, [[1.0]] * 6):
        with pytest.raises(ValueError, match="`weights` must be one number an image, shape"):
            loss(teacher, student, LABELS, weights=wrong)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_short_embeddings(loss, dtype):
    teacher, student = (normal((6, 4), seed, dtype=dtype) for seed in (1, 2))
    found = loss(teacher, student * 1e-9, LABELS)
    np.testing.assert_allclose(found, loss(teacher, student, LABELS), rtol=1e-5)
