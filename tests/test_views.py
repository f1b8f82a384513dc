import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from replicas import on_replicas

from keras_ssd.views import Plain, Rotations, crop_at

AUGMENTED = {
    "crop": Plain(True),
    "flip": Plain(flip=True),
    "both": Plain(True, flip=True),
    "each": Rotations(),
    "shared": Rotations("shared"),
    "no crop": Rotations(None),
    "a border a channel": Rotations(padding=2, pad_value=(7, 8, 9)),
}
SEED = (3, 5)


def some_images(count=6, side=8, dtype="uint8", seed=0):
    shape = (count, side, side, 3)
    return tf.cast(np.random.default_rng(seed).integers(1, 256, shape), dtype)


def turned(image, view):
    return np.rot90(image, view)  # counter-clockwise, as NumPy turns


# What a view is


@pytest.mark.parametrize("case", golden_cases("sskd", "make_views"))
def test_golden(case):
    image, params = np.array(case["inputs"]["image"], "uint8"), case["params"]
    expected = case["expected"]
    copies = np.stack([image] * 16)
    rows = Rotations(None)(copies, SEED) if params["flip"] else Rotations()(copies)
    by_image = np.reshape(rows, (-1, 4, *image.shape))
    found = [np.array_equal(views, expected["rotated_before_crop"]) for views in by_image]
    assert any(found)
    assert all(found) != params["flip"]  # the other images came out unmirrored

    views = by_image[found.index(True)]
    if corners := params["crop_offsets_top_left_per_view"]:
        views = crop_at(views, tf.constant(corners), params["padding"], 0).numpy()
        views = (views / 255.0 - params["mean"]) / params["std"]
    np.testing.assert_allclose(views, expected["views"], rtol=1e-12)


def test_views_are_quarter_turns_counter_clockwise_image_major():
    images = some_images()
    rows = Rotations()(images)
    for image, views in zip(images, np.reshape(rows, (-1, 4, 8, 8, 3)), strict=True):
        for view in range(4):
            np.testing.assert_array_equal(views[view], turned(image, view))
    np.testing.assert_array_equal(rows[::4], images)


def test_turning_view_1_three_more_times_gives_view_0():
    images = some_images()
    rows = images
    for _ in range(4):
        rows = Rotations()(rows)[1::4]
    np.testing.assert_array_equal(rows, images)


@pytest.mark.parametrize("views", AUGMENTED.values(), ids=AUGMENTED)
def test_row_layout(views):
    labels = np.arange(1, 7)
    rows = views(np.ones([6, 9, 9, 3], "float32") * labels[:, None, None, None], SEED)
    middle = rows[:, 4, 4, 0]  # a border of 4 does not reach it
    np.testing.assert_array_equal(middle, np.repeat(labels, views.num_views))


@pytest.mark.parametrize("views", AUGMENTED.values(), ids=AUGMENTED)
def test_without_a_seed_nothing_is_augmented(views):
    images = some_images()
    plain = views(images) if views.num_views == 1 else views(images)[::4]
    np.testing.assert_array_equal(plain, images)


def test_plain_views_without_options_are_the_images_themselves():
    images = some_images()
    assert Plain()(images, SEED) is images


# Random numbers


def the_same_window(rows, images, padding=4):
    """The corner of the window that each row was cut at."""
    corners = []
    for row, image in zip(rows, images, strict=True):
        padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
        side = len(image)
        hits = [
            (top, left)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            if np.array_equal(padded[top : top + side, left : left + side], row)
        ]
        assert len(hits) == 1
        corners.extend(hits)
    return np.array(corners)


def test_each_crops_views_independently():
    images = some_images(20)
    rows = Rotations("each", flip=False)(images, SEED)
    whole = [turned(image, view) for image in images.numpy() for view in range(4)]
    corners = the_same_window(rows.numpy(), whole).reshape(20, 4, 2)
    assert all(len({tuple(corner) for corner in image}) > 1 for image in corners)
    assert not np.array_equal(corners[..., 0], corners[..., 1])


def test_shared_cuts_one_window_before_the_turn():
    images = some_images(20)
    rows = Rotations("shared", flip=False)(images, SEED).numpy().reshape(20, 4, 8, 8, 3)
    assert len({tuple(c) for c in the_same_window(rows[:, 0], images.numpy())}) > 1
    for views in rows:
        for view in range(4):
            np.testing.assert_array_equal(views[view], turned(views[0], view))


def test_one_flip_coin_an_image_shared_by_its_views():
    images = some_images(200)
    rows = Rotations(None)(images, SEED).numpy().reshape(200, 4, 8, 8, 3)
    mirrored = images.numpy()[:, :, ::-1]
    coins = []
    for image, mirror, views in zip(images.numpy(), mirrored, rows, strict=True):
        coins.append(np.array_equal(views[0], mirror))
        flipped = mirror if coins[-1] else image
        for view in range(4):
            np.testing.assert_array_equal(views[view], turned(flipped, view))
    assert 0 < sum(coins) < 200


