"""Losses on features and their pooling: golden values, definitions, invariances, extremes."""

import math

import numpy as np
import pytest
import tensorflow as tf
import torch
from conftest import golden_cases

from keras_ssd.losses.features import (
    attention_loss,
    hierarchical_context_loss,
    hint_loss,
    partial_l2_loss,
    variational_information_loss,
)
from keras_ssd.losses.pooling import adaptive_average_pooling, of_one_size

PAIRS = {
    "hint": hint_loss,
    "at": attention_loss,
    "reviewkd_hcl": hierarchical_context_loss,
}
ALL = {
    **PAIRS,
    "ofd_partial_l2": lambda teacher, student: partial_l2_loss(
        teacher, student, tf.constant([-1.0, -0.125, -0.5], student.dtype)
    ),
    "vid": lambda teacher, student: variational_information_loss(
        teacher, student, tf.constant([-0.75, 1.5, 0.5], student.dtype)
    ),
}
each_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
both_modes = pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", {"rtol": 1e-9, "atol": 1e-12}), ("float32", {"rtol": 2e-5, "atol": 2e-6})],
    ids=["float64", "float32"],
)


def maps(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def values_and_gradients(loss, *arguments):
    """Values of the rows and gradients of their mean."""
    arguments = [tf.convert_to_tensor(argument) for argument in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        values = loss(*arguments)
        mean = tf.reduce_mean(values)
    return values, tape.gradient(mean, arguments)


# Values


@pytest.mark.parametrize(
    "case", [case for name in PAIRS for case in golden_cases("loss_zoo", name)]
)
@PRECISIONS
def test_golden(case, dtype, tolerance):
    inputs = [np.array(case["inputs"][who], dtype) for who in ("teacher", "student")]
    values, (_, gradient) = values_and_gradients(PAIRS[case["function"]], *inputs)
    assert values.dtype == dtype
    assert values.shape == (len(inputs[0]),)
    np.testing.assert_allclose(np.mean(values), case["expected"], **tolerance)
    np.testing.assert_allclose(gradient, case["gradients"]["student"], **tolerance)


@pytest.mark.parametrize("case", golden_cases("loss_zoo", "ofd_partial_l2"))
@PRECISIONS
def test_golden_partial_l2(case, dtype, tolerance):
    names = ("teacher", "student", "margin")
    inputs = [np.array(case["inputs"][name], dtype) for name in names]
    values, (_, gradient, _) = values_and_gradients(partial_l2_loss, *inputs)
    np.testing.assert_allclose(np.mean(values), case["expected"], **tolerance)
    np.testing.assert_allclose(gradient, case["gradients"]["student"], **tolerance)


@pytest.mark.parametrize("case", golden_cases("loss_zoo", "vid"))
@PRECISIONS
def test_golden_variational_information(case, dtype, tolerance):
    names = ("teacher", "student", "log_scale")
    inputs = [np.array(case["inputs"][name], dtype) for name in names]
    values, (_, *gradients) = values_and_gradients(variational_information_loss, *inputs)
    np.testing.assert_allclose(np.mean(values), case["expected"], **tolerance)
    for name, gradient in zip(names[1:], gradients, strict=True):
        np.testing.assert_allclose(gradient, case["gradients"][name], **tolerance)


def test_each_case_of_the_partial_difference():
    """Margin -2: rows (teacher, student, value)."""
    cases = np.array(
        [
            (1.0, 3.0, 4.0),  # the teacher is active
            (1.0, -1.0, 4.0),
            (-1.0, 0.5, 2.25),  # between margin and 0: only what is above
            (-1.0, -1.5, 0.0),
            (-3.0, -1.0, 1.0),  # below the margin: down to the margin
            (-3.0, -2.5, 0.0),
        ]
    )
    values = partial_l2_loss(cases[:, :1], cases[:, 1:2], np.array([-2.0]))
    np.testing.assert_allclose(values, cases[:, 2])


def test_the_variance_that_the_paper_begins_with():
    log_scale = np.full(3, math.log(math.exp(5 - 1e-5) - 1))
    value = variational_information_loss(np.zeros((2, 3)), np.full((2, 3), 2.0), log_scale)
    np.testing.assert_allclose(value, [(4 / 5 + math.log(5)) / 2] * 2, rtol=1e-12)


def attention(rows, power):
    energies = np.mean(np.abs(rows) ** power, axis=-1).ravel()
    return energies / np.linalg.norm(energies)


@pytest.mark.parametrize("power", [1, 2, 3.0])
def test_attention_of_any_power(power):
    teacher, student = maps(3, 4, 2, 5), maps(3, 4, 2, 6, seed=1)
    expected = [
        np.mean((attention(ours, power) - attention(theirs, power)) ** 2)
        for theirs, ours in zip(teacher, student, strict=True)
    ]
    np.testing.assert_allclose(attention_loss(teacher, student, power), expected, rtol=1e-12)


def test_which_levels_of_context_are_used():
    """Of an 8x3 map 2x2 and 1x1; of 1x1 and of a vector none."""
    teacher, student = maps(2, 8, 3, 4), maps(2, 8, 3, 4, seed=1)
    levels = [adaptive_average_pooling(student - teacher, size, size) for size in (2, 1)]
    errors = [np.mean(np.square(x), axis=(1, 2, 3)) for x in (student - teacher, *levels)]
    expected = (errors[0] + errors[1] / 2 + errors[2] / 4) / 1.75
    np.testing.assert_allclose(hierarchical_context_loss(teacher, student), expected, rtol=1e-12)
    for pair in ((teacher[:, :1, :1], student[:, :1, :1]), (teacher[:, 0, 0], student[:, 0, 0])):
        np.testing.assert_allclose(hierarchical_context_loss(*pair), hint_loss(*pair), rtol=1e-12)


# Pooling


@both_modes
@pytest.mark.parametrize("size", [(5, 3), (4, 4), (1, 7), (2, 10), (7, 2)], ids=str)
def test_pooling_is_that_of_pytorch(size, jit_compile):
    x = maps(2, 5, 7, 3)
    pool = tf.function(adaptive_average_pooling, jit_compile=jit_compile)
    found = pool(tf.constant(x), *size)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x).permute(0, 3, 1, 2), size)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), rtol=1e-12)


