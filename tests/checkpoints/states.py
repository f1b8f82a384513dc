"""Random weights by the authors' names, and what a model holds of them."""

import contextlib

import numpy as np

from keras_ssd import models
from keras_ssd.checkpoints import to_torch_state_dict


def network(name="resnet8", **arguments):
    return models.build(name, **{"num_classes": 5, "input_shape": (8, 8, 3), **arguments})


def random_state(model, seed=0):
    """A random state dictionary as PyTorch would save it, step counters included."""
    random = np.random.RandomState(seed)
    state = {}
    for name, array in to_torch_state_dict(model).items():
        state[name] = random.uniform(0.5, 1.5, array.shape).astype("float32")
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state[counter] = np.asarray(17, "int64")
    return state


def prefixed(prefix, state):
    return {prefix + name: array for name, array in state.items()}


def assert_holds(model, state):
    for name, array in to_torch_state_dict(model).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


@contextlib.contextmanager
def unchanged(*models_):
    """Whatever happens inside: no weight of these models changes."""
    before = [model.get_weights() for model in models_]
    yield
    for model, weights in zip(models_, before, strict=True):
        for old, new in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
