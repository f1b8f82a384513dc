"""How a teacher runs in a training step: in inference mode, or with the statistics of the batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd

from .one_and_two import batches, local_values, on_one_and_two
from .one_and_two import network as small
from .tiny import (
    IMAGES,
    KD,
    LABELS,
    SSKD,
    assert_close,
    assert_equal,
    differs,
    distiller,
    evaluate,
    everything,
    fit,
    network,
    sgd,
    step,
    teacher_network,
    trained,
)

MODES = ["inference", "batch", "batch_update"]


def distilling(mode, teacher=None, preset=KD, **options):
    teacher = teacher or teacher_network(dropout=0.5)
    return distiller({**preset, "teacher_batch_norm": mode}, teacher=teacher, **options)


def own(model):
    """Copies of the teacher's variables, by the last part of their names."""
    named = {}
    for variable in model.teacher.variables:
        name = variable.path.replace(".", "/").split("/")[-1]
        named.setdefault(name, []).append(variable.numpy())
    return named


def moved(model, before):
    after = own(model)
    return {name for name in after if differs(after[name], before[name])}


# --- What a step does ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_twenty_steps_change(mode):
    """Of the teacher's copy at most averages and random states, of the model itself nothing."""
    teacher = teacher_network(dropout=0.5)
    before, flags = [v.numpy() for v in teacher.variables], teacher.trainable
    model = distilling(mode, teacher, graph=True)
    started, student = own(model), trained(model)
    fit(model, IMAGES[:10], LABELS[:10], epochs=10)
    states = {"moving_mean", "moving_variance", "seed_generator_state"}
    assert moved(model, started) == (states if mode == "batch_update" else set())
    assert differs(trained(model), student)
    assert_equal([v.numpy() for v in teacher.variables], before)
    assert teacher.trainable == flags


@pytest.mark.parametrize("preset", [KD, SSKD], ids=["plain", "rotations"])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_by_hand(mode, preset):
    """The term that reads the teacher is that of the teacher run so on all rows of the step."""
    teacher, student = teacher_network(), network()
    model = distilling(mode, teacher, preset, student=student, optimizer=sgd(0.0))
    seen = []
    call = model.teacher._network.__call__

    def record(rows, **options):
        seen.append((rows.numpy(), call(rows, **options)))
        return seen[-1][1]

    model.teacher._network = record
    step(model)
    [(rows, outputs)] = seen
    assert len(rows) == 12 * preset.get("views", ssd.views.Plain()).num_views
    expected = teacher(rows, training=mode != "inference")
    for name in ("logits", "projection"):
        assert_close([outputs[name]], [expected[name]], 1e-5)


