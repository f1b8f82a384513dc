"""`imported_teacher`: a table of a teacher's outputs that was made elsewhere."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ssd.data.cache.serving import Stored, check_data, with_teacher
from keras_ssd.data.splits import Splits

_AT_ONCE = 2**24  # numbers that are looked at together

Table = str | os.PathLike[str] | np.ndarray


def imported_teacher(
    tables: Table | Mapping[str, Table], data: Splits, *, index: Table | None = None
) -> Splits:
    """The same data sets, each training image with a row of a table made elsewhere.

    `fit` runs no teacher then. Row i of a table is of the training image at place i, the one that
    `data.with_index()` gives the index i; `Splits.labels` are in that order.

        images = ssd.data.load("cifar100", batch_size=64)
        taught = ssd.data.imported_teacher("logits.npy", images)
        recipe = ssd.presets.kd(crop=False, flip=False)
        ssd.Distiller(student=student, **recipe)

    Nothing tells which pixels the table is of, so it is taken to be of the images as they are: a
    Distiller whose views crop or flip refuses it.

    Args:
        tables: The logits: an array of floats `[n, classes]`, or `[n, V, classes]` of V views, or
            the path of one in NumPy's format (`numpy.save`), which is mapped into memory; or
            several of them by the name of the output.
        data: What `data.load` returns, with n training images.
        index: Where the rows have another order: the place of each, integers `[n]`, or the path of
            these. None for places 0 to n - 1.

    Returns:
        `Splits`. An x of `train` is a dict of `image`, `index` and `teacher`, float32 by output;
        batches hold the images of `data.train` in the same order. Validation and test stay as
        they are.

    Raises:
        ValueError: If a table has not n rows of finite floats, or `index` does not name each place
            once.
        TypeError: If an argument is of another kind.
    """
    rows = len(check_data("imported_teacher", data)._training.rows)
    named = tables if isinstance(tables, Mapping) else {"logits": tables}
    arrays = {str(name): _table(name, table, rows) for name, table in named.items()}
    if not arrays:
        raise ValueError("`tables` must hold a table, got none.")
    row_of = _row_of(index, rows)

    def read(places: np.ndarray, _: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(table[row_of[places]], "float32") for table in arrays.values()]

    shapes = {name: table.shape[1:] for name, table in arrays.items()}
    return with_teacher(data, Stored(shapes, read), f"imported_teacher({', '.join(arrays)})")


def _opened(name: str, table: Any) -> np.ndarray:
    if isinstance(table, np.ndarray):  # which may be filled anew; a file is not read whole
        return table if isinstance(table, np.memmap) else table.copy()
    if not isinstance(table, str | os.PathLike):
        raise TypeError(
            f"{name} must be a NumPy array or the path of one, got a {type(table).__name__}."
        )
    try:
        array = np.load(table, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{name} must be the path of a file that is there, got {str(table)!r}: write it with "
            "`numpy.save`."
        ) from None
    except (ValueError, EOFError, IsADirectoryError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{name} must be a file of one array as `numpy.save` writes it, and {str(table)!r} is "
            "none: save the numbers alone."
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} must be a file of one array, got several in {str(table)!r}.")
    return np.asarray(array)


def _table(name: str, table: Any, rows: int) -> np.ndarray:
    array = _opened(f"The table of {name!r}", table)
    fits = array.ndim > 1 and len(array) == rows and array.size > 0
    if not (fits and np.issubdtype(array.dtype, np.floating)):
        raise ValueError(
            f"The table of {name!r} must hold floats [{rows}, ...], one row a training image, got "
            f"{array.dtype} {list(array.shape)}: see `data.with_index()` for their order."
        )
    step = max(1, _AT_ONCE // int(np.prod(array.shape[1:])))
    for start in range(0, rows, step):
        part = np.asarray(array[start : start + step], "float32").reshape(-1, array[0].size)
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"The table of {name!r} must hold finite numbers, got others in row "
                f"{start + int(np.argmin(finite))}: look for overflow where it was made."
            )
    return array


def _row_of(index: Any, rows: int) -> np.ndarray:
    """The row of each place."""
    if index is None:
        return np.arange(rows)
    places = _opened("`index`", index)
    are_integers = places.ndim == 1 and np.issubdtype(places.dtype, np.integer)
    if not are_integers or not np.array_equal(np.sort(places), np.arange(rows)):
        raise ValueError(
            f"`index` must name each place from 0 to {rows - 1} once, got {places.dtype} "
            f"{list(places.shape)}: give the `index` of each row's image (`data.with_index()`)."
        )
    return np.argsort(places)
