"""Images a second that the input pipeline gives, against what a step takes."""

from __future__ import annotations

import os
import time

import tensorflow as tf
from contestants import BFLOAT16, FLOAT32, IMAGES, SMALL, Setting, step
from timing import median, turns

import keras_ssd as ssd

GOAL = 5


def measure(full: bool) -> dict[str, dict]:
    """The pipeline of CIFAR-100 where it is, of digits otherwise (full: more turns).

    Both run alone: together they share the processor.
    """
    folder = os.environ.get("KERAS_SSD_DATA")
    name = "digits" if folder is None else "cifar100"
    data = ssd.data.load(name, IMAGES, data_dir=folder and os.path.join(folder, "tfds"))
    given = median([_images_a_second(data.train) for _ in range(9 if full else 3)])
    figures: dict[str, dict] = {f"{name}, images a second": {"given": given}}
    for preset in ("labels_only", "sskd"):
        for precision in (FLOAT32, BFLOAT16):
            shape = data.info.input_shape
            setting = Setting(SMALL, precision, preset=preset, input_shape=shape)
            taken = IMAGES / median(turns({"step": step(setting)}, 5)["step"])
            figures[f"{name}, {preset} on {' -> '.join(SMALL)}, {precision}"] = {
                "times what a step takes": round(given / taken, 1),
                "taken": round(taken, 1),
                "goal, at least": GOAL,
            }
    return figures


def _images_a_second(train: tf.data.Dataset) -> float:
    start, images = time.perf_counter(), 0
    for batch, _ in train:
        images += len(batch)
    return images / (time.perf_counter() - start)
