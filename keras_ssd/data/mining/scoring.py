"""`score`: one pass of a teacher over a pool, which goes on where it was interrupted."""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.data.folder_layout import listed
from keras_ssd.data.mining.duplicates import DETECTORS, sha256_of
from keras_ssd.data.mining.evaluation import Evaluation, Index
from keras_ssd.data.mining.pools import Pool, Record, check_image
from keras_ssd.data.mining.records import Scored
from keras_ssd.data.mining.scorer import Answers, Scorer
from keras_ssd.data.mining.scores import SCHEMA, Chunk, Scores
from keras_ssd.data.splits import Splits
from keras_ssd.teacher import FrozenTeacher

CHUNK = 4_096  # images in a file: what a kill loses at most

_Item = TypeVar("_Item")


class Batch(NamedTuple):
    """Images of one chunk that are run at once."""

    chunk: int
    ends_chunk: bool
    first: str  # id of the first of them
    readable: list[Record]
    unreadable: list[Record]
    images: np.ndarray  # of the readable ones, as the scorer takes them


def score(
    teacher: keras.Model | FrozenTeacher,
    pool: Pool,
    folder: str | os.PathLike[str],
    *,
    target: Splits | tf.data.Dataset | None,
    class_names: Sequence[str] | None = None,
    detectors: Collection[str] = DETECTORS,
    hamming_distance: int = 4,
    similarity: float = 0.95,
    temperature: float = 1.0,
    classes_per_image: int = 1,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 256,
    verbose: int = 1,
) -> Scores:
    """Gives each image of a pool the classes that a teacher sees in it, and finds duplicates.

    A single pass in memory that does not grow with the pool. The folder receives a header, which
    holds all that decides a score, and a file for every 4,096 images, each renamed to its name when
    it is whole. The same call goes on where another one was interrupted, by Ctrl-C or a kill, and
    comes to the same bytes; files that were cut off are written anew. Once all is there, it returns
    at once.

    Scores are a function of the image: neither the order of the pool nor how it is split into
    shards matters. On a CPU the batch size did not either, to the last digit, in any network that
    was tried but one with a dense layer of 25,088 x 4,096, whose last digit changed.

    Args:
        teacher: A built Keras model, or a `FrozenTeacher` of one: `freeze(model, dtype="bfloat16")`
            is faster where the machine has the units for it. It is run in inference mode.
        pool: What `open_pool` or `array_pool` gives, or a shard of it.
        folder: Where the scores are written; it is made if need be.
        target: Where accuracy will be measured, so that no image of it may be learnt from: of
            `Splits` the test images and, if there are any, the validation images; or a
            `tf.data.Dataset` of uint8 images, in batches, with or without labels. None looks for
            no duplicates.
        class_names: One name a class, for the manifest; by default those of `Splits`.
        detectors: Which of "dhash" and "embedding" look for images of the target set beside an
            exact comparison of pixels. "embedding" needs a Dense layer, a layer called `embedding`
            or an output of that name.
        hamming_distance: Up to so many different bits of 64, in [0, 63], "dhash" finds an image.
        similarity: The cosine in (0, 1] from which on "embedding" finds an image.
        temperature: What logits are divided by, > 0.
        classes_per_image: The classes of highest probability that are noted of an image, from 1 to
            the number of classes; more than 1 for the selection of Yalniz et al. 2019.
        image_size: Height and width that images are resized to (bilinear, antialiased); None for
            those of the network's input. Duplicates are looked for among the images as decoded.
        batch_size: Images that are run at once, >= 1. So many are in memory in full size up to
            three times: 256 photographs of a megapixel take 0.8 GB.
        verbose: 1 for a progress bar and a line at the end, 0 for neither.

    Returns:
        The scores, which `select` takes by their folder.

    Raises:
        TypeError: If `teacher` is no Keras model (a function cannot be told from another), or
            images of the pool or the target are no uint8 arrays.
        ValueError: If the teacher's classes are not as many as the target's or `class_names`, the
            folder holds scores of another teacher, pool, target or setting, images have several
            sizes and nothing tells which to resize them to, the pool is empty or an argument is
            out of range.
    """
    _check(temperature, classes_per_image, image_size, batch_size, verbose)
    if not hasattr(pool, "read"):
        raise TypeError(
            f"`pool` must be what `open_pool` or `array_pool` gives, got a {type(pool).__name__}."
        )
    evaluation = Evaluation(target, detectors, hamming_distance, similarity)
    if pool.size < 1:
        raise ValueError(f"The pool {pool.name!r} must hold images, got none.")
    scorer = Scorer(
        teacher,
        image_size and (int(image_size[0]), int(image_size[1])),
        lambda: _first_size(pool),
        temperature=float(temperature),
        classes_per_image=int(classes_per_image),
        batch_size=int(batch_size),
        embedding=evaluation.compares_embeddings,
    )
    names = _class_names(class_names, target, scorer)
    header = {
        "schema": SCHEMA,
        "scorer": scorer.name,
        "scorer_digest": scorer.digest,
        "num_classes": scorer.num_classes,
        "class_names": names,
        "temperature": float(temperature),
        "classes_per_image": int(classes_per_image),
        "preprocessing": scorer.preprocessing,
        "pool_name": pool.name,
        "pool_size": pool.size,
        "pool_digest": getattr(pool, "digest", None),
        "shard": list(getattr(pool, "part", (0, 1))),
        "evaluation_name": evaluation.name,
        "evaluation_digest": evaluation.digest(),
        "detectors": evaluation.detectors,
        "chunk": CHUNK,
    }
    scores = Scores.made_with(folder, header)
    missing = scores.missing()
    _check_order(pool, scores, missing)
    if missing:
        fill(scores, missing, pool, scorer, evaluation.index(scorer), verbose)
    _warn_of_unreadable(pool, scores)
    return scores


