"""Encoders of any origin as teachers: one named output, frozen, and early sentences."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from distiller.tiny import IMAGES, assert_equal, distiller, fit, network
from example_modules import example
from keras import layers
from replicas import on_replicas

import keras_ssd as ssd
from keras_ssd.encoders import frozen_encoder
from keras_ssd.layers.image_preprocessing import ImagePreprocessing
from keras_ssd.objectives import Objective

PIXELS = IMAGES.astype("float32")


class Squared(Objective):
    """Squared distance of the student's projection from the first entries of the embedding."""

    teacher_outputs = ("embedding",)
    student_outputs = ("projection",)

    def __call__(self, batch):
        student = batch.student["projection"]
        teacher = batch.teacher["embedding"][:, : student.shape[-1]]
        values = tf.reduce_sum((student - teacher) ** 2, axis=-1)
        return tf.reduce_sum(values), tf.cast(tf.size(values), tf.float32)


SQUARED = {"objectives": [Squared()]}


def convolutional(size=8, pooling=None, dtype=None, filters=6):
    """A map of 3x3 places, or its mean."""
    images = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 255, dtype="float32")(images)
    x = layers.Conv2D(filters, 3, strides=2, dtype=dtype)(x)
    x = layers.BatchNormalization(moving_mean_initializer="random_normal", dtype=dtype)(x)
    x = layers.Dropout(0.5, dtype=dtype)(x)
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x) if pooling else x
    return keras.Model(images, x, name="convolutional")


def tokens(images=None, width=5):
    images = keras.Input((8, 8, 3)) if images is None else images
    return keras.Model(images, layers.Dense(width)(layers.Reshape((16, 12))(images)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = convolutional()

    def call(self, images, training=None):
        x = self.inner(images, training=training)
        return {"map": x, "embedding": keras.ops.max(x, axis=(1, 2))}


def subclassed(pixels=PIXELS):
    model = Subclassed()
    model(pixels)
    return model


def embedding(teacher, images=IMAGES):
    outputs = teacher(tf.constant(images))
    assert list(outputs) == ["embedding"]
    assert outputs["embedding"].dtype == tf.float32
    return outputs["embedding"].numpy()


def assert_near(got, expected):
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def width(teacher):
    assert list(teacher.outputs) == ["embedding"]
    assert teacher.outputs["embedding"].dtype in ("float32", tf.float32)
    rows, columns = teacher.outputs["embedding"].shape
    assert rows is None
    return columns


# --- Keras models -----------------------------------------------------------------------------


def test_vectors_are_taken_as_they_are():
    model = convolutional(pooling="avg")
    teacher = frozen_encoder(model)
    assert width(teacher) == 6
    assert_near(embedding(teacher), model(PIXELS, training=False))
    assert teacher.model.name == "convolutional"


def test_maps_are_pooled():
    model = convolutional()
    teacher = frozen_encoder(model, pooling="mean")
    assert width(teacher) == 6
    assert_near(embedding(teacher), np.mean(model(PIXELS, training=False), axis=(1, 2)))


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
def test_tokens_are_pooled(pooling):
    model = tokens()
    expected = model(PIXELS).numpy()
    expected = expected.mean(axis=1) if pooling == "mean" else expected[:, 0]
    teacher = frozen_encoder(model, pooling=pooling)
    assert width(teacher) == 5
    assert_near(embedding(teacher), expected)


def test_a_sequential_model():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4)])
    assert_near(embedding(frozen_encoder(model)), model(PIXELS))


def test_one_input_in_a_dict():
    images = keras.Input((8, 8, 3), name="images")
    model = keras.Model({"images": images}, {"tokens": layers.Reshape((16, 12))(images)})
    got = embedding(frozen_encoder(model, pooling="first_token"))
    assert_near(got, PIXELS.reshape(12, 16, 12)[:, 0])


def test_one_of_several_outputs():
    images = keras.Input((8, 8, 3))
    heads = {"logits": layers.Dense(3)(layers.Flatten()(images)), "map": 2 * images}
    model = keras.Model(images, heads)
    teacher = frozen_encoder(model, output="map", pooling="mean")
    assert width(teacher) == 3
    assert_near(embedding(teacher), 2 * PIXELS.mean(axis=(1, 2)))
    assert teacher.variables == []  # of the other output


