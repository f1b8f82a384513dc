import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.distiller.trackers import Trackers


def shown(trackers):
    return [metric.name for metric in trackers.shown]


def test_terms_are_sums_over_counts():
    trackers = Trackers(["a", "b"], [], None, None)
    trackers.update_means({"a": (tf.constant(6.0), tf.constant(3.0)), "b": (tf.zeros(()),) * 2})
    trackers.update_means({"a": (tf.constant(10.0), tf.constant(1.0)), "b": (tf.zeros(()),) * 2})
    assert {name: float(t.result()) for name, t in trackers.terms.items()} == {"a": 4, "b": 0}


def test_diagnostics_are_sums_over_counts_beside_the_terms():
    trackers = Trackers(["a"], ["right", "wrong"], None, None)
    for right, rows in ((3.0, 4.0), (1.0, 1.0), (0.0, 0.0)):
        sums = {"right": (tf.constant(right), tf.constant(rows))}
        trackers.update_means({**sums, "a": (tf.constant(2.0), tf.constant(1.0))})
    assert float(trackers.diagnostics["right"].result()) == pytest.approx(4 / 5)
    assert float(trackers.diagnostics["wrong"].result()) == 0
    assert float(trackers.terms["a"].result()) == 2
    assert set(trackers.diagnostics.values()) < set(trackers.all)


def test_diagnostics_are_shown_when_asked_for():
    trackers = Trackers(["a"], ["b", "c"], None, None)
    assert shown(trackers) == ["loss", "a"]
    trackers.show(loss=True, terms=True, diagnostics=True, agreement=True, compiled=True)
    assert shown(trackers) == ["loss", "a", "b", "c", "teacher_agreement"]
    trackers.show(loss=True, terms=True, diagnostics=False, agreement=False, compiled=True)
    assert shown(trackers) == ["loss", "a"]


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("head_accuracy", "max"),
        ("val_head_accuracy_of_views", "max"),
        ("head_entropy", "min"),
        ("val_a", "min"),
        ("val_teacher_agreement", "max"),
        ("unknown_accuracy", "auto"),
    ],
)
def test_modes_of_callbacks(monitor, mode):
    names = ["head_accuracy", "head_accuracy_of_views", "head_entropy"]
    callback = keras.callbacks.EarlyStopping(monitor)
    chosen = keras.callbacks.EarlyStopping(monitor, mode="min")
    Trackers(["a"], names, None, None).set_modes([callback, chosen, keras.callbacks.History()])
    assert callback.mode == mode
    assert chosen.mode == "min"


def test_agreement_leaves_images_of_weight_zero_out():
    trackers = Trackers([], [], None, None)
    teacher, student = np.eye(3), np.eye(3)[[0, 0, 2]]
    trackers.update_agreement(tf.constant(teacher), tf.constant(student), tf.constant([1.0, 1, 0]))
    assert float(trackers.agreement.result()) == 0.5


def test_each_phase_shows_its_own():
    trackers = Trackers(["a"], [], ["accuracy"], None)
    assert shown(trackers) == ["loss", "a"]
    trackers.show(loss=True, terms=True, diagnostics=True, agreement=True, compiled=True)
    with trackers.evaluation():
        assert shown(trackers) == []
        trackers.show(loss=True, terms=False, diagnostics=False, agreement=False, compiled=True)
        assert shown(trackers) == ["loss", "accuracy"]
    assert shown(trackers) == ["loss", "a", "teacher_agreement", "accuracy"]


def test_evaluation_that_fails_ends():
    trackers = Trackers(["a"], [], None, None)
    with pytest.raises(KeyError), trackers.evaluation():
        raise KeyError
    assert shown(trackers) == ["loss", "a"]


def test_metric_named_like_a_term():
    for taken in ("loss", "teacher_agreement", "a", "b"):
        metric = tf.keras.metrics.Mean(name=taken)
        with pytest.raises(ValueError, match=f"Two metrics are named '{taken}'"):
            Trackers(["a"], ["b"], [metric], None)
    with pytest.raises(ValueError, match="Two metrics are named 'a'"):
        Trackers(["a"], ["a"], None, None)
