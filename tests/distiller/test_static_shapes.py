"""A step traced on a batch of known size: every shape is known, and XLA compiles every operation.

What a TPU lacks is looked for, too: float64 (the rate is float32 there) and strings, except in
assertions, which XLA leaves out.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels  # no public name tells what XLA compiles

import keras_ssd as ssd
from keras_ssd import objectives, presets

from .each_step import ALONE, CASES, arguments_of, batch, distiller

FAST = ("kd", "sskd", "ega")
SLOW = pytest.mark.slow
each = pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=SLOW) for case in CASES]
)


@pytest.fixture(autouse=True)
def _as_on_a_tpu(monkeypatch):
    """Rates in float32, and XLA's list of operations, which TensorFlow makes when it compiles."""
    monkeypatch.setattr("keras_ssd.optimizers.rate_dtype", lambda: "float32")
    tf.function(lambda x: x + 1, jit_compile=True)(1.0)


def compiles(kind):
    """Whether XLA has a kernel for a kind of operation; placeholders are arguments."""
    found = kernels.get_registered_kernels_for_op(kind).kernel
    return kind == "Placeholder" or any(kernel.device_type == "XLA_CPU_JIT" for kernel in found)


def traced(function, *arguments):
    """All operations of the trace of a function, those of loops and branches included."""
    concrete = tf.function(function).get_concrete_function(*arguments)
    graph = concrete.graph.as_graph_def(add_shapes=True)
    return [*graph.node, *(node for body in graph.library.function for node in body.node_def)]


def step_of(case, *, weights=False, **options):
    optimizer = ssd.optimizers.SGD(0.1, momentum=0.9, **options)
    data = tf.nest.map_structure(tf.convert_to_tensor, batch(weights=weights))
    return traced(distiller(case, optimizer=optimizer).train_step, data)


def unknown_shapes(nodes):
    """Names of the operations with an output of unknown shape.

    The sixth output of the fused batch normalisation is room of its kernel, that TensorFlow gives
    no shape; for XLA it is a constant of one number. Its gradient begins with zeros like it.
    """
    rooms = {f"{node.name}:5" for node in nodes if node.op == "FusedBatchNormV3"}
    found = []
    for node in nodes:
        shapes = list(node.attr["_output_shapes"].list.shape)
        if node.op == "FusedBatchNormV3":
            shapes.pop(5)
        if node.op == "ZerosLike" and node.input[0] in rooms:
            continue
        if any(shape.unknown_rank or any(d.size < 0 for d in shape.dim) for shape in shapes):
            found.append(f"{node.op} {node.name}")
    return found


def assert_compiles(nodes):
    assert len(nodes) > 100
    assert {node.op for node in nodes if not compiles(node.op)} == set()
    assert unknown_shapes(nodes) == []
    for node in nodes:
        kinds = {kind for value in node.attr.values() for kind in (value.type, *value.list.type)}
        assert tf.float64.as_datatype_enum not in kinds, node.name
        if node.op not in ("Const", "Assert"):
            assert tf.string.as_datatype_enum not in kinds, node.name


@each
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_every_step(case, policy):
    keras.config.set_dtype_policy(policy)
    assert_compiles(step_of(case))


@pytest.mark.parametrize("case", ["sskd", pytest.param("combined", marks=SLOW)])
def test_weights_and_clipping(case):
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert_compiles(step_of(case, weights=True, global_clipnorm=1.0))


def test_every_objective_is_in_a_case():
    used = set()
    for case in CASES:
        for term in arguments_of(case)["objectives"]:
            used |= {type(term), type(getattr(term, "objective", term))}
    names = {kind.__name__ for kind in used} | {"Objective"}
    assert names == set(objectives.__all__)
    assert set(CASES) == {*presets.__all__, *ALONE}


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (tf.where, np.array([True, False])),
        (lambda x: tf.boolean_mask(x, x > 0), np.array([1.0, -1.0], "float32")),
        (lambda x: tf.reshape(x, tf.cast(x, tf.int32)), np.array([1.0, 2.0], "float32")),
    ],
)
def test_an_unknown_shape_is_found(function, argument):
    assert unknown_shapes(traced(function, tf.constant(argument)))


def test_what_xla_lacks_is_found():
    nodes = traced(lambda x: tf.numpy_function(np.sin, [x], tf.float32), tf.constant(1.0))
    assert [node.op for node in nodes if not compiles(node.op)] == ["PyFunc"]
