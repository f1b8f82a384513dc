"""Feature maps in half precision."""

from __future__ import annotations

import functools
import time
import warnings

import keras
import tensorflow as tf

from keras_ssd.freezing.calls import Call, Calls
from keras_ssd.freezing.folding import LINEAR

HALVES = ("bfloat16", "float16")
_KEEPS_PRECISION = (keras.layers.Lambda, keras.layers.TFSMLayer, keras.layers.Wrapper, keras.Model)


def in_half(network: Calls, dtype: str) -> tuple[Calls, list[str]]:
    """The network with its feature maps in half precision.

    From the first convolution or dense layer on, whatever gives maps or sequences (three dimensions
    and more) computes in `dtype`. What comes before (the normalisation of raw images) and what
    gives vectors (pooling, classifier) stays as it is.

    Args:
        network: The calls.
        dtype: `"bfloat16"` or `"float16"`.

    Returns:
        The new calls, and the names of the layers among them that keep their precision: those that
        Keras does not know how to make anew.
    """
    reached: set[int] = set()
    calls, left = [], []
    for call in network.calls:
        if type(call.layer) in LINEAR or any(id(tensor) in reached for tensor in call.inputs):
            outputs = keras.tree.flatten(call.outputs)
            reached.update(map(id, outputs))
            if isinstance(call.layer, keras.layers.Layer) and _gives_maps(outputs):
                if _known_to_keras(call.layer):
                    call = _halved(call, dtype)
                else:
                    left.append(call.name)
        calls.append(call)
    return Calls(network.inputs, calls, network.outputs), left


def _gives_maps(outputs: list[keras.KerasTensor]) -> bool:
    return all(
        len(tensor.shape) > 2 and keras.backend.is_float_dtype(tensor.dtype) for tensor in outputs
    )


def _known_to_keras(layer: keras.layers.Layer) -> bool:
    package = type(layer).__module__.partition(".")[0]
    return package in ("keras", "keras_ssd") and not isinstance(layer, _KEEPS_PRECISION)


def _halved(call: Call, dtype: str) -> Call:
    weights = [call.value_of(weight) for weight in call.layer.weights]
    # Kernels are stored halved; what normalises keeps its weights in float32.
    policy = dtype if type(call.layer) in LINEAR else f"mixed_{dtype}"
    return call.remade(weights, dtype=policy)


def warn_if_slower(dtype: str) -> None:
    """Warns where this machine multiplies matrices no faster in `dtype` than in float32."""
    rates = {name: _matmul_rate(name) for name in ("float32", dtype)}
    if rates[dtype] < rates["float32"]:
        warnings.warn(
            f"This machine multiplies matrices at {rates[dtype]:.3g} GFLOP/s in {dtype} and at "
            f"{rates['float32']:.3g} in float32: the frozen teacher will be slower than with "
            "`dtype=None`.",
            stacklevel=4,
        )


@functools.cache
def _matmul_rate(dtype: str, size: int = 512) -> float:
    """GFLOP/s of a product of square matrices, the best of five."""
    matrix = tf.cast(tf.ones([size, size]), dtype)

    def seconds() -> float:
        start = time.perf_counter()
        tf.matmul(matrix, matrix)[0, 0].numpy()
        return time.perf_counter() - start

    seconds()
    return 2e-9 * size**3 / min(seconds() for _ in range(5))
