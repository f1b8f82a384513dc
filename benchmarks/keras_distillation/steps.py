"""How often the networks run, what that costs, and what an evaluation changes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from contestants import in_graph, with_keras_batch_norm
from timing import WARM_UP, Contestant

import keras_ssd as ssd
from keras_distillation.networks import (
    BOTH,
    CROSS_ENTROPY,
    IMAGES,
    LABELS,
    TEMPERATURE,
    Counter,
    SameFeatures,
    Table,
    divergence,
    evaluate,
    feature,
    network,
    ours,
    peer,
    shown,
    step,
    teacher_network,
)
from keras_ssd.objectives import HardLabels, SoftLabels

_LABELS, _LOGITS = HardLabels(0.5), SoftLabels(TEMPERATURE, weight=0.5)
_FEATURES = [SameFeatures("features_1", name=f"same_{i}", weight=0.5) for i in range(3)]
_OTHER = SameFeatures("features_2", name="other", weight=0.5)
KINDS = {  # name: (theirs, ours)
    "logits": (lambda: [divergence()], [_LABELS, _LOGITS]),
    "one feature": (lambda: [feature()], [_LABELS, _FEATURES[0]]),
    "logits, one feature": (
        lambda: [divergence(), feature()],
        [_LABELS, _LOGITS, _FEATURES[0]],
    ),
    "logits, two features": (
        lambda: [divergence(), feature(), feature("features_2")],
        [_LABELS, _LOGITS, _FEATURES[0], _OTHER],
    ),
    "three times the same feature": (
        lambda: [feature(), feature(), feature()],
        [_LABELS, *_FEATURES],
    ),
}
WITH_FEATURE = KINDS["logits, one feature"]
TURNS = 9
_THEIR_LOSSES = {
    "logits": lambda: [divergence()],
    "with a feature": lambda: [divergence(), feature("embedding")],
}
_OUR_LOSSES = {
    "logits": lambda: [_LABELS, _LOGITS],
    "with a feature": lambda: [_LABELS, _LOGITS, SameFeatures("embedding", weight=0.5)],
}


def measure() -> list[Table]:
    """Forwards, seconds and evaluations."""
    return [_forwards(), _seconds(), _evaluations()]


def _makers(kind: tuple[Callable[[], list], list]) -> tuple[Callable[..., Any], ...]:
    theirs, mine = kind
    return (lambda **options: peer(theirs(), **options)), (lambda **options: ours(mine, **options))


def _forwards() -> Table:
    rows = []
    for name, kind in KINDS.items():
        cells = []
        for make in _makers(kind):
            of_teacher, of_student = Counter(), Counter()
            model = make(
                teacher=teacher_network(first=of_teacher),
                student=network(first=of_student),
                compiled={"run_eagerly": True},
            )
            cells.append(_counts(model, of_teacher, of_student))
        rows.append((name, *(cells[0]), *(cells[1])))
    parts = ("train", "evaluate (student with training=True)", "predict")
    columns = [f"{who}: {part}" for who in BOTH for part in parts]
    return Table("Forwards a batch, teacher / student", columns, rows)


def _counts(model: keras.Model, of_teacher: Counter, of_student: Counter) -> list[str]:
    cells = []
    for run in (
        lambda: model.fit(IMAGES, LABELS, batch_size=12, verbose=0),
        lambda: evaluate(model),
        lambda: model.predict(IMAGES, batch_size=12, verbose=0),
    ):
        of_teacher.reset()
        of_student.reset()
        run()
        counts = f"{of_teacher.calls.numpy()} / {of_student.calls.numpy()}"
        cells.append(f"{counts} ({of_student.training_calls.numpy()})")
    cells[0], cells[2] = (cell.partition(" (")[0] for cell in (cells[0], cells[2]))
    return cells


def _seconds() -> Table:
    """A step with and without a feature loss; an evaluation and that of the student by itself."""
    images = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3)).astype("float32")
    labels = np.arange(len(images)) % 10
    batch = tf.constant(images[:64]), tf.constant(labels[:64])
    contestants = {}
    for who, kinds in zip(BOTH, (_THEIR_LOSSES, _OUR_LOSSES), strict=True):
        for kind, losses in kinds.items():
            make = peer if who == BOTH[0] else ours
            model = make(losses(), teacher=_residual("resnet14"), student=_residual("resnet8"))
            model.train_on_batch(*batch)  # builds
            contestants[f"{who}, {kind}"] = in_graph(model, batch)
        contestants[f"{who}, evaluate"] = _evaluation(model, images, labels)
    student = _residual("resnet8")
    student.compile(loss=CROSS_ENTROPY)
    contestants["student"] = _evaluation(student, images, labels)
    seconds = _processor_seconds(contestants)

    def ratios(one: str, other: str) -> list[float]:
        pairs = zip(seconds[one], seconds[other], strict=True)
        return [a / b for a, b in pairs]

    def row(name: str, *per_side: list[float]) -> tuple[object, ...]:
        texts = (f"{shown(statistics.median(r))} ({min(r):.2f} .. {max(r):.2f})" for r in per_side)
        return name, *texts

    rows = [
        row(
            "training step: with one feature loss more / logits alone",
            *(ratios(f"{who}, with a feature", f"{who}, logits") for who in BOTH),
        ),
        row(
            "evaluation of a distiller with a feature loss / of the student as a plain model",
            *(ratios(f"{who}, evaluate", "student") for who in BOTH),
        ),
    ]
    return Table(
        f"Processor time (resnet14 -> resnet8), median of the ratios of {TURNS} turns (range)",
        BOTH,
        rows,
    )


def _processor_seconds(contestants: dict[str, Contestant]) -> dict[str, list[float]]:
    """The processor's seconds of every turn, on which other processes have little influence."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(-WARM_UP, TURNS):
        for name, contestant in contestants.items():
            start = time.process_time()
            contestant()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def _residual(name: str) -> keras.Model:
    """A residual network with Keras' own batch normalisation and 64 features in `embedding`."""
    options = {"num_classes": 10, "input_shape": (32, 32, 3), "mean": [0.5] * 3, "std": [0.25] * 3}
    return with_keras_batch_norm(ssd.models.build(name, **options))


