"""The cost of auxiliary classifiers beyond their networks, and of building the largest ones."""

from __future__ import annotations

import time

import keras
from contestants import BFLOAT16, FLOAT32, SMALL, WIDE, Setting, parts, step
from timing import ratio, turns

import keras_ssd as ssd

GOAL = 1.05
BUILD_GOAL = 20  # seconds


def measure(full: bool) -> dict[str, dict]:
    """HSAKD on the wide pair, the combination on the small one (full: all pairs)."""
    settings = [
        Setting(WIDE, BFLOAT16, preset="hsakd"),
        Setting(SMALL, BFLOAT16, preset="combined"),
    ]
    if full:
        settings += [
            Setting(WIDE, FLOAT32, preset="hsakd"),
            Setting(WIDE, BFLOAT16, preset="combined"),
            Setting(SMALL, FLOAT32, preset="hsakd"),
            Setting(SMALL, BFLOAT16, preset="hsakd"),
            Setting(SMALL, FLOAT32, preset="combined"),
        ]
    figures = {}
    for setting in settings:
        keras.backend.clear_session()
        seconds = turns({"ours": step(setting), "parts": parts(setting)}, rounds=5)
        name = f"{' -> '.join(setting.pair)}, {setting.precision}, {setting.preset}"
        figures[name] = ratio(seconds["ours"], seconds["parts"], GOAL)
    return figures | _largest()


def _largest() -> dict[str, dict]:
    start = time.perf_counter()
    network = ssd.models.build("resnet50", num_classes=100, input_shape=(32, 32, 3))
    network = ssd.with_auxiliary_classifiers(network)
    seconds = round(time.perf_counter() - start, 1)
    parameters = sum(weight.size for weight in map(keras.ops.convert_to_numpy, network.weights))
    return {
        "building resnet50 with auxiliary classifiers": {
            "parameters and statistics": f"{parameters:,}",
            "seconds": seconds,
            "goal": f"{BUILD_GOAL} s, {'met' if seconds <= BUILD_GOAL else 'missed'}",
        }
    }
