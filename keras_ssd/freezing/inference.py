"""A functional network in inference mode, rewritten to run fast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from keras_ssd.freezing.calls import Call, Calls
from keras_ssd.freezing.folding import folded, is_batch_norm, without_training_only
from keras_ssd.freezing.precision import HALVES, in_half
from keras_ssd.layers.frozen_backbone import FrozenCopy


class InferenceNetwork:
    """The outputs of a functional model in inference mode, from copies of its weights.

    Nested and frozen models are opened, what only training needs is left out, batch normalisation
    is folded and the feature maps are halved, if asked for. A plain object, as `FrozenCopy` is; the
    model is only ever read.

    Args:
        model: A functional or built Sequential model. Its weights are copied into the current
            `tf.distribute` scope.
        dtype: `"bfloat16"` or `"float16"` for the feature maps, or None: as in the model.
        fold_batch_norm: Whether to fold.

    Attributes:
        variables: The copies, non-trainable.
    """

    def __init__(
        self, model: keras.Model, *, dtype: str | None = None, fold_batch_norm: bool = True
    ) -> None:
        network = without_training_only(Calls.of(model))
        if fold_batch_norm:
            network = folded(network)
            _log_what_is_left(
                [call.name for call in network.calls if is_batch_norm(call)],
                f"batch normalisation of {model.name!r} not folded (neither right behind a "
                "convolution or dense layer without activation nor right before one that pads "
                "nothing, or read by more than one layer)",
            )
        if dtype is not None:
            network, left = in_half(network, dtype)
            _log_what_is_left(left, f"layer of {model.name!r} not in {dtype} (not one of Keras)")
            halved = (getattr(call.layer, "compute_dtype", None) for call in network.calls)
            if dtype not in halved:
                logging.warning("freeze: %r has no feature maps to put in %s", model.name, dtype)
        self._network = network
        self._to_float32 = dtype is not None
        self._functions, self.variables = _functions(network.calls)

    def __call__(self, images: Any) -> Any:
        """The model's outputs for what it takes; none in half precision where `dtype` was given."""
        values: dict[int, Any] = {}
        for tensor, value in zip(self._network.inputs, keras.tree.flatten(images), strict=True):
            _check_shape(value, tensor)
            values[id(tensor)] = tf.cast(value, tensor.dtype)

        def filled(structure: Any) -> Any:
            return keras.tree.map_structure(
                lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x, structure
            )

        for call, function in zip(self._network.calls, self._functions, strict=True):
            outputs = function(*filled(call.args), **filled(call.kwargs))
            tensors = keras.tree.flatten(call.outputs)
            pairs = zip(tensors, keras.tree.flatten(outputs), strict=True)
            values.update({id(tensor): value for tensor, value in pairs})
        outputs = filled(self._network.outputs)
        return keras.tree.map_structure(_widened, outputs) if self._to_float32 else outputs


def _functions(calls: Iterable[Call]) -> tuple[list[Callable], list[keras.Variable]]:
    """What each call runs, on variables that belong to nobody else, and those variables."""
    frozen: dict[tuple[int, int], FrozenCopy] = {}
    functions: list[Callable] = []
    variables: list[keras.Variable] = []
    for call in calls:
        layer, key = call.layer, (id(call.layer), id(call.values))
        if not isinstance(layer, keras.layers.Layer):  # an operation
            functions.append(layer)
        elif call.private or not layer.weights:
            functions.append(functools.partial(layer, training=False))
            variables += layer.weights
        else:
            if key not in frozen:
                frozen[key] = FrozenCopy(layer, call.values)
                variables += frozen[key].variables
            functions.append(frozen[key])
    return functions, variables


def _log_what_is_left(names: list[str], what: str) -> None:
    if names:
        logging.warning("freeze: %d %s: %s", len(names), what, ", ".join(names))


def _check_shape(value: Any, tensor: keras.KerasTensor) -> None:
    if not tf.TensorShape(value.shape[1:]).is_compatible_with(tensor.shape[1:]):
        raise ValueError(
            f"The frozen network takes {tuple(tensor.shape[1:])} a row, got "
            f"{tuple(value.shape[1:])}: give `freeze` a `preprocessing`, for instance "
            "keras.layers.Resizing."
        )


def _widened(tensor: tf.Tensor) -> tf.Tensor:
    half = keras.backend.standardize_dtype(tensor.dtype) in HALVES
    return tf.cast(tensor, tf.float32) if half else tensor
