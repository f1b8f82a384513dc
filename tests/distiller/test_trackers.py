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
    for taken in ("loss", "teacher_agreement", "a"):
        metric = tf.keras.metrics.Mean(name=taken)
        with pytest.raises(ValueError, match=f"Two metrics are named '{taken}'"):
            Trackers(["a"], [], [metric], None)
