import sys

import keras
import matplotlib.figure
import numpy as np
import pytest

from keras_ssd.evaluation.figures import similarity_matrices

PNG = b"\x89PNG"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], matplotlib.figure.Figure.savefig

    def savefig(figure, *args, **options):
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return figures


def network(width):
    images = keras.Input([6, 6, 3], dtype="uint8")
    pixels = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    projection = keras.layers.Dense(width, name="projection")(pixels)
    return keras.Model(images, {"projection": projection, "logits": projection})


def cosines(model, images):
    """Turned views against upright images, one by one."""

    def project(image):
        vector = model.predict(image[None], verbose=0)["projection"][0]
        return vector / np.linalg.norm(vector)

    upright = [project(image) for image in images]
    turned = [project(np.rot90(image, turns)) for image in images for turns in (1, 2, 3)]
    return np.array([[np.dot(row, column) for column in upright] for row in turned])


def test_one_matrix_a_network_side_by_side(tmp_path, drawn):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), "uint8")
    networks = {"teacher": network(8), "student": network(4)}
    path = similarity_matrices(networks, images, tmp_path / "new folder" / "picture.png")
    assert path.read_bytes().startswith(PNG)
    (figure,) = drawn
    *axes, bar = figure.axes
    assert [axis.get_title() for axis in axes] == ["teacher", "student"]
    assert bar.get_ylabel() == "cosine similarity"
    for axis, model in zip(axes, networks.values(), strict=True):
        (picture,) = axis.images
        assert picture.get_clim() == (-1, 1)
        np.testing.assert_allclose(picture.get_array(), cosines(model, images), atol=1e-5)


def test_a_single_network_and_a_path_as_text(tmp_path, drawn):
    path = similarity_matrices({"one": network(2)}, np.ones([2, 6, 6, 3], "uint8"), f"{tmp_path}/a")
    assert path == tmp_path / "a"
    assert path.read_bytes().startswith(PNG)
    assert len(drawn[0].axes) == 2


def test_a_network_without_projection_is_refused(tmp_path):
    model = keras.Sequential([keras.Input([6, 6, 3]), keras.layers.Flatten()], name="bare")
    sentence = r"network 'bare' has no `projection` output, only \['logits'\]: attach a head"
    with pytest.raises(ValueError, match=sentence):
        similarity_matrices({"teacher": model}, np.zeros([2, 6, 6, 3]), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_no_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no network to draw"):
        similarity_matrices({}, np.zeros([2, 6, 6, 3]), tmp_path / "a.png")


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"Pictures need matplotlib: pip install 'keras-ssd\["):
        similarity_matrices({"one": network(2)}, np.zeros([2, 6, 6, 3]), tmp_path / "a.png")
