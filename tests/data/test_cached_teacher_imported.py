"""`imported_teacher`: tables made elsewhere."""

import numpy as np
import pytest

import keras_ssd as ssd

from .stored_teacher import COUNT, epoch, splits

TABLE = np.random.default_rng(0).normal(size=(COUNT, 3))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_file_by_place(tmp_path, dtype):
    np.save(tmp_path / "logits.npy", TABLE.astype(dtype))
    taught = ssd.data.imported_teacher(tmp_path / "logits.npy", splits())
    for (x, _), (images, _) in zip(epoch(taught.train, 2), epoch(splits().train, 2), strict=True):
        assert set(x) == {"image", "index", "teacher"}
        np.testing.assert_array_equal(x["image"], images)
        expected = TABLE.astype(dtype).astype("float32")[x["index"]]
        np.testing.assert_array_equal(x["teacher"]["logits"], expected)


def test_several_outputs_in_an_order_of_their_own():
    order = np.random.default_rng(1).permutation(COUNT)
    views = np.random.default_rng(2).normal(size=(COUNT, 4, 2))
    tables = {"logits": TABLE[order], "embedding": views[order]}
    taught = ssd.data.imported_teacher(tables, splits(), index=order)
    x, _ = epoch(taught.train)[0]
    np.testing.assert_allclose(x["teacher"]["logits"], TABLE[x["index"]], 1e-6)
    np.testing.assert_allclose(x["teacher"]["embedding"], views[x["index"]], 1e-6)


NAN = np.where(np.arange(COUNT)[:, None] == 20, np.nan, TABLE)


@pytest.mark.parametrize(
    ("tables", "options", "kind", "message"),
    [
        (TABLE[:-1], {}, ValueError, rf"must hold floats \[{COUNT}, ...\].*got float64 \[22, 3\]"),
        (TABLE[:, 0], {}, ValueError, "one row a training image"),
        (TABLE.astype(int), {}, ValueError, "got int64"),
        (NAN, {}, ValueError, "must hold finite numbers, got others in row 20"),
        ({}, {}, ValueError, "`tables` must hold a table"),
        (3, {}, TypeError, "must be a NumPy array or the path"),
        (TABLE, {"index": np.zeros(COUNT, int)}, ValueError, "name each place from 0 to 22 once"),
        (TABLE, {"index": np.arange(COUNT) + 0.0}, ValueError, "name each place"),
        (TABLE, {"index": np.arange(5)}, ValueError, "name each place"),
        (TABLE, {"index": np.array(3)}, ValueError, "name each place"),
    ],
)
def test_other_tables_are_refused(tables, options, kind, message):
    with pytest.raises(kind, match=message):
        ssd.data.imported_teacher(tables, splits(), **options)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npy").write_text("no numbers")
    np.savez(tmp_path / "several.npz", a=TABLE, b=TABLE)
    for name in ("text.npy", "several.npz", "."):
        with pytest.raises(ValueError, match="must be a file of one array"):
            ssd.data.imported_teacher(tmp_path / name, splits())


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # NumPy leaves the file open
def test_a_cut_archive_is_refused(tmp_path):
    np.savez(tmp_path / "whole.npz", a=TABLE, b=TABLE)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match="must be a file of one array"):
        ssd.data.imported_teacher(tmp_path / "cut.npz", splits())
    with pytest.raises(ValueError, match="must be the path of a file that is there"):
        ssd.data.imported_teacher(tmp_path / "cut.npz" / "logits.npy", splits())


def test_an_array_that_is_filled_anew_changes_nothing():
    table = TABLE.copy()
    taught = ssd.data.imported_teacher(table, splits())
    table[:] = np.nan
    x, _ = epoch(taught.train)[0]
    np.testing.assert_allclose(x["teacher"]["logits"], TABLE[x["index"]], 1e-6)