def fill(
    scores: Scores,
    missing: Sequence[int],
    pool: Pool,
    scorer: Scorer,
    index: Index,
    verbose: int = 0,
) -> None:
    """Writes the chunks that are missing."""
    start, left = time.perf_counter(), sum(_images_in(number, pool) for number in missing)
    done = pool.size - left
    progress = keras.utils.Progbar(pool.size, unit_name="image") if verbose else None
    answered = (
        (batch, scorer(batch.images, len(batch.readable)))
        for batch in ahead(batches(pool, missing, scorer))
    )
    chunk: Chunk | None = None
    for batch, answers in ahead(answered):
        chunk = chunk or Chunk(batch.first)
        _add(chunk, batch, answers, index)
        if batch.ends_chunk:
            scores.write(batch.chunk, chunk)
            chunk = None
        done += len(batch.readable) + len(batch.unreadable)
        if progress is not None:
            progress.update(done)
    if verbose:
        _tell(pool, scores, left / (time.perf_counter() - start))


def _add(chunk: Chunk, batch: Batch, answers: Answers, index: Index) -> None:
    """Puts a batch and its duplicates into a chunk."""
    chunk.seen += len(batch.readable)
    chunk.unreadable += [[one.source or one.id, one.problem or ""] for one in batch.unreadable]
    rows = np.flatnonzero(answers.finite)
    records = [batch.readable[row] for row in rows]
    images = [record.image for record in records if record.image is not None]
    embeddings = None if answers.embeddings is None else answers.embeddings[rows]
    for record, image, match, classes, probabilities in zip(
        records,
        images,
        index.match(images, embeddings),
        answers.classes[rows].tolist(),
        answers.scores[rows].tolist(),
        strict=True,
    ):
        sha256 = sha256_of(image)
        scored = Scored(
            record.id, record.source, tuple(classes), tuple(probabilities), sha256, *match
        )
        chunk.records.append(scored)
        if match.detector is not None:
            chunk.duplicates[match.detector] = chunk.duplicates.get(match.detector, 0) + 1


def batches(pool: Pool, chunks: Sequence[int], scorer: Scorer) -> Iterator[Batch]:
    """The images of some chunks in batches, none of which reaches into another chunk."""
    for run in _runs(chunks):
        records = pool.read(run[0] * CHUNK)
        for number in run:
            left = _images_in(number, pool)
            while left:
                some = list(itertools.islice(records, min(left, scorer.rows)))
                if not some:
                    raise ValueError(
                        f"The pool {pool.name!r} must hold the {pool.size:,} images of its `size`, "
                        f"got none after {number * CHUNK + _images_in(number, pool) - left:,}."
                    )
                left -= len(some)
                yield _batch(number, left == 0, some, scorer)


