"""What a folded bfloat16 teacher costs in quality: its own answers, and the student that it makes.

Needs real images and published teachers: KERAS_SSD_DATA names a folder with `tfds/cifar100` and
`teachers/resnet20.pth`, `teachers/resnet56.pth`.
"""

from __future__ import annotations

import os
import pathlib

import keras
import numpy as np
import tensorflow as tf
from contestants import BFLOAT16, IMAGES, optimizer

import keras_ssd as ssd

TEACHERS = ("resnet56", "resnet20")  # the students' is the last one
STUDENT = "resnet8"
EPOCHS, DROPS, PRETEXT_EPOCHS, SEEDS = 8, (5, 6, 7), 2, 3
HELD_OUT = 0.75


def measure(full: bool) -> dict[str, dict]:
    """Answers on the test split; accuracy of students, same seeds (full: twice the seeds)."""
    if "KERAS_SSD_DATA" not in os.environ:
        return {"quality": {"skipped": "KERAS_SSD_DATA names no folder of real images"}}
    folder = pathlib.Path(os.environ["KERAS_SSD_DATA"])
    data = ssd.data.load("cifar100", IMAGES, validation=HELD_OUT, data_dir=folder / "tfds")
    networks = {}
    for name in TEACHERS:
        networks[name] = ssd.models.build(name, data.info)
        ssd.checkpoints.load_torch_weights(networks[name], folder / "teachers" / f"{name}.pth")
    figures = {f"{name}, test split": _answers(n, data.test) for name, n in networks.items()}
    teacher = _with_trained_head(networks[TEACHERS[-1]], data)
    frozen = {"float32": ssd.freeze(teacher), "bfloat16": ssd.freeze(teacher, dtype="bfloat16")}
    for dtype, one in frozen.items():
        seeds = [_student_accuracy(one, data, seed) for seed in range(SEEDS * (1 + full))]
        images = data.info.counts["train"]
        name = f"{STUDENT} by SSKD from {TEACHERS[-1]} in {dtype}, {images} images, {EPOCHS} epochs"
        figures[name] = {
            "top-1 %": round(float(np.mean(seeds)), 2),
            "standard deviation": round(float(np.std(seeds, ddof=1)), 2),
            "seeds": seeds,
        }
    return figures


def _answers(network: keras.Model, test: tf.data.Dataset) -> dict[str, float]:
    """The folded bfloat16 teacher's answers beside those of the model in float32."""
    plain = tf.function(lambda images: network(images, training=False))
    half = tf.function(ssd.freeze(network, dtype="bfloat16"))
    labels, logits, halves = [], [], []
    for images, y in test:
        labels.append(y)
        logits.append(plain(images))
        halves.append(half(images)["logits"])
    labels, logits, halves = (np.concatenate(parts) for parts in (labels, logits, halves))
    classes = np.argmax(logits, -1), np.argmax(halves, -1)
    divergence = ssd.losses.kl_divergence(logits, halves, temperature=1.0)
    return {
        "top-1 % float32": round(100 * float(np.mean(classes[0] == labels)), 2),
        "top-1 % bfloat16": round(100 * float(np.mean(classes[1] == labels)), 2),
        "agreement %": round(100 * float(np.mean(classes[0] == classes[1])), 2),
        "KL, nats": float(f"{np.mean(divergence):.2g}"),
    }


def _with_trained_head(teacher: keras.Model, data: ssd.data.Splits) -> keras.Model:
    keras.utils.set_random_seed(0)
    network = ssd.with_projection(teacher, backbone="frozen")
    distiller = ssd.Distiller(student=network, **ssd.presets.sskd_pretext())
    distiller.compile(optimizer=optimizer(0.05))
    distiller.fit(data.train, epochs=PRETEXT_EPOCHS, verbose=0)
    return network


def _student_accuracy(teacher: ssd.FrozenTeacher, data: ssd.data.Splits, seed: int) -> float:
    keras.utils.set_random_seed(seed)
    student = ssd.with_projection(ssd.models.build(STUDENT, data.info, dtype=BFLOAT16))
    distiller = ssd.Distiller(teacher, student, **ssd.presets.sskd(), seed=seed)
    rate = ssd.schedules.steps_at(0.05, epochs=DROPS, steps_per_epoch=len(data.train))
    distiller.compile(optimizer=optimizer(rate), metrics=["accuracy"])
    distiller.fit(data.train, epochs=EPOCHS, verbose=0)
    return round(100 * distiller.evaluate(data.test, verbose=0, return_dict=True)["accuracy"], 2)
