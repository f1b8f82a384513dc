import hashlib
import math
import weakref
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.data.mining import hashes, neighbours
from keras_ssd.data.mining.duplicates import EvaluationIndex, Match
from keras_ssd.data.mining.hashes import difference_hash, sha256_of
from keras_ssd.data.mining.neighbours import near_duplicates

SIZES = [(1, 1), (1, 9), (3, 5), (7, 8), (8, 9), (11, 2), (16, 18), (20, 13), (32, 32)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def photographs(count, size=32, seed=0):
    """Smooth images with a little noise, which differ from each other everywhere."""
    rng = np.random.default_rng(seed)
    smooth = tf.image.resize(rng.uniform(40, 180, (count, 6, 6, 3)), (size, size), "bicubic")
    noisy = smooth.numpy() + rng.normal(0, 3, smooth.shape)
    return np.clip(np.round(noisy), 0, 225).astype(np.uint8)


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def thumbnails(images):
    """An embedding that shifts hardly change: 3x3 pixels, minus their mean."""
    small = tf.image.resize(np.stack(images), (3, 3), antialias=True).numpy()
    return (small - small.mean((1, 2), keepdims=True)).reshape(len(images), -1)


def from_bits(bits):
    """An image of 8 rows and 9 columns with these 64 bits as its hash."""
    steps = np.where(np.reshape(bits, (8, 8)), 1, -1)
    grey = 100 + np.concatenate([np.zeros((8, 1), int), np.cumsum(steps, axis=1)], axis=1)
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2).astype(np.uint8)


def flipped(bits, count, seed=1):
    places = np.random.default_rng(seed).choice(64, count, replace=False)
    other = np.array(bits)
    other[places] ^= True
    return other


def hash_index(images, **arguments):
    return EvaluationIndex("test", [(images, None)], detectors=["dhash"], **arguments)


def some_bits(seed=0):
    return np.random.default_rng(seed).random(64) < 0.5


# sha256_of


def test_digest_of_size_and_pixels():
    image = noise(2, 3, 3)
    expected = hashlib.sha256(b"\2\0\0\0\3\0\0\0" + bytes(image.ravel().tolist())).hexdigest()
    assert sha256_of(image) == expected
    assert sha256_of(image.reshape(3, 2, 3)) != expected
    assert sha256_of(np.asfortranarray(image)) == expected
    assert sha256_of(noise(2, 3, 5)[:, :, 1:4]) == sha256_of(noise(2, 3, 5)[:, :, 1:4].copy())


# difference_hash


