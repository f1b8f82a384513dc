"""A look at one batch before a long run: what `Distiller.check` measures, and what `fit` sees."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.batch import Batch, auxiliary_names
from keras_ssd.distiller.diagnosis import is_chance, teacher_findings, value_findings
from keras_ssd.distiller.first_batch import first_batch
from keras_ssd.distiller.inputs import Inputs
from keras_ssd.distiller.rehearsal import RehearsedTerm
from keras_ssd.distiller.report import CheckReport, NetworkFacts, TermFacts
from keras_ssd.distiller.steps import Steps
from keras_ssd.distiller.teacher_head import is_trained
from keras_ssd.layers.structure import (
    compute_dtypes,
    flat_layers,
    normalization_of,
    standardizes,
    takes_raw_images,
)
from keras_ssd.losses import cosine_similarity, joint_labels
from keras_ssd.losses.probabilities import are_probabilities
from keras_ssd.teacher import FrozenTeacher

_FEW_IMAGES = 8  # fewer columns of a similarity matrix say little; the papers have 64
_FEW_FOR_STATISTICS = 32  # of fewer photographs the mean is often far from that of all
_ONE_WAY = 0.4  # fresh heads on trained ResNets give 0.6 to 0.7, trained ones about 0
_EXPECTS = {True: "raw", False: "normalised", None: "unknown"}


def report_on(distiller: Steps, data: Any, steps_per_epoch: int | None) -> CheckReport:
    """The report on one batch.

    Args:
        distiller: What is to be trained.
        data: A batch, as `fit` hands one to `train_step`.
        steps_per_epoch: How many such batches an epoch has, None if that is not known.
    """
    inputs = Inputs.of(data)
    images = np.asarray(inputs.images)
    rehearsal = distiller.rehearse(data)
    batch, rehearsed = rehearsal.batch, rehearsal.terms
    counted = np.asarray(batch.weights_of("plain")) > 0
    counted |= not counted.any()
    scores = _plain_scores(batch)
    labels = None
    if batch.labels is not None:
        labels = np.where(counted, batch.labels_of("plain"), -1)
    running = distiller.teacher if inputs.teacher is None else None
    networks = _networks(distiller, inputs, images, scores, labels, counted)
    terms, loss, gradient = _terms(rehearsed)
    head_terms, *_ = _terms(rehearsal.head_terms)
    findings = list(_unusable(images))
    comparable = "teacher" in scores and scores["teacher"].shape == scores["student"].shape
    if comparable and labels is not None and not findings and not is_trained(distiller):
        findings += teacher_findings(scores["teacher"], labels, running, images)
    findings += _value_findings(distiller.student, running, images, networks)
    findings += _score_findings(scores)
    findings += _projection_findings(distiller, batch)
    findings += _auxiliary_findings(distiller, batch)
    findings += _batch_findings(distiller, int(counted.sum()))
    findings += _term_findings("student", terms, rehearsed)
    findings += _untaught("student", distiller.student, rehearsed)
    if rehearsal.head_terms:
        findings += _term_findings("teacher's head", head_terms, rehearsal.head_terms)
        findings += _untaught("teacher's head", distiller.teacher_head, rehearsal.head_terms)
    agreement = None
    if comparable:
        agree = scores["teacher"].argmax(1) == scores["student"].argmax(1)
        agreement = float(agree[counted].mean())
    return CheckReport(
        warnings=tuple(findings),
        image_shape=images.shape[1:],
        image_range=(float(images.min()), float(images.max())),
        images=len(images),
        rows=len(images) * distiller.views.num_views,
        replicas=distiller.distribute_strategy.num_replicas_in_sync,
        steps_per_epoch=steps_per_epoch,
        learning_rate=float(keras.ops.convert_to_numpy(distiller.optimizer.learning_rate)),
        networks=networks,
        agreement=agreement,
        terms=terms,
        loss=loss,
        gradient=gradient,
        head_terms=head_terms,
    )


def warn_of_values(distiller: Steps, x: Any) -> bool:
    """Warns where the values of the first images do not fit; False where none could be read."""
    batch = first_batch(x)
    if batch is None:
        return False
    inputs = Inputs.of(batch)
    teacher = distiller.teacher if inputs.teacher is None else None
    for finding in value_findings(np.asarray(inputs.images), distiller.student, teacher).values():
        warnings.warn(finding, stacklevel=3)
    return True


def _plain_scores(batch: Batch) -> dict[str, np.ndarray]:
    """The logits of the plain rows in float64, by part."""
    return {
        part: np.asarray(batch.select(outputs["logits"], "plain"), "float64")
        for part, outputs in (("teacher", batch.teacher), ("student", batch.student))
        if "logits" in outputs
    }


def _networks(
    distiller: Steps,
    inputs: Inputs,
    images: np.ndarray,
    scores: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    counted: np.ndarray,
) -> tuple[NetworkFacts, ...]:
    """Facts on the teacher, if one runs or was stored, and on the student."""
    student, teacher = distiller.student, distiller.teacher
    facts = [
        _facts(
            "student",
            student,
            compute_dtypes(flat_layers(student)),
            images,
            scores,
            labels,
            counted,
        )
    ]
    if inputs.teacher is not None:
        facts.insert(0, _facts("stored teacher", None, [], images, scores, labels, counted))
    elif teacher is not None:
        dtypes = teacher.compute_dtypes
        facts.insert(0, _facts("teacher", teacher.model, dtypes, images, scores, labels, counted))
        if teacher.preprocessing is not None:
            facts[0] = dataclasses.replace(facts[0], expects="preprocessing", seen=None)
    return tuple(facts)


def _facts(
    part: str,
    network: keras.Model | None,
    dtypes: Sequence[str],
    images: np.ndarray,
    scores: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    counted: np.ndarray,
) -> NetworkFacts:
    logits = scores.get(part.split()[-1])
    known = np.zeros(len(images), bool) if labels is None else labels >= 0
    accuracy = None
    if logits is not None and logits.shape == scores["student"].shape and known.any():
        accuracy = float((logits.argmax(1) == labels)[known].mean())
    layer = normalization_of(network)
    return NetworkFacts(
        part=part,
        name="" if network is None else network.name,
        precisions=tuple(dtypes),
        expects=_EXPECTS[takes_raw_images(network)],
        standardizes=standardizes(layer),
        seen=None if layer is None else _mean_and_std(np.asarray(layer(images), "float64")),
        accuracy=accuracy,
        entropy=None if logits is None else _entropy(logits[counted]),
        classes=None if logits is None else logits.shape[1],
    )


def _mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(images.mean((0, 1, 2)).tolist()), tuple(images.std((0, 1, 2)).tolist())


def _entropy(logits: np.ndarray) -> float:
    """Mean entropy of the class distributions, in nats."""
    logs = tf.nn.log_softmax(logits)
    return -float(tf.reduce_mean(tf.reduce_sum(tf.exp(logs) * logs, axis=1)))


def _terms(rehearsed: Sequence[RehearsedTerm]) -> tuple[tuple[TermFacts, ...], float, float]:
    """Facts on each term, the loss, and the norm of its gradient."""
    products = np.zeros((len(rehearsed), len(rehearsed)))  # of each gradient with each
    for gradients in zip(*(term.gradient for term in rehearsed), strict=True):
        size = max((g.size for g in gradients if g is not None), default=0)
        rows = np.stack([np.zeros(size) if g is None else g.ravel() for g in gradients])
        products += np.matmul(rows, rows.T, dtype="float64")
    norms, along = np.sqrt(products.diagonal()), products.sum(axis=1)
    whole = float(np.sqrt(max(products.sum(), 0)))
    terms = tuple(
        TermFacts(
            name=term.name,
            value=term.mean,
            weight=term.weight,
            rows=term.count,
            gradient=float(norm),
            cosine=float(dot / (norm * whole)) if norm * whole > 0 else 0.0,
        )
        for term, norm, dot in zip(rehearsed, norms, along, strict=True)
    )
    return terms, sum(term.weight * term.value for term in terms), whole


def _unusable(images: np.ndarray) -> Iterator[str]:
    if not np.isfinite(images.astype("float32")).all():
        yield "Some of these images hold NaN or infinite values: mend them first."


def _value_findings(
    student: keras.Model,
    teacher: FrozenTeacher | None,
    images: np.ndarray,
    networks: Sequence[NetworkFacts],
) -> Iterator[str]:
    """Values that a network does not expect, or that its own constants do not normalise."""
    findings = value_findings(images, student, teacher)
    yield from findings.values()
    for facts in networks:
        if facts.part in findings or not facts.standardizes or facts.seen is None:
            continue
        if len(images) >= _FEW_FOR_STATISTICS and not _standardized(*facts.seen):
            yield (
                f"The {facts.part} {facts.name!r} turns these images into channels of mean "
                f"{_listed(facts.seen[0])} and deviation {_listed(facts.seen[1])}, where its "
                "constants should give about 0 and 1: they are those of other images, or mean and "
                "deviation are exchanged; build it with `data.info`, unless it was trained so."
            )


def _standardized(means: Sequence[float], deviations: Sequence[float]) -> bool:
    """Whether channels have about mean 0 and deviation 1; exchanged constants give 0.5 and 0.5."""
    return max(map(abs, means)) <= 0.4 and all(0.55 <= std <= 1.8 for std in deviations)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2g}" for value in values)


def _score_findings(scores: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Class scores that are no logits."""
    for part, logits in scores.items():
        if not np.isfinite(logits).all():
            yield (
                f"The {part} gives NaN or infinite logits for this batch: look for overflow in "
                "half precision, and for NaN in images and weights."
            )
        elif len(logits) > 1 and are_probabilities(tf.constant(logits)):
            yield (
                f"The {part} returns probabilities, and logits are needed: build it without the "
                "softmax (`classifier_activation=None` in `keras.applications`)."
            )
        elif part == "teacher" and logits.size > 2 and 0 <= logits.min() < logits.max() <= 1:
            yield (
                "The teacher's scores all lie in 0..1, as of a sigmoid, and logits are needed: "
                "build it without."
            )


