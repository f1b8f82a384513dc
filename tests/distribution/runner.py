"""Trains every case on the configuration of this process: `runner.py RESULTS.npz`."""

import gc
import pathlib
import sys
import time

TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "examples")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from processes import strategy_here  # noqa: E402

from distribution.cases import CASES, REFUSED  # noqa: E402


class Shown(keras.callbacks.Callback):
    """What each step shows by itself, not as a mean over the epoch so far."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        self.logs.append(dict(logs))


def set_floats(floats):
    keras.config.set_floatx("float64" if floats == "float64" else "float32")
    keras.config.set_dtype_policy(floats)


def values_of(model):
    """All variables of a Distiller and its optimizers but the random states, by place and path."""
    parts = [model, model.optimizer]
    parts += [] if model.teacher_optimizer is None else [model.teacher_optimizer]
    variables = [variable for part in parts for variable in part.variables]
    floats = [v for v in variables if keras.backend.is_float_dtype(v.dtype)]
    return {f"{place} {v.path}": v.numpy() for place, v in enumerate(floats)}


def trained(case, strategy):
    """Arrays by name: what each step showed, and all values before and after."""
    set_floats(case.floats)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = case.distiller()
    found = {f"before/{name}": value for name, value in values_of(model).items()}
    shown = Shown()
    history = model.fit(case.dataset(), verbose=0, callbacks=[shown], check=False).history
    found |= {f"shown/last {name}": np.array(values) for name, values in history.items()}
    for name in ["loss", *(term.name for term in model.objectives)]:
        found[f"shown/{name}"] = np.array([float(logs[name]) for logs in shown.logs])
    found |= {f"after/{name}": value for name, value in values_of(model).items()}
    if case.evaluates:
        model.compile(model.optimizer, evaluate_views=True)
        shown = model.evaluate(case.dataset(), verbose=0, return_dict=True)
        found |= {f"shown/val {name}": np.array(float(value)) for name, value in shown.items()}
    return found


def refused(case, strategy):
    """All values before and after, and the sentence that the case is refused with."""
    set_floats(case.floats)
    with strategy.scope():
        model = case.distiller()
    found = {f"before/{name}": value for name, value in values_of(model).items()}
    sentence = ""
    try:
        model.fit(case.dataset(), verbose=0, check=False)
    except tf.errors.InvalidArgumentError as error:
        sentence = error.message
    found |= {f"after/{name}": value for name, value in values_of(model).items()}
    return {**found, "told/sentence": np.array(sentence)}


def main(path, *names):
    strategy = strategy_here()
    # A third of the time; what is computed stays the same.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    results = {}
    for kind, cases in ((trained, CASES), (refused, REFUSED)):
        for name, case in cases.items():
            if names and name not in names:
                continue
            start = time.perf_counter()
            found = kind(case, strategy)
            results |= {f"{name}/{key}": value for key, value in found.items()}
            print(f"{time.perf_counter() - start:6.1f} s  {name}", flush=True)
            keras.backend.clear_session()
            gc.collect()
    np.savez(path, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
