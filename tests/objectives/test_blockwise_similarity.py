import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import on_replicas

from keras_ssd.batch import Batch
from keras_ssd.objectives import ContrastivePretext, SimilarityTransfer
from objectives.batches import images_of, loss_and_gradients, random_batch

BOTH = pytest.mark.parametrize(
    ("objective", "options"),
    [
        (SimilarityTransfer, {"temperature": 0.4, "keep_wrong": 0.5, "weight": 2.0}),
        (ContrastivePretext, {"temperature": 0.7, "weight": 0.5}),
    ],
)
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)]
)


def assert_close(found, expected, tolerance):
    found, expected = np.ravel(found), np.ravel(expected)
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@BOTH
@PRECISIONS
@pytest.mark.parametrize("weights", [None, [1.0, 0, 2, 0.5, 1, 3]], ids=["", "weights"])
@pytest.mark.parametrize("block", [1, 4, 6, 50])
def test_equals_the_whole_matrix(objective, options, dtype, tolerance, weights, block):
    batch = random_batch(dtype=dtype, sample_weight=weights)
    whole, blocks = objective(**options), objective(**options, columns_per_block=block)
    loss, gradients = loss_and_gradients([whole], batch)
    found, found_gradients = loss_and_gradients([blocks], batch)
    assert_close(found, loss, tolerance)
    assert_close(found_gradients["projection"], gradients["projection"], tolerance)
    np.testing.assert_allclose(blocks(batch)[1], whole(batch)[1], rtol=1e-7)  # as many rows kept


@BOTH
def test_no_weight_at_all_is_0_without_a_gradient(objective, options):
    batch = random_batch(sample_weight=[0.0] * 6)
    loss, gradients = loss_and_gradients([objective(**options, columns_per_block=4)], batch)
    assert float(loss) == 0
    assert not gradients["projection"].numpy().any()


@BOTH
@pytest.mark.parametrize("split", [3, 2], ids=["even", "uneven"])
@pytest.mark.parametrize("weights", [None, [1.0, 0, 2, 0.5, 1, 3]], ids=["", "weights"])
def test_two_replicas_equal_one(two_replicas, objective, options, split, weights):
    objective = objective(**options, columns_per_block=4)
    batch = random_batch(sample_weight=weights)
    parts = [images_of(batch, range(split)), images_of(batch, range(split, 6))]

    def run(labels, teacher, student, *weight):
        outputs = {"logits": tf.zeros([tf.shape(student)[0], 5], tf.float64)}
        with tf.GradientTape() as tape:
            tape.watch(student)
            total, count = objective(
                Batch(
                    None,
                    labels,
                    weight[0] if weight else None,
                    {"projection": teacher},
                    {**outputs, "projection": student},
                    4,
                )
            )
        return total, count, tape.gradient(total, student)

    tensors = [
        [part.labels for part in parts],
        [part.teacher["projection"] for part in parts],
        [part.student["projection"] for part in parts],
        *([[part.sample_weight for part in parts]] if weights else []),
    ]
    replicas = on_replicas(two_replicas, run, *tensors)
    total, count = objective(batch)
    np.testing.assert_allclose(sum(float(r[0]) for r in replicas), total, rtol=1e-12)
    np.testing.assert_allclose(sum(float(r[1]) for r in replicas), count, rtol=1e-12)
    _, gradients = loss_and_gradients([objective], batch)
    joined = np.concatenate([r[2] for r in replicas]) * objective.weight / float(count)
    assert_close(joined, gradients["projection"], 1e-12)


@BOTH
def test_config(objective, options):
    made = objective(**options, columns_per_block=7)
    assert made.get_config()["columns_per_block"] == 7
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert copy.get_config() == made.get_config()
    assert objective(**options).get_config()["columns_per_block"] is None


@pytest.mark.parametrize("columns", [0, -1, 2.0, True, "8"])
@pytest.mark.parametrize("objective", [SimilarityTransfer, ContrastivePretext])
def test_columns_must_be_a_positive_integer(objective, columns):
    with pytest.raises(ValueError, match="`columns_per_block` must be an integer >= 1"):
        objective(columns_per_block=columns)
