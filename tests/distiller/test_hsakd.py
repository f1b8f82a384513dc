"""HSAKD, the combination and two peers inside the Distiller: how they run."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd

from . import one_and_two
from .hsakd import (
    METHODS,
    SLOW,
    STILL,
    diagnostics_of,
    distiller,
    heads_of,
    network,
    preset_of,
    some,
    student_of,
    teacher_of,
    uneven_examples,
)
from .one_and_two import on_one_and_two
from .tiny import (
    IMAGES,
    LABELS,
    Counter,
    assert_close,
    assert_equal,
    evaluate,
    everything,
    fit,
    sgd,
    step,
    trained,
)

# --- A frozen backbone ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phase_two():
    """Three steps of heads on a frozen resnet8: the model, the Distiller, values, the history."""
    model = ssd.models.build(
        "resnet8", num_classes=3, input_shape=(8, 8, 3), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    model(IMAGES, training=True)  # statistics that are not the first ones
    student = ssd.with_projection(ssd.with_auxiliary_classifiers(model, backbone="frozen"))
    optimizer = sgd(0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
    preset = preset_of("combined_teacher", **STILL)
    distilled = distiller("", preset=preset, student=student, optimizer=optimizer)
    before = {id(v): v.numpy() for v in [*model.variables, *student.variables]}
    logits = model(IMAGES).numpy()
    history = fit(distilled, IMAGES[:6], LABELS[:6], batch_size=6, epochs=3)
    return model, distilled, before, logits, history


def test_a_frozen_backbone_is_bit_equal_after_some_steps(phase_two):
    model, distilled, before, logits, history = phase_two
    backbone = distilled.student.get_layer("backbone")
    assert len(backbone.weights) == len(model.weights) > 20
    for variable in [*backbone.weights, *model.variables]:
        np.testing.assert_array_equal(variable, before[id(variable)])
    np.testing.assert_array_equal(distilled.student(IMAGES)["logits"], logits)
    assert len(set(history["hard_labels"])) == 1  # the term is there, and a constant
    assert history["loss"][0] == pytest.approx(
        sum(history[o.name][0] for o in distilled.objectives), rel=1e-5
    )


def test_all_weights_and_statistics_of_its_heads_move(phase_two):
    _, distilled, before, *_ = phase_two
    frozen = {id(v) for v in distilled.student.get_layer("backbone").weights}
    heads = [v for v in distilled.student.weights if id(v) not in frozen]
    assert sum("moving" in v.path for v in heads) == 2 * (6 + 3 + 2)
    for variable in heads:
        assert np.any(variable.numpy() != before[id(variable)]), variable.path


def test_the_optimizer_holds_nothing_of_a_frozen_backbone(phase_two):
    _, distilled, *_ = phase_two
    slots = [v for v in distilled.optimizer.variables if "velocity" in v.path]
    student = distilled.student
    assert [v.shape for v in slots] == [v.shape for v in student.trainable_variables]
    head = [f"proj_head.{i}" for i in (0, 2)]
    trainable = {v.path.split("/")[0] for v in student.trainable_variables}
    assert all(name in head or name.startswith("auxiliary_classifier.") for name in trainable)


# --- How it runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["combined", "hsakd_online"])
def test_one_forward_of_each_network_a_step(method):
    counters = [Counter(), Counter()]
    student, other = network(first=counters[0]), network(5, seed=2, first=counters[1])
    if method == "hsakd_online":
        model = distiller(method, student=ssd.with_peer(student, other))
    else:
        model = distiller(method, student=student, teacher=other)
    fit(model)
    assert [counter.calls.numpy() for counter in counters] == [3, 3]
    evaluate(model)
    assert counters[0].calls.numpy() == 6
    assert counters[1].calls.numpy() == (3 if method == "combined" else 6)


@functools.cache
def _after_three_steps(method, **compiled):
    options = {"graph": True, "optimizer": sgd(0.02, momentum=0.9), **compiled}
    model = distiller(method, student=student_of(method, batch_norm="own"), **options)
    history = fit(model, batch_size=4)
    return history, [v.numpy() for v in model.student.variables]


@some("combined")
@pytest.mark.parametrize("option", [{"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_ways_to_run_are_equal(method, option):
    history, weights = _after_three_steps(method, **option)
    expected_history, expected = _after_three_steps(method)
    assert history.keys() == expected_history.keys() > diagnostics_of(method)
    for name in history.keys() - diagnostics_of(method) - {"teacher_agreement"}:
        np.testing.assert_allclose(history[name], expected_history[name], rtol=1e-5, err_msg=name)
    assert_close(weights, expected, 1e-5)


@some("combined", "hsakd_online")
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(method, policy):
    keras.config.set_dtype_policy(policy)
    student = student_of(method, batch_norm="own")
    keras.config.set_dtype_policy("float32")
    model = distiller(method, student=student, optimizer=sgd(0.02, momentum=0.9))
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    batch = model.rehearse((tf.constant(IMAGES), tf.constant(LABELS))).batch
    assert {batch.student[name].dtype.name for name in heads_of(method)} == {policy[6:]}
    for objective in model.objectives:
        assert objective(batch)[0].dtype == tf.float32, objective.name
    before = trained(model)
    history = fit(model, batch_size=6)
    assert np.isfinite([*history.values()]).all()
    for variable, value in zip(student.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != value), variable.path
        assert np.isfinite(variable.numpy()).all()


@some("combined", "hsakd_online")
def test_a_resumed_run_is_the_uninterrupted_one(method, tmp_path):
    student = student_of(method, batch_norm="own", dropout=0.5)
    model = distiller(method, student=student, optimizer=sgd(0.02, momentum=0.9))
    fit(model, batch_size=7)
    model.save(tmp_path / "model.keras")
    history = fit(model, batch_size=7)
    keras.utils.set_random_seed(99)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.set_teacher(teacher_of(method))
    assert [o.get_config() for o in loaded.objectives] == [o.get_config() for o in model.objectives]
    assert loaded.views.get_config() == model.views.get_config()
    assert fit(loaded, batch_size=7) == history
    assert_equal(everything(loaded), everything(model))


UNTRAINED = ("no more than chance", "point one way", "`presets.hsakd_teacher()`")  # the teacher


@some("hsakd_teacher", "combined", "hsakd_online")
def test_check(method, capsys):
    model = distiller(method)
    before = everything(model)
    report = model.check(IMAGES, LABELS)
    assert capsys.readouterr().out == f"{report}\n"
    assert_equal(everything(model), before)
    found = [w for w in report.warnings if not any(words in w for words in UNTRAINED)]
    assert not found
    shown = step(model)
    assert [term.name for term in report.terms] == [o.name for o in model.objectives]
    for term in report.terms:
        assert term.value == pytest.approx(shown[term.name], rel=1e-5)
        assert term.gradient > 0
    assert report.loss == pytest.approx(shown["loss"], rel=1e-5)


# --- Two replicas -----------------------------------------------------------------------------


ON_REPLICAS = [("hsakd_teacher", "synchronized"), ("hsakd", None)]
ON_REPLICAS += [("combined", "synchronized"), ("hsakd_online", None)]
MORE = [(method, norm) for method in METHODS for norm in (None, "synchronized")]


@pytest.mark.parametrize(
    ("method", "batch_norm", "graph"),
    [(*case, False) for case in ON_REPLICAS]
    + [pytest.param(*case, True, marks=SLOW) for case in MORE],
)
def test_two_replicas_equal_one(method, batch_norm, graph, two_replicas, float64):
    """Of 9 images one replica gets 5, the other 4; of the last 5 they get 3 and 2."""

    def make():
        student = student_of(method, batch_norm=batch_norm)
        return distiller(method, student=student, optimizer=one_and_two.sgd(), graph=graph)

    one, two = on_one_and_two(two_replicas, make)
    one.run_eagerly = True  # which is faster
    count = 23 if graph else 14
    data = one_and_two.batches(*(array[:count] for array in uneven_examples()), size=9)
    expected, shown = (model.fit(data, verbose=0).history for model in (one, two))
    assert_equal_numbers(shown, expected)
    assert shown.keys() > diagnostics_of(method)
    one_and_two.assert_close(two.student.weights, one.student.weights, 1e-10)
    assert two.optimizer.iterations.numpy() == (3 if graph else 2)


def test_two_replicas_show_what_one_shows(two_replicas, float64):
    def make():
        return distiller("hsakd", graph=True, evaluate_views=True)

    one, two = on_one_and_two(two_replicas, make)
    one.run_eagerly = True
    data = one_and_two.batches(*uneven_examples(), size=9)
    expected, shown = (m.evaluate(data, verbose=0, return_dict=True) for m in (one, two))
    assert_equal_numbers(shown, expected)
    assert shown.keys() > diagnostics_of("hsakd")


def assert_equal_numbers(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-10, err_msg=name)


# --- Images without label, or of weight 0 -----------------------------------------------------


@some("hsakd_teacher", "combined", "hsakd_online")
def test_images_of_weight_zero_vanish(method):
    weights = np.append(np.linspace(0.5, 2, 8), np.zeros(4))
    models = [distiller(method, preset=preset_of(method, **STILL)) for _ in range(2)]
    shown = step(models[0], IMAGES, LABELS, weights)
    expected = step(models[1], IMAGES[:8], LABELS[:8], weights[:8])
    del shown["loss"], expected["loss"]  # their means over steps count all images of a step
    assert shown == pytest.approx(expected, rel=1e-5)
    assert_close(trained(models[0]), trained(models[1]), 1e-6)


@pytest.mark.parametrize("one_hot", [False, True])
def test_unlabeled_images_reach_no_auxiliary_label(one_hot):
    labels = np.where(np.arange(12) < 8, LABELS, -1)
    preset = preset_of("hsakd_teacher", **STILL)
    models = [distiller("hsakd_teacher", preset=preset) for _ in range(2)]
    rows = np.where(labels[:, None] >= 0, np.eye(3)[labels], 0) if one_hot else labels
    shown = step(models[0], IMAGES, rows)
    expected = step(models[1], IMAGES[:8], LABELS[:8])
    assert shown == pytest.approx(expected, rel=1e-5)
    assert_close(trained(models[0]), trained(models[1]), 1e-6)


def test_unlabeled_images_learn_from_the_teacher():
    labels = np.where(np.arange(12) < 8, LABELS, -1)
    preset = preset_of("hsakd", **STILL)
    shown, all_labeled, fewer = (
        step(distiller("hsakd", preset=preset), *data)
        for data in [(IMAGES, labels), (IMAGES, LABELS), (IMAGES[:8], LABELS[:8])]
    )
    for name in ("soft_labels", "auxiliary_transfer", "teacher_agreement"):
        assert shown[name] == all_labeled[name]
    assert shown["soft_labels"] != pytest.approx(fewer["soft_labels"], rel=1e-3)
    for name in {"hard_labels"} | diagnostics_of("hsakd"):
        assert shown[name] == pytest.approx(fewer[name], rel=1e-5)