def slow_hash(image):
    height, width, _ = image.shape
    grey = [
        [Fraction(299 * int(r) + 587 * int(g) + 114 * int(b), 1000) for r, g, b in line]
        for line in image
    ]

    def parts(pixels, cells, cell):
        start, stop = Fraction(cell * pixels, cells), Fraction((cell + 1) * pixels, cells)
        shares = [(at, min(at + 1, stop) - max(at, start)) for at in range(pixels)]
        return [(at, share) for at, share in shares if share > 0]

    def mean(row, column):
        lines, places = parts(height, 8, row), parts(width, 9, column)
        total = sum(grey[y][x] * a * b for y, a in lines for x, b in places)
        return total / (Fraction(height, 8) * Fraction(width, 9))

    means = [[mean(row, column) for column in range(9)] for row in range(8)]
    return [line[at] < line[at + 1] for line in means for at in range(8)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_hash_in_fractions(size):
    image = noise(*size, 3)
    found = difference_hash(image)
    assert found.dtype == bool
    assert found.shape == (64,)
    assert found.tolist() == slow_hash(image)


def test_hash_of_gradients():
    ramp = np.repeat(np.arange(32, dtype=np.uint8) * 5, 3).reshape(1, 32, 3).repeat(32, axis=0)
    assert difference_hash(ramp).all()
    assert not difference_hash(ramp[:, ::-1]).any()
    upper = np.concatenate([ramp[:16], ramp[:16, ::-1]])
    assert difference_hash(upper).tolist() == [True] * 32 + [False] * 32


def test_hash_of_colours_of_one_grey():
    """15 R + 7 B weigh as much as 9 G: no colour is lighter, whatever 0.299 rounds to."""
    colours = np.array([[100, 100, 100], [115, 91, 107], [85, 109, 93]], np.uint8)
    image = colours[np.random.default_rng(0).integers(0, 3, (16, 18))]
    assert not difference_hash(image).any()
    image[1, 3, 2] += 1
    assert np.flatnonzero(difference_hash(image)).tolist() == [0]


def test_hash_of_a_tall_image_counts_single_grey_levels():
    image = np.full((70_001, 9, 3), 252, np.uint8)
    image[8_750, 0] = 251  # an eighth of this row is in the first band
    assert np.flatnonzero(difference_hash(image)).tolist() == [0, 8]


# near_duplicates


def exact_cosines(candidates, evaluation):
    """Rounded to float32 at the end alone."""

    def cosine(left, right):
        norms = [max(math.sqrt(math.fsum(x * x for x in v)), 1e-12) for v in (left, right)]
        return math.fsum(x * y for x, y in zip(left, right, strict=True)) / math.prod(norms)

    candidates, evaluation = (np.asarray(v, np.float64).tolist() for v in (candidates, evaluation))
    return np.array([[cosine(left, right) for right in evaluation] for left in candidates])


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 2_048])
@pytest.mark.parametrize("case", golden_cases("ssld", "near_duplicates_cosine"))
def test_golden(case, block_size):
    removed, best_match, best_similarity = near_duplicates(
        np.array(case["inputs"]["candidates"]),
        np.array(case["inputs"]["evaluation"]),
        case["params"]["threshold"],
        block_size,
    )
    expected = case["expected"]
    assert np.flatnonzero(removed).tolist() == expected["removed"]
    assert np.flatnonzero(~removed).tolist() == expected["kept"]
    assert best_match.tolist() == expected["best_match"]
    np.testing.assert_allclose(best_similarity, expected["best_similarity"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("spread", [3e-7, 1e-5, 1e-3])
def test_the_first_of_nearly_equal_cosines(spread):
    """Some are closer to each other than products of float32: only exact sums find the nearest."""
    directions = vectors(4, 24)
    evaluation = np.repeat(directions, 50, axis=0) + spread * vectors(200, 24, seed=1)
    candidates = directions + 0.1 * vectors(4, 24, seed=2)
    cosines = exact_cosines(candidates, evaluation)
    expected = cosines.astype(np.float32).argmax(axis=1)
    for block_size in (1, 7, 64, 200):
        _, best_match, best_similarity = near_duplicates(
            candidates, evaluation, block_size=block_size
        )
        assert best_match.tolist() == expected.tolist()
        np.testing.assert_allclose(best_similarity, cosines[range(4), expected], atol=1e-15)


@pytest.mark.parametrize("block_size", [1, 5, 32, 1_000])
def test_the_first_of_equal_cosines(block_size):
    one = vectors(37, 16)
    evaluation = np.concatenate([one, 2 * one[::-1], one, one / 4])
    removed, best_match, _ = near_duplicates(one, evaluation, 1.0, block_size)
    assert removed.all()  # a copy reaches 1 whatever the rounding
    assert best_match.tolist() == list(range(37))


def test_neither_batches_nor_order_nor_temporaries_matter(monkeypatch):
    candidates, evaluation = vectors(1_100, 40), vectors(50, 40, seed=1)
    whole = near_duplicates(candidates, evaluation)
    order = np.random.default_rng(0).permutation(1_100)
    for found, expected in zip(near_duplicates(candidates[order], evaluation), whole, strict=True):
        np.testing.assert_array_equal(found, expected[order])
    monkeypatch.setattr(neighbours, "VALUES", 20)
    for row in (0, 1, 1_050):
        some = near_duplicates(candidates[row : row + 3], np.asfortranarray(evaluation))
        for found, expected in zip(some, whole, strict=True):
            np.testing.assert_array_equal(found, expected[row : row + 3])


def test_scales_of_vectors():
    candidates, evaluation = vectors(20, 6), vectors(9, 6, seed=1)
    expected = near_duplicates(candidates, evaluation)
    for scale in (2.0**-30, 2.0**100):
        found = near_duplicates(candidates * scale, evaluation.astype(np.float64) * scale)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    _, _, short = near_duplicates([[3e-13, 4e-13]], [[0.6, 0.8]])
    np.testing.assert_allclose(short, [0.5], rtol=1e-12)  # the floor of the norm is 1e-12


def test_zero_vectors_are_like_nothing():
    candidates = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    evaluation = np.array([[-1.0, -1e-3], [0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    removed, best_match, best_similarity = near_duplicates(candidates, evaluation, 1e-9)
    assert removed.tolist() == [False, False, True]
    assert best_match.tolist() == [0, 1, 2]
    assert best_similarity.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.float32, np.float64])
def test_a_threshold_is_reached_by_its_own_value(dtype):
    candidates = np.array([[3, 4], [4, 3], [-3, 4]], dtype)
    evaluation = np.array([[5, 0]], dtype)
    for threshold, expected in ((0.6, [1, 1, 0]), (0.6000001, [0, 1, 0]), (0.8, [0, 1, 0])):
        removed, _, best_similarity = near_duplicates(candidates, evaluation, threshold)
        assert removed.tolist() == expected
    np.testing.assert_allclose(best_similarity, [0.6, 0.8, -0.6], rtol=1e-15)


def test_cosines_of_copies_are_at_most_1():
    one = vectors(500, 5)
    _, _, best_similarity = near_duplicates(one, one)
    assert best_similarity.max() == 1


def test_no_candidates():
    removed, best_match, best_similarity = near_duplicates(np.zeros((0, 3)), np.ones((2, 3)))
    assert (removed.dtype, len(removed)) == (bool, 0)
    assert len(best_match) == len(best_similarity) == 0


BAD_VECTORS = {
    "text": ([["a"]], TypeError, "`candidates` must be real numbers, got <U1"),
    "complex": ([[1j]], TypeError, "`candidates` must be real numbers, got complex128"),
    "row": ([1.0], ValueError, r"`candidates` must be a matrix \[rows, D\], got shape \(1,\)"),
    "no width": (np.ones((2, 0)), ValueError, r"matrix \[rows, D\], got shape \(2, 0\)"),
    "NaN": ([[1.0], [np.nan]], ValueError, "`candidates` must be finite, row 1 is not"),
    "infinite": ([[np.inf], [0.0]], ValueError, "`candidates` must be finite, row 0 is not"),
    "too large": ([[0.0], [1e200]], ValueError, "`candidates` must be finite, row 1 is not"),
    "width": ([[1.0, 2.0]], ValueError, r"must have one width, got \[1, 2\]"),
}


@pytest.mark.parametrize("case", BAD_VECTORS)
def test_refuses_vectors(case):
    candidates, error, message = BAD_VECTORS[case]
    with pytest.raises(error, match=message):
        near_duplicates(candidates, [[1.0]])


def test_refuses_an_empty_evaluation_set():
    with pytest.raises(ValueError, match="`evaluation` must have a row at least, got none"):
        near_duplicates([[1.0]], np.ones((0, 1)))


@pytest.mark.parametrize("threshold", [0, -0.5, 1.001, math.nan, True, "0.9", None])
def test_refuses_thresholds(threshold):
    with pytest.raises(ValueError, match=r"`threshold` must be a number in \(0, 1\], got "):
        near_duplicates([[1.0]], [[1.0]], threshold)
    with pytest.raises(ValueError, match=r"`similarity` must be a number in \(0, 1\], got "):
        EvaluationIndex("test", [], similarity=threshold)


@pytest.mark.parametrize("block_size", [0, -1, 1.0, True, None])
def test_refuses_block_sizes(block_size):
    with pytest.raises(ValueError, match=r"`block_size` must be an integer >= 1, got "):
        near_duplicates([[1.0]], [[1.0]], block_size=block_size)


# EvaluationIndex


def jpeg(images):
    encoded = (tf.io.encode_jpeg(image, quality=90) for image in images)
    return [tf.io.decode_jpeg(image).numpy() for image in encoded]


def shifted(images, pixels):
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, 0), (0, 0)), mode="edge")
    return list(padded[:, :, : images.shape[2]])


