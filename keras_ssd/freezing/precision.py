"""Feature maps in half precision."""

from __future__ import annotations

import functools
import time
import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.freezing.calls import Call, Calls
from keras_ssd.freezing.folding import LINEAR, is_plain_linear, linear_like

HALVES = ("bfloat16", "float16")
_KEEPS_PRECISION = (
    keras.layers.Lambda,
    keras.layers.Normalization,  # has its statistics outside its weights
    keras.layers.TFSMLayer,
    keras.layers.Wrapper,
    keras.Model,
)


def in_half(network: Calls, dtype: str) -> tuple[Calls, list[str]]:
    """The network with its feature maps in half precision.

    From the first convolution or dense layer on, whatever gives maps or sequences (three dimensions
    and more) computes in `dtype`. What comes before (the normalisation of raw images) and what
    gives vectors (pooling, classifier) stays as it is.

    Args:
        network: The calls.
        dtype: `"bfloat16"` or `"float16"`.

    Returns:
        The new calls, and the names of the layers among them that keep their precision: the user's
        own, and those that cannot be made anew from their config.
    """
    reached: set[int] = set()
    left: list[str] = []

    def halved(call: Call) -> Call | None:
        if not isinstance(call.layer, keras.layers.Layer) or not _gives_maps(call):
            return None
        other = _halved(call, dtype)
        if other is None:
            left.append(call.name)
        return other

    for call in network.calls:
        if _has_kernel(call.layer) or any(id(tensor) in reached for tensor in call.inputs):
            reached.update(map(id, keras.tree.flatten(call.outputs)))
    return network.with_remade(
        lambda call: halved(call) if id(keras.tree.flatten(call.outputs)[0]) in reached else None
    ), left


def _has_kernel(layer: Any) -> bool:
    """Whether it is a convolution or dense layer of any kind, a user's or a wrapped one, too."""
    return any(weight.name.endswith("kernel") for weight in getattr(layer, "weights", ()))


def _gives_maps(call: Call) -> bool:
    return all(
        len(tensor.shape) > 2 and keras.backend.is_float_dtype(tensor.dtype)
        for tensor in keras.tree.flatten(call.outputs)
    )


def _halved(call: Call, dtype: str) -> Call | None:
    layer = call.layer
    if is_plain_linear(layer):  # kernels are stored halved; what normalises keeps float32 weights
        return call.remade(linear_like(layer, dtype=dtype), call.weights())
    known = type(layer).__module__.partition(".")[0] in ("keras", "keras_ssd")
    if not known or isinstance(layer, (*_KEEPS_PRECISION, *LINEAR)):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a lambda, in case it were saved
            config = {**layer.get_config(), "dtype": f"mixed_{dtype}", "trainable": False}
            return call.remade(type(layer).from_config(config), call.weights())
    except (TypeError, ValueError, NotImplementedError):  # a part that no config can hold
        return None


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
def _matmul_rate(dtype: str, size: int = 1024, turns: int = 5, limit: float = 0.5) -> float:
    """GFLOP/s of a product of square matrices, the best of some turns, or of `limit` seconds."""
    matrix = tf.cast(tf.ones([size, size]), dtype)
    tf.matmul(matrix, matrix)[0, 0].numpy()
    seconds: list[float] = []
    while len(seconds) < turns and sum(seconds) < limit:
        start = time.perf_counter()
        tf.matmul(matrix, matrix)[0, 0].numpy()
        seconds.append(time.perf_counter() - start)
    return 2e-9 * size**3 / min(seconds)
