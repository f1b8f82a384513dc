"""Batch normalisation folded into the convolutions and dense layers beside it."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.freezing.calls import OUTSIDE, Call, Calls
from keras_ssd.layers import BatchNormalization, GroupedConv2D

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, GroupedConv2D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
LINEAR = (keras.layers.Dense, *_CONVOLUTIONS, *_DEPTHWISE, *_SEPARABLE, *_TRANSPOSED)
_BATCH_NORMS = (keras.layers.BatchNormalization, BatchNormalization)
_NOTHING_IN_INFERENCE = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


@keras.saving.register_keras_serializable(package="keras_ssd")  # copying a layer needs it
class Bias(keras.layers.Layer):
    """Adds a number a channel: what a folded batch normalisation leaves behind its convolution.

    TensorFlow merges its own operation for this with the convolution, a residual sum and the ReLU;
    the sum that Keras puts behind a convolution with bias it merges with a ReLU alone.

    Args:
        data_format: `"channels_last"` or `"channels_first"`.
        **kwargs: What every Keras layer takes.
    """

    def __init__(self, data_format: str = "channels_last", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_format = data_format
        self.supports_masking = True  # as the batch normalisation in whose place it stands

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes room for a number a channel."""
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        self.bias = self.add_weight(shape=(channels,), initializer="zeros", name="bias")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Adds to `[rows, ..., channels]` (or `[rows, channels, ...]`)."""
        data_format = "NHWC" if self.data_format == "channels_last" else "NCHW"
        return tf.nn.bias_add(inputs, self.bias, data_format=data_format)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "data_format": self.data_format}


def is_batch_norm(call: Call) -> bool:
    """Whether a call is a batch normalisation, Keras' or ours."""
    return type(call.layer) in _BATCH_NORMS


def without_training_only(network: Calls) -> Calls:
    """The network without the layers that do nothing in inference, such as dropout."""
    kept, stands_for = [], {}
    for call in network.calls:
        if _does_nothing(call):
            stands_for[id(call.outputs)] = call.inputs[0]
        else:
            kept.append(call)
    return Calls(network.inputs, kept, network.outputs).renamed(stands_for)


def _does_nothing(call: Call) -> bool:
    if type(call.layer) is keras.layers.Activation:
        nothing = call.layer.activation is keras.activations.linear
    else:
        nothing = type(call.layer) in _NOTHING_IN_INFERENCE
    one = isinstance(call.outputs, keras.KerasTensor)  # `Identity` takes lists, too
    return nothing and one and call.inputs[0].dtype == call.outputs.dtype


def folded(network: Calls) -> Calls:
    """The network with every batch normalisation folded for which that is exact.

    That is one right behind a convolution or dense layer without activation, of any kind, or right
    before a dense layer or a convolution that pads nothing; where nothing else reads what lies
    between the two. Any other one runs through TensorFlow's fused kernel where it normalises
    channels-last maps of rows.
    """
    return _with_fused_kernel(_folded_forwards(_folded_backwards(network)))


def _folded_backwards(network: Calls) -> Calls:
    producers, readers = network.producers(), network.readers()
    calls = list(network.calls)
    for index, call in enumerate(network.calls):
        if not is_batch_norm(call):
            continue
        between = call.inputs[0]
        before = producers.get(id(between))
        if before is None or len(readers[id(between)]) > 1:
            continue
        linear = calls[before]
        if _fits(linear, call) and linear.layer.activation is keras.activations.linear:
            scale, offset = _scale_and_offset(call)
            kernels, bias = _kernels_and_bias(linear)
            scaled = _scaled_outputs(linear.layer, kernels, scale)
            calls[before] = linear.remade(linear_like(linear.layer, use_bias=False), scaled)
            calls[index] = _with_bias(call, linear.layer, offset + bias * scale)
    return Calls(network.inputs, calls, network.outputs)


def _folded_forwards(network: Calls) -> Calls:
    readers = network.readers()
    calls, stands_for = {index: call for index, call in enumerate(network.calls)}, {}
    for index, call in enumerate(network.calls):
        after = readers[id(call.outputs)] if is_batch_norm(call) else []
        if len(after) != 1 or after[0] == OUTSIDE:
            continue
        linear = calls[after[0]]
        if _fits(linear, call) and _pads_nothing(linear.layer):
            kernels, bias = _kernels_and_bias(linear)
            absorbed = _absorbed(linear.layer, kernels, bias, *_scale_and_offset(call))
            calls[after[0]] = linear.remade(linear_like(linear.layer, use_bias=True), absorbed)
            stands_for[id(call.outputs)] = call.inputs[0]
            del calls[index]  # a batch norm, which no other index here means
    return Calls(network.inputs, list(calls.values()), network.outputs).renamed(stands_for)


def _with_fused_kernel(network: Calls) -> Calls:
    """The network with our batch normalisation wherever one is left."""

    def fused(call: Call) -> Call:
        layer = BatchNormalization(
            axis=call.layer.axis,
            epsilon=call.layer.epsilon,
            dtype=call.layer.dtype_policy,
            trainable=False,
            name=call.name,
        )
        return call.remade(layer, parameters(call))

    return network.with_remade(lambda call: fused(call) if is_batch_norm(call) else None)


def is_plain_linear(layer: Any) -> bool:
    """Whether a layer is one of `LINEAR` with its kernels and bias alone: no LoRA, no integers."""
    return type(layer) in LINEAR and len(layer.weights) == _num_kernels(layer) + layer.use_bias