def test_the_smaller_size_in_each_axis():
    teacher, student = of_one_size(maps(2, 8, 3, 1), maps(2, 4, 6, 5))
    assert teacher.shape == (2, 4, 3, 1)
    assert student.shape == (2, 4, 3, 5)
    same = maps(2, 4, 3, 1)
    np.testing.assert_array_equal(of_one_size(same, same)[0], same)


# Invariances and extremes


@pytest.mark.parametrize("loss", PAIRS.values(), ids=PAIRS)
def test_equal_features_cost_nothing(loss):
    same = maps(3, 4, 4, 3, dtype="float32")
    values, gradients = values_and_gradients(loss, same, same.copy())
    for result in (values, *gradients):
        np.testing.assert_allclose(result, 0, atol=1e-6)


@pytest.mark.parametrize("factors", [(1.0, 1e3), (1e-2, 1.0)], ids=str)
def test_attention_has_no_scale(factors):
    teacher, student = maps(3, 4, 4, 3), maps(3, 4, 4, 3, seed=1)
    scaled = attention_loss(factors[0] * teacher, factors[1] * student)
    np.testing.assert_allclose(scaled, attention_loss(teacher, student), rtol=1e-10)


@each_loss
def test_rows_are_independent(loss):
    teacher, student = (tf.constant(maps(4, 4, 4, 3, seed=seed)) for seed in (0, 1))
    order = [2, 0, 3, 1]
    permuted = loss(tf.gather(teacher, order), tf.gather(student, order))
    np.testing.assert_allclose(permuted, tf.gather(loss(teacher, student), order), rtol=1e-12)


EXTREMES = {
    "zero maps": np.zeros((3, 4, 4, 3)),
    "a zero map": maps(3, 4, 4, 3) * np.array([1, 0, 1])[:, None, None, None],
    "tiny": 1e-20 * maps(3, 4, 4, 3),
    "large": 1e4 * maps(3, 4, 4, 3),
}


