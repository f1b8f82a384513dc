"""What an image is known by: a digest of its pixels, and a hash that copies of it share."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np

HASH_ROWS, HASH_COLUMNS = 8, 9
HASH_BITS = HASH_ROWS * (HASH_COLUMNS - 1)
GREY = (299, 587, 114)  # thousandths of red, green and blue
VALUES = 2**20  # numbers of a temporary array


def sha256_of(image: np.ndarray) -> str:
    """Hexadecimal SHA-256 of height and width (little-endian uint32) and the pixels of an image.

    Args:
        image: Array uint8 `[H, W, 3]`.

    Raises:
        TypeError: If it is no uint8 array.
        ValueError: If it has another shape.
    """
    height, width, _ = _shape(image)
    return hashlib.sha256(struct.pack("<II", height, width) + image.tobytes()).hexdigest()


def difference_hash(image: np.ndarray) -> np.ndarray:
    """64 bits that copies of an image share: where it becomes lighter from left to right.

    Grey is 0.299 R + 0.587 G + 0.114 B; 8 rows of 9 areas, which share pixels where the size does
    not divide, are compared with their right neighbours. All sums are integers and exact.

    Args:
        image: Array uint8 `[H, W, 3]` of any size.

    Returns:
        Array bool `[64]`, row by row from the top left.

    Raises:
        TypeError: If it is no uint8 array.
        ValueError: If it has another shape.
    """
    _shape(image)
    return _difference_hashes(image[np.newaxis])[0]


def hashes_of(images: Sequence[np.ndarray]) -> np.ndarray:
    """The hashes of images of any sizes, each packed into a uint64."""
    hashes = np.empty((len(images), HASH_BITS), bool)
    for rows in _rows_of_one_size(images):
        hashes[rows] = _difference_hashes(np.stack([images[row] for row in rows]))
    return packed(hashes)


def packed(bits: np.ndarray) -> np.ndarray:
    """Rows of 64 bits, each as a uint64."""
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _rows_of_one_size(images: Sequence[np.ndarray]) -> Iterator[list[int]]:
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(row)
    for shape, rows in by_shape.items():
        step = max(1, VALUES // math.prod(shape))
        yield from (rows[start : start + step] for start in range(0, len(rows), step))


def _difference_hashes(images: np.ndarray) -> np.ndarray:
    """The hashes `[N, 64]` of images `[N, H, W, 3]`."""
    count, height, width, _ = images.shape
    lines = images.reshape(count, height, width * 3)
    exact = np.float32 if 255 * height < 2**24 else np.float64  # holds the sum of a column
    bands = np.empty((count, HASH_ROWS, width * 3), exact)
    for row, shares in enumerate(_overlaps(height, HASH_ROWS).astype(exact)):
        part = slice(row * height // HASH_ROWS, -(-(row + 1) * height // HASH_ROWS))
        bands[:, row] = np.einsum("h,nhw->nw", shares[part], lines[:, part].astype(exact))
    weights = (_overlaps(width, HASH_COLUMNS)[:, :, np.newaxis] * GREY).reshape(HASH_COLUMNS, -1)
    areas = bands.astype(np.float64) @ weights.T
    return (areas[:, :, :-1] < areas[:, :, 1:]).reshape(count, HASH_BITS)


def _overlaps(pixels: int, cells: int) -> np.ndarray:
    """How much of each pixel is in each of equal cells `[cells, pixels]`; 1 pixel = `cells`."""
    pixel, cell = np.arange(pixels) * cells, np.arange(cells)[:, np.newaxis] * pixels
    shared = np.minimum(pixel + cells, cell + pixels) - np.maximum(pixel, cell)
    return np.maximum(shared, 0).astype(np.float64)


def _shape(image: np.ndarray) -> tuple[int, int, int]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"An image must be a uint8 array [H, W, 3], got {kind}.")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"An image must be a uint8 array [H, W, 3], got shape {image.shape}.")
    return image.shape