COPIES = {  # name: (how an evaluation image comes into the pool, which detectors may find it)
    "exact": (list, {"exact"}),
    "jpeg": (jpeg, {"dhash"}),
    "mirrored": (lambda images: list(images[:, :, ::-1]), {"dhash"}),
    "mirrored jpeg": (lambda images: jpeg(images[:, :, ::-1]), {"dhash"}),
    "lighter": (lambda images: list(np.round(images * 1.1).astype(np.uint8)), {"dhash"}),
    "larger": (lambda images: list(images.repeat(3, 1).repeat(2, 2)), {"dhash"}),
    "1 pixel": (lambda images: shifted(images, 1), {"dhash", "embedding"}),
    "2 pixels": (lambda images: shifted(images, 2), {"dhash", "embedding"}),
}


@pytest.mark.parametrize("copy", COPIES)
def test_finds_copies_and_nothing_else(copy):
    images = photographs(40)
    evaluation, others = images[:20], list(images[20:])
    batches = [(evaluation, thumbnails(evaluation))]
    index = EvaluationIndex("cifar100", batches, similarity=0.8)
    change, detectors = COPIES[copy]
    copies = change(evaluation)
    matches = index.match(copies, thumbnails_of_any(copies))
    assert {match.detector for match in matches} <= detectors
    if copy not in ("mirrored", "mirrored jpeg"):
        names = [f"cifar100/{row:08d}" for row in range(20)]
        assert [match.best_match for match in matches] == names
        assert all(match.best_similarity > 0.8 for match in matches)
    assert all(match.detector is None for match in index.match(others, thumbnails(others)))


