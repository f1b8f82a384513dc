"""Image files found in folders and read in a few threads, with the reason where one cannot be."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ssd.data.images import decoded, resize

ENDINGS = frozenset((".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png"))
OTHER_ENDINGS = frozenset(  # images that are not read
    (".avif", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".svg", ".tga", ".tif", ".tiff")
) | {".webp"}

_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 64  # images decoded ahead: photographs in full size take 36 MB each
_BITMAP_MASKS = (0xFF0000, 0xFF00, 0xFF)  # of red, green and blue, as TensorFlow takes them


class Picture(NamedTuple):
    """Pixels `[H, W, 3]`, resized if asked for, and the height and width in the file."""

    pixels: np.ndarray
    size: tuple[int, int]


def files_below(folder: pathlib.Path) -> list[str]:
    """Every file below a folder but the hidden ones, sorted; links are followed, each folder once.

    Links that lead back to a folder around this one are passed over: they hold other classes.

    Raises:
        OSError: If a folder may not be read.
    """
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or is_around(real, folder):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [os.path.join(parent, name) for name in files if not is_hidden(name)]
    return sorted(found)


def is_around(real: str, folder: pathlib.Path) -> bool:
    """Whether the folder with this real path holds `folder`."""
    return pathlib.Path(real) in folder.resolve().parents


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "__MACOSX"  # what macOS puts into archives


def ending(path: str) -> str:
    """The ending of a file's name in lower case, such as `.jpg`."""
    return os.path.splitext(path)[1].lower()


def pictures(paths: Sequence[str], image_size: tuple[int, int] | None) -> Iterator[Picture | str]:
    """The picture in each file, or in a few words why there is none."""

    @functools.partial(tf.function, input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)])
    def resized(image: tf.Tensor) -> tf.Tensor:
        return image if image_size is None else resize(image, image_size)

    def read(path: str) -> Picture | str:
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                return "no regular file"  # reading a pipe would wait for ever
            encoded = pathlib.Path(path).read_bytes()
            if (reason := _bitmap_problem(encoded)) is not None:
                return reason
            with tf.device("CPU:0"):
                image = decoded(encoded)
                pixels = resized(image)
        except OSError as error:
            return error.strerror or type(error).__name__
        except tf.errors.OpError as error:
            return _in_few_words(error)
        return Picture(pixels.numpy(), tuple(image.shape[:2]))

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            yield from pool.map(read, paths[start : start + _AT_ONCE])


def _bitmap_problem(encoded: bytes) -> str | None:
    """What TensorFlow would decode wrongly without a word: palettes, compression, other masks."""
    if encoded[:2] != b"BM" or len(encoded) < 54:
        return None
    size, _, _, _, bits, compression = struct.unpack_from("<IiiHHI", encoded, 14)
    if size < 40:
        return "a BMP file of OS/2"
    if compression == 3 and bits == 32 and len(encoded) >= 66:
        masks = struct.unpack_from("<III", encoded, 54)
        return None if masks == _BITMAP_MASKS else "a BMP file with its channels in another order"
    if compression != 0:
        return "a compressed BMP file"
    start = struct.unpack_from("<I", encoded, 10)[0]
    palette = np.frombuffer(encoded[14 + size : start], np.uint8) if bits == 8 else np.empty(0)
    entries = palette[: len(palette) // 4 * 4].reshape(-1, 4)[:256, :3]
    is_grey = np.array_equal(entries, np.arange(len(entries))[:, None].repeat(3, axis=1))
    return None if is_grey else "a BMP file with a palette of colours"


def _in_few_words(error: tf.errors.OpError) -> str:
    """The message of TensorFlow without the names of its nodes."""
    message = re.sub(r"\{\{.*?\}\}|\[Op:.*|\n.*", "", error.message, flags=re.DOTALL)
    return message.strip().rstrip(".") or type(error).__name__


def _raise(error: OSError) -> None:
    raise error
