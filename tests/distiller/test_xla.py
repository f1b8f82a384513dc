"""One training step under XLA: the loss and the gradient of the plain graph, from one state."""

import keras
import numpy as np
import pytest

from .each_step import CASES, batch, distiller

FAST = ("labels_only",)  # the others take seconds to compile
each = pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
BOUNDS = {"float32": 1e-5, "float64": 1e-10}


def loss_and_gradient(case, *, jit_compile):
    """Of the first step of a new Distiller: at the start, a velocity is the gradient."""
    keras.utils.set_random_seed(0)
    model = distiller(case, jit_compile=jit_compile)
    images, labels, weights = batch()
    shown = model.train_on_batch(images, labels, sample_weight=weights, return_dict=True)
    optimizers = [model.optimizer, getattr(model, "teacher_optimizer", None)]
    velocities = [
        np.ravel(variable.numpy())
        for optimizer in optimizers
        if optimizer is not None
        for variable in optimizer.variables
        if "velocity" in variable.name
    ]
    return float(shown["loss"]), np.concatenate(velocities)


@each
@pytest.mark.parametrize("dtype", BOUNDS)
def test_equals_the_plain_graph(case, dtype):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    loss, gradient = loss_and_gradient(case, jit_compile=False)
    found, found_gradient = loss_and_gradient(case, jit_compile=True)
    assert abs(found - loss) <= BOUNDS[dtype] * abs(loss)
    norm = np.linalg.norm(gradient)
    assert norm > 0
    assert np.linalg.norm(found_gradient - gradient) <= BOUNDS[dtype] * norm
