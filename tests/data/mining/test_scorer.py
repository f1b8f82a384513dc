import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from data.mining.networks import Subclassed, images, layer_output, linear, network, resized, softmax
from keras_ssd.data.mining.scorer import Scorer

IMAGES = images(9)


def scorer(
    teacher,
    image_size=None,
    *,
    first=(4, 4),
    temperature=1.0,
    classes=1,
    batch_size=4,
    embeds=False,
):
    return Scorer(
        teacher,
        image_size,
        lambda: first,
        temperature=temperature,
        classes_per_image=classes,
        batch_size=batch_size,
        embedding=embeds,
    )


def answers(scorer, images=IMAGES):
    """Classes, scores, embeddings and `finite` of images in batches."""
    parts = []
    for start in range(0, len(images), scorer.rows):
        some = list(images[start : start + scorer.rows])
        parts.append(scorer(scorer.prepared(some), len(some)))
    return [None if part[0] is None else np.concatenate(part) for part in zip(*parts, strict=True)]


def digest(teacher, **options):
    return scorer(teacher, **options).digest


# --- Classes and scores --------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 20])
def test_classes_and_scores(temperature, batch_size):
    model = network(classes=5)
    classes, scores, embeddings, finite = answers(
        scorer(model, temperature=temperature, classes=2, batch_size=batch_size)
    )
    probabilities = softmax(model(IMAGES, training=False).numpy().astype("float64") / temperature)
    expected = np.argsort(-probabilities, axis=1)[:, :2]
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(probabilities, expected, 1), rtol=1e-5)
    assert (scores.dtype, embeddings, finite.tolist()) == (np.float32, None, [True] * 9)


def test_the_lower_of_equal_classes():
    model = linear([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.0] * 4])
    pixels = np.array([[7, 0, 7], [0, 5, 0]], np.uint8).reshape(2, 1, 1, 3)
    classes, scores, *_ = answers(scorer(model, classes=4), pixels)
    assert classes.tolist() == [[0, 1, 2, 3], [1, 3, 0, 2]]
    assert scores[0].tolist() == [0.25] * 4


def test_softmax_is_in_float32():
    """Logits of a float16 layer whose probabilities float16 cannot tell from 1."""
    model = linear([[0.0, 10.0], [0.0] * 2, [0.0] * 2], dtype="float16")
    pixels = np.array([[1, 0, 0]], np.uint8).reshape(1, 1, 1, 3)
    _, scores, *_ = answers(scorer(model), pixels)
    np.testing.assert_allclose(1 - scores[0, 0].astype("float64"), 4.54e-5, rtol=1e-2)


def test_scores_that_are_not_finite():
    """Of logits (inf, 1), (nan, 1), (-inf, 0) and (0, 1); -inf alone is a probability of 0."""
    huge = 3e38  # infinite when multiplied by more than 1
    model = linear([[huge, 0.0], [0.0, 1.0], [-huge, 0.0]])
    pixels = np.array([[9, 1, 0], [9, 1, 9], [0, 0, 9], [0, 1, 0]], np.uint8).reshape(4, 1, 1, 3)
    classes, scores, _, finite = answers(scorer(model), pixels)
    assert finite.tolist() == [False, False, True, True]
    assert (classes[2:, 0].tolist(), scores[2, 0]) == ([1, 1], 1)


def test_embeddings_that_are_not_finite():
    image = keras.Input((1, 1, 3), dtype="uint8")
    wide = layers.Dense(2, use_bias=False, name="embedding")
    x = wide(layers.Flatten()(layers.Rescaling(1.0)(image)))
    logits = layers.Dense(2)(layers.Lambda(lambda x: tf.zeros_like(x))(x))
    model = keras.Model(image, logits)
    wide.set_weights([np.array([[3e38, 0.0], [0.0, 1.0], [0.0, 0.0]])])
    pixels = np.array([[255, 1, 0], [0, 1, 1]], np.uint8).reshape(2, 1, 1, 3)
    *_, finite = answers(scorer(model, embeds=True), pixels)
    assert finite.tolist() == [False, True]
    *_, finite = answers(scorer(model), pixels)
    assert finite.tolist() == [True, True]


@pytest.mark.parametrize("embeds", [False, True])
def test_every_batch_has_one_shape(embeds):
    shapes = []

    class Noted(layers.Layer):
        def call(self, x):
            shapes.append(tuple(x.shape))
            return x

    base = network()
    image = keras.Input((4, 4, 3), dtype="uint8")
    model = keras.Model(image, base(Noted()(image)))
    shapes.clear()
    scoring = scorer(model, batch_size=4, embeds=embeds)
    answers(scoring)
    assert set(shapes) - {(None, 4, 4, 3)} == {(4, 4, 4, 3)}


