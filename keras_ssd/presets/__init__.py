"""Presets: each method as keyword arguments of `Distiller`, every number an argument.

`Distiller(teacher=t, student=s, **presets.sskd())` and spelling the objectives out are one thing.
"""

from keras_ssd.presets.combined import combined, combined_teacher
from keras_ssd.presets.ega import ega
from keras_ssd.presets.hsakd import hsakd, hsakd_online, hsakd_teacher
from keras_ssd.presets.labels import kd, labels_only
from keras_ssd.presets.sskd import sskd, sskd_pretext
from keras_ssd.presets.ssld import ssld

__all__ = [
    "combined",
    "combined_teacher",
    "ega",
    "hsakd",
    "hsakd_online",
    "hsakd_teacher",
    "kd",
    "labels_only",
    "sskd",
    "sskd_pretext",
    "ssld",
]
