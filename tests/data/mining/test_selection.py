import dataclasses
import json
import warnings

import numpy as np
import pytest
from conftest import golden_cases

from keras_ssd.data.mining import selection
from keras_ssd.data.mining.manifest import read_manifest
from keras_ssd.data.mining.records import Scored
from keras_ssd.data.mining.scores import Chunk, Scores
from keras_ssd.data.mining.selection import select, top_k_per_class

INITIALS = ("a", "é", "\U0001f600")


def scored(id, *places, **others):
    """A record by its id and pairs of a class and its score."""
    classes, scores = zip(*places, strict=True)
    others = {"source": f"{id}.png", "sha256": f"digest of {id}", **others}
    return Scored(id=id, classes=classes, scores=scores, **others)


def many(count, classes=5, seed=0):
    """Records with equal scores here and there, a tenth of them duplicates."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count).tolist()
    scores = (generator.integers(0, 16, count) / 16).tolist()  # exact in float32
    names = generator.permutation(count).tolist()
    return [
        scored(
            f"{INITIALS[name % 3]}/{name}",
            (label, score),
            detector="dhash" if name % 10 == 0 else None,
            best_match="test/7" if name % 10 == 0 else None,
            best_similarity=score - 0.5,
        )
        for label, score, name in zip(labels, scores, names, strict=True)
    ]


def kept(rows):
    return [(row.id, row.label, row.rank) for row in rows]


def best_by_sorting(records, classes, k, min_score):
    """What must be kept of records of one class each, by sorting all of them."""
    rows = []
    for label in range(classes):
        candidates = [
            (-record.scores[0], record.id.encode("utf-8"), record.id)
            for record in records
            if record.classes == (label,) and record.scores[0] >= min_score and not record.detector
        ]
        ranked = sorted(candidates)[:k]
        rows += [(id, label, rank) for rank, (_, _, id) in enumerate(ranked)]
    return rows


# --- top_k_per_class ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("ssld", "mine_top_k_per_class"))
def test_golden(case):
    probabilities = np.array(case["inputs"]["probabilities"], np.float32)
    ids = case["inputs"]["ids"]
    labels = probabilities.argmax(axis=-1).tolist()
    records = [
        scored(id, (label, float(row[label])))
        for id, label, row in zip(ids, labels, probabilities, strict=True)
    ]
    found = top_k_per_class(
        records, probabilities.shape[-1], case["params"]["k"], case["params"]["min_score"]
    )
    expected = case["expected"]
    assert kept(found.rows) == [(row["id"], row["class"], row["rank"]) for row in expected]
    assert [ids.index(row.id) for row in found.rows] == [row["position"] for row in expected]
    assert [row.score for row in found.rows] == [np.float32(row["score"]) for row in expected]


@pytest.mark.parametrize("k", [0, 1, 7, 1000])
@pytest.mark.parametrize("min_score", [0, 0.25])
def test_the_best_in_any_order(k, min_score):
    records = many(300)
    expected = best_by_sorting(records, 5, k, min_score)
    first = top_k_per_class(records, 5, k, min_score)
    assert kept(first.rows) == expected
    assert first.per_class == tuple(
        sum(label == place for _, label, _ in expected) for place in range(5)
    )
    for seed in range(5):
        shuffled = [records[place] for place in np.random.default_rng(seed).permutation(300)]
        assert top_k_per_class(shuffled, 5, k, min_score) == first


def test_rows_hold_what_the_records_do():
    record = scored("a", (1, 0.1), best_match="test/3", best_similarity=0.3)
    (row,) = top_k_per_class([record], 2, 1).rows
    assert dataclasses.asdict(row) == {
        "id": "a",
        "source": "a.png",
        "label": 1,
        "score": float(np.float32(0.1)),
        "rank": 0,
        "sha256": "digest of a",
        "best_match": "test/3",
        "best_similarity": float(np.float32(0.3)),
    }


def test_equal_scores_are_sorted_by_the_bytes_of_the_id():
    in_order = ["", "\0", "A", "B", "a", "a\0", "ab", "b", "é", "\u2028", "\ufffd", "\U0001f600"]
    for seed in range(10):
        shuffled = [in_order[place] for place in np.random.default_rng(seed).permutation(12)]
        for k in (1, 5, 11, 12):
            rows = top_k_per_class([scored(id, (0, 0.5)) for id in shuffled], 1, k).rows
            assert [row.id for row in rows] == in_order[:k]


def test_scores_equal_as_float32_are_equal():
    records = [scored("b", (0, 0.1)), scored("a", (0, float(np.float32(0.1))))]
    assert [row.id for row in top_k_per_class(records, 1, 2).rows] == ["a", "b"]


def test_every_image_is_counted_once():
    records = [
        scored("best", (0, 0.9)),
        scored("next", (0, 0.8)),
        scored("third", (0, 0.7)),
        scored("low", (1, 0.1)),
        scored("copy", (0, 0.99), detector="exact"),
        scored("low copy", (0, 0.1), detector="embedding"),
        scored("nan", (1, float("nan"))),
        scored("infinite copy", (1, float("inf")), detector="dhash"),
        scored("limit", (2, 0.35)),
    ]
    found = top_k_per_class(records, 3, 2, min_score=0.35)
    assert kept(found.rows) == [("best", 0, 0), ("next", 0, 1), ("limit", 2, 0)]
    assert found.per_class == (2, 0, 1)
    assert found.counts == {
        "seen": 9,
        "non_finite": 2,
        "duplicates": 2,
        "below_min_score": 1,
        "not_in_top_k": 1,
        "kept": 3,
    }


@pytest.mark.parametrize("min_score", [0.35, 0.6, 1 / 3, np.float64(0.9), 1, 0])
def test_the_least_score_itself_is_enough(min_score):
    as_scored = scored("a", (0, float(np.float32(min_score))))
    as_typed = scored("b", (0, min_score))
    below = scored("c", (0, float(np.nextafter(np.float32(min_score), np.float32(-1)))))
    rows = top_k_per_class([as_scored, as_typed, below], 1, 3, min_score).rows
    assert [row.id for row in rows] == ["a", "b"]


def test_an_image_of_several_classes_is_kept_where_its_rank_is_best():
    records = [
        scored("a", (0, 0.5), (1, 0.4)),  # ranks 1 and 0
        scored("b", (0, 0.6), (2, 0.1)),  # ranks 0 and 2, which is beyond the best
        scored("c", (2, 0.7), (1, 0.3)),  # ranks 0 and 1
        scored("d", (1, 0.2), (2, 0.2)),  # ranks 2, which is beyond the best, and 1
        scored("e", (0, 0.45), (3, 0.45)),  # ranks 2, which is beyond the best, and 0
        scored("f", (0, 0.1), (3, 0.05)),  # ranks 3 and 1, below `min_score` there
    ]
    for seed in range(5):
        shuffled = [records[place] for place in np.random.default_rng(seed).permutation(6)]
        found = top_k_per_class(shuffled, 4, 2, min_score=0.1)
        assert kept(found.rows) == [
            ("b", 0, 0),
            ("a", 1, 0),
            ("c", 2, 0),
            ("d", 2, 1),
            ("e", 3, 0),
        ]
        assert [row.score for row in found.rows] == [
            np.float32(score) for score in (0.6, 0.4, 0.7, 0.2, 0.45)
        ]
        assert found.per_class == (1, 1, 2, 1)
        assert found.counts["kept"] == 5
        assert found.counts["not_in_top_k"] == 1


def test_the_lowest_class_of_equal_ranks():
    records = [scored("a", (2, 0.6), (1, 0.4)), scored("b", (0, 0.5), (2, 0.5))]
    assert kept(top_k_per_class(records, 3, 5).rows) == [("b", 0, 0), ("a", 1, 0)]


def test_below_the_least_score_in_all_its_classes():
    found = top_k_per_class([scored("a", (0, 0.3), (1, 0.2))], 2, 1, min_score=0.4)
    assert found.counts["below_min_score"] == 1
    assert found.rows == ()


@pytest.mark.parametrize(
    ("records", "k"),
    [
        ([scored("a", (0, 0.9)), scored("a", (0, 0.9))], 2),
        ([scored("a", (0, 0.9)), scored("a", (0, 0.9), sha256="another")], 2),
        ([scored("a", (0, 0.9)), scored("a", (0, 0.8))], 2),
        ([scored("a", (0, 0.9)), scored("a", (1, 0.8))], 1),
        ([scored("a", (0, 0.9)), scored("a", (0, 0.9))], 1),  # which one would be chance
        ([scored("a", (0, 0.9)), scored("b", (0, 0.9)), scored("a", (0, 0.9))], 1),
        ([scored("a", (0, 0.9), (1, 0.1)), scored("a", (1, 0.9), (0, 0.1))], 1),
        ([scored("a", (0, 0.5), (1, 0.4))] * 2, 2),
    ],
)
def test_refuses_ids_that_are_kept_twice(records, k):
    for order in (records, records[::-1]):
        with pytest.raises(ValueError, match="must be unique, got several images of a: give each"):
            top_k_per_class(order, 2, k)


def test_ids_twice_among_what_is_left_out_do_not_matter():
    records = [scored("a", (0, 0.5)), scored("b", (0, 0.9)), scored("a", (0, 0.5))]
    for order in (records, records[1:] + records[:1]):
        assert kept(top_k_per_class(order, 1, 1).rows) == [("b", 0, 0)]


def test_names_some_of_the_ids():
    records = [scored(f"id{place:02}", (0, 0.5)) for place in range(40)] * 2
    with pytest.raises(ValueError, match=r"several images of id00, .* and 35 more: give"):
        top_k_per_class(records, 1, 100)


@pytest.mark.parametrize("label", [-1, 3])
def test_refuses_classes_that_are_none(label):
    record = scored("a", (0, 0.9), (label, 0.1))
    with pytest.raises(ValueError, match=f"must lie in 0 to 2, got {label} for 'a': give"):
        top_k_per_class([record], 3, 1)


def test_refuses_ids_that_utf8_cannot_write():
    with pytest.raises(ValueError, match=r"must be text that UTF-8 can write.* got 'a\\udcff'"):
        top_k_per_class([scored("a\udcff", (0, 0.9))], 1, 1)


@pytest.mark.parametrize("k", [-1, 1.0, True, "1", None])
def test_refuses_k(k, tmp_path):
    for call in (
        lambda: top_k_per_class([], 2, k),
        lambda: select("nowhere", tmp_path / "mined.jsonl", k=k),
    ):
        with pytest.raises(ValueError, match=r"`k`, .* must be an integer >= 0, got"):
            call()


@pytest.mark.parametrize("min_score", [-0.1, 1.1, float("nan"), float("inf"), True, "0.1", None])
def test_refuses_min_score(min_score, tmp_path):
    for call in (
        lambda: top_k_per_class([], 2, 1, min_score),
        lambda: select("nowhere", tmp_path / "mined.jsonl", k=1, min_score=min_score),
    ):
        with pytest.raises(ValueError, match=r"`min_score` must be a number in \[0, 1\], got"):
            call()


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, True, None])
def test_refuses_num_classes(num_classes):
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 1, got"):
        top_k_per_class([], num_classes, 1)


class Counted:
    """A record that knows how many of its kind are held."""

    live = most = 0

    def __init__(self, place, classes, score):
        self.id = self.source = self.sha256 = f"{place:07}"
        self.classes, self.scores = (place % classes,), (score,)
        self.detector = self.best_match = self.best_similarity = None
        Counted.live += 1
        Counted.most = max(Counted.most, Counted.live)

    def __del__(self):
        Counted.live -= 1


@pytest.mark.parametrize(
    ("order", "count"),
    [
        ("rising", 20_000),
        ("falling", 20_000),
        ("equal", 20_000),
        ("any", 20_000),
        pytest.param("rising", 1_000_000, marks=pytest.mark.slow),
    ],
)
def test_holds_no_more_than_k_records_a_class(order, count):
    scores = {
        "rising": np.linspace(0, 1, count),  # each one is the best so far
        "falling": np.linspace(1, 0, count),
        "equal": np.full(count, 0.5),
        "any": np.random.default_rng(0).random(count),
    }[order]
    Counted.live = Counted.most = 0
    records = (Counted(place, 10, float(score)) for place, score in enumerate(scores))
    found = top_k_per_class(records, 10, 20)
    assert found.counts["kept"] == 200
    assert 200 <= Counted.most <= 205
    assert found.counts["seen"] == count


# --- select ------------------------------------------------------------------------------------

HEADER = {
    "schema": 1,
    "scorer": "wrn_40_2",
    "scorer_digest": "abc",
    "num_classes": 5,
    "class_names": ["a", "b", "c", "d", "é"],
    "temperature": 1.0,
    "classes_per_image": 1,
    "preprocessing": {"resize": [32, 32], "mean": [0.5071, 0.1], "interpolation": "bilinear"},
    "pool_name": "pool",
    "pool_size": 300,
    "pool_digest": "p0",
    "shard": [0, 1],
    "evaluation_name": "cifar100[test]",
    "evaluation_digest": "def",
    "detectors": {"exact": True, "dhash": {"hamming_distance": 4}, "embedding": None},
    "chunk": 4,
}


@dataclasses.dataclass
class Folder:
    """Stands for `Scores`."""

    header: dict
    tallies: dict
    complete: bool
    held: list

    def records(self):
        yield from self.held


def folder(records, *, non_finite=0, unreadable=(), complete=True, **header):
    tallies = {
        "seen": len(records) + non_finite,
        "non_finite": non_finite,
        "unreadable": [[source, "cut off"] for source in unreadable],
    }
    return Folder({**HEADER, **header}, tallies, complete, list(records))


@pytest.fixture
def mined(tmp_path, monkeypatch):
    """A function that selects from stand-ins of score folders: the manifest and its bytes."""

    def run(*folders, k=3, path=tmp_path / "mined.jsonl", **options):
        named = {f"scores/{place}": each for place, each in enumerate(folders)}
        monkeypatch.setattr(selection, "Scores", named.__getitem__)
        manifest = select(list(named), path, k=k, **options)
        return manifest, path.read_bytes()

    return run


def test_the_file(mined):
    first = folder(
        [
            scored("b", (1, float(np.float32(0.1))), best_match="t/1", best_similarity=0.25),
            scored("ü", (0, 0.75)),
            scored("copy", (0, 1.0), detector="exact", best_match="t/2", best_similarity=1.0),
        ],
        non_finite=2,
        unreadable=["x.png"],
        num_classes=2,
        class_names=None,
        pool_name="p",
        preprocessing={"mean": [0.1]},
    )
    _, content = mined(first, k=1, min_score=0.1)
    assert content.decode("utf-8").split("\n") == [
        '{"assign": "predicted", "class_names": null, "classes_per_image": 1, "counts": '
        '{"below_min_score": 0, "duplicates": 1, "kept": 2, "non_finite": 2, "not_in_top_k": 0, '
        '"seen": 5}, "detectors": {"dhash": {"hamming_distance": 4}, "embedding": null, '
        '"exact": true}, "evaluation_name": '
        '"cifar100[test]", "k": 1, "min_score": 0.1, "num_classes": 2, "per_class": [1, 1], '
        '"pool_name": "p", "preprocessing": {"mean": [0.1]}, "schema": 1, "scorer": "wrn_40_2", '
        '"scorer_digest": "abc", "temperature": 1.0, "unreadable": 1}',
        '{"best_match": null, "best_similarity": null, "class": 0, "id": "ü", "rank": 0, '
        '"score": 0.75, "sha256": "digest of ü", "source": "ü.png"}',
        '{"best_match": "t/1", "best_similarity": 0.25, "class": 1, "id": "b", "rank": 0, '
        '"score": 0.1, "sha256": "digest of b", "source": "b.png"}',
        "",
    ]


def test_the_file_gives_what_was_returned(mined, tmp_path):
    manifest, _ = mined(folder(many(300)), min_score=0.3)
    assert read_manifest(tmp_path / "mined.jsonl") == manifest
    assert kept(manifest.rows) == best_by_sorting(many(300), 5, 3, 0.3)


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("classes_per_image", [1, 2])
def test_shards_give_the_bytes_of_the_whole(mined, shards, classes_per_image):
    records = many(300)
    if classes_per_image == 2:
        records = [
            dataclasses.replace(record, classes=(label, (label + 1) % 5), scores=(score, 0.25))
            for record in records
            for label, score in [(record.classes[0], max(record.scores[0], 0.25))]
        ]
    per_image = {"classes_per_image": classes_per_image}
    _, whole = mined(folder(records, non_finite=3, **per_image), min_score=0.1)
    _, again = mined(folder(records, non_finite=3, **per_image), min_score=0.1)
    assert again == whole
    parts = [
        folder(records[index::shards], pool_size=index, **per_image) for index in range(shards)
    ]
    parts[-1].tallies["non_finite"] += 3
    parts[-1].tallies["seen"] += 3
    for part in parts:
        part.held = part.held[::-1]
    for order in (parts, parts[::-1]):
        assert mined(*order, min_score=0.1)[1] == whole
    assert (
        json.loads(whole.split(b"\n")[0])["assign"]
        == ["predicted", "top_p"][per_image != {"classes_per_image": 1}]
    )


def test_counts_of_several_pools(mined):
    manifest, content = mined(
        folder([scored("a/1", (0, 0.5))], non_finite=2, unreadable=["a/0"], pool_name="é"),
        folder([scored("b/1", (1, 0.2)), scored("b/2", (0, 0.4))], pool_name="z"),
        folder(
            [scored("a/2", (0, float("nan")))], non_finite=1, unreadable=["0", "3"], pool_name="é"
        ),
        k=1,
        min_score=0.3,
    )
    assert manifest.header["counts"] == {
        "seen": 7,
        "non_finite": 4,
        "duplicates": 0,
        "below_min_score": 1,
        "not_in_top_k": 1,
        "kept": 1,
    }
    assert manifest.header["unreadable"] == 3
    assert manifest.header["per_class"] == [1, 0, 0, 0, 0]
    assert manifest.header["pool_name"] == "z+é"
    assert manifest.header["min_score"] == 0.3
    assert b'"min_score": 0.3,' in content


def test_what_decides_no_score_may_differ(mined):
    first = folder(many(9)[:4], scorer="functional_1", chunk=4096)
    second = folder(many(9)[4:], scorer="functional", pool_size=5)
    manifest, content = mined(first, second)
    assert manifest.header["scorer"] == "functional+functional_1"
    assert mined(second, first)[1] == content


def test_folders_of_scores(mined, tmp_path, monkeypatch):
    records = many(30)
    _, expected = mined(folder(records, non_finite=1, unreadable=["x"]))
    folders = [tmp_path / name for name in "ab"]
    for place, some in zip(folders, (records[:11], records[11:]), strict=True):
        scores = Scores.made_with(place, {**HEADER, "pool_size": len(some)})
        for number in range(scores.count):
            chunk = some[4 * number : 4 * number + 4]
            scores.write(number, Chunk(chunk[0].id, chunk, seen=len(chunk)))
    scores.write(4, Chunk("nan", records[27:], seen=4, unreadable=[["x", "cut off"]]))
    monkeypatch.undo()
    path = tmp_path / "mined.jsonl"
    path.unlink()
    select(folders, path, k=3)
    assert path.read_bytes() == expected
    (folders[0] / "00000002.jsonl").unlink()
    with pytest.raises(ValueError, match="must be complete, but are not"):
        select(folders, path, k=3)
    assert path.read_bytes() == expected


def test_one_folder_needs_no_list(tmp_path, monkeypatch):
    found = folder(many(20))
    monkeypatch.setattr(selection, "Scores", lambda path: {str(tmp_path): found}[str(path)])
    written = [
        select(path, tmp_path / "new" / "mined.jsonl", k=np.int64(1))
        for path in (tmp_path, str(tmp_path), [tmp_path])
    ]
    assert written[0] == written[1] == written[2]
    assert written[0].header["k"] == 1


def test_tells_what_it_did(mined, capsys, tmp_path):
    records = [scored("a", (0, 0.9)), scored("b", (0, 0.8)), scored("c", (0, 0.1))]
    copies = [scored(f"copy {place}", (1, 0.9), detector="exact") for place in range(2)]
    worse = [scored(f"worse {place}", (0, 0.7)) for place in range(1100)]
    mined(folder(records + copies + worse, non_finite=4, unreadable=["x", "y"]), k=1, min_score=0.5)
    assert capsys.readouterr().out == (
        f"{tmp_path / 'mined.jsonl'}: 1 of the 1,109 images of pool kept, at most 1 in each of 5 "
        "classes; left out: 2 duplicates of evaluation images, 1 of a score below 0.5, 1,101 "
        "beyond the best, 4 without a finite score; 2 unreadable.\n"
    )


def test_more_than_the_pool_keeps_all_and_warns(mined):
    parts = folder(many(20)[:12]), folder(many(20)[12:], non_finite=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, _ = mined(*parts, k=21)
    with pytest.warns(UserWarning, match="`k`=22 is more than the 21 images of the") as caught:
        manifest, _ = mined(*parts, k=22)
    assert [caught[0].filename, len(caught)] == [__file__, 1]
    assert manifest.rows == expected.rows
    assert len(manifest.rows) == 18  # but the duplicates
    assert manifest.header["k"] == 22


def test_keeps_nothing(mined):
    manifest, content = mined(folder(many(20)), k=0)
    assert manifest.rows == ()
    assert content.count(b"\n") == 1
    assert manifest.header["per_class"] == [0] * 5


def refused(mined, tmp_path, match, *folders, **options):
    """Nothing is written, and what was there is still there."""
    with pytest.raises(ValueError, match=match):
        mined(*folders, **options)
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "mined.jsonl"
    path.write_text("earlier")
    with pytest.raises(ValueError, match=match):
        mined(*folders, **options)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "earlier"


def test_refuses_an_empty_pool(mined, tmp_path):
    match = "must be images to select from, got none and 2 that could not be read: score"
    refused(mined, tmp_path, match, folder([]), folder([], unreadable=["a", "b"]))


def test_refuses_scores_that_are_not_complete(mined, tmp_path):
    match = "scores in 'scores/1' must be complete, but are not: call `score` with the same"
    refused(mined, tmp_path, match, folder(many(9)), folder([], complete=False))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"scorer_digest": "xyz"},
            "`scorer_digest` to be merged, got 'abc' in 'scores/0' and 'xyz' in",
        ),
        ({"class_names": list("abxde")}, r"`class_names\[2\]` to be merged, got 'c' in .* 'x' in"),
        ({"class_names": list("ab")}, r"`class_names` to be merged, got \['a', .* \['a', 'b'\] in"),
        ({"class_names": None}, r"`class_names` to be merged, got \['a', .* and None in"),
        ({"detectors": {"exact": True}}, "`detectors.dhash` to be merged, got .* and None in"),
        (
            {"preprocessing": {**HEADER["preprocessing"], "mean": [0.5071, 0.2]}},
            r"`preprocessing.mean\[1\]` to be merged, got 0.1 in .* and 0.2 in",
        ),
        ({"temperature": 2.0}, "`temperature` to be merged, got 1.0 in 'scores/0' and 2.0 in"),
        ({"evaluation_digest": None}, "`evaluation_digest` to be merged, got 'def' in .* None in"),
        ({"new": 5}, "`new` to be merged, got None in .* and 5 in"),
    ],
)
def test_refuses_scores_of_different_arguments(mined, tmp_path, changes, found):
    match = f"must agree in {found} 'scores/2': score both with the same arguments"
    same = folder(many(9)[:3]), folder(many(9)[3:6])
    refused(mined, tmp_path, match, *same, folder(many(9)[6:], **changes))


def test_long_values_are_named_in_short(mined):
    names = [f"class {number}" for number in range(1000)]
    parts = [folder(many(9), class_names=names[:-count]) for count in (1, 2)]
    with pytest.raises(ValueError, match=r"got \['class 0', .*\.\.\. in 'scores/0'") as caught:
        mined(*parts)
    assert len(str(caught.value)) < 400


def test_refuses_images_twice(mined, tmp_path):
    refused(mined, tmp_path, "must be unique, got several", folder(many(9)), folder(many(9)))


def test_refuses_scores_that_were_changed(mined, tmp_path):
    changed = folder(many(9), non_finite=1)
    changed.tallies["seen"] += 1
    match = "scores/0 must hold 10 scores by their tallies, got 9: they were changed"
    refused(mined, tmp_path, match, changed)


def test_refuses_no_folder_and_one_twice(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least one folder that `score` wrote, got none"):
        select([], tmp_path / "mined.jsonl", k=1)
    monkeypatch.setattr(selection, "Scores", {"a": folder(many(9))}.__getitem__)
    with pytest.raises(ValueError, match=r"must name each folder once, got \['a', 'a'\]"):
        select(["a", "a"], tmp_path / "mined.jsonl", k=1)


def test_refuses_a_folder_for_the_manifest(tmp_path):
    with pytest.raises(ValueError, match=r"must be the path of a file, got the folder .*: add a"):
        select("nowhere", tmp_path, k=1)


def test_missing_shards_are_told(mined):
    records = many(12)
    shards = [folder(records[index::3], shard=[index, 3]) for index in range(3)]
    with pytest.warns(UserWarning, match="those of shards that hold 0.667 of the pool"):
        mined(*shards[:2], k=1)
    mined(*shards, k=1)  # warnings are errors
    halves = folder(records[1::2], shard=[1, 2]), folder(records[2::4], shard=[2, 4])
    mined(*halves, folder(records[::4], shard=[0, 4]), k=1)


def test_many_duplicates_are_told(mined):
    records = [scored(f"copy {place}", (1, 0.9), detector="dhash") for place in range(6)]
    records += [scored(f"other {place}", (0, 0.9)) for place in range(5)]
    with pytest.warns(UserWarning, match="6 of the 11 images look like .* other `detectors`"):
        mined(folder(records), k=1)


def test_what_score_returned_is_as_good_as_its_folder(tmp_path):
    scores = Scores.made_with(tmp_path / "scores", {**HEADER, "pool_size": 4})
    scores.write(0, Chunk("first", many(4), seen=4))
    by_folder = select(tmp_path / "scores", tmp_path / "1.jsonl", k=2)
    assert select(scores, tmp_path / "2.jsonl", k=2) == by_folder
    assert select([scores], tmp_path / "3.jsonl", k=2) == by_folder