def _evaluation(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Contestant:
    return lambda: model.evaluate(images, labels, batch_size=64, verbose=0)


def _evaluations() -> Table:
    makers = _makers(WITH_FEATURE)
    rows: list[tuple[object, ...]] = [
        ("moving variance of the student, largest change in one evaluation", *map(_moved, makers)),
        ("... in 51 evaluations", *(_moved(make, 51) for make in makers)),
        ("loss of the 1st and of the 51st evaluation", *map(_drift, makers)),
        ("loss of three evaluations, student with dropout 0.5", *map(_with_dropout, makers)),
        ("updates of the moving mean in one training step", *map(_updates, makers)),
        ("the same, logits alone", *map(_updates, _makers(KINDS["logits"]))),
        ("loss of the labels shown after 8 + 4 images, minus the mean of the 12", *_uneven()),
    ]
    return Table("Evaluations and moving statistics (logits and one feature)", BOTH, rows)


def _moving(model: Any, name: str) -> np.ndarray:
    layer = next(
        each for each in model.student.layers if isinstance(each, keras.layers.BatchNormalization)
    )
    return getattr(layer, name).numpy()


def _moved(make: Callable[..., Any], times: int = 1) -> float:
    model = make()
    step(model)
    before = _moving(model, "moving_variance")
    for _ in range(times):
        evaluate(model)
    return float(np.abs(_moving(model, "moving_variance") - before).max())


def _drift(make: Callable[..., Any]) -> list[float]:
    model = make()
    step(model)
    losses = [evaluate(model)["loss"] for _ in range(51)]
    return [losses[0], losses[-1]]


def _with_dropout(make: Callable[..., Any]) -> list[float]:
    model = make(student=network(dropout=0.5))
    return [evaluate(model)["loss"] for _ in range(3)]


def _updates(make: Callable[..., Any]) -> float:
    """K in `1 - momentum^k`, the share of the batch's mean in the moving mean after a step."""
    once = network()
    once(IMAGES, training=True)
    by_one = next(w for w in once.weights if "moving_mean" in w.path).numpy()
    model = make(rate=0.0)
    step(model)
    share = float(np.median(_moving(model, "moving_mean") / by_one)) * (1 - 0.9)
    return float(np.log(1 - share) / np.log(0.9))


def _uneven() -> tuple[float, float]:
    """Training that moves nothing, in batches of 8 and 4; no batch normalisation."""
    shown_means = []
    for make, name in zip(_makers(KINDS["logits"]), ("student_loss", "hard_labels"), strict=True):
        model = make(rate=0.0, student=network(batch_norm=False))
        options = {"batch_size": 8, "shuffle": False, "verbose": 0}
        history = model.fit(IMAGES, LABELS, **options).history
        logits = model.student.predict(IMAGES, verbose=0)
        logits = logits["logits"] if isinstance(logits, dict) else logits
        shown_means.append(history[name][0] - float(CROSS_ENTROPY(LABELS, logits)))
    return shown_means[0], shown_means[1]