def linear_like(layer: keras.layers.Layer, **changes: Any) -> keras.layers.Layer:
    """A layer with the attributes of one of `LINEAR`, without regularisers and constraints.

    Its attributes are taken as they are: they may be what no config can hold, such as a user's
    activation function.

    Args:
        layer: The layer.
        **changes: What differs.
    """
    training_only = ("_regularizer", "_constraint")
    options = {
        name: "zeros" if name.endswith("_initializer") else getattr(layer, name)
        for name in inspect.signature(type(layer)).parameters
        if hasattr(layer, name) and not name.endswith(training_only)
    }
    own = {"name": layer.name, "dtype": layer.dtype_policy, "trainable": False}
    return type(layer)(**{**options, **own, **changes})


def _fits(linear: Call, batch_norm: Call) -> bool:
    """Whether a layer can take up a batch normalisation: same channels, same precision."""
    layer, before = linear.layer, batch_norm.inputs[0]
    if not is_plain_linear(layer):
        return False
    channels_first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return (
        batch_norm.layer.axis % len(before.shape)
        == (1 if channels_first else len(linear.outputs.shape) - 1)
        and layer.compute_dtype == batch_norm.layer.compute_dtype
        and before.dtype == batch_norm.outputs.dtype  # it may make floats of integers
    )


def _num_kernels(layer: keras.layers.Layer) -> int:
    return 2 if isinstance(layer, _SEPARABLE) else 1


def _pads_nothing(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.layers.Dense):
        return True
    alone = all(size == 1 for size in layer.kernel_size)
    return not isinstance(layer, _TRANSPOSED) and (layer.padding == "valid" or alone)


def _scale_and_offset(batch_norm: Call) -> tuple[np.ndarray, np.ndarray]:
    """What a batch normalisation multiplies by and adds in inference, float64 `[channels]`."""
    gamma, beta, mean, variance = parameters(batch_norm)
    scale = gamma / np.sqrt(variance + batch_norm.layer.epsilon)
    return scale, beta - mean * scale


def parameters(batch_norm: Call) -> list[np.ndarray]:
    """Gamma, beta, mean and variance, float64 `[channels]`."""
    layer = batch_norm.layer
    mean, variance = (_float64(batch_norm, w) for w in (layer.moving_mean, layer.moving_variance))
    gamma = _float64(batch_norm, layer.gamma) if layer.scale else np.ones_like(mean)
    beta = _float64(batch_norm, layer.beta) if layer.center else np.zeros_like(mean)
    return [gamma, beta, mean, variance]


def _kernels_and_bias(linear: Call) -> tuple[list[np.ndarray], np.ndarray | float]:
    values = [_float64(linear, weight) for weight in linear.layer.weights]
    count = _num_kernels(linear.layer)
    return values[:count], values[count] if linear.layer.use_bias else 0.0


def _float64(call: Call, weight: keras.Variable) -> np.ndarray:
    return call.value_of(weight).astype("float64")


def _scaled_outputs(
    layer: keras.layers.Layer, kernels: list[np.ndarray], scale: np.ndarray
) -> list[np.ndarray]:
    """The kernels of a layer whose output channels are multiplied by `scale`."""
    *first, last = kernels
    if isinstance(layer, _DEPTHWISE):  # [..., channels, multiplier]
        scale = scale.reshape(last.shape[-2:])
    elif isinstance(layer, _TRANSPOSED):  # [..., channels out, channels in]
        scale = scale[:, None]
    return [*first, last * scale]


def _absorbed(
    layer: keras.layers.Layer,
    kernels: list[np.ndarray],
    bias: np.ndarray | float,
    scale: np.ndarray,
    offset: np.ndarray,
) -> list[np.ndarray]:
    """Kernels and bias of a layer that is given x and answers as it did to scale * x + offset."""
    first, *pointwise = kernels
    places = tuple(range(first.ndim - 2))
    if isinstance(layer, _DEPTHWISE + _SEPARABLE):  # [..., channels, multiplier]
        scale, offset = scale[:, None], offset[:, None]
        constant = np.sum(first * offset, axis=places).reshape(-1)
    else:  # [..., channels of a group, channels out]
        groups = getattr(layer, "groups", 1)
        scale, offset = (_by_group(values, groups, first.shape[-1]) for values in (scale, offset))
        constant = np.sum(first * offset, axis=(*places, first.ndim - 2))
    for kernel in pointwise:
        constant = constant @ kernel.reshape(kernel.shape[-2:])
    return [first * scale, *pointwise, constant + bias]


def _by_group(values: np.ndarray, groups: int, channels_out: int) -> np.ndarray:
    """Numbers a channel in, `[channels in]`, as `[channels of a group, channels out]`."""
    return np.repeat(values.reshape(groups, -1), channels_out // groups, axis=0).T


def _with_bias(batch_norm: Call, linear: keras.layers.Layer, values: np.ndarray) -> Call:
    """What is left of a batch normalisation behind a layer that has taken up its scale."""
    layer = Bias(
        getattr(linear, "data_format", "channels_last"),
        dtype=batch_norm.layer.dtype_policy,
        trainable=False,
        name=batch_norm.name,
    )
    layer.build(tuple(batch_norm.inputs[0].shape))
    layer.set_weights([values])
    arguments = (batch_norm.inputs[0],)
    return Call(layer, arguments, {}, batch_norm.outputs, private=True)
