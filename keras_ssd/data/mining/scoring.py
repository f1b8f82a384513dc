"""`score`: one pass of a teacher over a pool, which goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import warnings
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.arguments import check_count, check_height_and_width
from keras_ssd.data.folder_layout import listed
from keras_ssd.data.mining.duplicates import DETECTORS, sha256_of
from keras_ssd.data.mining.evaluation import Evaluation, Index
from keras_ssd.data.mining.pools import Pool, check_image
from keras_ssd.data.mining.records import Record, Scored
from keras_ssd.data.mining.scorer import Answers, Scorer
from keras_ssd.data.mining.scores import SCHEMA, Chunk, Scores
from keras_ssd.data.mining.sharing import Share
from keras_ssd.data.splits import Splits
from keras_ssd.teacher import FrozenTeacher

CHUNK = 4_096  # images in a file: what a kill loses at most
_A_WHILE = 0.5  # seconds between two looks at what others are writing

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

    Several processes that make the same call with the same folder share the work, on hosts with a
    common file system, too: each claims the next file that nobody is at, and all return when all
    are there, with what one alone comes to. They may start and end when they like; of one that is
    killed the others take over the file that it was at. Claims need a file system whose locks
    reach all hosts (NFS version 4, Lustre with `flock`): without, give each host a folder and a
    shard of the pool, and `select` all folders.

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
    header = _header(scorer, names, pool, evaluation) | {
        "temperature": float(temperature),
        "classes_per_image": int(classes_per_image),
    }
    scores = Scores.made_with(folder, header)
    missing = scores.missing()
    _check_order(pool, scores, set(range(scores.count)) - set(missing))
    if missing:
        theirs = fill(scores, missing, pool, scorer, evaluation.index(scorer), verbose)
        scores.put_header()
        _check_order(pool, scores, theirs)
    _warn_of_unreadable(pool, scores)
    return scores


def _header(
    scorer: Scorer, names: list[str] | None, pool: Pool, evaluation: Evaluation
) -> dict[str, Any]:
    """What decides the scores, but for numbers that the user gave."""
    return {
        "schema": SCHEMA,
        "scorer": scorer.name,
        "scorer_digest": scorer.digest,
        "num_classes": scorer.num_classes,
        "class_names": names,
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


def fill(
    scores: Scores,
    missing: Collection[int],
    pool: Pool,
    scorer: Scorer,
    index: Index,
    verbose: int = 0,
) -> set[int]:
    """Writes the chunks that are missing; returns those that other processes wrote meanwhile."""
    start, scored = time.perf_counter(), 0
    progress = keras.utils.Progbar(pool.size, unit_name="image") if verbose else None
    with Share(scores, missing) as share:
        while share.left:
            scored += _fill_what_is_free(share, pool, scorer, index, progress)
            if share.left:
                time.sleep(_A_WHILE)
                share.look()
                if progress is not None:
                    progress.update(_images_there(share, pool, None))
    if verbose:
        _tell(pool, scores, scored / (time.perf_counter() - start))
    return share.theirs


def _fill_what_is_free(
    share: Share, pool: Pool, scorer: Scorer, index: Index, progress: Any
) -> int:
    """Writes one chunk after the other until none is free; returns the number of their images."""
    scored, chunk = 0, None
    with contextlib.closing(ahead(batches(pool, share, scorer))) as some:
        answered = ((batch, scorer(batch.images, len(batch.readable))) for batch in some)
        with contextlib.closing(ahead(answered)) as both:
            for batch, answers in both:
                chunk = chunk or Chunk(batch.first)
                _add(chunk, batch, answers, index)
                scored += len(batch.readable) + len(batch.unreadable)
                if batch.ends_chunk:
                    share.put(batch.chunk, chunk)
                    chunk = None
                if progress is not None:
                    progress.update(_images_there(share, pool, chunk))
    return scored


def _images_there(share: Share, pool: Pool, chunk: Chunk | None) -> int:
    """The images that all processes have scored, and those of a chunk that is being filled."""
    there = pool.size - sum(_images_in(number, pool) for number in list(share.left))
    return there if chunk is None else there + chunk.seen + len(chunk.unreadable)


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


def batches(pool: Pool, share: Share, scorer: Scorer) -> Iterator[Batch]:
    """The images of the chunks that are free in batches, none of which reaches into another chunk.

    A chunk is claimed before the first of its images is read.
    """
    records: Iterator[Record] = iter(())
    following = -1
    while (number := share.take(following)) is not None:
        if number != following:
            records = pool.read(number * CHUNK)
        following, left = number + 1, _images_in(number, pool)
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


def ahead(items: Iterator[_Item]) -> Generator[_Item, None, None]:
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


def _check_order(pool: Pool, scores: Scores, there: Collection[int]) -> None:
    """Refuses another shard, or another order: the last chunk that is there tells."""
    if not there:
        return
    last = max(there)
    first = next((record.id for record in pool.read(last * CHUNK)), None)
    noted = scores.tally(last)["first"]
    if first != noted:
        raise ValueError(
            f"{str(scores.folder)!r} holds scores of another shard or order of the pool "
            f"{pool.name!r} (image {last * CHUNK:,} is {noted!r} there and {first!r} now): "
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
        check_count(name, value)
    check_height_and_width(image_size)
    if verbose not in (0, 1):
        raise ValueError(f"`verbose` must be 0 or 1, got {verbose!r}.")


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
