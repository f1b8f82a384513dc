"""Learning-rate multipliers of `optimizers.SGD` inside a Distiller."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd as ssd
from keras_ssd.optimizers import SGD

from .one_and_two import batches, examples, on_one_and_two
from .one_and_two import network as for_replicas
from .tiny import LABELS_ONLY, assert_close, assert_equal, distiller, everything, fit, step, trained


@keras.saving.register_keras_serializable("keras_ssd_tests")
class Pair(layers.Layer):
    """Two convolutions, which Keras names anew, by their number, when the layer is loaded."""

    def build(self, shape):
        self.parts = [layers.Conv2D(3, 3), layers.Conv2D(3, 3)]
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def call(self, x):
        return self.parts[1](self.parts[0](x))


def student():
    """A network of weights with paths such as `net/pair/conv2d_1/kernel`."""
    keras.utils.set_random_seed(0)
    images = [keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), Pair(name="pair")]
    top = [layers.BatchNormalization(name="norm"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([*images, *top, layers.Dense(3, name="logits")], name="net")


FACTORS = (0.0, 0.0, 0.5, 0.0, 0.1, 0.25, 1.0, 1.0)  # the last two are not named


def fine_tuned(network, factors=FACTORS, **options):
    named = zip(network.trainable_variables, factors, strict=True)
    multipliers = {weight.path: factor for weight, factor in named if factor != 1}
    optimizer = SGD(
        0.5,
        momentum=0.9,
        weight_decay=0.1,
        learning_rate_multipliers=multipliers,
        **options,
    )
    return distiller(LABELS_ONLY, student=network, optimizer=optimizer)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("averages", [False, True])
def test_a_factor_of_0_leaves_a_weight_bit_for_bit(averages, policy):
    keras.config.set_dtype_policy(policy)
    model = fine_tuned(student(), use_ema=averages)
    before = trained(model)
    fit(model)
    after = model.student.trainable_variables
    for old, weight, factor in zip(before, after, FACTORS, strict=True):
        assert (old == weight.numpy()).all() == (factor == 0), weight.path


def test_a_factor_multiplies_the_rate_of_a_step():
    model, reference = (fine_tuned(student(), factors) for factors in (FACTORS, [1.0] * 8))
    before = trained(model)
    for each in (model, reference):
        step(each)
    moves = [
        [new - old for new, old in zip(trained(each), before, strict=True)]
        for each in (model, reference)
    ]
    expected = [factor * move for factor, move in zip(FACTORS, moves[1], strict=True)]
    assert_close(moves[0], expected, 1e-6)


def test_a_loaded_distiller_knows_its_weights_again(tmp_path):
    model = fine_tuned(student())
    fit(model)
    loaded = []
    for number in range(2):  # what was loaded is saved as well
        (loaded or [model])[-1].save(tmp_path / f"{number}.keras")
        loaded.append(keras.models.load_model(tmp_path / f"{number}.keras"))
    paths = [[v.path for v in each.student.trainable_variables] for each in (model, *loaded)]
    assert not set(paths[0]) & set(paths[1])
    for each in (model, *loaded):
        fit(each)
        assert_equal(everything(each), everything(model))
        assert each.optimizer.learning_rate_multipliers == dict(
            zip(paths[0][:6], FACTORS[:6], strict=True)
        )


def test_the_optimizer_of_another_student_goes_by_the_paths(tmp_path):
    config = fine_tuned(student()).optimizer.get_config()
    weights = [keras.Variable(1.0, name=f"weight{number}") for number in range(8)]
    with pytest.raises(ValueError, match="which is none of the 8 weights that are trained"):
        SGD.from_config(config).build(weights)


def test_two_replicas_equal_one_device(two_replicas):
    data = batches(*examples(18), size=9)

    def make():
        network = for_replicas(4)
        first, second, third, *_ = network.trainable_variables
        optimizer = SGD(
            0.1,
            momentum=0.9,
            weight_decay=0.1,
            use_ema=True,
            learning_rate_multipliers={first.path: 0.0, second.path: 0.5, third.path: 0.0},
        )
        return distiller(LABELS_ONLY, student=network, optimizer=optimizer, graph=True)

    one, two = on_one_and_two(two_replicas, make)
    before = trained(one)
    for model in (one, two):
        model.fit(data, verbose=0)
        for index in (0, 2):
            np.testing.assert_array_equal(trained(model)[index], before[index])
    assert_close(trained(two), trained(one), 1e-5)


def test_peers_with_layers_of_one_name_are_refused():
    def resnet():
        return ssd.models.build("resnet8", num_classes=3, input_shape=(8, 8, 3))

    first, second = resnet(), resnet()
    multipliers = ssd.models.stage_multipliers(first, [0.1, 0.2, 0.3, 0.4])
    peers = ssd.Distiller(student=ssd.with_peer(first, second), **LABELS_ONLY)
    with pytest.raises(ValueError, match="'conv1/kernel', which is the path of 2 weights"):
        peers.compile(SGD(0.1, learning_rate_multipliers=multipliers))
