import itertools
import json
import os

import numpy as np
import pytest

from keras_ssd.data.mining.records import Scored
from keras_ssd.data.mining.scores import Chunk, Scores

HEADER = {
    "schema": 1,
    "scorer": "net",
    "scorer_digest": "5c0",
    "num_classes": 3,
    "class_names": ["a", "b", "ç"],
    "temperature": 1.0,
    "classes_per_image": 1,
    "preprocessing": {"resize": [4, 4], "crop": None, "mean": [0.5], "std": None},
    "pool_name": "pool",
    "pool_size": 7,
    "pool_digest": "p0",
    "shard": [0, 1],
    "evaluation_name": "target",
    "evaluation_digest": "e0",
    "detectors": {"exact": True, "dhash": {"hamming_distance": 4}, "embedding": None},
    "chunk": 3,
}


def scored(number, score=0.1, **options):
    rounded = float(np.float32(score))
    return Scored(f"id {number}", f"pool/{number}", (number % 3,), (rounded,), "5a", **options)


def chunk(*numbers, **options):
    return Chunk(f"id {numbers[0]}", [scored(n) for n in numbers], len(numbers), **options)


CHUNKS = [
    chunk(0, 1, 2, duplicates={"exact": 1, "dhash": 1}),
    Chunk("id 3", [scored(4)], 2, [["pool/5", "broken"]], {"exact": 2}),
    Chunk("id 6", [], 0, [["pool/6", "no such file"]]),
]


@pytest.fixture
def folder(tmp_path):
    scores = Scores.made_with(tmp_path / "scores", HEADER)
    for number, one in enumerate(CHUNKS):
        scores.write(number, one)
    return tmp_path / "scores"


def edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


# --- What is written is read ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_finished_scores(folder, kind):
    scores = Scores(kind(folder))
    assert scores.header == HEADER
    assert scores.complete
    assert list(scores.records()) == [scored(n) for n in (0, 1, 2, 4)]
    assert scores.tallies == {
        "seen": 5,
        "non_finite": 1,
        "unreadable": [["pool/5", "broken"], ["pool/6", "no such file"]],
        "duplicates": {"exact": 3, "dhash": 1},
    }
    assert scores.missing() == []
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"{number:08d}.jsonl" for number in range(3)),
        "header.json",
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_same_bytes_whatever_the_order(folder, tmp_path, order):
    scores = Scores.made_with(tmp_path / "other", HEADER)
    for number in order:
        scores.write(number, CHUNKS[number])
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


VALUES = [0.0, 1.0, 0.1, 1 / 3, 1e-7, 1.2e-38, 1e-45, np.nextafter(np.float32(1), np.float32(0))]


def test_every_float32_comes_back(tmp_path):
    values = [float(np.float32(value)) for value in VALUES]
    values += np.random.default_rng(0).random(50, np.float32).tolist()
    records = [
        Scored("é\n\u2028", "", (2, 0), (value, 0.5), "ff", "dhash", "target/1", value)
        for value in values
    ]
    scores = Scores.made_with(tmp_path, {**HEADER, "pool_size": 3})
    scores.write(0, Chunk("first", records, len(records)))
    assert list(Scores(tmp_path).records()) == records


def test_lines_of_a_chunk(folder):
    """Keys are sorted, floats as short as they can be."""
    tally, *lines = map(json.loads, (folder / "00000000.jsonl").read_text().splitlines())
    assert (tally["first"], tally["seen"], len(lines)) == ("id 0", 3, 3)
    assert all(list(line) == sorted(line) for line in (tally, *lines))
    assert lines[0] == {
        "id": "id 0",
        "source": "pool/0",
        "classes": [0],
        "scores": [0.1],
        "sha256": "5a",
        "detector": None,
        "best_match": None,
        "best_similarity": None,
    }


def test_header_is_text_in_utf_8(folder):
    assert "ç" in (folder / "header.json").read_text("utf-8")


# --- What is there in part -----------------------------------------------------------------------


def test_unfinished_scores(tmp_path):
    scores = Scores.made_with(tmp_path / "deep" / "er", HEADER)
    assert not (tmp_path / "deep").exists()
    assert (scores.count, scores.missing(), scores.complete) == (3, [0, 1, 2], False)
    assert scores.tallies == {"seen": 0, "non_finite": 0, "unreadable": [], "duplicates": {}}
    scores.write(1, CHUNKS[1])
    scores = Scores(tmp_path / "deep" / "er")
    assert (scores.missing(), scores.complete) == ([0, 2], False)
    assert scores.tallies["seen"] == 2
    with pytest.raises(ValueError, match=r"00000000.jsonl is missing: call `score` with the same"):
        list(scores.records())


