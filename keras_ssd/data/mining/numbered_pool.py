"""Pools whose images have numbers, so that they can be divided and read from any place on."""

from __future__ import annotations

import abc
import copy
import functools
import hashlib
from collections.abc import Iterator

from keras_ssd.arguments import check_count, is_integer
from keras_ssd.data.mining.records import Record


class NumberedPool(abc.ABC):
    """A pool whose images are numbered, or every so many of them.

    Attributes:
        part: Which shard of the pool this is, and of how many.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.part = (0, 1)
        self._rows = range(size)

    @functools.cached_property
    def digest(self) -> str:
        """What tells the whole pool from another one of its name."""
        digest = hashlib.sha256()
        for piece in self._identity():
            digest.update(piece)
        return digest.hexdigest()

    @abc.abstractmethod
    def _identity(self) -> Iterator[bytes]:
        """What makes the pool what it is."""

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self._rows)

    def shard(self, index: int, count: int) -> NumberedPool:
        """Images `index`, `index + count`, ... of this pool, under its name and their ids.

        Args:
            index: Which shard, in [0, `count`).
            count: How many shards there are, >= 1.

        Raises:
            ValueError: If a number is out of range or no image is in this shard.
        """
        if not is_integer(count) or not is_integer(index) or not 0 <= index < count:
            raise ValueError(
                f"A shard is `index` of `count`, 0 <= index < count, got {index!r} of {count!r}."
            )
        if index >= self.size:
            raise ValueError(
                f"Shard {index} of {count} holds none of the {self.size} images of {self.name!r}: "
                "make fewer shards."
            )
        other = copy.copy(self)
        other._rows = self._rows[int(index) :: int(count)]
        first, step = self.part
        other.part = (first + int(index) * step, step * int(count))
        return other

    def read(self, start: int = 0) -> Iterator[Record]:
        """The images from number `start` on; those before are not decoded."""
        rows = self._rows[check_count("start", start, smallest=0) :]
        return self._read(rows) if rows else iter(())

    @abc.abstractmethod
    def _read(self, rows: range) -> Iterator[Record]:
        """The images of some rows, at least one."""