def _batch(chunk: int, ends_chunk: bool, records: list[Record], scorer: Scorer) -> Batch:
    readable, images, unreadable = [], [], []
    for record in records:
        if record.image is None:
            unreadable.append(record)
            continue
        check_image(record.image, record.id)
        readable.append(record)
        images.append(record.image)
    prepared = scorer.prepared(images)
    return Batch(chunk, ends_chunk, records[0].id, readable, unreadable, prepared)


def _images_in(chunk: int, pool: Pool) -> int:
    return min(CHUNK, pool.size - chunk * CHUNK)


def _runs(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Numbers that follow on one another, together."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        yield [number for _, number in run]


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, the next one made in a thread while one is used."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def _first_size(pool: Pool) -> tuple[int, int]:
    for record in pool.read():
        if record.image is not None:
            check_image(record.image, record.id)
            return record.image.shape[0], record.image.shape[1]
    raise ValueError(
        f"The pool {pool.name!r} must hold images that can be read, got {pool.size:,} others: "
        "replace them."
    )


def _check_order(pool: Pool, scores: Scores, missing: Collection[int]) -> None:
    """Refuses another shard, or another order: the last chunk that is there tells."""
    there = sorted(set(range(scores.count)) - set(missing))
    if not there:
        return
    first = next((record.id for record in pool.read(there[-1] * CHUNK)), None)
    noted = scores.tally(there[-1])["first"]
    if first != noted:
        raise ValueError(
            f"{str(scores.folder)!r} holds scores of another shard or order of the pool "
            f"{pool.name!r} (image {there[-1] * CHUNK:,} is {noted!r} there and {first!r} now): "
            "give another folder."
        )


def _class_names(
    class_names: Sequence[str] | None, target: Any, scorer: Scorer
) -> list[str] | None:
    of_target = target.info.class_names if isinstance(target, Splits) else None
    for names, what in ((of_target, "`target`"), (class_names, "`class_names`")):
        if names is not None and len(names) != scorer.num_classes:
            raise ValueError(
                f"The teacher {scorer.name!r} has {scorer.num_classes} classes and {what} has "
                f"{len(names)}: give a teacher whose classes are the target's."
            )
    names = of_target if class_names is None else class_names
    return None if names is None else [str(name) for name in names]


def _check(
    temperature: Any, classes_per_image: Any, image_size: Any, batch_size: Any, verbose: Any
) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, int | float | np.number):
        raise TypeError(f"`temperature` must be a number, got {temperature!r}.")
    if not 0 < temperature < np.inf:  # also refuses NaN
        raise ValueError(f"`temperature` must be > 0 and finite, got {temperature}.")
    counts = {"classes_per_image": classes_per_image, "batch_size": batch_size}
    for name, value in counts.items():
        if not _is_count(value):
            raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")
    is_pair = isinstance(image_size, tuple | list) and len(image_size) == 2
    if image_size is not None and not (is_pair and all(map(_is_count, image_size))):
        raise ValueError(
            "`image_size` must be None or a pair of integers >= 1, (height, width), got "
            f"{image_size!r}."
        )
    if verbose not in (0, 1):
        raise ValueError(f"`verbose` must be 0 or 1, got {verbose!r}.")


def _is_count(value: Any) -> bool:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_integer and value >= 1


def _tell(pool: Pool, scores: Scores, rate: float) -> None:
    tallies = scores.tallies
    found = [f"{detector} {count:,}" for detector, count in sorted(tallies["duplicates"].items())]
    print(
        f"{pool.name}: {tallies['seen']:,} images scored ({tallies['non_finite']:,} without a "
        f"finite score), {len(tallies['unreadable']):,} unreadable; images of the target set: "
        f"{', '.join(found) or 'none'}; {rate:,.0f} images a second."
    )


def _warn_of_unreadable(pool: Pool, scores: Scores) -> None:
    unreadable = scores.tallies["unreadable"]
    if unreadable:
        names = [f"{source} ({reason})" for source, reason in unreadable]
        warnings.warn(
            f"Images of the pool {pool.name!r} that cannot be read are left out "
            f"({len(unreadable):,} of {pool.size:,}): {listed(names)}.",
            stacklevel=3,
        )