def cut_lines(content):
    return content[: content.index(b"\n") + 20]


DAMAGES = {
    "empty": lambda content: content[:0],
    "no first line": lambda content: content[:9],
    "cut in a line": cut_lines,
    "cut after a line": lambda content: content[: content.index(b"\n") + 1],
    "changed": lambda content: content.replace(b'"id 1"', b'"id 7"'),
    "longer": lambda content: content + content.splitlines()[-1] + b"\n",
    "no object": lambda content: b"7\n" + content,
    "no digest": lambda content: b"{}\n" + content,
    "no text": lambda content: b"\xff\n" + content,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_chunk_that_was_changed(folder, damage):
    path = folder / "00000000.jsonl"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    scores = Scores(folder)
    assert scores.missing() == [0]
    with pytest.raises(ValueError, match=r"00000000.jsonl was cut off or changed: call `score`"):
        list(scores.records())


@pytest.mark.parametrize("damage", ["empty", "no first line", "no object", "no text"])
def test_tallies_of_a_chunk_that_was_changed(folder, damage):
    path = folder / "00000001.jsonl"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r"00000001.jsonl was cut off or changed"):
        _ = Scores(folder).tallies


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(folder, monkeypatch, fails):
    def failing(*args):
        raise OSError("no space")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(
            *{"fsync": (os, "fsync"), "replace": ("pathlib.Path.replace",)}[fails], failing
        )
        with pytest.raises(OSError, match="no space"):
            Scores(folder).write(1, CHUNKS[0])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_renamed_is_on_the_disk(folder, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda file: done.append(("fsync", os.fstat(file).st_size)))
    Scores(folder).write(0, CHUNKS[0])
    assert done == [("fsync", (folder / "00000000.jsonl").stat().st_size)]


# --- Folders that are refused --------------------------------------------------------------------


def test_no_scores(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"There are no scores in .*: write them with `score`"):
            Scores(folder)


@pytest.mark.parametrize(
    "content", ["", '{"schema": 1, "sc', "[1]", "{}", '{"schema": 1}', "\udcff"]
)
def test_a_header_that_was_changed(folder, content):
    (folder / "header.json").write_bytes(content.encode(errors="surrogateescape"))
    for read in (Scores, lambda folder: Scores.made_with(folder, HEADER)):
        with pytest.raises(
            ValueError, match=r"header.json was cut off or changed: score into anoth"
        ):
            read(folder)


def test_another_schema(folder):
    edit(folder / "header.json", schema=2)
    with pytest.raises(ValueError, match="has the schema 2, but this version reads 1: score into"):
        Scores(folder)


CHANGES = {
    "scorer_digest": "another teacher",
    "num_classes": "another setting",
    "class_names": "another setting",
    "temperature": "another setting",
    "classes_per_image": "another setting",
    "preprocessing": "another setting",
    "pool_name": "another pool",
    "pool_size": "another pool",
    "pool_digest": "another pool",
    "shard": "another shard",
    "evaluation_name": "another target",
    "evaluation_digest": "another target",
    "detectors": "another setting",
    "chunk": "another setting",
}


@pytest.mark.parametrize("key", CHANGES)
def test_scores_of_something_else(folder, key):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    match = (
        rf"scores' holds scores of {CHANGES[key]} \(`{key}` is .* there and 99 now\): give anoth"
    )
    with pytest.raises(ValueError, match=match):
        Scores.made_with(folder, {**HEADER, key: 99})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_difference_is_told_in_short(folder):
    names = [f"class {number}" for number in range(1000)]
    with pytest.raises(ValueError, match=r"'class 6'.*\.\.\. now") as raised:
        Scores.made_with(folder, {**HEADER, "class_names": names})
    assert len(str(raised.value)) < 400


def test_another_name_of_the_same_network(folder):
    """Keras numbers the models of a process in the order in which they come."""
    scores = Scores.made_with(folder, {**HEADER, "scorer": "net_1"})
    assert scores.complete


def test_the_same_header_in_other_types(folder):
    scores = Scores.made_with(folder, {**HEADER, "class_names": ("a", "b", "ç")})
    assert scores.header == HEADER


def test_chunks_without_a_header(folder):
    (folder / "header.json").unlink()
    with pytest.raises(ValueError, match=r"holds chunks of scores and no header.json"):
        Scores.made_with(folder, HEADER)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`folder` must be a folder, got the file"):
        Scores.made_with(tmp_path / "file", HEADER)


def test_other_files_do_not_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    Scores.made_with(tmp_path, HEADER).write(0, CHUNKS[0])
    assert (tmp_path / "notes.txt").exists()
