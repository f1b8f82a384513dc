"""What an SSKD step costs whose teacher is stored, over the student alone and the live teacher.

A turn is a pass over some batches as in `fit`, reading included. Images, the teacher's outputs and
the draws of the views come from `data.cached_teacher`, whose folder is on the disk (and, as after
the first epoch of a run, in the system's file cache). The student alone makes views of the same
kind and learns the labels of all rows: forward, backward, update, and no other term.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from contestants import BFLOAT16, IMAGES, SMALL, WIDE, Setting, optimizer
from timing import Contestant, ratio, turns

import keras_ssd as ssd

GOAL = 1.05
BATCHES = 8  # of a turn, which starts an iterator; an epoch does so once
AUGMENTATIONS = 2


def measure(full: bool) -> dict[str, dict]:
    """Both pairs in the precision of long runs (full: twice the turns)."""
    figures = {}
    for pair in (SMALL, WIDE):
        keras.backend.clear_session()
        with tempfile.TemporaryDirectory() as folder:
            seconds = turns(_contestants(Setting(pair, BFLOAT16), folder), 30 if full else 15)
        a_step = {name: [turn / BATCHES for turn in some] for name, some in seconds.items()}
        name = f"{' -> '.join(pair)}, {BFLOAT16}, sskd, stored teacher"
        figures[f"{name} / student alone"] = ratio(a_step["stored"], a_step["alone"], GOAL)
        figures[f"{name} / live teacher"] = ratio(a_step["stored"], a_step["live"])
    return figures


def _contestants(setting: Setting, folder: str) -> dict[str, Contestant]:
    data = _images(pathlib.Path(folder, "images"), setting)
    cached = ssd.data.cached_teacher(
        setting.teacher(),
        data,
        pathlib.Path(folder, "teacher"),
        views=setting.options["views"],
        augmentations=AUGMENTATIONS,
        verbose=0,
    )
    return {
        "stored": _pass(_distiller(setting, None), cached.train),
        "alone": _pass(_student_alone(setting), data.train),
        "live": _pass(_distiller(setting, setting.teacher()), data.train),
    }


def _images(folder: pathlib.Path, setting: Setting) -> ssd.data.Splits:
    """Images of chance in a folder, as `load` takes them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", BATCHES * setting.images), ("test", 10)):
        for number in range(count):
            path = folder / split / f"{number % 10}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, setting.input_shape).astype("uint8")
            path.write_bytes(tf.io.encode_png(pixels).numpy())
    return ssd.data.load(folder, IMAGES, validation=0)


def _distiller(setting: Setting, teacher: ssd.FrozenTeacher | None) -> Callable[[Any], tf.Tensor]:
    distiller = ssd.Distiller(teacher, setting.student(), **setting.options)
    distiller.compile(optimizer=optimizer())
    return lambda batch: distiller.train_step(batch)["loss"]


def _student_alone(setting: Setting) -> Callable[[Any], tf.Tensor]:
    views = setting.options["views"]
    student = dataclasses.replace(setting, preset="labels_only").student()
    sgd, variables = optimizer(), student.trainable_variables
    sgd.build(variables)

    def step(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        images, labels = batch
        rows = views(images, tf.stack([0, tf.cast(sgd.iterations.value, tf.int32)]))
        with tf.GradientTape() as tape:
            logits = tf.cast(student(rows, training=True), tf.float32)
            losses = ssd.losses.cross_entropy(tf.repeat(labels, views.num_views), logits)
            loss = tf.reduce_mean(losses)
        sgd.apply(tape.gradient(loss, variables), variables)
        return loss

    return step


def _pass(step: Callable[[Any], tf.Tensor], data: tf.data.Dataset) -> Contestant:
    """All batches of a data set, one after the other."""
    function = tf.function(step, reduce_retracing=True)

    def run() -> None:
        for batch in data:
            loss = function(batch)
        loss.numpy()

    return run
