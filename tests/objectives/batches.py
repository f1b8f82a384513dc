"""Batches with the outputs of both networks, and the loss that a Distiller makes of objectives."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_ssd.batch import Batch
from keras_ssd.objectives import (
    AuxiliaryLabels,
    AuxiliaryTransfer,
    ContrastivePretext,
    HardLabels,
    JensenShannon,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftCrossEntropy,
    SoftLabels,
    SymmetricSoftLabels,
)

NUM_VIEWS = 4
EXACT = {"rtol": 1e-10, "atol": 1e-13}

OBJECTIVES = {  # one of each, away from the defaults
    "hard": HardLabels(0.3, label_smoothing=0.1),
    "soft": SoftLabels(2.0, weight=0.5),
    "soft, all rows": SoftLabels(3.0, views="all"),
    "symmetric": SymmetricSoftLabels(0.6, temperature=2.0),
    "Jensen-Shannon": JensenShannon(0.8, temperature=2.0, views="transformed"),
    "soft cross-entropy": SoftCrossEntropy(2.0, weight=0.4, views="all"),
    "selective": SelectiveSoftLabels(3.0, keep_wrong=0.5, weight=2.0),
    "similarity": SimilarityTransfer(0.7, keep_wrong=0.5),
    "pretext": ContrastivePretext(0.8, weight=1.5),
    "auxiliary labels": AuxiliaryLabels(0.4, diagnostics=False),
    "auxiliary transfer": AuxiliaryTransfer(2.0, weight=0.7),
}


def random_batch(
    images=6, classes=5, width=8, *, labels=None, sample_weight=None, dtype="float64", seed=0
):
    """A batch of normal numbers; about half of the selectable rows are right."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, classes, images)
    logits = generator.normal(0, 2, (2, images * NUM_VIEWS, classes))
    logits[0, np.arange(images * NUM_VIEWS), np.repeat(np.arange(images), NUM_VIEWS) % classes] += 1
    projections = generator.normal(size=(2, images * NUM_VIEWS, width))
    projections += np.repeat(generator.normal(size=(images, width)), NUM_VIEWS, axis=0)
    heads = generator.normal(0, 2, (2, 2, images * NUM_VIEWS, classes * NUM_VIEWS))
    teacher, student = (
        {
            "logits": tf.constant(rows, dtype),
            "projection": tf.constant(vectors, dtype),
            "auxiliary_1": tf.constant(first, dtype),
            "auxiliary_2": tf.constant(second, dtype),
        }
        for rows, vectors, (first, second) in zip(logits, projections, heads, strict=True)
    )
    weights = None if sample_weight is None else tf.constant(sample_weight, tf.float32)
    labels = tf.constant(drawn if labels is None else labels)
    return Batch(None, labels, weights, teacher, student, NUM_VIEWS)


def changed(batch, **changes):
    return dataclasses.replace(batch, **changes)


def with_student(batch, **outputs):
    return changed(batch, student={**batch.student, **outputs})


def with_teacher(batch, **outputs):
    return changed(batch, teacher={**batch.teacher, **outputs})


def rows_of(images):
    """The rows of some images, as indices."""
    return (np.asarray(images, int)[:, None] * NUM_VIEWS + np.arange(NUM_VIEWS)).ravel()


def images_of(batch, images):
    """The batch of some images of a batch."""

    def pick(tensor, indices):
        return None if tensor is None else tf.gather(tensor, indices)

    images, rows = np.asarray(images, int), rows_of(images)
    return changed(
        batch,
        labels=pick(batch.labels, images),
        sample_weight=pick(batch.sample_weight, images),
        teacher={name: pick(tensor, rows) for name, tensor in batch.teacher.items()},
        student={name: pick(tensor, rows) for name, tensor in batch.student.items()},
    )


def loss_of(objectives, batch):
    """The weighted sum of the objectives' means."""
    loss = 0.0
    for objective in objectives:
        total, count = objective(batch)
        loss += objective.weight * tf.math.divide_no_nan(total, count)
    return loss


def mean_of(objective, batch):
    total, count = objective(batch)
    return float(tf.math.divide_no_nan(total, count))


def loss_and_gradients(objectives, batch):
    """The loss and its gradients with respect to the student's outputs, by name."""
    outputs = dict(batch.student)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = loss_of(objectives, changed(batch, student=outputs))
    return loss, tape.gradient(loss, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def golden_batch(case, dtype="float64"):
    """The batch of a case of golden/sskd.json; what a case has not is left out."""
    inputs = case["inputs"]
    networks = {
        network: {
            name: tf.constant(inputs[f"{network}_{key}"], dtype)
            for name, key in [("logits", "logits"), ("projection", "proj")]
            if f"{network}_{key}" in inputs
        }
        for network in ("teacher", "student")
    }
    labels, valid = inputs.get("labels"), inputs.get("valid")
    return Batch(
        images=None,
        labels=None if labels is None else tf.constant(labels),
        sample_weight=None if valid is None else tf.constant(valid, tf.float32),
        num_views=case["params"]["views"],
        **networks,
    )


def golden_objectives(params):
    """The four terms of SSKD, weighted, by the names of golden/sskd.json."""
    return {
        "loss_ce": HardLabels(params["ce_weight"]),
        "loss_kd": SoftLabels(params["kd_T"], weight=params["kd_weight"]),
        "loss_tf": SelectiveSoftLabels(
            params["tf_T"], keep_wrong=params["ratio_tf"], weight=params["tf_weight"]
        ),
        "loss_ss": SimilarityTransfer(
            params["ss_T"], keep_wrong=params["ratio_ss"], weight=params["ss_weight"]
        ),
    }