def thumbnails_of_any(images):
    return np.concatenate([thumbnails([image]) for image in images])


def test_the_first_detector_is_named():
    images = photographs(3)
    embeddings = vectors(3, 8)
    index = EvaluationIndex("test", [(images, embeddings)])
    pool = [images[1], images[1, :, ::-1], noise(32, 32, 3), noise(5, 9, 3)]
    found = index.match(pool, np.stack([embeddings[2], embeddings[0], embeddings[0], np.zeros(8)]))
    assert found == [
        Match("exact", "test/00000002", 1.0),
        Match("dhash", "test/00000000", 1.0),
        Match("embedding", "test/00000000", 1.0),
        Match(None, "test/00000000", 0.0),
    ]


def test_without_embeddings_the_image_that_was_found_is_named():
    images = photographs(3)
    index = hash_index(images)
    assert index.match([images[2], images[1, :, ::-1], noise(32, 32, 3)], None) == [
        Match("exact", "test/00000002", None),
        Match("dhash", "test/00000001", None),
        Match(None, None, None),
    ]


def test_a_detector_that_is_off_does_not_fire():
    images = photographs(2)
    mirrored = list(images[:, :, ::-1])
    exact = EvaluationIndex("test", [(images, None)], detectors=[])
    assert exact.match([images[1], mirrored[1]], None) == [
        Match("exact", "test/00000001", None),
        Match(None, None, None),
    ]
    embeddings = np.eye(2, dtype=np.float32)
    near = EvaluationIndex("test", [(images, embeddings)], detectors=["embedding"], similarity=0.5)
    assert near.match(mirrored, np.array([[1, 2], [0, 1]])) == [
        Match("embedding", "test/00000001", float(np.float32(2 / 5**0.5))),
        Match("embedding", "test/00000001", 1.0),
    ]


