"""`cached_teacher`: a teacher's outputs computed once, stored, and read ever after."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.arguments import check_count
from keras_ssd.data.cache.batched_teacher import BatchedTeacher
from keras_ssd.data.cache.building import Building
from keras_ssd.data.cache.forms import DTYPES, Form, form_of
from keras_ssd.data.cache.serving import Read, Stored, check_data, with_teacher
from keras_ssd.data.cache.store import SCHEMA, SHARD, Store
from keras_ssd.data.order import check_seed
from keras_ssd.data.splits import Splits
from keras_ssd.teacher import FrozenTeacher
from keras_ssd.views import Plain, Views


def cached_teacher(
    teacher: keras.Model | FrozenTeacher,
    data: Splits,
    folder: str | os.PathLike[str],
    *,
    views: Views | None = None,
    augmentations: int = 1,
    outputs: Sequence[str] | None = None,
    dtype: str = "float16",
    top_k: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    verbose: int = 1,
) -> Splits:
    """The same data sets, each training image with what a teacher says of its views.

    The teacher runs once, here, on k augmentations of each training image, and its outputs are
    stored. `fit` runs none after that: give the Distiller `teacher=None` and the same views.

        recipe = ssd.presets.sskd()
        cached = ssd.data.cached_teacher(
            teacher, data, "cache", views=recipe["views"], augmentations=4
        )
        distiller = ssd.Distiller(student=student, **recipe)
        distiller.fit(cached.train, epochs=240)

    Batches hold the images of `data.train` in the same order. With the outputs come the random
    numbers that the views are made of, so that the student sees the pixels that the teacher saw;
    a Distiller with other views refuses them. In each epoch an image has one of its k
    augmentations, in turn and beginning with one of its own: a function of seed, epoch and image
    alone, each equally often in k epochs. A live teacher sees new augmentations in every epoch; how
    many stored ones are enough is for you to measure.

    The folder receives a header and, for every 4,096 images, a file of each output in NumPy's own
    format (`[images, k, V, ...]`, without V where it is 1), with their SHA-256. The same call goes
    on where another one was interrupted; several processes that make it at the same time share the
    work, also on several hosts where the file system has locks (NFS version 4, Lustre with
    `flock`). Once all is there, files are read, compared with their SHA-256, and mapped into
    memory, and the teacher runs on one batch alone, which must come to what is stored of it.

    Args:
        teacher: A built Keras model, or a `FrozenTeacher` of one (with preprocessing, in half
            precision, `frozen_encoder`). It is run in inference mode.
        data: What `data.load` returns, after `few_shot` and `label_noise`.
        folder: Where the outputs are stored; it is made if need be.
        views: Those of the student; None for `Plain()`.
        augmentations: k, >= 1: how many are stored of each image. 1 where views are not random.
        outputs: Names of the outputs to store; None for all that the teacher has.
        dtype: `"float16"`, half the space with 3 to 4 digits, or `"float32"`, as they are.
        top_k: How many of the logits are stored, the largest; None for all. The others come back
            as equal numbers with the mass that they had together. So at temperature 1 the
            probabilities of the k classes are exact (but for `dtype`); at other temperatures all
            of them are wrong by what the others differ from one another.
        batch_size: Images that are run at once, >= 1, each with all its views. Other sizes give
            the same but for rounding.
        seed: Integer in [0, 2^32): chooses the augmentations, and with the epoch the one of k.
        verbose: 1 for the size and a progress bar, 0 for neither.

    Returns:
        `Splits`. An x of `train` is a dict of `image`, `index` (the place of the image as in
        `with_index`), `teacher` (float32 `[B, V, ...]` by output, `[B, ...]` where V is 1) and
        `draws` (float32 `[B, num_draws]` by the views' fingerprint). Validation and test stay as
        they are.

    Raises:
        TypeError: If `teacher` or its preprocessing is no Keras model or layer (a function cannot
            be told from another), or `data` or `views` are of another kind.
        ValueError: If the folder holds outputs of another teacher (by its fingerprint, or by what
            it says of a batch), other data, other views or other arguments; a file is not as it was
            written; what the teacher says of an image depends on the images beside it or on chance;
            its logits are probabilities; an output is infinite, NaN, or too large for float16; or
            an argument is out of range.
        OSError: If there is no room on the disk.
    """
    views = Plain() if views is None else views
    training = check_data("cached_teacher", data)._training
    _check(folder, views, augmentations, outputs, dtype, top_k, batch_size, verbose)
    check_seed(seed)
    batched = BatchedTeacher(teacher, views, data.info.input_shape, int(batch_size), outputs)
    forms = _forms(batched, dtype, top_k)
    header = _header(batched, data, views) | {
        "seed": int(seed),
        "augmentations": int(augmentations),
        "dtype": dtype,
        "top_k": None if top_k is None else int(top_k),
    }
    fields = {
        name + end: field for name, form in forms.items() for end, field in form.fields.items()
    }
    store = Store(folder, header, fields)
    draws = _draws(views, int(augmentations), len(training.rows), int(seed))
    building = Building(store, batched, forms, training, draws, int(batch_size))
    missing = store.missing()
    there = sorted(set(range(store.count)) - set(missing))
    arrays = store.all_arrays(there)
    for number in there[:1]:
        building.check_stored(number, arrays[number])
    if missing:
        _check_room(store, missing, header if verbose else None)
        building.fill(missing, verbose)
        arrays |= store.all_arrays(missing)
    stored = Stored(
        shapes=batched.shapes,
        read=_reader(training.rows, forms, [arrays[number] for number in range(store.count)]),
        draws={views.fingerprint: draws},
        augmentations=int(augmentations),
        seed=int(seed),
    )
    settings = f"augmentations={int(augmentations)}, seed={int(seed)}"
    return with_teacher(data, stored, f"cached_teacher({batched.name!r}, {settings})")


def _header(batched: BatchedTeacher, data: Splits, views: Views) -> dict[str, Any]:
    """What decides the outputs: labels and their noise do not."""
    rows = data._training.rows
    return {
        "schema": SCHEMA,
        "teacher_fingerprint": batched.fingerprint,
        "data": data.info.name,
        "data_fingerprint": data.info.fingerprint,
        "image_shape": list(data.info.input_shape),
        "images": len(rows),
        "rows": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        "views": [type(views).__name__, views.get_config()],
        "num_views": views.num_views,
        "outputs": {name: list(shape) for name, shape in batched.shapes.items()},
        "shard": SHARD,
    }


def _forms(batched: BatchedTeacher, dtype: str, top_k: int | None) -> dict[str, Form]:
    if top_k is not None and "logits" not in batched.shapes:
        raise ValueError(
            f"`top_k` is for the output `logits`, and those stored are {sorted(batched.shapes)}: "
            "leave it out."
        )
    if parts := [name for name in batched.shapes if "+" in name]:
        raise ValueError(
            f"The names of stored outputs must be without '+', got {parts[0]!r}: name it otherwise "
            "(`named_outputs`), or leave it out of `outputs`."
        )
    return {name: form_of(name, shape, dtype, top_k) for name, shape in batched.shapes.items()}


def _draws(views: Views, augmentations: int, images: int, seed: int) -> np.ndarray:
    """Float32 `[augmentations, images, num_draws]`, the same ones whenever they are asked for."""
    with tf.device("CPU:0"):
        tables = [views.draw(images, (seed, number)) for number in range(augmentations)]
        return tf.stack(tables).numpy()


def _reader(
    rows: np.ndarray, forms: Mapping[str, Form], shards: Sequence[Mapping[str, np.ndarray]]
) -> Read:
    """From places and augmentations to what is stored."""
    numbers = np.argsort(np.argsort(rows, kind="stable"))  # in the order of the files, by place

    def rows_of(name: str, found: list[tuple[int, int, int]]) -> np.ndarray:
        # One row after the other: the images of a batch are in as many places.
        like = shards[0][name]
        rows = np.empty((len(found), *like.shape[2:]), like.dtype)
        for row, (shard, image, which) in enumerate(found):
            rows[row] = shards[shard][name][image, which]
        return rows

    def read(places: np.ndarray, which: np.ndarray) -> list[np.ndarray]:
        shard, image = np.divmod(numbers[places], SHARD)
        found = list(zip(shard.tolist(), image.tolist(), which.tolist(), strict=True))
        return [
            form.restored({end: rows_of(name + end, found) for end in form.fields})
            for name, form in forms.items()
        ]

    return read


def _check_room(store: Store, missing: Sequence[int], header: Mapping[str, Any] | None) -> None:
    """Prints what all takes, if a header is given, and refuses what the disk cannot hold."""
    if header is not None:
        names = ", ".join(header["outputs"])
        print(
            f"cached_teacher: {header['images']:,} images x {header['augmentations']} augmentations"
            f" x {header['num_views']} views, {names}: "
            f"{_megabytes(header['images'] * store.bytes_of_image)} in {store.folder}"
        )
    needed = sum(len(store.images_of(number)) for number in missing) * store.bytes_of_image
    folder = store.folder.resolve()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if needed > free:
        raise OSError(
            f"{_megabytes(needed)} more are needed in {str(store.folder)!r}, and its disk has "
            f"{_megabytes(free)} free: store fewer `augmentations` or `outputs`, or only `top_k` "
            "logits."
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _check(
    folder: Any,
    views: Any,
    augmentations: Any,
    outputs: Any,
    dtype: Any,
    top_k: Any,
    batch_size: Any,
    verbose: Any,
) -> None:
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise TypeError(f"`folder` must be the path of a folder, got {folder!r}.")
    if not isinstance(views, Views):
        raise TypeError(
            "`views` must be `Plain(...)` or `Rotations(...)`, whose random numbers can be drawn "
            f"again, got {views!r}."
        )
    counts = {"augmentations": augmentations, "batch_size": batch_size, "top_k": top_k}
    for name, value in counts.items():
        if name != "top_k" or value is not None:
            check_count(name, value)
    if augmentations > 1 and not views.num_draws:
        raise ValueError(
            f"`augmentations` must be 1 for views without crop and flip, got {augmentations}: they "
            "would all be the same."
        )
    is_list = isinstance(outputs, Sequence) and not isinstance(outputs, str) and len(outputs) > 0
    if outputs is not None and not (is_list and all(isinstance(one, str) for one in outputs)):
        raise ValueError(f"`outputs` must be None or names of outputs, got {outputs!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {DTYPES}, got {dtype!r}.")
    if verbose not in (0, 1):
        raise ValueError(f"`verbose` must be 0 or 1, got {verbose!r}.")
