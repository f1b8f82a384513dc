import copy
import dataclasses
import json
import os

import numpy as np
import pytest

from keras_ssd.data.mining.manifest import Row, float32, read_manifest, write

HEADER = {
    "schema": 1,
    "scorer": "wrn_40_2",
    "scorer_digest": "abc",
    "num_classes": 3,
    "class_names": ["a", "b", "é"],
    "k": 2,
    "min_score": 0.1,
    "temperature": 1.0,
    "assign": "predicted",
    "classes_per_image": 1,
    "preprocessing": {"mean": [0.5071, 0.4867, 0.4408]},
    "pool_name": "pool",
    "evaluation_name": None,
    "detectors": {},
    "counts": {
        "seen": 21,
        "non_finite": 1,
        "duplicates": 2,
        "below_min_score": 4,
        "not_in_top_k": 11,
        "kept": 3,
    },
    "per_class": [2, 0, 1],
    "unreadable": 5,
}
ROWS = (
    Row("pool/b.png", "pool/b.png", 0, 0.75, 0, "f" * 64, "test/1", float32(0.9)),
    Row("a\u2028ü\n", "", 0, float32(0.1), 1, "e" * 64, None, None),
    Row("c", "pool/c.png", 2, 1.0, 0, "d" * 64, None, -0.5),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mined.jsonl"


@pytest.fixture
def lines(path):
    """The lines of a manifest that is as it should be."""
    write(path, HEADER, ROWS)
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def put(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_read_as_written(path):
    written = write(path, HEADER, ROWS)
    assert written.header == HEADER
    assert written.rows == ROWS
    assert read_manifest(path) == written
    assert read_manifest(str(path)) == written


def test_reads_no_rows(path):
    counts = {**HEADER["counts"], "seen": 18, "kept": 0}
    written = write(path, {**HEADER, "counts": counts, "per_class": (0, 0, 0)}, [])
    assert read_manifest(path) == written
    assert written.rows == ()


def test_lines_of_json_with_sorted_keys(path):
    write(path, HEADER, ROWS)
    content = path.read_bytes()
    assert content.endswith(b"}\n")
    assert "ü".encode() in content
    lines = content.split(b"\n")[:-1]
    assert len(lines) == 4
    for line in lines:
        entries = json.loads(line, object_pairs_hook=list)
        keys = [key for key, _ in entries]
        assert keys == sorted(keys)
    assert list(json.loads(lines[1])) == sorted(
        ["id", "source", "class", "score", "rank", "sha256", "best_match", "best_similarity"]
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"),
        (np.float32(1) / np.float32(3), "0.33333334"),
        (np.float32(1e-10), "1e-10"),
        (np.float32(1.4e-45), "1e-45"),
        (np.float32(0.99999994), "0.99999994"),
        (np.float32(0), "0.0"),
        (np.float32(1), "1.0"),
    ],
)
def test_the_shortest_text_of_a_float32(path, value, text):
    write(
        path, {**HEADER, "min_score": float(value)}, [Row("a", "", 0, float(value), 0, "", "", 0)]
    )
    header, row = path.read_text().splitlines()
    assert f'"min_score": {text},' in header
    assert f'"score": {text},' in row


def test_floats_come_back_as_they_were(path):
    values = np.random.default_rng(0).random(500, np.float32)
    values = np.concatenate([values, (values / 2 + 0.01) ** 15])
    counts = {**HEADER["counts"], "seen": 1018, "kept": 1000}
    header = {**HEADER, "counts": counts, "per_class": [1000, 0, 0]}
    rows = [
        Row(str(rank), "", 0, float(value), rank, "", "", -float(value))
        for rank, value in enumerate(values)
    ]
    write(path, header, rows)
    assert read_manifest(path).rows == tuple(rows)
    for line, value in zip(path.read_text().splitlines()[1:], values, strict=True):
        text = line.split('"score": ')[1].split(",")[0]
        assert np.float32(text) == value
        digits = text.split("e")[0].replace(".", "").strip("0")
        shorter = f"{value:.{max(len(digits) - 2, 0)}e}"
        assert len(digits) == 1 or np.float32(shorter) != value


def test_equal_content_gives_equal_bytes(path):
    write(path, HEADER, ROWS)
    content = path.read_bytes()
    path.unlink()
    reversed_header = {key: HEADER[key] for key in reversed(HEADER)}
    write(path, reversed_header, list(ROWS))
    assert path.read_bytes() == content


def test_an_interrupt_leaves_the_earlier_file(path, monkeypatch):
    def interrupt(descriptor):
        assert os.fstat(descriptor).st_size > 1000  # everything is on its way to the disk
        assert path.read_bytes() == b"earlier"
        raise KeyboardInterrupt

    path.write_bytes(b"earlier")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(path, HEADER, ROWS)
    assert path.read_bytes() == b"earlier"
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    write(path, HEADER, ROWS)
    assert read_manifest(path).rows == ROWS
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_number_is_not_written(path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(path, HEADER, [*ROWS[:2], Row("c", "", 2, 1.0, 0, "", None, float("nan"))])
    assert list(path.parent.iterdir()) == []


def test_what_was_read_stays_as_it_is(path):
    manifest = write(path, HEADER, ROWS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.rows = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.rows[0].label = 1


def test_others_may_read_the_file(path):
    other = path.with_name("other")
    other.touch()
    write(path, HEADER, ROWS)
    assert path.stat().st_mode == other.stat().st_mode


def test_makes_the_folder(tmp_path):
    path = tmp_path / "a" / "b" / "mined.jsonl"
    write(path, HEADER, ROWS)
    assert len(read_manifest(path).rows) == 3


# --- what is refused ---------------------------------------------------------------------------


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_refuses_what_is_no_file(tmp_path):
    refused(tmp_path / "none.jsonl", "There is no manifest .*: write it with `select`")
    refused(tmp_path, "There is no manifest ")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty, so it is no manifest: write"),
        (b"\n", "first line is no whole header"),
        (b"id,class\n", "first line is no whole header"),
        (b"\xff\xd8\xff\xe0\n", "first line is no whole header"),
        (b"[1]\n", "first line is no whole header"),
        (b'{"id": "a"}\n', "first line is no whole header"),
        (b'{"schema": 1, "ass', "first line is no whole header"),
        (b'{"schema": 2}\n', "has the schema 2, but this version reads 1: write it anew"),
    ],
)
def test_refuses_what_is_no_manifest(path, content, found):
    path.write_bytes(content)
    refused(path, found)


@pytest.mark.parametrize("key", sorted(set(HEADER) - {"schema"}))
def test_refuses_a_header_that_lacks_something(path, lines, key):
    header = {name: value for name, value in lines[0].items() if name != key}
    put(path, [header, *lines[1:]])
    refused(path, f"in line 1 its header has no `{key}`; write it anew")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"num_classes": 3.0}, "its header has 3.0 as `num_classes`"),
        ({"num_classes": True}, "its header has True as `num_classes`"),
        ({"schema": True}, "its header has True as `schema`"),
        ({"k": -1}, "its header has -1 as `k`"),
        ({"min_score": float("nan")}, "its header has nan as `min_score`"),
        ({"counts": [3]}, r"its header has \[3\] as `counts`"),
        ({"counts": {"seen": 3}}, "its counts have no `non_finite`"),
        ({"counts": {**HEADER["counts"], "kept": None}}, "its counts have None as `kept`"),
        ({"counts": {**HEADER["counts"], "seen": 22}}, "its counts do not add up to `seen`"),
        ({"per_class": [2, 0, 2]}, "`per_class` does not add up to the 3 images kept"),
        ({"per_class": [2, 0, "1"]}, "`per_class` does not add up to the 3 images kept"),
        ({"per_class": [2, 1]}, "`per_class` counts 2 of 3 classes"),
    ],
)
def test_refuses_a_header_that_was_changed(path, lines, changes, found):
    put(path, [{**lines[0], **changes}, *lines[1:]])
    refused(path, f"in line 1 {found}.*; write it anew")


