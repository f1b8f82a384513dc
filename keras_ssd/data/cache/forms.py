"""In which form a teacher's outputs are stored, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

DTYPES = ("float16", "float32")


class Field(NamedTuple):
    """An array of a file.

    Attributes:
        shape: Of what is stored of one image and augmentation.
        dtype: As NumPy calls it.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes of one image and augmentation."""
        return int(np.prod(self.shape, dtype=int)) * np.dtype(self.dtype).itemsize


class Form(Protocol):
    """How one output becomes arrays and is restored.

    Attributes:
        fields: The arrays, by what is put behind the name of the output.
        dtype: The precision of the values.
    """

    fields: dict[str, Field]
    dtype: str

    def encoded(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of finite float32 values `[..., *shape]`."""

    def restored(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Float32 `[rows, *shape]` of arrays `[rows, ...]`."""


class AsTheyAre:
    """All values, in some precision.

    Args:
        shape: Of what an image gives.
        dtype: One of `DTYPES`.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.fields = {"": Field(shape, dtype)}
        self.dtype = dtype

    def encoded(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """The values in the precision that is stored."""
        return {"": _cast(values, self.dtype)}

    def restored(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The values in float32."""
        return arrays[""].astype("float32")


class LargestLogits:
    """The k largest logits and their classes, and the mass of all the others.

    The others come back equal, with the mass that they had together, so that the probabilities of
    the k classes at temperature 1 are those of the teacher.

    Args:
        shape: `[..., classes]`, of what an image gives.
        dtype: One of `DTYPES`, of the k logits.
        k: From 1 to the number of classes without one.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, k: int) -> None:
        self.dtype, self._k = dtype, k
        self._views, self._classes = shape[:-1], shape[-1]
        self._index = "uint16" if self._classes <= 2**16 else "int32"
        self.fields = {
            "+values": Field((*self._views, k), dtype),
            "+classes": Field((*self._views, k), self._index),
            "+rest": Field((*self._views, 1), "float32"),
        }

    def encoded(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """The largest logits, of equal ones the lower class, and `log(sum(exp(others)))`."""
        order = np.argsort(-values, axis=-1, kind="stable")
        classes, others = order[..., : self._k], order[..., self._k :]
        others = np.take_along_axis(values, others, axis=-1).astype("float64")
        largest = others[..., :1]
        rest = largest + np.log(np.exp(others - largest).sum(axis=-1, keepdims=True))
        return {
            "+values": _cast(np.take_along_axis(values, classes, axis=-1), self.dtype),
            "+classes": classes.astype(self._index),
            "+rest": rest.astype("float32"),
        }

    def restored(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits of all classes."""
        even = arrays["+rest"] - np.float32(np.log(self._classes - self._k))
        logits = np.repeat(even, self._classes, axis=-1)
        classes = arrays["+classes"].astype("int64")
        np.put_along_axis(logits, classes, arrays["+values"].astype("float32"), axis=-1)
        return logits


def form_of(name: str, shape: tuple[int, ...], dtype: str, top_k: int | None) -> Form:
    """How an output is stored: `top_k` is for the logits alone.

    Raises:
        ValueError: If there are not more logits than `top_k`.
    """
    if top_k is None or name != "logits":
        return AsTheyAre(shape, dtype)
    if top_k >= shape[-1]:
        raise ValueError(
            f"`top_k` must be less than the {shape[-1]} classes of the teacher, got {top_k}: leave "
            "it out to store all logits."
        )
    return LargestLogits(shape, dtype, top_k)


def check_storable(name: str, values: np.ndarray, dtype: str, places: np.ndarray) -> None:
    """Refuses values `[images, ...]` that would not be stored as numbers.

    Args:
        name: Of the output.
        values: Float32.
        dtype: What they will be stored in.
        places: Of the images among those that train.

    Raises:
        ValueError: If one is infinite, NaN or too large for the precision.
    """
    finite = _all_finite(values)
    if not finite.all():
        raise ValueError(
            f"The teacher's output {name!r} is infinite or NaN for training image "
            f"{places[np.argmin(finite)]}: look for overflow in half precision, and for NaN "
            "in its weights."
        )
    if not _all_finite(_cast(values, dtype)).all():
        raise ValueError(
            f"The teacher's output {name!r} reaches {np.abs(values).max():.4g}, and float16 ends "
            'at 65504: give `dtype="float32"`.'
        )


def _all_finite(values: np.ndarray) -> np.ndarray:
    """Whether all numbers of each image are."""
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)


def _cast(values: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # `check_storable` tells
        return values.astype(dtype)
