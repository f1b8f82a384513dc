"""What every family's test asks of the stages."""

import keras
import numpy as np


def stage_outputs(model, rows=2, seed=0):
    """The outputs of all stages in order and of the embedding, for normal images."""
    shape = [size or 16 for size in model.input.shape[1:]]
    images = np.random.RandomState(seed).standard_normal((rows, *shape))
    names = [layer.name for layer in model.layers if layer.name.startswith("stage_")]
    outputs = [model.get_layer(name).output for name in [*sorted(names), "embedding"]]
    return [np.asarray(output) for output in keras.Model(model.input, outputs)(images)]


def has_negative(outputs):
    """Of each output whether it has values below 0; all of them have some above."""
    assert all(output.max() > 0 for output in outputs)
    return [bool(output.min() < 0) for output in outputs]


def between(model, first, last):
    """The part of a model from the input of one layer to the output of another."""
    return keras.Model(model.get_layer(first).input, model.get_layer(last).output)
