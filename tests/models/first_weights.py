"""What the papers' rules of first weights ask of a model."""

import keras
import numpy as np


def check_first_weights(model, convolution, dense, dense_bias):
    """Every layer of `model` has drawn its weights as the rules say.

    Args:
        model: A functional model.
        convolution: "fan_out": normal, deviation sqrt(2 / (k * k * channels out)), bias 0.
            "pytorch": kernel and bias uniform within 1 / sqrt(inputs of an output).
        dense: "pytorch", as above, or "small": normal, deviation 0.01.
        dense_bias: "pytorch", as above, or "zeros".
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            np.testing.assert_array_equal(layer.gamma, np.ones(layer.gamma.shape))
            np.testing.assert_array_equal(layer.beta, np.zeros(layer.beta.shape))
        elif isinstance(layer, keras.layers.Dense):
            uniform = ("uniform", layer.kernel.shape[0] ** -0.5)
            _check(layer.kernel, uniform if dense == "pytorch" else SMALL)
            _check(layer.bias, uniform if dense_bias == "pytorch" else ZEROS)
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            rows, columns, channels, outputs = layer.kernel.shape
            inputs = rows * columns * (1 if depthwise else channels)
            filters = channels if depthwise else outputs
            uniform = ("uniform", inputs**-0.5)
            normal = ("normal", (2 / (rows * columns * filters)) ** 0.5)
            _check(layer.kernel, uniform if convolution == "pytorch" else normal)
            if layer.use_bias:
                _check(layer.bias, uniform if convolution == "pytorch" else ZEROS)


ZEROS = ("zeros", 0.0)
SMALL = ("normal", 0.01)


def _check(variable, expected):
    """Moments within 2 % or, of small arrays, five of their own deviations."""
    values = np.asarray(variable).astype("float64").ravel()
    kind, scale = expected
    if kind == "zeros":
        np.testing.assert_array_equal(values, np.zeros(values.shape))
        return
    deviation = scale / np.sqrt(3) if kind == "uniform" else scale
    tolerance = max(0.02, 5 / np.sqrt(2 * values.size))
    np.testing.assert_allclose(values.std(), deviation, rtol=tolerance, err_msg=variable.path)
    assert abs(values.mean()) < 5 * deviation / np.sqrt(values.size), variable.path
    first = values[:1000]
    assert np.unique(first).size > 0.9 * first.size, variable.path
    if kind == "uniform":
        assert np.abs(values).max() <= scale * (1 + 1e-6), variable.path
    elif values.size > 1000:  # neither uniform nor truncated
        assert np.abs(values).max() > 2.5 * deviation, variable.path
