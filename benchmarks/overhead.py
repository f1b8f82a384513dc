"""How much a training step costs beyond its teacher's forward and its student's update."""

from __future__ import annotations

import keras
from contestants import BFLOAT16, FLOAT32, SMALL, WIDE, Setting, parts, step
from timing import ratio, turns

PRESETS = ("labels_only", "kd", "sskd_pretext", "sskd")
PRECISIONS = (FLOAT32, BFLOAT16)
GOAL = 1.03


def measure(full: bool) -> dict[str, dict]:
    """Every preset on the small pair; SSKD in bfloat16 on the wide one (full: every preset)."""
    settings = [Setting(SMALL, p, preset=name) for name in PRESETS for p in PRECISIONS]
    if full:
        settings += [Setting(WIDE, p, preset=name) for name in PRESETS for p in PRECISIONS]
    else:
        settings.append(Setting(WIDE, BFLOAT16))
    figures = {}
    for setting in settings:
        keras.backend.clear_session()
        rounds = 7 if setting.pair == WIDE else 15
        seconds = turns({"ours": step(setting), "parts": parts(setting)}, rounds)
        name = f"{' -> '.join(setting.pair)}, {setting.precision}, {setting.preset}"
        figures[name] = ratio(seconds["ours"], seconds["parts"], GOAL)
    return figures
