"""Images a second that the input pipeline gives, against what a step takes."""

from __future__ import annotations

import os
import time

from contestants import BFLOAT16, FLOAT32, IMAGES, SMALL, Setting, step
from timing import median, turns

import keras_ssd as ssd

GOAL = 5


def measure(full: bool) -> dict[str, dict]:
    """The pipeline of real images where there are some, of digits otherwise (full: more turns)."""
    folder = os.environ.get("KERAS_SSD_DATA")
    name = "digits" if folder is None else "cifar100"
    data_dir = None if folder is None else os.path.join(folder, "tfds")
    train = ssd.data.load(name, IMAGES, data_dir=data_dir).train
    given = median([_images_a_second(train) for _ in range(9 if full else 3)])
    figures: dict[str, dict] = {f"{name}, images a second": {"given": given}}
    for preset in ("labels_only", "sskd"):
        for precision in (FLOAT32, BFLOAT16):
            contestant = step(Setting(SMALL, precision, preset=preset))
            taken = IMAGES / median(turns({"step": contestant}, 5)["step"])
            figures[f"{name}, {preset} on {' -> '.join(SMALL)}, {precision}"] = {
                "given / taken": round(given / taken, 1),
                "taken": round(taken, 1),
                "goal": GOAL,
            }
    return figures


def _images_a_second(train: object) -> float:
    start, images = time.perf_counter(), 0
    for batch, _ in train:
        images += len(batch)
    return images / (time.perf_counter() - start)