@pytest.mark.parametrize("distance", [0, 1, 4, 8, 9, 63])
def test_hamming_distances(distance):
    bits = some_bits()
    index = hash_index([from_bits(bits)], hamming_distance=distance)
    near, far = (from_bits(flipped(bits, distance + more)) for more in (0, 1))
    mirrored = [image[:, ::-1] for image in (near, far)]
    fired = [match.detector is not None for match in index.match([near, far, *mirrored], None)]
    assert fired[0]
    assert fired[2]
    if distance < 20:  # farther away an image and its mirror image may be close to each other
        assert not fired[1]
        assert not fired[3]


@pytest.mark.parametrize("values", [1, 1_000, 10**6])
@pytest.mark.parametrize("distance", [0, 3, 8, 9, 20])
def test_the_first_of_the_nearest_hashes_is_named(monkeypatch, distance, values):
    for module in (hashes, neighbours):
        monkeypatch.setattr(module, "VALUES", values)
    rng = np.random.default_rng(0)
    bits = [flipped(some_bits(at % 5), at // 5 % 12, seed=at) for at in range(120)]
    images = [from_bits(row)[:, :: rng.choice([1, -1])] for row in [*bits, *bits[::3]]]
    pool = [from_bits(flipped(some_bits(at % 6), at % 7, seed=at)) for at in range(40)]

    wanted, plain = slow_bits(pool)[:, np.newaxis], slow_bits(images)
    mirrored = slow_bits([image[:, ::-1] for image in images])
    distances = np.minimum((wanted != plain).sum(2), (wanted != mirrored).sum(2))
    expected = [
        Match("dhash", f"test/{row.argmin():08d}", None)
        if row.min() <= distance
        else Match(None, None, None)
        for row in distances
    ]
    found = hash_index(images, hamming_distance=distance).match(pool, None)
    assert [match._replace(detector=match.detector and "dhash") for match in found] == expected
    assert distance > 8 or Match(None, None, None) in expected


def slow_bits(images):
    """The hashes of images of 8 rows and 9 columns."""
    grey = np.stack(images).astype(int) @ [299, 587, 114]
    return (grey[:, :, :-1] < grey[:, :, 1:]).reshape(-1, 64)


def test_the_first_of_equal_images_is_named():
    images = photographs(2)
    batches = [(images[:1], None), (images[[1, 0, 1]], None)]
    for detectors in ([], ["dhash"]):
        index = EvaluationIndex("test", batches, detectors=detectors)
        assert index.match([images[1]], None) == [Match("exact", "test/00000001", None)]


@pytest.mark.parametrize("values", [1, 5_000, 10**6])
def test_neither_batches_nor_sizes_nor_blocks_matter(monkeypatch, values):
    for module in (hashes, neighbours):
        monkeypatch.setattr(module, "VALUES", values)
    evaluation = [*photographs(5), *photographs(4, size=20, seed=1), *photographs(3, seed=2)]
    pool = [noise(32, 8, 3), evaluation[0], evaluation[6][:, ::-1], *photographs(7, size=11)]
    embeddings, others = vectors(12, 8), vectors(10, 8, seed=1)
    pairs = [(evaluation[at : at + 5], embeddings[at : at + 5]) for at in (0, 5, 10)]
    index = EvaluationIndex("test", [*pairs, ([], embeddings[:0])], similarity=0.5)
    monkeypatch.setattr(neighbours, "EVALUATION_BLOCK", 3)
    whole = index.match(pool, others)
    assert {match.detector for match in whole} == {None, "exact", "dhash", "embedding"}
    single = [index.match(pool[at : at + 1], others[at : at + 1])[0] for at in range(10)]
    assert single == whole
    order = np.random.default_rng(0).permutation(10)
    shuffled = index.match([pool[at] for at in order], others[order])
    assert shuffled == [whole[at] for at in order]
    assert index.match([], others[:0]) == []


def test_an_index_keeps_no_pixels():
    alive = []

    def batches():
        for seed in range(3):
            assert sum(image() is not None for image in alive) <= 4  # the last two batches
            images = [noise(8, 9, 3, seed=seed * 10 + at) for at in range(2)]
            alive.extend(weakref.ref(image) for image in images)
            yield images, vectors(2, 4)

    index = EvaluationIndex("test", batches())
    assert index.size == 6
    assert not any(image() for image in alive)


def test_digest_of_the_evaluation_set():
    images = photographs(4)
    digest = hash_index(images).digest
    expected = hashlib.sha256(b"".join(bytes.fromhex(sha256_of(image)) for image in images))
    assert digest == expected.hexdigest()
    halves = [(images[:1], vectors(1, 2)), (images[1:], vectors(3, 2))]
    assert EvaluationIndex("other", halves, hamming_distance=0, similarity=1).digest == digest
    assert hash_index(images[::-1]).digest != digest
    assert hash_index(images[:3]).digest != digest


# what is refused


def test_refuses_to_have_no_images():
    for batches in ([], [([], None)]):
        with pytest.raises(ValueError, match="evaluation set 'test' must have images, got none"):
            EvaluationIndex("test", batches, detectors=["dhash"])


@pytest.mark.parametrize("distance", [-1, 64, 4.0, True, None])
def test_refuses_hamming_distances(distance):
    message = r"`hamming_distance` must be an integer in \[0, 63\], got "
    with pytest.raises(ValueError, match=message):
        hash_index(photographs(1), hamming_distance=distance)


@pytest.mark.parametrize("detectors", ["dhash", ["exact"], ["embedding", "sift"]])
def test_refuses_detectors(detectors):
    message = r"`detectors` must be some of \('dhash', 'embedding'\) .'exact' always is on., got "
    with pytest.raises(ValueError, match=message):
        EvaluationIndex("test", [], detectors=detectors)


BAD_IMAGES = {
    "floats": (np.zeros((4, 4, 3)), TypeError, r"uint8 array \[H, W, 3\], got float64"),
    "list": ([[[0, 0, 0]]], TypeError, r"uint8 array \[H, W, 3\], got list"),
    "grey": (noise(4, 4), ValueError, r"uint8 array \[H, W, 3\], got shape \(4, 4\)"),
    "alpha": (noise(4, 4, 4), ValueError, r"got shape \(4, 4, 4\)"),
    "empty": (noise(0, 4, 3), ValueError, r"got shape \(0, 4, 3\)"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_refuses_images(case):
    image, error, message = BAD_IMAGES[case]
    index = hash_index(photographs(1))
    calls = (
        lambda: sha256_of(image),
        lambda: difference_hash(image),
        lambda: hash_index([image]),
        lambda: index.match([image], None),
    )
    for call in calls:
        with pytest.raises(error, match=message):
            call()


def test_refuses_embeddings():
    images, embeddings = photographs(2), vectors(2, 4)
    index = EvaluationIndex("test", [(images, embeddings)])
    with pytest.raises(ValueError, match="must be given if the detector 'embedding' is on"):
        index.match(images, None)
    with pytest.raises(ValueError, match=r"and else be None: the detectors are \['dhash'\]"):
        hash_index(images).match(images, embeddings)
    with pytest.raises(ValueError, match="must be given if the detector 'embedding' is on"):
        EvaluationIndex("test", [(images, None)])
    with pytest.raises(ValueError, match="a row for each image, got 1 rows and 2 images"):
        index.match(images, embeddings[:1])
    with pytest.raises(ValueError, match=r"must have one width, got \[3, 4\]"):
        index.match(images, embeddings[:, :3])
    with pytest.raises(ValueError, match=r"must have one width, got \[3, 4\]"):
        EvaluationIndex("test", [(images, embeddings), (images, embeddings[:, :3])])
    with pytest.raises(ValueError, match="`embeddings` must be finite, row 1 is not"):
        index.match(images, embeddings * [[1], [np.inf]])
