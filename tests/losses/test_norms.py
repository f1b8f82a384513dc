"""Norms: values, gradients at zero, NaN, a smallest norm, axes."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.losses.norms import products, safe_root, unit_vectors

both_modes = pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])


def value_and_gradient(function, values):
    with tf.GradientTape() as tape:
        tape.watch(values)
        value = function(values)
    return value, tape.gradient(value, values)


@both_modes
def test_a_root_has_no_gradient_at_0_and_keeps_nan(jit_compile):
    root = tf.function(lambda x: value_and_gradient(safe_root, x), jit_compile=jit_compile)
    values, gradients = root(tf.constant([0.0, 4.0, math.nan, math.inf]))
    np.testing.assert_array_equal(values, [0, 2, math.nan, math.inf])
    np.testing.assert_array_equal(gradients[:2], [0, 0.25])


@both_modes
@pytest.mark.parametrize("smallest_norm", [0.0, 1e-3])
def test_unit_vectors(smallest_norm, jit_compile):
    rows = tf.constant([[0.0, 0.0], [3.0, -4.0], [math.nan, 1.0], [3e-4, 4e-4]])

    @tf.function(jit_compile=jit_compile)
    def units(rows):
        return value_and_gradient(lambda x: unit_vectors(x, -1, smallest_norm), rows)

    values, gradients = units(rows)
    tiny = [0.3, 0.4] if smallest_norm else [0.6, 0.8]
    expected = [[0, 0], [0.6, -0.8], [math.nan, math.nan], tiny]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradients[0], [0, 0])
    assert np.isfinite(gradients[1]).all()
    length = math.hypot(*values[3])
    assert length == pytest.approx(0.5 if smallest_norm else 1)


def test_vectors_along_several_axes():
    maps = np.random.default_rng(0).normal(size=(3, 4, 5, 2))
    norms = np.linalg.norm(maps.transpose(0, 3, 1, 2).reshape(3, 2, 20), axis=-1)
    np.testing.assert_allclose(unit_vectors(maps, (1, 2)), maps / norms[:, None, None], 1e-12)


def test_products():
    rows, columns = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(products(rows, columns), rows @ columns.T)