def draws_of(views, count):
    """Coin, row and column of each view: `[count, 1 + 2 * V]`; pixels say where they are."""
    image = np.arange(121.0).reshape(11, 11)
    rows = views(np.tile(image[:, :, None].astype("float32"), [count, 1, 1, 1]), SEED).numpy()
    middle = rows[:, 4, 4, 0].astype(int).reshape(count, -1)  # 4 pixels do not reach it
    coins = (rows[:: views.num_views, 4, 5, 0] < middle[:, 0]).astype(int)
    draws = np.empty((count, views.num_views, 2), int)
    for coin, source in enumerate([image, image[:, ::-1]]):
        for view in range(views.num_views):
            places = np.argsort(turned(source, view).ravel())  # of each pixel
            chosen = coins == coin
            draws[chosen, view] = np.transpose(divmod(places[middle[chosen, view]], 11))
    return np.column_stack([coins, draws.reshape(count, -1)])


@pytest.mark.parametrize("views", [Plain(True, flip=True), Rotations()], ids=["plain", "each"])
def test_draws_are_fair_and_independent(views):
    count = 3000
    coins, *offsets = draws = draws_of(views, count).T
    assert abs(coins.mean() - 1 / 2) < 4.5 * np.sqrt(1 / 4 / count)
    for offset in offsets:
        shares = np.bincount(offset, minlength=9) / count
        assert len(shares) == 9
        np.testing.assert_allclose(shares, 1 / 9, atol=4.5 * np.sqrt(8 / 81 / count))
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    np.testing.assert_allclose(correlations, 0, atol=4.5 / np.sqrt(count))


@pytest.mark.parametrize("views", AUGMENTED.values(), ids=AUGMENTED)
def test_a_seed_replays_exactly_and_another_one_differs(views):
    images = some_images(16)
    rows = views(images, SEED)
    np.testing.assert_array_equal(views(images, tf.constant(SEED)), rows)
    for other in [(3, 6), (4, 5), (5, 3)]:
        assert not np.array_equal(views(images, other), rows)
    keras.utils.set_random_seed(9)
    tf.random.uniform([3])
    np.testing.assert_array_equal(views(images, SEED), rows)


@pytest.mark.parametrize("name", ["both", "each", "shared"])
def test_the_same_views_on_two_replicas_of_unequal_rows(two_replicas, name):
    views, images = AUGMENTED[name], some_images(37, dtype="float32")

    def replica(images):
        rows = views(images, SEED)
        assert rows.shape == [len(images) * views.num_views, 8, 8, 3]  # static
        return rows

    first, second = on_replicas(two_replicas, replica, [images[:19], images[19:]])
    assert (len(first), len(second)) == (19 * views.num_views, 18 * views.num_views)
    np.testing.assert_array_equal(tf.concat([first, second], 0), views(images, SEED))


@pytest.mark.parametrize("name", ["both", "each", "shared", "a border a channel"])
@pytest.mark.parametrize("known", [True, False], ids=["static", "any batch"])
def test_compiled_views_are_the_eager_ones(name, known):
    views, images = AUGMENTED[name], some_images(4)
    signature = tf.TensorSpec([4 if known else None, 8, 8, 3], tf.uint8)
    compiled = tf.function(
        lambda images: views(images, SEED), input_signature=[signature], jit_compile=True
    )
    np.testing.assert_array_equal(compiled(images), views(images, SEED))
    rows = compiled.get_concrete_function().structured_outputs.shape
    assert rows == [4 * views.num_views if known else None, 8, 8, 3]


@pytest.mark.parametrize("views", AUGMENTED.values(), ids=AUGMENTED)
def test_views_of_a_seed_are_those_of_its_draws(views):
    images = some_images(16)
    draws = views.draw(16, SEED)
    assert (draws.shape, draws.dtype) == ([16, views.num_draws], tf.float32)
    rows = views.apply(images, draws if views.num_draws else None)
    np.testing.assert_array_equal(rows, views(images, SEED))
    places = [3, 9, 4]
    chosen = tf.gather(draws, places) if views.num_draws else None
    some = views.apply(tf.gather(images, places), chosen)
    by_image = np.reshape(rows, [16, views.num_views, 8, 8, 3])
    np.testing.assert_array_equal(np.reshape(some, by_image[places].shape), by_image[places])


def test_numbers_are_drawn_where_views_are_random():
    fixed = [Plain(), Rotations(None, flip=False)]
    assert [views.num_draws for views in fixed] == [0, 0]
    assert [views.num_draws for views in (Plain(True), Plain(flip=True))] == [3, 3]
    assert [views.num_draws for views in (Rotations(), Rotations(None))] == [9, 9]


