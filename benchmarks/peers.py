"""The SSKD step against `keras.distillation` and against the published step in PyTorch."""

from __future__ import annotations

import importlib.util

import keras
import tensorflow as tf
from contestants import BFLOAT16, FLOAT32, SMALL, WIDE, Setting, peer, step
from timing import ratio, turns

GOALS = {  # precision: (keras.distillation, PyTorch)
    FLOAT32: (0.60, 0.65),
    BFLOAT16: (0.30, 0.42),
}


def measure(full: bool) -> dict[str, dict]:
    """Both pairs in both precisions, on our networks the small one (full: both, more turns)."""
    figures = {}
    for pair in (SMALL, WIDE):
        for precision in (FLOAT32, BFLOAT16):
            rounds = (7 if pair == SMALL else 3) * (3 if full else 1)
            ours_too = full or pair == SMALL
            figures.update(_against_peers(Setting(pair, precision), rounds, ours_too))
    return figures


def _against_peers(setting: Setting, rounds: int, on_our_networks: bool) -> dict[str, dict]:
    keras.backend.clear_session()
    plain = Setting(setting.pair, setting.precision, fused=False)
    contestants = {
        "ours": step(setting),
        "keras.distillation": peer(plain),
    }
    if on_our_networks:
        contestants["keras.distillation on our networks"] = peer(setting)
    without = _why_not_torch()
    if not without:
        from published import published_step

        half = setting.precision.removeprefix("mixed_")
        contestants["published, PyTorch"] = published_step(*setting.pair, half)
    seconds = turns(contestants, rounds)
    keras_goal, torch_goal = GOALS[setting.precision]
    goals = {"keras.distillation": keras_goal, "published, PyTorch": torch_goal}
    name = f"{' -> '.join(setting.pair)}, {setting.precision}"
    figures = {
        f"{name} / {other}": ratio(seconds["ours"], seconds[other], goals.get(other))
        for other in contestants
        if other != "ours"
    }
    if without:
        figures[f"{name} / published, PyTorch"] = {"skipped": without}
    return figures


def _why_not_torch() -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    on_gpu = tf.config.list_physical_devices("GPU")
    return "written for a CPU, and TensorFlow runs on a GPU here" if on_gpu else ""
