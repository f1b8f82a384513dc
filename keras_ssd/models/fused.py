"""Any functional model on the fused kernel of batch normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_ssd.layers import BatchNormalization
from keras_ssd.layers.functional import as_functional, is_functional


def fuse_batch_norm(model: keras.Model) -> keras.Model:
    """The model with the fused kernel of batch normalisation, sharing its weights.

    Every `keras.layers.BatchNormalization`, in nested models too, gives way to a
    `keras_ssd.layers.BatchNormalization` of the same name, options and variables, and every model
    around one to a model of the same name. All else is shared: training either trains both, and a
    weights file of one loads into the other. Two things differ:

    * The moving variance takes up the unbiased variance of a batch, by design: see
      `keras_ssd.layers.BatchNormalization`.
    * A replaced layer or model has its own `trainable`, at first the same: freeze the model that
      you train.

    Args:
        model: A functional or built Sequential Keras model. It stays as it is. Subclasses of the
            layer, subclassed models and other layers inside it are shared as they are, with the
            batch normalisation in them. A model whose class has a constructor but no `call` of its
            own becomes a plain one (nested, it is found under another name in a weights file).

    Returns:
        A functional (Sequential if `model` is) model of the same inputs, outputs, dtype policy and
        `tf.distribute` strategy, not compiled.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If `model` is subclassed or not built.
    """
    as_functional(model, advice="give it `keras_ssd.layers.BatchNormalization` layers instead")
    counterparts: dict[int, keras.layers.Layer] = {}

    def counterpart(layer: Any) -> Any:
        if not _holds_batch_norm(layer):
            return layer
        if id(layer) not in counterparts:
            is_model = isinstance(layer, keras.Model)
            counterparts[id(layer)] = _rewrite(layer, counterpart) if is_model else _fused(layer)
        return counterparts[id(layer)]

    with model.distribute_strategy.scope():  # `fit` asks where a model was made
        return _rewrite(model, counterpart)


def _holds_batch_norm(layer: Any) -> bool:
    """Whether `layer` is Keras' batch normalisation or a model whose graph has one."""
    if is_functional(layer):
        return any(_holds_batch_norm(inner) for inner in layer.layers)
    return type(layer) is keras.layers.BatchNormalization


def _rewrite(model: keras.Model, counterpart: Callable[[Any], Any]) -> keras.Model:
    """A model like `model` on the counterparts of its layers."""
    # `trainable` goes into the constructor: set later, it would reach all layers, shared ones too.
    options = {"name": model.name, "trainable": model.trainable}
    if isinstance(model, keras.Sequential):  # stays one: files know nested models by their class
        rewritten = keras.Sequential([*model.inputs, *map(counterpart, model.layers)], **options)
    else:
        graph = keras.models.clone_model(
            as_functional(model), input_tensors=model.input, clone_function=counterpart
        )
        rewritten = keras.Model(graph.input, graph.output, **options)
    rewritten.dtype_policy = model.dtype_policy
    return rewritten


def _fused(layer: keras.layers.BatchNormalization) -> BatchNormalization:
    """The fused layer on the variables of `layer`.

    Its options are the objects that `layer` holds: made anew from their configs, random
    initialisers would draw from Python's `random`.
    """
    options = {name: getattr(layer, name) for name in layer.get_config()}
    fused = BatchNormalization(**{**options, "dtype": layer.dtype_policy})
    weights = {weight.name: weight for weight in layer.weights}
    learned = [weights[name] for name in ("gamma", "beta") if name in weights]
    frozen = [weight for weight in learned if not weight.trainable]
    for weight in frozen:  # while it builds a layer, Keras takes a frozen one for a statistic
        weight.trainable = True
    fused.add_weight = lambda *, name, **_: weights[name]
    try:
        fused.build_from_config(layer.get_build_config())
    finally:
        del fused.add_weight
        for weight in frozen:
            weight.trainable = False
    return fused