def test_a_fingerprint_is_that_of_class_and_arguments():
    views = [*AUGMENTED.values(), Plain(), Plain(True, padding=3), Rotations(None, flip=False)]
    fingerprints = [one.fingerprint for one in views]
    assert len(set(fingerprints)) == len(views)
    again = [type(one).from_config(one.get_config()).fingerprint for one in views]
    assert again == fingerprints


# Padding


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
@pytest.mark.parametrize("pad_value", [0, 3, (1, 2, 3), [4, 5, 6]], ids=str)
def test_crop_at_every_corner(dtype, pad_value):
    image = some_images(1, side=5, dtype=dtype)[0].numpy()
    corners = [(top, left) for top in range(5) for left in range(5)]
    windows = crop_at(np.stack([image] * 25), tf.constant(corners), 2, pad_value)
    assert windows.dtype == dtype
    padded = np.empty((9, 9, 3), dtype)
    padded[:] = pad_value
    padded[2:7, 2:7] = image
    for window, (top, left) in zip(windows, corners, strict=True):
        np.testing.assert_array_equal(window, padded[top : top + 5, left : left + 5])


@pytest.mark.parametrize(("pad_value", "black"), [(0, [0, 0, 0]), ((4, 5, 6), [4, 5, 6])])
def test_the_border_that_comes_in_is_black(pad_value, black):
    white = np.full((40, 8, 8, 3), 255, "uint8")
    rows = Rotations(pad_value=pad_value)(white, SEED).numpy().reshape(-1, 3)
    border = rows[(rows != 255).any(axis=1)]
    assert 0.2 < len(border) / len(rows) < 0.6
    np.testing.assert_array_equal(border, np.broadcast_to(black, border.shape))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
@pytest.mark.parametrize("views", AUGMENTED.values(), ids=AUGMENTED)
def test_the_dtype_is_kept(views, dtype):
    images = some_images(dtype=dtype)
    assert views(images, SEED).dtype == dtype
    assert views(images).dtype == dtype


# Files and mistakes


@pytest.mark.parametrize(
    "views",
    [*AUGMENTED.values(), Plain(True, padding=1, pad_value=[-1.5, 0, 2]), Plain(pad_value=2)],
    ids=[*AUGMENTED, "black of each channel", "another black"],
)
def test_serialisation(views):
    read = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(views))
    assert type(read) is type(views)
    assert read.get_config() == views.get_config()
    assert type(views)(**views.get_config()).get_config() == views.get_config()
    images = some_images(dtype="float32")
    np.testing.assert_array_equal(read(images, SEED), views(images, SEED))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Rotations("both"), '`crop` must be "each", "shared" or None, got \'both\''),
        (lambda: Rotations(True), '`crop` must be "each", "shared" or None, got True'),
        (lambda: Rotations(flip="no"), "`flip` must be True or False, got 'no'"),
        (lambda: Plain("each"), "`crop` must be True or False, got 'each'"),
        (lambda: Plain(padding=-1), "`padding` must be a number of pixels >= 0, got -1"),
        (lambda: Plain(padding=1.5), "`padding` must be a number of pixels >= 0, got 1.5"),
        (lambda: Plain(padding=True), "`padding` must be a number of pixels >= 0, got True"),
        (lambda: Plain(pad_value="black"), "`pad_value` must be a number or one a channel, got"),
        (lambda: Plain(pad_value=None), "`pad_value` must be a number or one a channel, got None"),
        (lambda: Plain(pad_value=[[1, 2]]), "`pad_value` must be a number or one a channel, got"),
    ],
)
def test_a_bad_argument_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("crop", ["each", "shared", None])
def test_rotations_need_square_images(crop):
    with pytest.raises(ValueError, match="square images of a known size, got 8 x 6: crop or"):
        Rotations(crop)(tf.zeros([2, 8, 6, 3]), SEED)


def test_plain_views_take_oblong_images():
    assert Plain(True, flip=True)(tf.zeros([2, 8, 6, 3]), SEED).shape == [2, 8, 6, 3]


@pytest.mark.parametrize(
    ("views", "sentence"),
    [
        (Plain(True), "Crops need images of a known size, got None x None"),
        (Rotations(None), "square images of a known size, got None x None"),
    ],
)
def test_the_size_of_the_images_must_be_known(views, sentence):
    traced = tf.function(lambda images: views(images, SEED))
    with pytest.raises(ValueError, match=sentence):
        traced.get_concrete_function(tf.TensorSpec([None, None, None, 3]))


@pytest.mark.parametrize("pad_value", [-1.9, 256, 0.5, (0, 0, 300)], ids=str)
def test_a_border_that_the_images_cannot_hold_is_refused(pad_value):
    with pytest.raises(ValueError, match="is no uint8: give black as it is in the images, 0 in"):
        Plain(True, pad_value=pad_value)(some_images(), SEED)


def test_a_border_needs_the_images_channels():
    with pytest.raises(ValueError, match="`pad_value` must be a number or 3 of them, got"):
        Plain(True, pad_value=(1, 2))(some_images(), SEED)
