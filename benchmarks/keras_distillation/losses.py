"""The logit losses against closed forms, and what a student learns from each of them."""

from __future__ import annotations

import statistics
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.distillation import Distiller as PeerDistiller
from keras.distillation import LogitsDistillation

import keras_ssd as ssd
from keras_distillation.networks import CROSS_ENTROPY, TEMPERATURE, Table, divergence
from keras_ssd.objectives import HardLabels, SoftLabels

SEEDS, EPOCHS = (0, 1, 2), 12
COLUMNS = (
    "keras.distillation, default",
    "`loss=KLDivergence()`",
    "keras_ssd",
    "closed form (NumPy)",
)


def measure() -> list[Table]:
    """Values and gradients, other losses, extremes, and students."""
    return [_values(), _other_losses(), _extremes(), _students()]


def _kl(teacher: np.ndarray, student: np.ndarray, temperature: float = TEMPERATURE) -> float:
    """Mean over rows of `T^2 KL`, in float64."""
    p, q = _log_softmax(teacher / temperature), _log_softmax(student / temperature)
    return float(temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype("float64")
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _gradient_of_kl(
    teacher: np.ndarray, student: np.ndarray, temperature: float = TEMPERATURE
) -> np.ndarray:
    p, q = (np.exp(_log_softmax(x / temperature)) for x in (teacher, student))
    return temperature * (q - p) / len(teacher)


def _ours(teacher: np.ndarray, student: Any, temperature: float = TEMPERATURE) -> tf.Tensor:
    return tf.reduce_mean(ssd.losses.kl_divergence(teacher, student, temperature))


CONTESTANTS = (
    LogitsDistillation(TEMPERATURE).compute_loss,
    divergence().compute_loss,
    _ours,
)


def _random(classes: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, 256, classes)).astype("float32")
    return scale * teacher, student