class TwoSides(keras.Model):
    """Images and texts, in the manner of KerasHub's CLIP."""

    def __init__(self):
        images, texts = keras.Input((8, 8, 3), name="images"), keras.Input((None,), name="tokens")
        inner = keras.Input((8, 8, 3), name="images")
        vision = keras.Model({"images": inner}, layers.Dense(5)(layers.Flatten()(inner)))
        projection = layers.Dense(4)
        scores = keras.ops.sum(projection(vision({"images": images})), -1) * texts[:, 0]
        super().__init__({"images": images, "tokens": texts}, scores, name="two_sides")
        self.vision, self.projection = vision, projection

    def get_vision_embeddings(self, images):
        return self.projection(self.vision({"images": images}))


def test_the_image_side_of_a_model_of_images_and_texts():
    model = TwoSides()
    teacher = frozen_encoder(model)
    assert width(teacher) == 4
    assert_near(embedding(teacher), model.get_vision_embeddings(PIXELS))


def test_a_subclassed_model():
    model = subclassed()
    before = model(PIXELS, training=False)
    maps = frozen_encoder(model, output="map", pooling="mean")
    vectors = frozen_encoder(model, output="embedding")
    for weight in model.weights:
        weight.assign(weight + 1)
    assert width(maps) == width(vectors) == 6
    assert_near(embedding(maps), np.mean(before["map"], axis=(1, 2)))
    assert_near(embedding(vectors), before["embedding"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_half_precision(dtype):
    model = convolutional(dtype=dtype)
    assert {w.dtype for w in model.weights} == {dtype}
    teacher = frozen_encoder(model, pooling="mean")
    assert width(teacher) == 6
    expected = np.mean(keras.ops.cast(model(PIXELS, training=False), "float32"), axis=(1, 2))
    np.testing.assert_allclose(embedding(teacher), expected, atol=0.02)
    function = frozen_encoder(lambda x: model(x, training=False), pooling="mean")
    np.testing.assert_allclose(embedding(function), expected, atol=1e-5)


def test_maps_in_half_precision(monkeypatch):
    monkeypatch.setattr("keras_ssd.teacher.warn_if_slower", str)  # says nothing
    model = convolutional()
    teacher = frozen_encoder(model, pooling="mean", dtype="bfloat16")
    expected = np.mean(model(PIXELS, training=False), axis=(1, 2))
    got = embedding(teacher)
    np.testing.assert_allclose(got, expected, atol=0.05)
    assert (got != expected).any()
    assert teacher.compute_dtypes == ["bfloat16"]


@pytest.mark.parametrize("kind", ["model", "function", "subclassed"])
def test_images_of_another_size(kind):
    model = convolutional(16)
    first = ImagePreprocessing(16, None, None) if kind == "model" else ImagePreprocessing(16)
    expected = np.mean(model(first(IMAGES), training=False), axis=(1, 2))
    if kind == "subclassed":
        outer = Subclassed()
        outer.inner = model
        outer(np.zeros((1, 16, 16, 3)))
        teacher = frozen_encoder(outer, output="map", pooling="mean", preprocessing=first)
    else:
        encoder = model if kind == "model" else lambda x: model(x, training=False)
        teacher = frozen_encoder(encoder, pooling="mean", preprocessing=first)
    assert width(teacher) == 6
    assert_near(embedding(teacher), expected)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", [None, "avg"])
def test_keras_applications(pooling):
    model = keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.35, minimalistic=True, include_top=False, weights=None, pooling=pooling
    )
    first = ImagePreprocessing(32, None, None)
    teacher = frozen_encoder(model, pooling=None if pooling else "mean", preprocessing=first)
    expected = model(first(IMAGES), training=False).numpy().reshape(12, -1)
    assert width(teacher) == expected.shape[1]
    np.testing.assert_allclose(embedding(teacher), expected, atol=1e-5)


# --- Functions and SavedModels ----------------------------------------------------------------


def test_a_function():
    teacher = frozen_encoder(lambda images: tf.cast(images, tf.float64), pooling="mean")
    assert teacher.outputs is None
    assert teacher.variables == []
    assert_near(embedding(teacher), PIXELS.mean(axis=(1, 2)))


def exported(model, folder):
    model.export(folder, verbose=False)
    return folder


def saved(function, folder, shape=(None, 8, 8, 3), dtype="uint8", *more):
    module = tf.Module()
    specs = [tf.TensorSpec(shape, dtype, "images"), *more]
    module.function = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, folder, signatures={"encode": module.function})
    return folder


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "encoder")


@pytest.mark.parametrize("images", [IMAGES, PIXELS])
def test_a_saved_model_of_keras(folder, images):
    model = convolutional()
    expected = np.mean(model(PIXELS, training=False), axis=(1, 2))
    teacher = frozen_encoder(exported(model, folder), pooling="mean")
    assert width(teacher) == 6
    assert_near(embedding(teacher, images), expected)


