"""An image of a pool: as it is read, and once the scorer has seen it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Record(NamedTuple):
    """An image of a pool.

    Attributes:
        id: Unique in the pool.
        source: Where `data.load` finds the image again; empty for images given as arrays.
        image: uint8 `[H, W, 3]` as decoded, not resized; None where it cannot be read.
        problem: Why it cannot be read, in a few words, or None.
    """

    id: str
    source: str
    image: np.ndarray | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """An image of a pool with the classes that the scorer gives it.

    Attributes:
        id: Unique in all pools that are mined together.
        source: Where `data.load` finds the image again; empty for images that were given as arrays.
        classes: The classes of highest probability, best first (the lower one of equal ones).
        scores: Their probabilities, float32 values; never NaN or infinite.
        sha256: Hexadecimal digest of the decoded image.
        detector: The detector that found it in the evaluation set, so that it is removed, or None.
        best_match: The evaluation image that is most like it, None where embeddings were not
            compared and nothing was found.
        best_similarity: Cosine similarity to that one, None where embeddings were not compared.
    """

    id: str
    source: str
    classes: tuple[int, ...]
    scores: tuple[float, ...]
    sha256: str
    detector: str | None = None
    best_match: str | None = None
    best_similarity: float | None = None