def _projection_findings(distiller: Steps, batch: Batch) -> Iterator[str]:
    """Projections that point one way: those of a head that was not trained to tell images apart."""
    read = any("projection" in objective.teacher_outputs for objective in distiller.objectives)
    if not read or "projection" not in batch.teacher:
        return
    plain = batch.select(batch.teacher["projection"], "plain")
    cosines = np.asarray(cosine_similarity(plain, plain), "float64")
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    if others.size and others.mean() > _ONE_WAY:
        yield (
            "The teacher's projections of different images point one way (mean cosine "
            f"{others.mean():.2f}), as of a head that nobody has trained: train it with "
            "`presets.sskd_pretext()`."
        )


def _auxiliary_findings(distiller: Steps, batch: Batch) -> Iterator[str]:
    """Auxiliary classifiers of the teacher that tell neither class nor view."""
    if batch.labels is None or not any(
        "auxiliary_1" in objective.teacher_outputs for objective in distiller.objectives
    ):
        return
    joint = np.asarray(joint_labels(batch.labels_of("plain"), batch.num_views))
    counted = np.asarray(batch.weights_of("all", labeled=True)) > 0
    answers = {name: np.asarray(batch.teacher[name]) for name in auxiliary_names(batch.teacher)}
    untrained = [
        name
        for name, logits in answers.items()
        if is_chance(logits.argmax(axis=1)[counted], joint[counted])
    ]
    if untrained:
        yield (
            f"The teacher's {', '.join(untrained)} tell class and view of these rows no better "
            "than chance: train its auxiliary classifiers with `presets.hsakd_teacher()`."
        )


