import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.distiller.inputs import Inputs, images_of

from .tiny import IMAGES, LABELS, ONE_HOT


@pytest.mark.parametrize(
    ("y", "dtype", "shape"),
    [
        (LABELS, "int32", [12]),
        (LABELS[:, None], "int32", [12]),
        (LABELS.astype("uint8"), "int32", [12]),
        (LABELS.astype("float32"), "int32", [12]),
        (ONE_HOT, "float32", [12, 3]),
        (ONE_HOT.astype("int64"), "float32", [12, 3]),
        (ONE_HOT.astype("float16"), "float32", [12, 3]),
        (ONE_HOT.astype("float64"), "float64", [12, 3]),
    ],
)
def test_labels(y, dtype, shape):
    labels = Inputs.of((IMAGES, y)).labels
    assert (labels.dtype.name, labels.shape.as_list()) == (dtype, shape)
    expected = ONE_HOT if len(shape) == 2 else LABELS
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("weights", [np.ones(12), np.ones((12, 1)), np.ones(12, "int32")])
def test_weights(weights):
    inputs = Inputs.of((IMAGES, LABELS, weights))
    assert inputs.sample_weight.shape == [12]
    assert inputs.sample_weight.dtype.is_floating


def test_what_is_not_given_is_none():
    inputs = Inputs.of((IMAGES,))
    assert inputs.images.dtype == tf.uint8
    assert (inputs.labels, inputs.sample_weight, inputs.index, inputs.teacher) == (None,) * 4


def test_dict():
    table = {"logits": np.zeros((12, 4, 3)), "projection": np.zeros((12, 4, 2, 2))}
    inputs = Inputs.of(({"image": IMAGES, "index": LABELS, "teacher": table}, LABELS))
    np.testing.assert_array_equal(inputs.index, LABELS)
    assert inputs.teacher_rows(1)["logits"].shape == [12, 4, 3]
    rows = inputs.teacher_rows(4)
    assert (rows["logits"].shape, rows["projection"].shape) == ([48, 3], [48, 2, 2])


def test_stored_rows_are_image_major():
    table = np.arange(24).reshape(2, 4, 3)
    rows = Inputs.of(({"image": IMAGES[:2], "teacher": table},)).teacher_rows(4)
    np.testing.assert_array_equal(rows["logits"], np.arange(24).reshape(8, 3))


@pytest.mark.parametrize("shape", [(12, 3), (12, 2, 3), (12,)])
def test_stored_outputs_of_too_few_views(shape):
    inputs = Inputs.of(({"image": IMAGES, "teacher": np.zeros(shape)},))
    with pytest.raises(ValueError, match=r"'logits' must be \[images, 4, ...\].*got shape \(12"):
        inputs.teacher_rows(4)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"picture": IMAGES}, r"must hold `image`, got the keys \['picture'\]"),
        (IMAGES[0], r"must be \[batch, height, width, channels\], got shape \(8, 8, 3\)"),
        (IMAGES[..., 0], r"got shape \(12, 8, 8\)"),
        ([IMAGES, IMAGES], "images or a dict with `image`, got a list"),
    ],
)
def test_no_images(x, message):
    with pytest.raises(ValueError, match=message):
        images_of(x)


def test_images_of_unknown_rank():
    @tf.function(input_signature=[tf.TensorSpec(None)])
    def trace(x):
        return images_of(x)

    with pytest.raises(ValueError, match="got shape <unknown>"):
        trace.get_concrete_function()


@pytest.mark.parametrize("y", [np.zeros((12, 2, 2)), np.float32(1)])
def test_no_labels(y):
    with pytest.raises(ValueError, match="Labels must be integers"):
        Inputs.of((IMAGES, y))


def test_weights_by_pixel():
    with pytest.raises(ValueError, match="`sample_weight` must be one number an image"):
        Inputs.of((IMAGES, LABELS, np.ones((12, 8))))


def test_a_dict_with_labels_inside():
    with pytest.raises(ValueError, match="got 'label', too: labels are `y`"):
        images_of({"image": IMAGES, "label": LABELS})
