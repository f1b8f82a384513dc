"""How much a training step costs beyond its teacher's forward and its student's update."""

from __future__ import annotations

import keras
from contestants import BFLOAT16, FLOAT32, SMALL, WIDE, Setting, parts, step
from timing import ratio, turns

PRESETS = ("labels_only", "kd", "sskd_pretext", "sskd")
GOAL = 1.03


def measure(full: bool) -> dict[str, dict]:
    """Every preset on the small pair, SSKD on the wide one (full: every preset there, too)."""
    settings = [Setting(SMALL, p, preset=name) for name in PRESETS for p in (FLOAT32, BFLOAT16)]
    wide = [(name, p) for name in PRESETS for p in (FLOAT32, BFLOAT16)]
    settings += [Setting(WIDE, p, preset=n) for n, p in (wide if full else [("sskd", BFLOAT16)])]
    figures = {}
    for setting in settings:
        keras.backend.clear_session()
        wide_pair = setting.pair == WIDE
        seconds = turns({"ours": step(setting), "parts": parts(setting)}, 5 if wide_pair else 9)
        name = f"{' -> '.join(setting.pair)}, {setting.precision}, {setting.preset}"
        figures[name] = ratio(seconds["ours"], seconds["parts"], GOAL)
    return figures