def test_a_row_is_never_alone():
    assert [scorer(network(), batch_size=size).rows for size in (1, 2, 3)] == [2, 2, 3]


def test_inference_mode():
    base = network()
    image = keras.Input((4, 4, 3), dtype="uint8")
    x = layers.Rescaling(1.0)(image)
    model = keras.Model(image, base(layers.Dropout(0.9)(x)))
    before = [weight.numpy() for weight in model.weights]
    found = answers(scorer(model))
    for one, other in zip(found[:2], answers(scorer(base))[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


# --- Embeddings ----------------------------------------------------------------------------------


def test_embedding_of_a_functional_model():
    model = network()
    _, _, embeddings, _ = answers(scorer(model, embeds=True))
    np.testing.assert_allclose(
        embeddings, layer_output(model, "pool", IMAGES), rtol=1e-4, atol=1e-6
    )
    assert embeddings.dtype == np.float32


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.filterwarnings("ignore:This machine multiplies matrices")
def test_embedding_of_a_frozen_teacher(fold, dtype):
    model = network()
    frozen = ssd.freeze(model, fold_batch_norm=fold, dtype=dtype)
    _, scores, embeddings, _ = answers(scorer(frozen, embeds=True))
    tolerance = 1e-4 if dtype is None else 3e-2
    expected = layer_output(model, "pool", IMAGES)
    np.testing.assert_allclose(embeddings, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(scores, answers(scorer(frozen))[1])


@pytest.mark.filterwarnings("error")
def test_no_second_warning_of_a_slow_half(monkeypatch):
    rates = {"float32": 2.0, "float16": 1.0}
    monkeypatch.setattr("keras_ssd.freezing.precision._matmul_rate", rates.get)
    with pytest.warns(UserWarning, match="This machine multiplies matrices") as warned:
        frozen = ssd.freeze(network(), dtype="float16")
    assert len(warned) == 1
    answers(scorer(frozen, embeds=True))


def test_embedding_of_a_teacher_with_its_own_preprocessing():
    model = network()
    frozen = ssd.freeze(model, preprocessing=layers.Resizing(4, 4))
    large = images(5, shape=(8, 8, 3))
    _, scores, embeddings, _ = answers(scorer(frozen, first=(8, 8), embeds=True), large)
    small = tf.function(layers.Resizing(4, 4))(large)
    np.testing.assert_allclose(embeddings, layer_output(model, "pool", small), rtol=1e-4, atol=1e-5)
    probabilities = softmax(model(small).numpy().astype("float64"))
    np.testing.assert_allclose(scores[:, 0], probabilities.max(axis=1), rtol=1e-5)


def test_embedding_among_the_outputs():
    model = network()
    both = ssd.named_outputs(model, {"embedding": "conv"})
    with pytest.raises(ValueError, match=r"must give an `embedding` \[rows, width\]"):
        answers(scorer(both, embeds=True))
    flat = keras.Model(model.input, {"logits": model.output, "embedding": model.output * 2.0})
    _, _, embeddings, _ = answers(scorer(flat, embeds=True))
    np.testing.assert_allclose(embeddings, 2 * model(IMAGES, training=False), rtol=1e-4)


def test_heads_do_not_run():
    calls = []

    class Head(layers.Dense):
        def call(self, x):
            calls.append(1)
            return super().call(x)

    model = network()
    heads = {"logits": model.output, "other": Head(2)(model.output)}
    model = keras.Model(model.input, heads)
    expected = answers(scorer(network(), embeds=True))
    calls.clear()
    found = answers(scorer(model, embeds=True))
    assert not calls
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[2], expected[2])


def test_a_model_that_changed_since():
    model = network()
    frozen = ssd.freeze(model)
    model.layers[-1].kernel.assign_add(np.ones((5, 3)))
    assert scorer(frozen).num_classes == 3
    with pytest.raises(
        ValueError, match="The model 'net' has changed since the teacher was frozen"
    ):
        answers(scorer(frozen, embeds=True))


def test_no_embedding():
    image = keras.Input((4, 4, 3), dtype="uint8")
    x = layers.Conv2D(2, 4)(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.Flatten()(x), name="conv")
    assert scorer(model).num_classes == 2
    with pytest.raises(ValueError, match=r"The embedding of 'conv' must be found .* nor a Dense"):
        answers(scorer(model, embeds=True))


def test_subclassed():
    inner = network()
    classes, scores, embeddings, _ = answers(scorer(Subclassed(inner), embeds=True))
    expected = answers(scorer(inner))
    np.testing.assert_array_equal(classes, expected[0])
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5)
    np.testing.assert_allclose(embeddings, inner(IMAGES, training=False) ** 2, rtol=1e-4)
    with pytest.raises(ValueError, match=r"must give an `embedding` .* leave 'embedding' out"):
        answers(scorer(Subclassed(inner, embeds=False), embeds=True))


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_functions_are_refused(frozen):
    def function(x):
        return tf.zeros([len(x), 3])

    with pytest.raises(
        TypeError, match="`teacher` must be a Keras model or a FrozenTeacher of one"
    ):
        scorer(ssd.freeze(function) if frozen else function)


def test_a_function_as_preprocessing():
    teacher = ssd.freeze(network(), preprocessing=lambda x: x)
    with pytest.raises(TypeError, match="preprocessing of the teacher must be a Keras layer"):
        scorer(teacher)


def test_batch_statistics_are_refused():
    teacher = ssd.freeze(network(), batch_norm="batch")
    with pytest.raises(ValueError, match=r"must run in inference mode, got .*'batch'"):
        scorer(teacher)


def test_a_model_that_is_not_built():
    with pytest.raises(ValueError, match="'new' has no weights yet"):
        scorer(keras.Sequential([layers.Flatten(), layers.Dense(3)], name="new"))


@pytest.mark.parametrize("softmaxed", [linear(np.ones((3, 2)), softmax=True)])
def test_probabilities(softmaxed):
    with pytest.raises(
        ValueError, match="The teacher 'linear' must give logits, got probabilities"
    ):
        answers(scorer(softmaxed), images(3, shape=(1, 1, 3)))


def test_what_are_no_logits():
    for model in (network(classes=1), linear(np.ones((3, 1)))):
        with pytest.raises(
            ValueError, match=r"must give `logits` \[rows, classes\] of two classes"
        ):
            scorer(model)
    image = keras.Input((4, 4, 3))
    with pytest.raises(ValueError, match=r"must give `logits` \[rows, classes\] of two classes"):
        scorer(keras.Model(image, layers.Conv2D(3, 1)(image)))


def test_more_classes_an_image_than_there_are():
    assert scorer(network(), classes=3).num_classes == 3
    with pytest.raises(ValueError, match="must be at most the 3 classes of 'net', got 4"):
        scorer(network(), classes=4)


# --- Sizes ---------------------------------------------------------------------------------------


def test_images_are_resized_to_the_input():
    mixed = [*images(2), *images(2, 1, (9, 5, 3)), *images(1, 2, (6, 6, 3)), *images(1, 3)]
    found = scorer(network(), batch_size=8)
    batch = found.prepared(mixed)
    expected = [image if image.shape[0] == 4 else resized(image, (4, 4)) for image in mixed]
    np.testing.assert_array_equal(batch[:6], expected)
    assert not batch[6:].any()
    assert (batch.shape, batch.dtype) == ((8, 4, 4, 3), np.uint8)
    assert found.preprocessing["resize"] == [4, 4]


def test_image_size_goes_first():
    open_input = network(shape=(None, None, 3))
    for model, size in ((open_input, (7, 5)), (open_input, (4, 4))):
        found = scorer(model, size)
        assert found.prepared([IMAGES[0]]).shape == (4, *size, 3)
        assert found.preprocessing["resize"] == list(size)
    assert scorer(network(), (4, 4)).preprocessing["resize"] == [4, 4]
    with pytest.raises(ValueError, match=r"must be None or \(4, 4\), which .* takes, got \(7, 5\)"):
        scorer(network(), (7, 5))


def test_an_open_input_takes_the_first_size():
    found = scorer(network(shape=(None, None, 3)), first=(6, 5))
    assert found.prepared(images(2, shape=(6, 5, 3))).shape == (4, 6, 5, 3)
    assert found.preprocessing["resize"] is None
    with pytest.raises(ValueError, match=r"must have one size, .* got \(6, 5\) and \(4, 4\): give"):
        found.prepared([*images(1, shape=(6, 5, 3)), IMAGES[0]])


def test_the_size_of_the_input_of_a_preprocessing_is_open():
    frozen = ssd.freeze(network(), preprocessing=layers.Resizing(4, 4))
    assert scorer(frozen, first=(9, 9)).prepared([]).shape == (4, 9, 9, 3)


# --- What identifies a scorer --------------------------------------------------------------------


def test_digest_is_of_weights_and_not_of_names():
    found = digest(network())
    assert found == digest(network(name="other", prefix="x_")) == digest(ssd.freeze(network()))
    assert len(found) == 64
    assert digest(network(), embeds=True) == found == digest(ssd.freeze(network()), embeds=True)
    assert digest(network(), batch_size=9, temperature=2.0, classes=2) == found


@pytest.mark.filterwarnings("ignore:This machine multiplies matrices")
def test_digests_that_differ():
    more = network()
    heads = keras.Model(more.input, {"logits": more.output, "twice": more.output * 2.0})
    moved = network()
    moved.get_layer("norm").moving_mean.assign_add([0, 0, 0, 0, 1e-3])
    frozen = {
        "plain": ssd.freeze(network()),
        "seed": ssd.freeze(network(seed=1)),
        "moved": ssd.freeze(moved),
        "bfloat16": ssd.freeze(network(), dtype="bfloat16"),
        "float16": ssd.freeze(network(), dtype="float16"),
        "heads": ssd.freeze(heads),
        "resized": ssd.freeze(network(), preprocessing=layers.Resizing(4, 4)),
        "nearest": ssd.freeze(
            network(), preprocessing=layers.Resizing(4, 4, interpolation="nearest")
        ),
        "flipped": ssd.freeze(network(), preprocessing=layers.RandomFlip()),
        "first": ssd.freeze(network(), preprocessing=preprocessing(0.5)),
        "second": ssd.freeze(network(), preprocessing=preprocessing(0.25)),
    }
    assert len({digest(teacher) for teacher in frozen.values()}) == len(frozen)


def preprocessing(value):
    keras.utils.set_random_seed(0)
    layer = layers.Normalization(mean=[value] * 3, variance=[1.0] * 3)
    dense = layers.Dense(3, kernel_initializer=keras.initializers.Constant(value))
    return keras.Sequential([keras.Input((4, 4, 3)), layer, dense])


def test_names_in_the_preprocessing_do_not_matter():
    one, other = (
        ssd.freeze(network(), preprocessing=keras.Sequential([layers.Resizing(4, 4, name=name)]))
        for name in "ab"
    )
    assert digest(one) == digest(other)


def test_digest_of_a_subclassed_model():
    one, other = (Subclassed(network(), embeds=embeds) for embeds in (True, False))
    assert digest(one) == digest(Subclassed(network(prefix="y")))
    assert len({digest(one), digest(other), digest(Subclassed(network(seed=1)))}) == 3


def test_digest_of_a_network_that_was_saved(tmp_path):
    model = network()
    model.save(tmp_path / "model.keras")
    assert digest(keras.models.load_model(tmp_path / "model.keras")) == digest(model)


@pytest.mark.parametrize("other", [{"activation": "tanh"}, {"strides": 2}, {"padding": "valid"}])
def test_digest_of_another_architecture_with_the_same_weights(other):
    def convolution(**options):
        image = keras.Input((4, 4, 3), dtype="uint8")
        x = layers.Conv2D(2, 3, **{"padding": "same", "activation": "relu", **options})(image)
        return keras.Model(image, layers.Dense(2)(layers.GlobalMaxPooling2D()(x)))

    one, two = convolution(), convolution(**other)
    two.set_weights(one.get_weights())
    assert digest(one) != digest(two)


def test_preprocessing():
    found = scorer(network()).preprocessing
    np.testing.assert_allclose(found["mean"], [2 * 51 / 255, 64 / 255, 1.5 * 85 / 255], atol=1e-6)
    np.testing.assert_allclose(found["std"], [51 / 255, 64 / 255, 85 / 255], atol=1e-6)
    rest = {key: value for key, value in found.items() if key not in ("mean", "std")}
    assert rest == {"resize": [4, 4], "crop": None, "interpolation": "bilinear, antialiased"}


def test_preprocessing_of_published_constants():
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    model = ssd.models.build("resnet8", num_classes=3, input_shape=(8, 8, 3), mean=mean, std=std)
    found = scorer(model).preprocessing
    assert (found["mean"], found["std"]) == (list(mean), list(std))


def test_preprocessing_elsewhere():
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(image)))
    found = scorer(model).preprocessing
    assert (found["mean"], found["std"]) == (None, None)
    assert scorer(Subclassed(network())).preprocessing["mean"] is None
