"""HSAKD with networks of the papers and the classifiers that they get there."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd

from . import one_and_two
from .hsakd import STILL, distiller, preset_of
from .one_and_two import local_values, on_one_and_two
from .tiny import IMAGES, LABELS, assert_close, sgd, step, trained

HEADS = ["auxiliary_1", "auxiliary_2", "auxiliary_3"]


def built(name, **options):
    constants = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return ssd.models.build(name, num_classes=3, input_shape=(8, 8, 3), **constants, **options)


# --- A frozen backbone on two replicas --------------------------------------------------------


def phase_two():
    """Fresh heads on a frozen resnet8 that has seen images."""
    model = built("resnet8", synchronized_batch_norm=True)
    random = np.random.RandomState(3)
    for variable in model.non_trainable_variables:
        if "moving" in variable.path:
            start = 0.0 if "mean" in variable.path else 1.0
            variable.assign(start + random.uniform(-0.2, 0.2, variable.shape))
    student = ssd.with_projection(ssd.with_auxiliary_classifiers(model, backbone="frozen"))
    preset = preset_of("combined_teacher", **STILL)
    return distiller("", preset=preset, student=student, optimizer=one_and_two.sgd())


@pytest.mark.slow
def test_heads_on_a_frozen_backbone_learn_on_two_replicas_as_on_one(two_replicas, float64):
    """Of 9 images one replica gets 5, the other 4; of the last 5 they get 3 and 2."""
    one, two = on_one_and_two(two_replicas, phase_two)
    backbone = two.student.get_layer("backbone").weights
    before, heads = local_values(two_replicas, backbone), trained(two)
    data = one_and_two.batches(*one_and_two.examples(14), size=9)
    expected, shown = (model.fit(data, verbose=0).history for model in (one, two))
    assert two.optimizer.iterations.numpy() == 2
    assert shown.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(shown[name], value, rtol=1e-10, err_msg=name)
    one_and_two.assert_close(two.student.weights, one.student.weights, 1e-10)
    after = local_values(two_replicas, backbone)
    assert len(before) > 20
    for variable, replicas, expected in zip(backbone, after, before, strict=True):
        assert len(replicas) == 2
        np.testing.assert_array_equal(replicas, expected, err_msg=variable.path)
    for variable, old in zip(two.student.trainable_variables, heads, strict=True):
        assert (variable.numpy() != old).any(), variable.path


# --- Half precision and XLA -------------------------------------------------------------------

SMALLER = pytest.mark.filterwarnings("ignore:The teacher has fewer parameters")


def taught(student, **compiled):
    """A Distiller of HSAKD with a resnet8 for a teacher."""
    keras.utils.set_random_seed(0)
    student, teacher = (
        ssd.with_auxiliary_classifiers(model) for model in (student(), built("resnet8"))
    )
    preset = preset_of("hsakd", **STILL)
    return distiller("hsakd", preset=preset, student=student, teacher=teacher, **compiled)


@SMALLER
@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_step_in_half_precision(policy):
    model = taught(lambda: built("shufflenet_v1", dtype=policy))
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    rehearsal = model.rehearse((tf.constant(IMAGES), tf.constant(LABELS)))
    batch, terms = rehearsal.batch, rehearsal.terms
    assert batch.student.keys() == {"logits", *HEADS}
    assert {output.dtype for output in batch.student.values()} == {tf.float32}
    for objective, term in zip(model.objectives, terms, strict=True):
        assert objective(batch)[0].dtype == tf.float32, objective.name
        assert all(np.isfinite(g).all() for g in term.gradient if g is not None), objective.name
    if is_scaled:  # at the first scale, 2^15, a gradient above 2 overflows and the step is left out
        optimizer = keras.optimizers.LossScaleOptimizer(sgd(0.02), initial_scale=128.0)
        model.compile(optimizer, run_eagerly=True)
    before = trained(model)
    assert np.isfinite([*step(model).values()]).all()
    assert all(np.isfinite(variable).all() for variable in model.student.variables)
    assert any((new != old).any() for new, old in zip(trained(model), before, strict=True))


def after_a_step(**compiled):
    model = taught(lambda: built("shufflenet_v1"), graph=True, optimizer=sgd(0.02), **compiled)
    shown = step(model)
    return shown, [variable.numpy() for variable in model.student.variables]


@SMALLER
@pytest.mark.slow
def test_xla_does_what_the_graph_does(float64):
    """In float32 the gradients of the first layers differ by thousandths, the losses do not."""
    shown, weights = after_a_step(jit_compile=True)
    expected, expected_weights = after_a_step()
    assert shown.keys() == expected.keys()
    for name in ("loss", "hard_labels", "soft_labels", "auxiliary_transfer"):
        np.testing.assert_allclose(shown[name], expected[name], rtol=1e-10, err_msg=name)
    assert_close(weights, expected_weights, 1e-10)
