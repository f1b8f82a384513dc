import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.distiller.compiled_metrics import CompiledMetrics, refuse_probability_form

from .tiny import IMAGES, LABELS, ONE_HOT, SSKD, distiller, evaluate, step

LOGITS = np.eye(3)[[0, 1, 0, 1, 2, 0]]
SPARSE = np.array([0, 1, 2, -1, 2, 1])  # right, right, wrong, unlabeled, right, wrong
ROWS = np.where(SPARSE[:, None] >= 0, np.eye(3)[SPARSE], 0)
LABELED = (SPARSE >= 0).astype("float32")
WEIGHTS = np.array([2, 0, 1, 5, 3, 1.0])


def results(metrics, weighted=None, labels=SPARSE):
    compiled = CompiledMetrics(metrics, weighted, [])
    tensors = (tf.constant(x) for x in (labels, LOGITS, LABELED, LABELED * WEIGHTS))
    compiled.update(*tensors)
    return {metric.name: float(metric.result()) for metric in compiled.all}


@pytest.mark.parametrize("labels", [SPARSE, ROWS], ids=["sparse", "one-hot"])
@pytest.mark.parametrize("metric", ["accuracy", "acc"])
def test_accuracy_of_labeled_images(metric, labels):
    got = results([metric], [metric], labels)
    assert got == {metric: pytest.approx(3 / 5), f"weighted_{metric}": pytest.approx(5 / 7)}


@pytest.mark.parametrize(
    "metric",
    [
        "sparse_categorical_accuracy",
        keras.metrics.SparseCategoricalAccuracy(),
        keras.metrics.sparse_categorical_accuracy,
        lambda labels, logits: keras.ops.equal(labels, keras.ops.argmax(logits, -1)),
    ],
)
def test_kinds_of_metrics(metric):
    assert [*results(metric).values()] == [pytest.approx(3 / 5)]


def test_cross_entropy_of_logits():
    got = results([keras.metrics.SparseCategoricalCrossentropy(from_logits=True)])
    by_class = np.log(np.exp(LOGITS).sum(-1)) - LOGITS[np.arange(6), np.maximum(SPARSE, 0)]
    assert [*got.values()] == [pytest.approx((by_class * LABELED).sum() / 5)]


def test_through_the_distiller():
    model = distiller(SSKD, metrics=["accuracy"], weighted_metrics=["accuracy"])
    labels = np.where(np.arange(12) < 3, -1, LABELS)
    weights = np.arange(12.0)
    model.optimizer.learning_rate.assign(0)
    logits = model.student(IMAGES, training=False)["logits"].numpy()
    right = (logits.argmax(-1) == labels)[3:]
    expected = {
        "accuracy": pytest.approx(right.mean()),
        "weighted_accuracy": pytest.approx((right * weights[3:]).sum() / weights[3:].sum()),
    }
    got = evaluate(model, labels=labels, sample_weight=weights)
    assert {name: got[name] for name in expected} == expected
    rows = np.where(labels[:, None] >= 0, ONE_HOT, 0)
    got = evaluate(model, labels=rows, sample_weight=weights)
    assert {name: got[name] for name in expected} == expected
    assert step(model).keys() >= expected.keys()


PROBABILITY_FORMS = [
    "sparse_categorical_crossentropy",
    "bce",
    "kl_divergence",
    keras.losses.SparseCategoricalCrossentropy(),
    keras.losses.KLDivergence(),
    keras.losses.categorical_crossentropy,
    keras.metrics.CategoricalCrossentropy(),
    keras.metrics.KLDivergence(name="mine"),
]


@pytest.mark.parametrize("given", PROBABILITY_FORMS)
def test_forms_that_expect_probabilities(given):
    with pytest.raises(ValueError, match=r"`metrics` .* expects probabilities.*`from_logits=True`"):
        CompiledMetrics([given], None, [])


def test_own_function_may_have_any_name():
    def crossentropy(labels, logits): ...

    refuse_probability_form("loss", crossentropy)


def test_metrics_by_output():
    with pytest.raises(ValueError, match="`weighted_metrics` must be a list"):
        CompiledMetrics(None, {"logits": ["accuracy"]}, [])


def test_the_same_name_twice():
    with pytest.raises(ValueError, match="Two metrics are named 'accuracy'"):
        CompiledMetrics(["accuracy", "accuracy"], None, [])