def _gradient(loss: Any, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student)
    return tape.gradient(value, student).numpy()


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def _values() -> Table:
    one = np.array([[10.0, 0.0, -3.0]], "float32"), np.array([[1.0, 2.0, 3.0]], "float32")
    ten, hundred = _random(10, 4.0), _random(100, 4.0)
    constant = ten[0], np.full_like(ten[0], 100.0)

    def row(name: str, pair: tuple[np.ndarray, np.ndarray]) -> tuple[object, ...]:
        return name, *(float(loss(*pair)) for loss in CONTESTANTS), _kl(*pair)

    def gradients(pair: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
        return [*(_gradient(loss, *pair) for loss in CONTESTANTS), _gradient_of_kl(*pair)]

    of_ten, of_hundred = gradients(ten), gradients(hundred)
    rows = [
        row("teacher (10, 0, -3), student (1, 2, 3)", one),
        row("256 random rows, 10 classes, deviation 4 (teacher) and 1 (student)", ten),
        row("... after adding 5 to every student logit", (ten[0], ten[1] + 5)),
        row("... student equal to the teacher", (ten[0], ten[0])),
        row("... constant student (all logits 100)", constant),
        ("... share of gradient entries that are 0", *(float((g == 0).mean()) for g in of_ten)),
        ("... cosine with the true gradient", *(_cosine(g, of_ten[-1]) for g in of_ten)),
        (
            "the same cosine, 100 classes",
            *(_cosine(g, of_hundred[-1]) for g in of_hundred),
        ),
    ]
    return Table("Distillation loss of logits, T = 3", COLUMNS, rows)


def _other_losses() -> Table:
    """Cross-entropies with the softened teacher: no T squared, as `keras.distillation` has it."""
    teacher, student = _random(10, 4.0)
    p = np.exp(_log_softmax(teacher / TEMPERATURE))
    log_q = _log_softmax(student / TEMPERATURE)
    right = float(-(p * log_q).sum(-1).mean())
    true = (np.exp(log_q) - p) / TEMPERATURE / len(teacher)
    forms = {
        '`loss="categorical_crossentropy"`': "categorical_crossentropy",
        "`loss=CategoricalCrossentropy(from_logits=True)`": keras.losses.CategoricalCrossentropy(
            from_logits=True
        ),
    }
    rows = []
    for name, form in forms.items():
        loss = LogitsDistillation(TEMPERATURE, loss=form).compute_loss
        cosine = _cosine(_gradient(loss, teacher, student), true)
        rows.append((name, float(loss(teacher, student)), right, cosine))
    columns = ("value", "cross-entropy with the softened teacher", "cosine with its gradient")
    return Table("Other losses of `LogitsDistillation`, the same 256 rows", columns, rows)


def _extremes() -> Table:
    teacher, student = (np.array([[s, -s]], "float32") for s in (100.0, -100.0))
    losses = (
        LogitsDistillation(4.0).compute_loss,
        LogitsDistillation(4.0, loss=keras.losses.KLDivergence()).compute_loss,
        lambda t, s: _ours(t, s, 4.0),
    )
    gradients = [_gradient(loss, teacher, student) for loss in losses]
    gradients.append(_gradient_of_kl(teacher, student, 4.0))
    sizes = [float(np.abs(gradient).max()) for gradient in gradients]
    rows = [
        ("value", *(float(loss(teacher, student)) for loss in losses), _kl(teacher, student, 4.0)),
        ("largest entry of the gradient", *sizes),
    ]
    return Table("Teacher (100, -100), student (-100, 100), T = 4", COLUMNS, rows)


def _students() -> Table:
    data = ssd.data.load("digits", batch_size=64, validation=0)
    arrays = {name: _arrays(getattr(data, name)) for name in ("train", "test")}
    accuracies: dict[str, list[float]] = {}
    for seed in SEEDS:
        teacher = _classifier(64, seed)
        _fit(teacher, arrays["train"], seed, loss=CROSS_ENTROPY)
        for name, model in {"teacher": teacher, **_distillers(teacher, seed)}.items():
            if name != "teacher":
                _fit(model, arrays["train"], seed, **_compiled(model))
            logits = getattr(model, "student", model).predict(arrays["test"][0], verbose=0)
            right = float((logits.argmax(-1) == arrays["test"][1]).mean())
            accuracies.setdefault(name, []).append(right)
        keras.backend.clear_session()
    rows = [
        (name, *(f"{value:.3f}" for value in values), _mean(values))
        for name, values in accuracies.items()
    ]
    columns = (*(f"seed {seed}" for seed in SEEDS), "mean +- standard deviation")
    return Table(f"Accuracy on 599 test digits after {EPOCHS} epochs", columns, rows)


def _arrays(data: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (
        np.concatenate(parts) for parts in zip(*data.as_numpy_iterator(), strict=True)
    )
    return images.astype("float32"), labels


def _classifier(width: int, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed + 100 * width)
    network = [layers.Rescaling(1 / 128, -1), layers.AveragePooling2D(2), layers.Flatten()]
    network += [layers.Dense(width, "relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((16, 16, 3)), *network])


def _distillers(teacher: keras.Model, seed: int) -> dict[str, keras.Model]:
    """Students with the same first weights."""
    default, instance = LogitsDistillation(TEMPERATURE), divergence()

    def of_keras(loss: LogitsDistillation, labels: float) -> keras.Model:
        student = _classifier(16, seed)
        return PeerDistiller(teacher, student, loss, student_loss_weight=labels)

    def of_ssd(*objectives: ssd.objectives.Objective) -> keras.Model:
        return ssd.Distiller(teacher, _classifier(16, seed), objectives)

    half = HardLabels(0.5), SoftLabels(TEMPERATURE, weight=0.5)
    return {
        "no labels: keras.distillation, default": of_keras(default, 0.0),
        "no labels: keras.distillation, `loss=KLDivergence()`": of_keras(instance, 0.0),
        "no labels: keras_ssd, `SoftLabels(3.0)`": of_ssd(SoftLabels(TEMPERATURE)),
        "half labels: keras.distillation, default": of_keras(default, 0.5),
        "half labels: keras.distillation, `loss=KLDivergence()`": of_keras(instance, 0.5),
        "half labels: keras_ssd": of_ssd(*half),
    }


def _compiled(model: keras.Model) -> dict[str, Any]:
    return {} if isinstance(model, ssd.Distiller) else {"loss": CROSS_ENTROPY}


def _fit(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray], seed: int, **compiled: Any
) -> None:
    """The same order of images for everyone."""
    model.compile(keras.optimizers.Adam(3e-3), **compiled)
    order = tf.data.Dataset.from_tensor_slices(data).shuffle(len(data[0]), seed=seed)
    model.fit(order.batch(64), epochs=EPOCHS, shuffle=False, verbose=0)


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} +- {statistics.stdev(values):.3f}"