def test_plain_rows_by_hand():
    """As shown: the divergence from what Keras' model gives in training."""
    teacher, student = teacher_network(), network()
    shown = step(distilling("batch", teacher, student=student, optimizer=sgd(0.0)))
    logits = [net(IMAGES, training=True)["logits"] for net in (teacher, network())]
    expected = tf.reduce_mean(ssd.losses.kl_divergence(*logits, 2.0))
    assert shown["soft_labels"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("mode", MODES[1:])
def test_xla(mode):
    teacher, student = teacher_network(), network(batch_norm=False)
    models = [
        distilling(
            mode, teacher, student=keras.models.clone_model(student), graph=True, jit_compile=j
        )
        for j in (False, True)
    ]
    for model in models:
        model.student.set_weights(student.get_weights())
    shown = [fit(model, IMAGES[:10], LABELS[:10], epochs=2) for model in models]
    assert shown[1]["loss"] == pytest.approx(shown[0]["loss"], rel=1e-4)
    assert_close(trained(models[1]), trained(models[0]), 1e-5)
    one, other = ([v.numpy() for v in model.teacher.variables] for model in models)
    assert_close(one, other, 1e-5)


def test_stored_outputs_run_no_teacher():
    model = distilling("inference")
    before = own(model)
    table = {name: np.zeros([12, width], "float32") for name, width in (("logits", 3), ("p", 4))}
    step(model, {"image": IMAGES, "teacher": table})
    assert moved(model, before) == set()


@pytest.mark.parametrize("mode", ["batch", "batch_update"])
def test_stored_outputs_are_not_of_a_batch(mode):
    model = distilling(mode)
    words = f"`teacher_batch_norm='{mode}'` is of a teacher that runs, and the data holds stored"
    with pytest.raises(ValueError, match=words):
        step(model, {"image": IMAGES, "teacher": {"logits": np.zeros([12, 3], "float32")}})


# --- Evaluation, check, files -------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "graph"), [("batch", False), ("batch_update", True)])
def test_evaluation_is_in_inference_mode(mode, graph):
    """With the averages that training has moved; it changes nothing."""
    model = distilling(mode, evaluate_views=True, graph=graph)
    fit(model)
    before = everything(model), own(model)
    shown = [evaluate(model)["soft_labels"] for _ in range(2)]
    assert shown[0] == shown[1]
    assert not differs(everything(model), before[0])
    assert moved(model, before[1]) == set()
    logits = model.teacher(IMAGES)["logits"], model.student(IMAGES)["logits"]
    expected = tf.reduce_mean(ssd.losses.kl_divergence(*logits, 2.0))
    assert shown[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("mode", MODES[1:])
def test_check_runs_as_in_training_and_changes_nothing(mode):
    teacher = teacher_network(dropout=0.5)
    model = distilling(mode, teacher)
    before, started = everything(model), own(model)
    reports = [model.check(IMAGES, LABELS) for _ in range(2)]
    assert not differs(everything(model), before)
    assert moved(model, started) == set()
    [first, second] = [{t.name: t.value for t in report.terms}["soft_labels"] for report in reports]
    assert first == second
    assert first == pytest.approx(step(model)["soft_labels"], rel=1e-5)


def test_a_function_that_builds_its_model_only_when_it_is_called():
    """What it builds while it is checked is what it has afterwards."""
    inner = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    model = distiller(KD, teacher=lambda rows: inner(tf.cast(rows, "float32") / 255))
    model.check(IMAGES, LABELS)
    assert all(isinstance(weight.value, tf.Variable) for weight in inner.weights)


def test_files_hold_nothing_of_it(tmp_path):
    large, small_one = (distilling("batch_update", network(w, dropout=0.5)) for w in (4000, 6))
    sizes = []
    for model in (large, small_one):
        step(model)
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        sizes.append([f.stat().st_size for f in sorted(tmp_path.iterdir())])
        assert len(model.variables) == len(model.student.variables)
        assert len(model.trainable_variables) == len(model.student.trainable_variables)
    assert np.allclose(*sizes, atol=64)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.teacher is None


@pytest.mark.parametrize("mode", MODES[1:])
def test_resuming_is_exact(mode, tmp_path):
    """Without dropout: the averages of the first run are no part of what is trained."""
    teacher = teacher_network()
    whole = distilling(mode, teacher)
    fit(whole, epochs=2)
    first = distilling(mode, teacher)
    fit(first)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    second.set_teacher(teacher, teacher_batch_norm=mode)
    fit(second)
    assert_equal(trained(second), trained(whole))
    averages = own(second)["moving_mean"], own(whole)["moving_mean"]
    assert differs(*averages) == (mode == "batch_update")


# --- How it is said -----------------------------------------------------------------------------


def test_the_default_is_inference_mode():
    model = distiller(KD)
    assert model.teacher.batch_norm == "inference"
    model.set_teacher(teacher_network(), teacher_batch_norm="batch")
    assert model.teacher.batch_norm == "batch"
    model.set_teacher(teacher_network())
    assert model.teacher.batch_norm == "inference"


def test_a_frozen_teacher_keeps_what_it_was_frozen_with():
    frozen = ssd.freeze(teacher_network(), batch_norm="batch_update")
    model = distilling(None, frozen)
    assert model.teacher is frozen
    assert distilling("batch_update", frozen).teacher is frozen
    for other in MODES[:2]:
        with pytest.raises(ValueError, match="was frozen with `batch_norm='batch_update'`"):
            distilling(other, frozen)
        with pytest.raises(ValueError, match="was frozen with `batch_norm='batch_update'`"):
            model.set_teacher(frozen, teacher_batch_norm=other)
    assert model.teacher is frozen


REFUSED = {
    "unknown": (
        "batched",
        teacher_network,
        "must be one of 'inference', 'batch', 'batch_update', g",
    ),
    "function": (
        "batch",
        lambda: lambda rows: rows,
        "needs a functional or Sequential Keras model",
    ),
    "nothing to do": ("batch", lambda: network(batch_norm=False), "would change nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    mode, teacher, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        distilling(mode, teacher())
    model = distilling("batch")
    before = model.teacher
    with pytest.raises(ValueError, match=words):
        model.set_teacher(teacher(), teacher_batch_norm=mode)
    assert model.teacher is before


def test_no_teacher():
    for mode in (None, "inference"):
        assert ssd.Distiller(student=network(), **KD, teacher_batch_norm=mode).teacher is None
    with pytest.raises(
        ValueError, match="`batch_norm='batch'` of a teacher needs one, and there is"
    ):
        ssd.Distiller(student=network(), **KD, teacher_batch_norm="batch")
    with pytest.raises(ValueError, match="must be one of"):
        ssd.Distiller(student=network(), **KD, teacher_batch_norm="batched")


# --- Replicas -----------------------------------------------------------------------------------


def with_dropout(model):
    return keras.Model(model.input, {"logits": layers.Dropout(0.5)(model.output["logits"])})


def test_several_replicas(two_replicas):
    """Of 9 images one replica has 5; the teacher's variables end equal on both."""
    teacher = with_dropout(small(4, "own", seed=0))
    with two_replicas.scope():
        model = ssd.Distiller(teacher, small(4), **KD, teacher_batch_norm="batch_update")
        model.compile(sgd(), evaluate_views=True)
    started = own(model)
    data = batches(IMAGES[:9], LABELS[:9], size=9)
    shown = model.fit(data, epochs=2, verbose=0, check=False).history
    assert np.isfinite(shown["loss"]).all()
    held = local_values(two_replicas, model.teacher.variables)
    assert_equal([first for first, _ in held], [second for _, second in held])
    assert moved(model, started) == {"moving_mean", "moving_variance", "seed_generator_state"}
    before = own(model)
    assert np.isfinite(model.evaluate(data, verbose=0, return_dict=True)["soft_labels"])
    assert moved(model, before) == set()


def test_synchronized_replicas_are_one(two_replicas):
    teacher = small(4, "synchronized", seed=0)

    def make():
        model = ssd.Distiller(teacher, small(4), **KD, teacher_batch_norm="batch")
        model.compile(sgd())
        return model

    one, two = on_one_and_two(two_replicas, make)
    for model in (one, two):
        model.fit(batches(IMAGES[:9], LABELS[:9], size=9), epochs=2, verbose=0, check=False)
    assert_close(trained(two), trained(one), 1e-4)
