import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_ssd import Batch


def some_batch(labels=(2, 0, -1), sample_weight=None, num_views=4):
    images = 3 if labels is None else len(labels)
    rows = tf.reshape(tf.range(images * num_views * 2.0), [-1, 2])
    return Batch(
        images=None,
        labels=None if labels is None else tf.constant(labels),
        sample_weight=None if sample_weight is None else tf.constant(sample_weight),
        teacher={},
        student={"logits": rows},
        num_views=num_views,
    )


ROWS = {
    "plain": [0, 4, 8],
    "transformed": [1, 2, 3, 5, 6, 7, 9, 10, 11],
    "all": list(range(12)),
}


@pytest.mark.parametrize("which", ROWS)
@pytest.mark.parametrize("shape", [(12,), (12, 2), (12, 3, 4, 5)], ids=str)
def test_select_is_image_major(which, shape):
    tensor = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(some_batch().select(tensor, which), tensor[ROWS[which]])


@pytest.mark.parametrize(("which", "rows"), [("plain", 3), ("transformed", 0), ("all", 3)])
def test_one_view_is_the_plain_one(which, rows):
    batch = some_batch(num_views=1)
    assert batch.select(tf.zeros([3, 2]), which).shape == [rows, 2]
    assert batch.labels_of(which).shape == batch.weights_of(which).shape == [rows]


LABELS = {
    "integers": ([2, 0, -1], [2, 0, -1]),
    "one-hot": ([[0.0, 0, 1], [1, 0, 0], [0, 0, 0]], [2, 0, -1]),
    "integer one-hot": ([[0, 0, 1], [1, 0, 0], [0, 0, 0]], [2, 0, -1]),
    "soft": ([[0.1, 0.3, 0.6], [0.4, 0.3, 0.3], [0, 0, 0]], [2, 0, -1]),
    "all labeled": ([1, 1, 1], [1, 1, 1]),
}


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("which", ROWS)
def test_labels_of(form, which):
    labels, classes = LABELS[form]
    found = some_batch(labels).labels_of(which)
    assert found.dtype == tf.int32
    np.testing.assert_array_equal(found, np.repeat(classes, 4)[ROWS[which]])


@pytest.mark.parametrize("which", ROWS)
@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("sample_weight", [None, [0.5, 0.0, 2.0]], ids=["ones", "given"])
def test_weights_of(which, labeled, sample_weight):
    weights = some_batch(sample_weight=sample_weight).weights_of(which, labeled=labeled)
    expected = np.array(sample_weight or [1, 1, 1]) * ([1, 1, 0] if labeled else 1)
    np.testing.assert_array_equal(weights, np.repeat(expected, 4)[ROWS[which]])


def test_weights_need_no_labels():
    np.testing.assert_array_equal(some_batch(labels=None).weights_of("plain"), np.ones(3))


@pytest.mark.parametrize(
    "ask",
    [lambda batch: batch.labels_of("plain"), lambda batch: batch.weights_of("all", labeled=True)],
    ids=["labels_of", "weights_of"],
)
def test_missing_labels_are_an_error(ask):
    with pytest.raises(ValueError, match="This batch has no labels: give `fit` a `y`, or drop"):
        ask(some_batch(labels=None))


@pytest.mark.parametrize(
    "ask",
    [
        lambda batch: batch.select(tf.zeros([12]), "turned"),
        lambda batch: batch.labels_of("turned"),
        lambda batch: batch.weights_of("turned"),
    ],
    ids=["select", "labels_of", "weights_of"],
)
def test_unknown_rows_are_refused(ask):
    sentence = r"Rows are one of \['plain', 'transformed', 'all'\], got 'turned'"
    with pytest.raises(ValueError, match=sentence):
        ask(some_batch())


@pytest.mark.parametrize(("images", "weighted"), [(3, True), (3, False), (None, True)])
def test_shapes_stay_as_static_as_they_were(images, weighted):
    shapes = {}

    @tf.function
    def traced(rows, labels, weights):
        batch = Batch(None, labels, weights if weighted else None, {}, {"logits": rows}, 4)
        for which in ROWS:
            tensors = [batch.select(rows, which), batch.labels_of(which), batch.weights_of(which)]
            shapes[which] = [list(tensor.shape) for tensor in tensors]

    traced.get_concrete_function(
        tf.TensorSpec([images and 4 * images, 2]),
        tf.TensorSpec([images], tf.int32),
        tf.TensorSpec([images]),
    )
    for which, rows in ROWS.items():
        count = images and len(rows)
        assert shapes[which] == [[count, 2], [count], [count]]


def test_a_batch_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        some_batch().num_views = 1