def _batch_findings(distiller: Steps, images: int) -> Iterator[str]:
    """A batch that does not fit what is done with it."""
    comparing = [objective.name for objective in distiller.objectives if objective.compares_images]
    if comparing and images < _FEW_IMAGES:
        yield (
            f"`{comparing[0]}` compares each view with the images of the batch, and {images} "
            "tell it little (1 nothing): use a larger batch; the papers have 64."
        )


def _term_findings(
    learner: str, terms: Sequence[TermFacts], rehearsed: Sequence[RehearsedTerm]
) -> Iterator[str]:
    """Terms that teach nothing."""
    for term, how in zip(terms, rehearsed, strict=True):
        if not (np.isfinite(term.value) and np.isfinite(term.gradient)):
            yield f"`{term.name}` or its gradient is NaN or infinite on this batch."
        elif term.gradient == 0:
            yield f"`{term.name}` has no gradient on the {learner}: {_why(how)}."


def _why(term: RehearsedTerm) -> str:
    if term.weight == 0:
        return "its weight is 0"
    if term.count == 0:
        return "no row of this batch counts for it (labels, weights, `keep_wrong`)"
    if all(gradient is None for gradient in term.gradient):
        return "what it reads depends on no trainable variable"
    return "all rows of this batch are at its minimum, or a layer is dead or saturated"


def _untaught(
    learner: str, network: keras.Model, rehearsed: Sequence[RehearsedTerm]
) -> Iterator[str]:
    """Trainable variables that nothing teaches."""
    by_variable = zip(*(term.gradient for term in rehearsed), strict=True)
    paths = [
        variable.path
        for variable, gradients in zip(network.trainable_variables, by_variable, strict=True)
        if all(gradient is None for gradient in gradients)
    ]
    if paths:
        yield (
            f"{len(paths)} trainable variables of the {learner} are reached by no term and stay "
            f"as they are: {', '.join(paths[:3])}{', ...' if paths[3:] else ''}."
        )
