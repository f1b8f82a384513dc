"""Arguments that many functions are given, each checked in one place."""

from __future__ import annotations

import math
import numbers
from typing import Any


def is_number(value: Any) -> bool:
    """Whether a value is a real number, and not True or False."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, and not True or False."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_count(name: str, value: Any, smallest: int = 1) -> int:
    """Refuses what is no integer of at least `smallest`."""
    if not is_integer(value) or value < smallest:
        raise ValueError(f"`{name}` must be an integer >= {smallest}, got {value!r}.")
    return int(value)


def check_not_negative(name: str, value: Any) -> float:
    """Refuses what is no finite number >= 0."""
    if not (is_number(value) and 0 <= value < math.inf):  # also refuses NaN
        raise ValueError(f"`{name}` must be a finite number >= 0, got {value!r}.")
    return float(value)


def check_temperature(temperature: Any) -> float:
    """Refuses temperatures that are no finite number > 0."""
    if not (is_number(temperature) and 0 < temperature < math.inf):
        raise ValueError(f"`temperature` must be a finite number > 0, got {temperature!r}.")
    return float(temperature)


def check_option(name: str, option: str, known: tuple[str, ...]) -> None:
    """Refuses options that are not among the known ones."""
    if option not in known:
        raise ValueError(f"`{name}` must be one of {list(known)}, got {option!r}.")


def check_height_and_width(image_size: Any) -> tuple[int, int] | None:
    """Refuses what is neither None nor a height and a width in pixels."""
    if image_size is None:
        return None
    is_pair = isinstance(image_size, tuple | list) and len(image_size) == 2
    if not is_pair or not all(is_integer(size) and size >= 1 for size in image_size):
        raise ValueError(
            "`image_size` must be None or a pair of integers >= 1, (height, width), got "
            f"{image_size!r}."
        )
    return int(image_size[0]), int(image_size[1])
