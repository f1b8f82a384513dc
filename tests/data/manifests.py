"""Manifests as their format is described, written without the code that writes them."""

import hashlib
import json
import struct

import numpy as np

from data.image_bytes import png
from data.photo_folders import write
from keras_ssd.data.mining.pools import open_pool


def sha256(image):
    size = struct.pack("<II", *image.shape[:2])
    return hashlib.sha256(size + image.tobytes()).hexdigest()


def write_manifest(path, records, *, resize=None, names=("a", "b"), **changed):
    """A manifest of all records, byte by byte as the format is described."""
    classes = len(names) if names else 2
    labels = sorted(i % classes for i in range(len(records)))
    rows = [
        {"best_match": None, "best_similarity": None, "class": label, "id": record.id}
        | {"rank": rank, "score": 0.5, "sha256": sha256(record.image), "source": record.source}
        for rank, (label, record) in enumerate(zip(labels, records, strict=True))
    ]
    unseen = dict.fromkeys(("non_finite", "below_min_score", "duplicates", "not_in_top_k"), 0)
    header = {
        "schema": 1,
        "scorer": "teacher",
        "scorer_digest": "0" * 64,
        "num_classes": classes,
        "class_names": names and list(names),
        "k": 9,
        "min_score": 0.0,
        "temperature": 1.0,
        "assign": "predicted",
        "classes_per_image": 1,
        "preprocessing": {"resize": resize},
        "pool_name": "pool",
        "evaluation_name": None,
        "detectors": {},
        "counts": {"seen": len(rows), "kept": len(rows), **unseen},
        "per_class": np.bincount(labels, minlength=classes).tolist(),
        "unreadable": 0,
    } | changed
    lines = [json.dumps(line, sort_keys=True) + "\n" for line in (header, *rows)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def photos(folder, values=range(100, 120), name="photos", shape=(4, 4, 3)):
    """A folder of PNG files, each of one value, as a pool."""
    write(folder / name, {f"{i % 3}/{i}.png": png(i, shape) for i in values})
    return open_pool(folder / name)