@pytest.mark.parametrize("endpoint", ["serve", "serving_default"])
def test_a_layer_of_a_saved_model(folder, endpoint):
    model = convolutional(pooling="avg")
    layer = layers.TFSMLayer(exported(model, folder), call_endpoint=endpoint)
    teacher = frozen_encoder(layer)
    assert width(teacher) == 6
    assert_near(embedding(teacher), model(PIXELS, training=False))
    model = distiller(SQUARED, teacher=teacher)
    fit(model, epochs=1)
    assert len(model.weights) == len(model.student.weights)


def test_a_saved_model_with_its_input_in_a_dict(folder):
    images = keras.Input((8, 8, 3), name="images")
    model = keras.Model({"images": images}, layers.GlobalAveragePooling2D()(images))
    exported(model, folder)
    for encoder in (folder, layers.TFSMLayer(folder)):
        assert_near(embedding(frozen_encoder(encoder)), PIXELS.mean(axis=(1, 2)))


def test_an_exported_student(tmp_path):
    student = network()
    path = ssd.export_student(student, tmp_path / "student")
    assert_near(embedding(frozen_encoder(path)), student(IMAGES, training=False)["logits"])


def test_raw_images_given_as_floats(folder):
    path = saved(lambda images: {"a": tf.cast(images, tf.float32), "b": images}, folder)
    teacher = frozen_encoder(path, signature="encode", output="a", pooling="mean")
    assert width(teacher) == 3
    assert_near(embedding(teacher, PIXELS + 0.4), PIXELS.mean(axis=(1, 2)))
    outside = np.where(PIXELS > 127, 300.0, -40.0)
    assert_near(embedding(teacher, outside), np.clip(outside, 0, 255).mean(axis=(1, 2)))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_saved_models_of_other_precision(folder, dtype):
    path = saved(lambda images: images / 255, folder, (None, None, None, 3), dtype)
    teacher = frozen_encoder(path, signature="encode", pooling="mean")
    assert width(teacher) == 3
    np.testing.assert_allclose(embedding(teacher), PIXELS.mean(axis=(1, 2)) / 255, atol=2e-3)


def test_a_saved_model_that_is_used_nowhere_else_keeps_its_weights(folder):
    model = convolutional(pooling="avg")
    teachers = [frozen_encoder(exported(model, folder)) for _ in range(2)]
    tf.io.gfile.rmtree(folder)
    keras.backend.clear_session()
    for teacher in teachers:
        assert_near(embedding(teacher), model(PIXELS, training=False))


def test_a_saved_model_under_xla(folder):
    model = convolutional(pooling="avg")
    teacher = frozen_encoder(exported(model, folder))
    got = tf.function(teacher, jit_compile=True)(tf.constant(IMAGES))["embedding"]
    assert_near(got, model(PIXELS, training=False))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", ["saved model", "layer", "model", "function"])
def test_two_replicas(folder, two_replicas, kind, inside):
    model = convolutional(pooling="avg")
    expected = model(PIXELS, training=False).numpy()
    exported(model, folder)

    def encoder():
        return {
            "saved model": lambda: folder,
            "layer": lambda: layers.TFSMLayer(folder),
            "model": lambda: model,
            "function": lambda: lambda images: model(images, training=False),
        }[kind]()

    if inside:
        with two_replicas.scope():
            teacher = frozen_encoder(encoder())
    else:
        teacher = frozen_encoder(encoder())
    halves = [tf.constant(IMAGES[:7]), tf.constant(IMAGES[7:])]
    got = on_replicas(two_replicas, lambda rows: teacher(rows)["embedding"], halves)
    assert_near(np.concatenate(got), expected)


# --- In a Distiller ---------------------------------------------------------------------------


def kinds(folder):
    model = convolutional(pooling="avg")
    layer = layers.TFSMLayer(exported(model, folder))
    loaded = tf.saved_model.load(folder)
    return {
        "model": (model, lambda: model.weights),
        "saved model": (folder, lambda: loaded.variables),
        "layer": (layer, lambda: layer.weights),
        "subclassed": (model := subclassed(), lambda: model.weights),
        "function": (lambda x: {"embedding": loaded.serve(tf.cast(x, "float32"))}, None),
    }


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["model", "saved model", "layer", "subclassed", "function"])
def test_training_leaves_an_encoder_alone(tmp_path, folder, kind, graph):
    encoder, weights = kinds(folder)[kind]
    weights = weights() if weights else []
    before = [np.array(w) for w in weights]
    teacher = frozen_encoder(encoder, output="embedding" if kind == "subclassed" else None)
    expected = embedding(teacher)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model = distiller(SQUARED, teacher=teacher, graph=graph, optimizer=optimizer)
    shown = fit(model, epochs=2)
    assert shown["squared"][1] < shown["squared"][0]
    assert_equal([np.array(w) for w in weights], before)
    assert_equal([embedding(teacher)], [expected])

    student = model.student
    assert len(model.variables) == len(student.variables)
    assert len(model.trainable_variables) == len(student.trainable_variables)
    assert len(model.optimizer.variables) == len(student.trainable_variables) + 2
    model.save(tmp_path / "model.keras")
    tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert b"convolutional" not in b"".join(map(file.read, file.namelist()))
    names = [name for name, _ in tf.train.list_variables(str(tmp_path / "checkpoint"))]
    assert not [name for name in names if "teacher" in name]