@pytest.mark.parametrize("bytes_lost", [2, 50, 300])
def test_refuses_what_was_cut_off(path, lines, bytes_lost):
    content = path.read_bytes()
    path.write_bytes(content[:-bytes_lost])
    whole = content[:-bytes_lost].count(b"\n") - 1
    refused(path, f"was cut off: its header counts 3 rows, but it has {whole} whole ones: copy")


def test_refuses_fewer_rows_than_counted(path, lines):
    put(path, lines[:-1])
    refused(path, "was cut off: its header counts 3 rows, but it has 2 whole ones")
    put(path, lines[:1])
    refused(path, "was cut off: its header counts 3 rows, but it has 0 whole ones")


def test_the_last_end_of_line_may_be_lost(path, lines):
    path.write_bytes(path.read_bytes()[:-1])
    assert read_manifest(path).rows == ROWS


def test_refuses_more_rows_than_counted(path, lines):
    put(path, [*lines, {**lines[3], "id": "d"}])
    refused(path, "in line 5 it has more than the 3 rows that its header counts")
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    refused(path, "in line 5 it has more than the 3 rows that its header counts")


@pytest.mark.parametrize("key", ["id", "source", "class", "score", "rank", "sha256"])
def test_refuses_a_row_that_lacks_something(path, lines, key):
    changed = copy.deepcopy(lines)
    del changed[2][key]
    put(path, changed)
    refused(path, f"in line 3 the row has no `{key}`; write it anew")
    for value in ([], None, True):
        changed[2][key] = value
        put(path, changed)
        refused(path, rf"in line 3 the row has .* as `{key}`; write it anew")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"class": 3}, "class 3 is none of the 3 classes"),
        ({"class": -1}, "the row has -1 as `class`"),
        ({"class": 0.0}, "the row has 0.0 as `class`"),
        ({"rank": -1}, "the row has -1 as `rank`"),
        ({"score": "0.5"}, "the row has '0.5' as `score`"),
        ({"score": float("inf")}, "the row has inf as `score`"),
        ({"best_match": 3}, "the row has 3 as `best_match`"),
        ({"best_similarity": "1"}, "the row has '1' as `best_similarity`"),
    ],
)
def test_refuses_a_row_that_was_changed(path, lines, changes, found):
    put(path, [*lines[:2], {**lines[2], **changes}, lines[3]])
    refused(path, f"in line 3 {found}; write it anew")


def test_refuses_a_row_that_is_no_json(path, lines):
    content = path.read_bytes().split(b"\n")
    for line in (b"", b"[1]", content[2][:-1], b"\xff"):
        path.write_bytes(b"\n".join([*content[:2], line, *content[3:]]))
        refused(path, "in line 3 the row has no entries in JSON; write it anew")


def test_refuses_ids_twice(path, lines):
    put(path, [*lines[:3], {**lines[3], "id": lines[1]["id"]}])
    refused(path, "must be unique, got several rows of pool/b.png: write it anew")


def test_refuses_classes_that_are_counted_otherwise(path, lines):
    put(path, [*lines[:3], {**lines[3], "class": 1}])
    refused(path, "counts 0 images of class 1, but has 1: write it anew")
