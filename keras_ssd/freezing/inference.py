"""A functional network in inference mode, rewritten to run fast."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from keras_ssd.freezing.calls import Calls
from keras_ssd.freezing.folding import folded, without_training_only
from keras_ssd.freezing.precision import HALVES, in_half
from keras_ssd.layers import FrozenBackbone
from keras_ssd.layers.frozen_backbone import FrozenCopy
from keras_ssd.layers.structure import flat_layers


class InferenceNetwork:
    """The outputs of a functional model in inference mode, from copies of its weights.

    Nested and frozen models of one input are opened, what only training needs is left out, batch
    normalisation is folded and the feature maps are halved, if asked for. A plain object, as
    `FrozenCopy` is; the model is only ever read, and no random number is drawn.

    Args:
        model: A functional or built Sequential model. Its weights are copied into the current
            `tf.distribute` scope.
        dtype: `"bfloat16"` or `"float16"` for the feature maps, or None: as in the model.
        fold_batch_norm: Whether to fold.

    Attributes:
        variables: The copies, non-trainable.
        layers: What is called, in order: layers and operations.
    """

    def __init__(
        self, model: keras.Model, *, dtype: str | None = None, fold_batch_norm: bool = True
    ) -> None:
        self._fold_batch_norm = fold_batch_norm
        random_state = random.getstate()  # Keras draws the seeds of new layers from it
        try:
            self._calls = self._rewritten(model, dtype)
            inputs = self._calls.inputs
            self._entry = keras.Model(inputs, inputs)  # casts, names and shapes as Keras has them
        finally:
            random.setstate(random_state)
        self._to_float32 = dtype is not None
        self.layers = [call.layer for call in self._calls.calls]
        self._functions, self.variables = _functions(self._calls, self._copied)

    def __call__(self, images: Any) -> Any:
        """The model's outputs for what it takes; none in half precision where `dtype` was given."""
        return self._run(images, [False] * len(self._functions))

    def _run(self, images: Any, training: Sequence[bool]) -> Any:
        """The outputs, each layer called with its own `training`."""
        entered = keras.tree.flatten(self._entry(images, training=False))
        values = _by_tensor(self._calls.inputs, entered)

        def filled(structure: Any) -> Any:
            return keras.tree.map_structure(
                lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x, structure
            )

        for call, function, trains in zip(
            self._calls.calls, self._functions, training, strict=True
        ):
            options = {"training": trains} if isinstance(call.layer, keras.layers.Layer) else {}
            outputs = function(*filled(call.args), **filled(call.kwargs), **options)
            values |= _by_tensor(call.outputs, outputs)
        outputs = filled(self._calls.outputs)
        return keras.tree.map_structure(_widened, outputs) if self._to_float32 else outputs

    def _rewritten(self, model: keras.Model, dtype: str | None) -> Calls:
        network = without_training_only(Calls.of(model))
        if self._fold_batch_norm:
            network = folded(network)
            _log(
                [call.name for call in network.calls if holds_batch_norm(call.layer)],
                f"of {model.name!r} with batch normalisation that is not folded: it is neither "
                "right behind a convolution or dense layer without activation nor right before one "
                "that pads nothing, or more than one layer reads what lies between, or it is "
                "inside a layer",
            )
        return network if dtype is None else halved(network, model.name, dtype)

    def _copied(
        self, layer: keras.layers.Layer, values: Mapping[int, keras.Variable] | None
    ) -> FrozenCopy:
        """What runs a layer that is the model's."""
        return FrozenCopy(layer, values)


def halved(network: Calls, name: str, dtype: str) -> Calls:
    """The network of a model with its feature maps in `dtype`; the log names what is left."""
    network, left = in_half(network, dtype)
    _log(left, f"of {name!r} not in {dtype}, because they cannot be made anew")
    if dtype not in (getattr(call.layer, "compute_dtype", None) for call in network.calls):
        logging.warning("freeze: %r has no feature maps to put in %s", name, dtype)
    return network


def holds_batch_norm(layer: Any) -> bool:
    """Whether a layer is batch normalisation or has some inside, a frozen model's included."""
    if not isinstance(layer, keras.layers.Layer):
        return False
    return any(
        isinstance(inner, keras.layers.BatchNormalization)
        or (isinstance(inner, FrozenBackbone) and holds_batch_norm(inner.frozen.model))
        for inner in flat_layers(layer)
    )


def _log(layers: list[str], what: str) -> None:
    if layers:
        logging.warning("freeze: %d layer(s) %s: %s", len(layers), what, ", ".join(layers))


def _functions(
    network: Calls, copied: Callable[..., FrozenCopy]
) -> tuple[list[Callable], list[keras.Variable]]:
    """What each call runs, on variables that belong to nobody else, and those variables."""
    functions: dict[tuple[int, int], Callable] = {}
    variables: list[keras.Variable] = []
    for call in network.calls:
        if call.key in functions:
            continue
        function = call.layer
        if isinstance(function, keras.layers.Layer) and not call.private:
            function = copied(function, call.values)
        variables += getattr(function, "variables", [])  # an operation has none
        functions[call.key] = function
    return [functions[call.key] for call in network.calls], variables


def _by_tensor(tensors: Any, values: Any) -> dict[int, Any]:
    """Values by the ids of the tensors that stand for them."""
    pairs = zip(keras.tree.flatten(tensors), keras.tree.flatten(values), strict=True)
    return {id(tensor): value for tensor, value in pairs}


def _widened(tensor: tf.Tensor) -> tf.Tensor:
    half = keras.backend.standardize_dtype(tensor.dtype) in HALVES
    return tf.cast(tensor, tf.float32) if half else tensor