def test_embeddings_teach_and_give_no_gradient():
    images = tf.constant(PIXELS)
    teacher = frozen_encoder(convolutional(pooling="avg"))
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(teacher(images)["embedding"])
    assert tape.gradient(total, images) is None


# --- What is refused --------------------------------------------------------------------------


def several_images():
    one, other = keras.Input((8, 8, 3), name="one"), keras.Input((8, 8, 3), name="other")
    return keras.Model([one, other], layers.Flatten()(one + other), name="pair")


def text_alone():
    texts = keras.Input((None,), dtype="int32", name="token_ids")
    return keras.Model({"token_ids": texts}, layers.Embedding(9, 4)(texts), name="text")


def with_outputs(make):
    images = keras.Input((8, 8, 3))
    return keras.Model(images, make(images))


REFUSED = {
    "tokens": (tokens, {}, r"sequence of tokens, .*give `pooling='mean'` or `pooling='first_to"),
    "map": (
        convolutional,
        {},
        r"a map, \(None, 3, 3, 6\), and `pooling` is None: give `pooling='m",
    ),
    "first token of a map": (convolutional, {"pooling": "first_token"}, "give `pooling='mean'`"),
    "vectors": (
        lambda: convolutional(pooling="avg"),
        {"pooling": "mean"},
        r"vectors, \(None, 6\), and `pooling` is 'mean': give `pooling=None`",
    ),
    "videos": (
        lambda: with_outputs(lambda x: layers.Reshape((2, 4, 8, 3))(x)),
        {"pooling": "mean"},
        "must return vectors, a sequence of tokens or a map",
    ),
    "integers": (
        lambda: with_outputs(lambda x: keras.ops.argmax(x, axis=-1)),
        {"pooling": "mean"},
        "must return floats, got int",
    ),
    "width 1": (
        lambda: with_outputs(lambda x: layers.Dense(1)(layers.Flatten()(x))),
        {},
        r"known width of at least 2, got \(None, 1\)",
    ),
    "several outputs": (
        lambda: with_outputs(lambda x: {"b": x, "a": x}),
        {"pooling": "mean"},
        r"has the outputs \['a', 'b'\]: name one with `output=`",
    ),
    "unknown output": (
        lambda: with_outputs(lambda x: {"b": x, "a": x}),
        {"output": "c"},
        r"`output='c'` is none of the encoder's outputs: \['a', 'b'\]",
    ),
    "output of one": (tokens, {"output": "c"}, "the encoder has one output: leave it out"),
    "two images": (several_images, {}, r"takes \['one', 'other'\], and it is given the images al"),
    "text": (text_alone, {"pooling": "mean"}, r"'text' takes no images .*\['token_ids'\]"),
    "pooling": (convolutional, {"pooling": "max"}, "`pooling` must be None, 'mean' or 'first_tok"),
    "size": (
        convolutional,
        {"pooling": "mean", "preprocessing": ImagePreprocessing(16)},
        r"takes images \(8, 8, 3\), got \(16, 16, 3\): .*ImagePreprocessing\(\(8, 8\)\)`",
    ),
    "normalised twice": (
        lambda: convolutional(32, "avg"),
        {"preprocessing": ImagePreprocessing(32)},
        r"'convolutional' takes raw images, and `preprocessing` normalises them: give "
        r"ImagePreprocessing\(32, mean=None, std=None\)\.$",
    ),
    "normalised twice by an ImagePreprocessing": (
        lambda: with_outputs(lambda x: layers.Flatten()(ImagePreprocessing(4)(x))),
        {"preprocessing": ImagePreprocessing((8, 8), [0.5] * 3, [0.5] * 3)},
        r"takes raw images, and .*ImagePreprocessing\(8, mean=None, std=None\)\.$",
    ),
    "normalised twice, not square": (
        lambda: keras.Sequential(
            [keras.Input((8, 6, 3)), layers.Rescaling(1 / 255), layers.Flatten()]
        ),
        {"preprocessing": ImagePreprocessing((8, 6))},
        r"takes raw images, and .*ImagePreprocessing\(\(8, 6\), mean=None, std=None\)\.$",
    ),
    "size of any layer": (
        convolutional,
        {"pooling": "mean", "preprocessing": layers.Resizing(16, 16)},
        r"takes images \(8, 8, 3\), got \(16, 16, None\): .*ImagePreprocessing\(\(8, 8\)\)`",
    ),
    "size of a function": (
        lambda: lambda images: tf.ensure_shape(images, [None, 8, 8, 3]),
        {"pooling": "mean", "preprocessing": ImagePreprocessing(16)},
        r"fails on float32 images \(16, 16, 3\) \(.*\): .*ImagePreprocessing\(224\)`",
    ),
    "size of a subclassed model": (
        subclassed,
        {"output": "embedding", "preprocessing": ImagePreprocessing(16)},
        r"fails on float32 images \(16, 16, 3\) \((?!Exception).+\): .*ImagePreprocessing\(224\)`",
    ),
    "a function of NumPy": (
        lambda: lambda images: np.asarray(images).mean((1, 2)),
        {"preprocessing": ImagePreprocessing(16)},
        r"fails on float32 images \(16, 16, 3\) \(.*\): .*another one by `tf.numpy_function`",
    ),
    "channels first": (
        lambda: keras.Sequential([keras.Input((3, 8, 8)), layers.Flatten()]),
        {"preprocessing": ImagePreprocessing(8)},
        r"takes images \(3, 8, 8\), got \(8, 8, 3\): it takes channels first.*transpose",
    ),
    "width of a function": (
        lambda: lambda images: images[..., :1],
        {"pooling": "mean", "preprocessing": ImagePreprocessing(16)},
        "known width of at least 2",
    ),
    "signature": (convolutional, {"signature": "encode"}, "is for the folder of a SavedModel"),
    "not built": (Subclassed, {}, "has no weights yet: call it once"),
    "precision": (lambda: tokens, {"dtype": "float16"}, "`dtype='float16'` needs a Keras model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_construction(case, monkeypatch):
    monkeypatch.setattr("keras_ssd.teacher.warn_if_slower", str)  # says nothing
    make, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as raised:
        frozen_encoder(make(), **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("encoder", [None, 3, keras.Model, ["folder"]])
def test_no_encoder(encoder):
    with pytest.raises(TypeError, match="`encoder` must be a Keras model, the folder of"):
        frozen_encoder(encoder)


def test_outputs_without_names():
    with pytest.raises(TypeError, match="a list of 2 outputs without names"):
        frozen_encoder(with_outputs(lambda x: [x, 2 * x]), pooling="mean")


CALLS = {
    "tokens": (lambda x: tf.reshape(x / 255, [-1, 16, 12]), ValueError, "`pooling='first_token'`"),
    "no floats": (lambda x: x, ValueError, "must return floats, got uint8"),
    "no tensor": (lambda x: str(x.dtype), TypeError, "must return tensors, got str"),
    "no shape": (
        lambda x: tf.py_function(lambda y: tf.cast(y, tf.float32), [x], tf.float32),
        ValueError,
        "shape of the encoder's output must be known",
    ),
    "no width": (
        lambda x: tf.ensure_shape(tf.py_function(lambda y: y, [x], tf.float32), [None, None]),
        ValueError,
        "known width of at least 2",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_refused_at_the_first_trace(case):
    function, error, message = CALLS[case]
    model = distiller(SQUARED, teacher=frozen_encoder(function), graph=True)
    with pytest.raises(error, match=message):
        fit(model)


@pytest.mark.parametrize("raw", [True, False, None])
def test_images_are_normalised_once(raw):
    """Once by the encoder, once by the preprocessing, and as one likes where nothing is known."""
    last = [layers.Flatten(), layers.Dense(4)]
    begins = {True: [layers.Rescaling(1 / 255)], False: [], None: [layers.ReLU()]}[raw]
    model = keras.Sequential([keras.Input((8, 8, 3)), *begins, *last])
    statistics = [{"mean": None, "std": None}, {}][1 if not raw else 0]
    first = ImagePreprocessing(8, **statistics)
    assert_near(embedding(frozen_encoder(model, preprocessing=first)), model(first(IMAGES)))


def test_another_number_of_rows():
    teacher = frozen_encoder(lambda images: images[::2, 0, 0] / 255)
    with pytest.raises(ValueError, match="returned 2 rows for 4 images"):
        teacher(tf.constant(IMAGES[:4]))
    model = distiller(
        SQUARED, teacher=frozen_encoder(lambda x: tf.reshape(x / 255, [1, -1])[:, :9])
    )
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="eacher returned"):
        fit(model)


def test_images_that_do_not_fit():
    teacher = frozen_encoder(convolutional(16), pooling="mean")
    with pytest.raises(
        ValueError, match=r"takes images \(16, 16, 3\), got \(8, 8, 3\): .*ImagePre"
    ):
        teacher(tf.constant(IMAGES))


# --- SavedModels that are refused -------------------------------------------------------------


def test_no_saved_model(tmp_path):
    (tmp_path / "empty").mkdir()
    convolutional().save(tmp_path / "model.keras")
    for name in ("empty", "nowhere", "model.keras"):
        with pytest.raises(ValueError, match=f"{name} is no folder of a SavedModel"):
            frozen_encoder(tmp_path / name)


def test_signatures(folder):
    saved(lambda images: images, folder)
    with pytest.raises(ValueError, match=r"no signature 'serving_default' \(it has \['encode'\]\)"):
        frozen_encoder(folder)


@pytest.mark.parametrize("names", [[], ["encode"], ["encode", "score"]])
def test_a_saved_model_without_signatures(folder, names):
    module = tf.Module()
    for name in names:
        setattr(module, name, tf.function(lambda images: tf.reduce_mean(images, (1, 2))))
        getattr(module, name)(PIXELS)
    tf.saved_model.save(module, folder)
    with pytest.raises(ValueError, match=r"^The SavedModel .* has no signatures: ") as raised:
        frozen_encoder(folder)
    message = str(raised.value)
    advice = f"give `keras.layers.TFSMLayer({folder!r}, call_endpoint='encode')` instead"
    assert (advice in message) == bool(names)
    assert ("the functions ['encode', 'score']" in message) == (len(names) == 2)
    assert ("`tf.saved_model.save(model, path, signatures=...)`" in message) == (not names)


def test_a_function_of_a_saved_model_without_signatures(folder):
    module = tf.Module()
    spec = [tf.TensorSpec((None, 8, 8, 3), "float32")]
    module.encode = tf.function(lambda x: tf.reduce_mean(x, (1, 2)), spec)
    module.score = tf.function(lambda x: tf.reduce_max(x, (1, 2)), spec)
    tf.saved_model.save(module, folder)
    with pytest.raises(ValueError, match="has no signatures") as raised:
        frozen_encoder(folder)
    code = str(raised.value).split("`")[1]
    layer = eval(code, {"keras": keras})  # as it is advised
    assert_near(embedding(frozen_encoder(layer)), PIXELS.mean(axis=(1, 2)))


UNUSABLE = {
    "several inputs": (
        (
            lambda images, scale: images * scale,
            (None, 8, 8, 3),
            "float32",
            tf.TensorSpec([], "float32", "scale"),
        ),
        r"takes \['images', 'scale'\], and it is given the images alone",
    ),
    "one image": (
        (lambda images: images, (1, 8, 8, 3), "float32"),
        "takes exactly 1 images at a time",
    ),
    "texts": ((lambda images: images, (None, 8), "float32"), "takes no images"),
    "several outputs": (
        (lambda images: {"one": images, "two": images}, (None, 8, 8, 3), "float32"),
        r"has the outputs \['one', 'two'\]: name one with `output=`",
    ),
    "normalised": (
        (lambda images: tf.cast(images, tf.float32),),
        r"takes raw images \(uint8\), and `pre.*ImagePreprocessing\(16, mean=None, std=None\)",
    ),
    "size": (
        (lambda images: images, (None, 8, 8, 3), "float32"),
        r"takes images \(8, 8, 3\), got \(16, 16, 3\): .*ImagePreprocessing\(\(8, 8\)\)`",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_signatures(folder, case):
    (function, *spec), message = UNUSABLE[case]
    saved(function, folder, *spec)
    first = ImagePreprocessing(16) if case in ("normalised", "size") else None
    with pytest.raises(ValueError, match=message):
        frozen_encoder(folder, signature="encode", pooling="mean", preprocessing=first)


def test_images_that_do_not_fit_a_saved_model(folder):
    teacher = frozen_encoder(exported(convolutional(16), folder), pooling="mean")
    with pytest.raises(
        ValueError, match=r"takes images \(16, 16, 3\), got \(8, 8, 3\): .*ImagePre"
    ):
        teacher(tf.constant(IMAGES))


class OfTwo(keras.Model):
    """A subclassed model of two inputs."""

    def call(self, inputs):
        return inputs["one"] + inputs["two"]


@pytest.mark.parametrize("first", [None, ImagePreprocessing(8)])
def test_a_subclassed_encoder_of_two_inputs(first):
    encoder = OfTwo(name="of_two")
    encoder({"one": np.zeros((1, 8), "float32"), "two": np.zeros((1, 8), "float32")})
    with pytest.raises(ValueError, match="'of_two' must take images alone, and was built on"):
        frozen_encoder(encoder, preprocessing=first)


# --- The teachers of the example --------------------------------------------------------------


@pytest.fixture(scope="module")
def ega_teachers():
    with example("ega_teachers") as module:
        yield module


@pytest.fixture
def teacher_of(ega_teachers, tmp_path, monkeypatch):
    """The example's teacher for flags; what is trained is a tiny network, at once."""
    trained = []

    def pretrain(network, source, path, data, precision):
        trained.append(network)
        images = keras.Input((8, 8, 3))
        x = layers.GlobalAveragePooling2D(name="embedding")(images)
        model = keras.Model(images, layers.Dense(3)(x))
        model.save(path)
        return model

    monkeypatch.setattr(ega_teachers, "_pretrain", pretrain)

    def make(*arguments, source="digits"):
        parsed = [f"--teacher{argument}" for argument in arguments]
        names = [argument.partition("=")[0][2:] for argument in parsed]
        with flagsaver.flagsaver():
            flags.FLAGS(["test", *parsed])
            assert set(names) <= set(ega_teachers.SETTINGS)
            return ega_teachers.encoder(source, tmp_path, {}, "float32")

    make.trained, make.options = trained, ega_teachers._options
    return make


CHANGED = {
    "=contrastive:vgg8": "network resnet8x4",
    "_epochs=3": "epochs 200",
    "_batch_size=4": "batch_size 128",
    "_temperature=0.5": "temperature 0.2",
}


@pytest.mark.parametrize("kept", ["encoder.keras", "encoder_backup"])
def test_an_encoder_of_other_settings_is_not_taken(teacher_of, tmp_path, kept):
    assert width(teacher_of()) == 3
    if kept == "encoder_backup":
        (tmp_path / "encoder.keras").unlink()
        (tmp_path / kept).mkdir()
    for flag, words in CHANGED.items():
        with pytest.raises(SystemExit, match=f"{kept} was trained with {words}, which the flags"):
            teacher_of(flag)
    with pytest.raises(SystemExit, match="trained with data digits, which"):
        teacher_of(source=tmp_path)
    assert width(teacher_of("=contrastive:resnet8x4")) == 3
    assert len(teacher_of.trained) == (1 if kept == "encoder.keras" else 2)


def test_an_encoder_of_unknown_settings_is_taken_with_a_note(teacher_of, tmp_path, capsys):
    teacher_of()
    assert "nothing tells" not in capsys.readouterr().out
    (tmp_path / "encoder.json").unlink()
    for _ in range(2):
        teacher_of("_epochs=3")
        assert "encoder.keras is taken, and nothing tells how it was" in capsys.readouterr().out
    assert len(teacher_of.trained) == 1


def test_settings_of_nothing_that_was_kept_bind_nobody(teacher_of, tmp_path):
    teacher_of()
    (tmp_path / "encoder.keras").unlink()
    teacher_of("_epochs=3")
    with pytest.raises(SystemExit, match="epochs 3"):
        teacher_of()


@pytest.mark.parametrize("flag", ["_output=a", "_pooling=mean", "_image_size=8"])
def test_flags_that_would_be_ignored(teacher_of, flag):
    name = flag.partition("=")[0]
    with pytest.raises(SystemExit, match=f"--teacher{name} is for other teachers than contrast"):
        teacher_of(flag)
    for kind in ("=contrastive", "=saved_model:folder"):
        with pytest.raises(SystemExit, match="--teacher_normalization needs --teacher_image_size"):
            teacher_of(kind, "_normalization=clip")
    assert not teacher_of.trained


def test_normalization_must_be_given(teacher_of, tmp_path):
    for kind in ("=keras:m", "=applications:ResNet50", "=hub:dinov2", "=saved_model:clip"):
        with pytest.raises(SystemExit, match="give --teacher_normalization, one of clip, imagenet"):
            teacher_of(kind, "_image_size=8")
    path = tmp_path / "encoder.keras"
    convolutional(pooling="avg").save(path)
    teacher = teacher_of(f"=keras:{path}", "_image_size=8", "_normalization=none")
    assert teacher.preprocessing.mean is None
    with flagsaver.flagsaver(teacher_image_size=8):
        clip = teacher_of.options("hub", "clip_vit_base_patch32")["preprocessing"]
    assert clip.get_config()["mean"] == ImagePreprocessing(8).mean


# --- KerasHub ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub():
    """KerasHub's models; importing them takes long."""
    reason = "keras_hub is not installed (the extra `hub`)"
    return pytest.importorskip("keras_hub", reason=reason, exc_type=ImportError).models


SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8}


def vit(hub, **options):
    return hub.ViTBackbone(image_shape=(16, 16, 3), patch_size=8, mlp_dim=16, **SMALL, **options)


def two_sides(hub, name):
    """CLIP and its like: 16 pixels, width 5 (SigLIP has no projection: 8)."""
    vision = getattr(hub, f"{name}VisionEncoder")
    text = getattr(hub, f"{name}TextEncoder")
    text_options = {"vocabulary_size": 20, "embedding_dim": 8, "max_sequence_length": 6}
    size = {"image_shape": (16, 16, 3), "patch_size": 8, "intermediate_dim": 16}
    return getattr(hub, f"{name}Backbone")(
        vision_encoder=vision(**SMALL, **size),
        text_encoder=text(**SMALL, intermediate_dim=16, **text_options),
        **({} if name == "SigLIP" else {"projection_dim": 5}),
    )


@pytest.mark.slow
def test_vit_of_keras_hub(hub):
    model = vit(hub)
    first = ImagePreprocessing(16)
    expected = model(first(IMAGES), training=False).numpy()
    for pooling, rows in (("mean", expected.mean(axis=1)), ("first_token", expected[:, 0])):
        teacher = frozen_encoder(model, pooling=pooling, preprocessing=first)
        assert width(teacher) == 8
        assert_near(embedding(teacher), rows)
    with pytest.raises(ValueError, match="sequence of tokens"):
        frozen_encoder(model)


@pytest.mark.slow
def test_dinov2_of_keras_hub(hub):
    size = (16, 16, 3)
    model = hub.DINOV2Backbone(
        patch_size=8,
        intermediate_dim=16,
        num_register_tokens=2,
        image_shape=size,
        position_embedding_shape=size,
        **SMALL,
    )
    teacher = frozen_encoder(model, pooling="first_token", preprocessing=ImagePreprocessing(16))
    tokens_of = model({"images": ImagePreprocessing(16)(IMAGES)}, training=False).numpy()
    assert width(teacher) == 8
    assert_near(embedding(teacher), tokens_of[:, 0])


@pytest.mark.slow
def test_resnet_of_keras_hub(hub):
    model = hub.ResNetBackbone([64], [3], [64, 64], [1, 1], [1, 2], "basic_block")
    first = ImagePreprocessing(16)
    teacher = frozen_encoder(model, pooling="mean", preprocessing=first)
    assert width(teacher) == 64
    assert_near(embedding(teacher), np.mean(model(first(IMAGES), training=False), axis=(1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "columns"), [("CLIP", 5), ("SigLIP", 8), ("MetaCLIP2", 5)])
def test_image_side_of_keras_hub(hub, name, columns):
    model = two_sides(hub, name)
    first = ImagePreprocessing(16)
    teacher = frozen_encoder(model, preprocessing=first)
    assert width(teacher) == columns
    expected = model.get_vision_embeddings(first(IMAGES))
    assert_near(embedding(teacher), expected)
    assert sum(v.shape == (20, 8) for v in teacher.variables) == 0  # no word has a vector here
    trained = distiller(SQUARED, teacher=teacher)
    before = [np.array(w) for w in model.weights]
    fit(trained, epochs=1)
    assert_equal([np.array(w) for w in model.weights], before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_weights_of_keras_hub(hub, dtype):
    model = vit(hub, dtype=dtype)
    assert dtype in {w.dtype for w in model.weights}
    teacher = frozen_encoder(model, pooling="mean", preprocessing=ImagePreprocessing(16))
    tokens_of = model(ImagePreprocessing(16)(IMAGES), training=False)
    expected = np.mean(keras.ops.cast(tokens_of, "float32"), axis=1)
    np.testing.assert_allclose(embedding(teacher), expected, atol=0.05)


@pytest.mark.slow
def test_text_model_of_keras_hub(hub):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    model = hub.BertBackbone(vocabulary_size=20, **sizes)
    with pytest.raises(ValueError, match=r"takes no images .*'token_ids'"):
        frozen_encoder(model, pooling="mean")
