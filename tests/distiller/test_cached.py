"""A Distiller on stored outputs of a teacher: the run of the live teacher on the same pixels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd
from keras_ssd.views import Plain, Rotations

from .hsakd import network as hsakd_network
from .one_and_two import examples, network, on_one_and_two, sgd
from .tiny import assert_equal

IMAGES, LABELS = examples(24)
PADDED = {"padding": 1}
PRESETS = {
    "kd": (ssd.presets.kd(**PADDED), ()),
    "sskd": (ssd.presets.sskd(**PADDED), ()),
    "hsakd": (ssd.presets.hsakd(**PADDED), ()),
    "combined": (ssd.presets.combined(**PADDED), ()),
    "ssld": (ssd.presets.ssld(**PADDED), ()),
    "ega": (ssd.presets.ega(shared_view=True, **PADDED), ()),
}


def networks(name):
    """Teacher, student, and what else the Distiller is given."""
    if name in ("hsakd", "combined"):
        return hsakd_network(6, seed=0), hsakd_network(4), {}
    if name == "ega":
        student = ssd.with_node_embedding(plain_network(4), units=5)
        encoder = ssd.frozen_encoder(plain_network(8))
        return encoder, student, {"teacher_head": ssd.node_embedding_head(3, 3, units=5)}
    return network(8, seed=0), network(4), {}


def plain_network(width):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 128, -1)(images)
    x = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="embedding")(x)
    return keras.Model(images, keras.layers.Dense(3, name="logits")(x))


def batches(size=8, **x):
    data = ({"image": IMAGES, **x}, LABELS)
    return tf.data.Dataset.from_tensor_slices(data).batch(size)


def stored(teacher, views, *, seed=(0, 0)):
    """What `data.cached_teacher` adds to an x, in float32, of all images."""
    draws = views.draw(len(IMAGES), seed)
    rows = views.apply(tf.constant(IMAGES), draws if views.num_draws else None)
    shape = [len(IMAGES), *([views.num_views] if views.num_views > 1 else [])]
    outputs = ssd.freeze(teacher)(rows).items()
    table = {name: np.reshape(rows, [*shape, *rows.shape[1:]]) for name, rows in outputs}
    return {"teacher": table, "draws": {views.fingerprint: draws}}


def compiled(teacher, student, preset, **options):
    heads = {"teacher_head": options.pop("teacher_head")} if "teacher_head" in options else {}
    model = ssd.Distiller(teacher, student, **heads, **preset)
    if preset.get("teacher_objectives"):
        options["teacher_optimizer"] = sgd()
    model.compile(sgd(), **{"run_eagerly": True, **options})
    return model


def history(model, data, **options):
    return model.fit(data, verbose=0, shuffle=False, **options).history


@pytest.mark.parametrize("name", PRESETS)
def test_every_term_is_that_of_the_live_teacher(name):
    preset = PRESETS[name][0]
    teacher, student, options = networks(name)
    weights = student.get_weights()
    head = options.get("teacher_head")
    heads = head and head.get_weights()
    x = stored(teacher, preset["views"])
    live = history(compiled(teacher, student, preset, **options), batches(draws=x["draws"]))
    student.set_weights(weights)
    if head is not None:
        head.set_weights(heads)
    cached = history(compiled(None, student, preset, **options), batches(**x))
    assert live.keys() == cached.keys()
    for term, values in live.items():
        np.testing.assert_allclose(cached[term], values, 1e-4, 1e-6, err_msg=term)


def test_draws_take_the_place_of_the_seed():
    preset = PRESETS["kd"][0]
    teacher = network(8, seed=0)
    losses = []
    for draws in (stored(teacher, preset["views"], seed=(0, n))["draws"] for n in (0, 0, 1)):
        losses.append(history(compiled(teacher, network(4), preset), batches(draws=draws))["loss"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (Rotations(padding=2), "are of other views .* than the Distiller's `Rotations`"),
        (Plain(True), "are of other views .* than the Distiller's `Plain`"),
    ],
)
def test_other_views_are_refused(views, message):
    x = stored(network(8, seed=0), Rotations(padding=1))
    preset = {**PRESETS["kd"][0], "views": views}
    with pytest.raises(ValueError, match=message):
        history(compiled(None, network(4), preset), batches(**x))


@pytest.mark.parametrize("views", [Plain(True), Plain(flip=True)], ids=["crop", "flip"])
def test_stored_outputs_of_other_pixels_are_refused(views):
    table = stored(network(8, seed=0), Plain())["teacher"]
    model = compiled(None, network(4), {**PRESETS["kd"][0], "views": views}, evaluate_views=True)
    with pytest.raises(ValueError, match="would see other pixels than the teacher did"):
        history(model, batches(teacher=table))
    assert model.evaluate(batches(teacher=table), verbose=0, return_dict=True)["soft_labels"] > 0


def test_draws_of_another_form_are_refused():
    views = Plain(True)
    model = compiled(network(8, seed=0), network(4), {**PRESETS["kd"][0], "views": views})
    for draws, message in (
        (np.zeros((24, 3), "float32"), "`draws` must be a dict from the `fingerprint`"),
        ({views.fingerprint: np.zeros((24, 9), "float32")}, r"must be \[images, 3\], got shape"),
    ):
        with pytest.raises(ValueError, match=message):
            history(model, batches(draws=draws))


def test_two_replicas_learn_what_one_learns(two_replicas):
    preset = PRESETS["sskd"][0]
    x = stored(network(8, seed=0), preset["views"])

    def make():
        return compiled(None, network(4), preset, run_eagerly=False)

    one, two = on_one_and_two(two_replicas, make)
    expected = history(one, batches(7, **x))  # 7, 7, 7 and 3 images: unequal shards
    found = history(two, batches(7, **x))
    for term, values in expected.items():
        np.testing.assert_allclose(found[term], values, 1e-4, 1e-6, err_msg=term)


def test_a_step_of_fixed_shapes_compiles():
    preset = PRESETS["sskd"][0]
    x = stored(network(8, seed=0), preset["views"])
    losses = []
    for jit_compile in (False, True):
        model = compiled(None, network(4), preset, run_eagerly=False, jit_compile=jit_compile)
        data = tf.data.Dataset.from_tensor_slices(({"image": IMAGES, **x}, LABELS))
        losses.append(history(model, data.batch(8, drop_remainder=True))["loss"])
    np.testing.assert_allclose(losses[1], losses[0], 1e-4)


# From a folder


@pytest.fixture(scope="module")
def digits():
    return ssd.data.load("digits", batch_size=16).few_shot(0.05)


@pytest.fixture(scope="module")
def cached(digits, tmp_path_factory):
    """Two batches of digits, with three augmentations of each."""
    folder, views = tmp_path_factory.mktemp("cache"), PRESETS["sskd"][0]["views"]
    options = {"views": views, "augmentations": 3, "verbose": 0}
    return ssd.data.cached_teacher(digits_network(digits, 1), digits, folder, **options)


def digits_network(data, seed):
    keras.utils.set_random_seed(seed)
    images = keras.Input(data.info.input_shape)
    x = keras.layers.Rescaling(1 / 80, -1)(images)
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="embedding")(x)
    return ssd.with_projection(keras.Model(images, keras.layers.Dense(10, name="logits")(x)))


def test_a_resumed_run_is_the_uninterrupted_one(digits, cached):
    def run(*spans):
        model = compiled(None, digits_network(digits, 0), PRESETS["sskd"][0], run_eagerly=False)
        for start, end in spans:
            history(model, cached.train, initial_epoch=start, epochs=end)
        return [v.numpy() for v in model.student.variables]

    whole = run((0, 4))
    assert_equal(run((0, 1), (1, 4)), whole)
    assert any((a != b).any() for a, b in zip(run((0, 2), (0, 2)), whole, strict=True))


def test_check_and_evaluate_take_it(digits, cached):
    model = compiled(None, digits_network(digits, 0), PRESETS["sskd"][0], evaluate_views=True)
    report = model.check(cached.train)
    assert report.networks[0].part == "stored teacher"
    assert {term.name for term in report.terms} >= {"soft_labels", "similarity_transfer"}
    shown = model.evaluate(cached.train.take(1), verbose=0, return_dict=True)
    assert shown["similarity_transfer"] > 0
    model.compile(sgd(), run_eagerly=True)
    model.evaluate(cached.validation.take(1), verbose=0)


def test_an_imported_table_is_of_images_as_they_are(digits):
    table = np.random.default_rng(0).normal(size=(len(digits.labels), 10)).astype("float32")
    taught = ssd.data.imported_teacher(table, digits)
    plain = ssd.presets.kd(crop=False, flip=False)
    history(compiled(None, digits_network(digits, 0), plain), taught.train.take(1))
    with pytest.raises(ValueError, match="would see other pixels than the teacher did"):
        history(compiled(None, digits_network(digits, 0), ssd.presets.kd()), taught.train.take(1))
