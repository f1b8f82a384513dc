"""Fills a folder of stored outputs; processes that do the same share it without a coordinator."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from keras_ssd.data.cache.batched_teacher import BatchedTeacher
from keras_ssd.data.cache.forms import Form, check_storable
from keras_ssd.data.cache.store import WAIT, Store
from keras_ssd.data.training import Training
from keras_ssd.losses.probabilities import are_probabilities

# Of the largest number:
_ROUNDING = 1e-3  # between two runs; a change of kernels is less, even halved
_OTHER_DEVICE = 0.05  # between two devices, in half precision


class Building:
    """What computes the shards of a store.

    The images are numbered in the order of their files, which is that of `rows`, sorted: so a shard
    is read in one piece.

    Args:
        store: The folder.
        teacher: The teacher.
        forms: How its outputs are stored.
        training: The images.
        draws: Float32 `[augmentations, n, num_draws]`, by place.
        batch_size: Images in a batch.
    """

    def __init__(
        self,
        store: Store,
        teacher: BatchedTeacher,
        forms: dict[str, Form],
        training: Training,
        draws: np.ndarray,
        batch_size: int,
    ) -> None:
        self._store, self._teacher, self._forms = store, teacher, forms
        self._batch_size, self._draws = batch_size, draws
        self._places = np.argsort(training.rows, kind="stable")
        self._rows = training.rows[self._places]
        numbers = np.full(training.images.size, -1, "int32")
        numbers[self._rows] = np.arange(len(self._rows))
        self._images = training.images.relabeled(numbers)

    def fill(self, missing: Sequence[int], verbose: int) -> None:
        """Writes the missing shards, but those that other processes write; returns when all are.

        Each process begins somewhere else. What a killed one leaves is taken up by another.

        Raises:
            ValueError: If what is said of an image is not a function of it; before anything is
                written.
        """
        self._check_function()
        self._store.write_header()
        progress = keras.utils.Progbar(len(self._rows), unit_name="image") if verbose else None
        left = [*missing[(start := _start(len(missing))) :], *missing[:start]]
        done = len(self._rows) - sum(len(self._store.images_of(number)) for number in left)
        while left:
            waiting = []
            for number in left:
                if not self._written(number):
                    waiting.append(number)
                    continue
                done += len(self._store.images_of(number))
                if progress is not None:
                    progress.update(done)
            if waiting == left:
                time.sleep(WAIT)
            left = waiting

    def check_stored(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuses a shard of which this teacher says something else.

        A fingerprint does not tell of code that was changed; what is said of some images does.

        Args:
            number: Its number.
            arrays: What is stored there.

        Raises:
            ValueError: If a number is off by more than other devices make of it.
        """
        images, places = self._some(self._store.images_of(number).start)
        said = self._teacher(images, self._draws[0][places])
        for name, form in self._forms.items():
            for ending, now in form.encoded(said[name]).items():
                there = arrays[name + ending][: len(now), 0].astype("float64")
                if not np.issubdtype(now.dtype, np.floating):
                    continue  # classes, of which equal ones may change places
                off = np.abs(now[: len(there)] - there).max()
                if not off <= _OTHER_DEVICE * np.abs(there).max():  # or it is no number
                    raise ValueError(
                        f"{str(self._store.folder)!r} holds what another teacher said: {name!r} of "
                        f"some images is off by {off:.2g} from what this one says, though weights "
                        "and settings are the same. Look for code that was changed; give another "
                        "folder, or delete this one."
                    )

    def _some(self, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Images from a number on, as many as are run at once and two at least; their places."""
        size = max(self._batch_size, 2)
        rows, places = (array[start : start + size] for array in (self._rows, self._places))
        images, _ = next(self._images.batches(rows, size).as_numpy_iterator())
        return images, places

    def _check_function(self) -> None:
        """Runs the teacher on some images, and on half of them: it must say the same of those."""
        images, places = self._some()
        draws, half = self._draws[0][places], (len(images) + 1) // 2
        together, apart = self._teacher(images, draws), self._teacher(images[:half], draws[:half])
        logits = together.get("logits")
        if logits is not None and len(logits) > 1 and are_probabilities(logits):
            raise ValueError(
                "The teacher must give logits to be stored, got probabilities (none is negative, "
                "all rows sum to 1): build it without a softmax at the end."
            )
        for name in self._forms:
            one, other = together[name][:half], apart[name]
            with np.errstate(invalid="ignore"):  # what is no number is named where it is stored
                off = np.abs(one - other).max()
            if off > _ROUNDING * np.abs(one).max():
                raise ValueError(
                    "What the teacher says of an image must depend neither on the images beside "
                    f"it nor on chance to be stored, got {name!r} off by {off:.2g} in a second "
                    "run beside others: look for random layers, and for statistics of a batch."
                )

    def _written(self, number: int) -> bool:
        """Whether a shard is there now."""
        if self._store.is_there(number):
            return True
        with self._store.claimed(number) as mine:
            if not mine:
                return False
            if not self._store.is_there(number):
                self._store.write(number, self._parts(number))
        return True

    def _parts(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """The images of a shard in order, a batch at a time, as they are stored."""
        numbers = self._store.images_of(number)
        batches = self._images.batches(self._rows[numbers.start : numbers.stop], self._batch_size)
        first = numbers.start
        for images, found in batches.as_numpy_iterator():
            assert (found == np.arange(first, first + len(found))).all(), "not in the order of rows"
            yield self._encoded(images, self._places[found])
            first += len(found)

    def _encoded(self, images: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
        """By field `[images, augmentations, ...]`."""
        said = [self._teacher(images, draws[places]) for draws in self._draws]
        arrays = {}
        for name, form in self._forms.items():
            values = np.stack([outputs[name] for outputs in said], axis=1)
            check_storable(name, values, form.dtype, places)
            for ending, array in form.encoded(values).items():
                arrays[name + ending] = array
        return arrays


def _start(count: int) -> int:
    """A place that differs between processes that start together, whose ids are neighbours."""
    return os.getpid() * 2_654_435_761 % 2**32 * count >> 32