@both_modes
@pytest.mark.parametrize("side", [0, 1])
@each_loss
def test_nan_stays_nan_and_in_its_row(loss, side, jit_compile):
    pair = [maps(3, 4, 4, 3, seed=seed, dtype="float32") for seed in (0, 1)]
    pair[0][2] = -2  # below every margin, where a ReLU hides the student's entries
    pair[side][0] = pair[side][2, 1, 1, 0] = np.nan
    values = tf.function(loss, jit_compile=jit_compile)(*map(tf.constant, pair))
    np.testing.assert_array_equal(np.isnan(values), [True, False, True])


@both_modes
@each_loss
def test_values_and_gradients_are_finite(loss, jit_compile):
    other = maps(3, 4, 4, 3, seed=1, dtype="float32")
    compiled = tf.function(lambda *pair: values_and_gradients(loss, *pair), jit_compile=jit_compile)
    for extreme in EXTREMES.values():
        extreme = extreme.astype("float32")
        for pair in ((other, extreme), (extreme, other), (extreme, extreme.copy())):
            for result in tf.nest.flatten(compiled(*pair)):
                assert np.isfinite(result).all()


@pytest.mark.parametrize("power", [1, 2, 3])
def test_a_zero_map_has_no_attention_and_no_gradient(power):
    zeros, others = np.zeros((2, 3, 3, 2)), maps(2, 3, 3, 2)
    values, (gradient, _) = values_and_gradients(
        lambda *pair: attention_loss(*pair, power), zeros, others
    )
    np.testing.assert_allclose(values, [1 / 9] * 2)  # a map of norm 1 over nine positions
    assert not np.any(gradient)


@pytest.mark.parametrize("log_scale", [-200.0, 200.0])
def test_extreme_variances(log_scale):
    values, gradients = values_and_gradients(
        variational_information_loss,
        maps(2, 3, dtype="float32"),
        maps(2, 3, seed=1, dtype="float32"),
        np.full(3, log_scale, "float32"),
    )
    for result in (values, *gradients):
        assert np.isfinite(result).all()


@both_modes
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_loss
def test_halves_are_computed_in_float32(loss, dtype, jit_compile):
    teacher, student = (tf.cast(300 * maps(2, 4, 4, 3, seed=seed), dtype) for seed in (0, 1))
    values = tf.function(loss, jit_compile=jit_compile)(teacher, student)
    assert values.dtype == tf.float32
    exact = loss(tf.cast(teacher, "float64"), tf.cast(student, "float64"))
    np.testing.assert_allclose(values, exact, rtol=1e-4)


# Mistakes


@pytest.mark.parametrize("name", ["hint", "reviewkd_hcl", "ofd_partial_l2", "vid"])
def test_shapes_must_agree(name):
    with pytest.raises(ValueError, match=r"one shape, got \(2, 4, 4, 3\) and \(2, 2, 2, 3\): give"):
        ALL[name](maps(2, 4, 4, 3), maps(2, 2, 2, 3))


@pytest.mark.parametrize("power", [0.5, 0, math.nan, math.inf, True, "2", None], ids=repr)
def test_powers(power):
    with pytest.raises(ValueError, match="`power` must be a finite number >= 1, got"):
        attention_loss(maps(2, 4, 4, 3), maps(2, 4, 4, 3), power)


def test_maps_must_be_maps_of_known_size():
    with pytest.raises(ValueError, match=r"\(batch, height, width, channels\).*got \(2, 3\)"):
        attention_loss(maps(2, 4, 4, 3), maps(2, 3))
    spec = tf.TensorSpec([2, None, None, 3])
    for loss in (attention_loss, hierarchical_context_loss):
        with pytest.raises(ValueError, match=r"got \(2, None, None, 3\): name an output in front"):
            tf.function(loss).get_concrete_function(spec, spec)


def test_one_number_a_channel():
    for loss, name in ((partial_l2_loss, "margin"), (variational_information_loss, "log_scale")):
        with pytest.raises(ValueError, match=rf"`{name}` must hold one number a channel, .*\(3,\)"):
            loss(maps(2, 3), maps(2, 3), maps(1))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="`student` must be floating point"):
        hint_loss(maps(2, 3), np.zeros((2, 3), "int32"))
