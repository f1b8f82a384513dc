"""The auxiliary classifiers of every network: the published sizes, the authors' names."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_ssd import models
from keras_ssd.models.blocks import Blocks
from models.first_weights import check_first_weights


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known of a network: a number for each classifier, totals with the backbone.

    `entries` counts what the authors' files hold, five for a batch normalisation.
    """

    parameters: tuple[int, ...]
    total_parameters: int
    taps: tuple[tuple[int, int], ...]  # size and width
    entries: tuple[int, ...]
    macs: tuple[int, ...]
    total_macs: int
    total_statistics: int
    num_classes: int = 100
    image_size: int = 32


PLAIN = ((32, 16), (16, 32), (8, 64))
FOUR = ((32, 64), (16, 128), (8, 256), (4, 512))

PUBLISHED = {
    "resnet20": Published(
        parameters=(283_344, 231_696, 247_952),
        total_parameters=1_041_316,
        taps=PLAIN,
        entries=(86, 44, 38),
        macs=(26_240_000, 13_132_800, 14_181_376),
        total_macs=94_373_120,
        total_statistics=4_576,
    ),
    "resnet56": Published(
        parameters=(838_608, 675_600, 691_856),
        total_parameters=3_067_684,
        taps=PLAIN,
        entries=(230, 116, 110),
        macs=(82_863_104, 41_444_352, 42_492_928),
        total_macs=292_553_984,
        total_statistics=12_640,
    ),
    "resnet8x4": Published(
        parameters=(1_251_984, 1_021_840, 1_283_472),
        total_parameters=4_790_836,
        taps=((32, 64), (16, 128), (8, 256)),
        entries=(38, 20, 14),
        macs=(117_542_912, 58_822_656, 75_599_872),
        total_macs=429_036_544,
        total_statistics=7_616,
    ),
    "resnet32x4": Published(
        parameters=(7_156_368, 5_744_528, 6_006_160),
        total_parameters=26_340_916,
        taps=((32, 64), (16, 128), (8, 256)),
        entries=(134, 68, 62),
        macs=(721_522_688, 360_812_544, 377_589_760),
        total_macs=2_542_965_760,
        total_statistics=29_120,
    ),
    "wrn_16_2": Published(
        parameters=(708_560, 577_040, 642_704),
        total_parameters=2_631_588,
        taps=((32, 32), (16, 64), (8, 128)),
        entries=(57, 32, 31),
        macs=(67_160_064, 33_605_632, 37_799_936),
        total_macs=239_684_096,
        total_statistics=5_856,
    ),
    "wrn_40_1": Published(
        parameters=(560_816, 453_584, 470_032),
        total_parameters=2_054_212,
        taps=PLAIN,
        entries=(153, 80, 79),
        macs=(54_551_552, 27_288_576, 28_337_152),
        total_macs=193_463_552,
        total_statistics=8_320,
    ),
    "wrn_40_2": Published(
        parameters=(2_186_192, 1_758_736, 1_824_400),
        total_parameters=8_024_484,
        taps=((32, 32), (16, 64), (8, 128)),
        entries=(153, 80, 79),
        macs=(218_155_008, 109_103_104, 113_297_408),
        total_macs=768_166_400,
        total_statistics=16_608,
    ),
    "vgg8": Published(
        parameters=(4_117_008, 4_042_896, 3_747_216, 4_926_864),
        total_parameters=20_799_012,
        taps=FOUR,
        entries=(30, 23, 16, 16),
        # not in the table: 9 * in * out * height * width of each convolution, 512 * 400
        macs=(94_576_640, 75_702_272, 56_827_904, 75_702_272),
        total_macs=96_192_512 + 302_809_088,
        total_statistics=2_944 + 2 * (1408 + 1280 + 1024 + 1024),
    ),
    "vgg13": Published(
        parameters=(9_577_104, 9_355_152, 8_468_880, 9_648_528),
        total_parameters=46_511_844,
        taps=FOUR,
        entries=(58, 44, 30, 30),
        macs=(245_571_584, 188_948_480, 132_325_376, 151_199_744),
        total_macs=1_002_981_376,
        total_statistics=24_832,
    ),
    "mobilenet_v2": Published(
        parameters=(1_191_768, 1_180_080, 1_048_688, 1_250_960),
        total_parameters=5_484_332,
        taps=((32, 12), (16, 16), (8, 48), (4, 160)),
        entries=(260, 206, 80, 80),
        macs=(21_253_120, 17_892_352, 9_591_808, 12_121_600),
        total_macs=86_569_472,
        total_statistics=75_904,
    ),
    "shufflenet_v1": Published(
        parameters=(1_198_540, 901_240, 1_018_960),
        total_parameters=4_067_998,
        taps=((16, 240), (8, 480), (4, 960)),
        entries=(218, 74, 74),
        macs=(28_671_360, 9_413_760, 10_352_640),
        total_macs=87_129_216,
        total_statistics=66_216,
    ),
    "shufflenet_v2": Published(
        parameters=(1_632_716, 1_388_536, 1_498_736),
        total_parameters=5_875_516,
        taps=((16, 116), (8, 232), (4, 464)),
        entries=(248, 92, 92),
        macs=(36_338_048, 18_513_024, 17_685_248),
        total_macs=117_040_768,
        total_statistics=48_308,
    ),
    "resnet50": Published(
        parameters=(24_102_288, 22_882_704, 15_784_336, 14_207_376),
        total_parameters=100_681_956,
        taps=((32, 256), (16, 512), (8, 1024), (4, 2048)),
        entries=(254, 176, 62, 56),
        macs=(1_078_755_328, 743_211_008, 265_060_352, 214_728_704),
        total_macs=3_599_769_600,
        total_statistics=187_264,
    ),
    "resnet18_imagenet": Published(
        parameters=(13_071_008, 12_545_440, 10_445_728, 11_493_280),
        total_parameters=59_244_968,
        taps=((56, 64), (28, 128), (14, 256), (7, 512)),
        entries=(92, 62, 32, 26),
        macs=(1_235_173_376, 824_131_584, 413_089_792, 464_470_016),
        total_macs=4_750_938_112,
        total_statistics=35_456,
        num_classes=1000,
        image_size=224,
    ),
    "resnet34_imagenet": Published(
        parameters=(23_105_184, 21_988_768, 15_166_368, 16_213_920),
        total_parameters=98_271_912,
        taps=((56, 64), (28, 128), (14, 256), (7, 512)),
        entries=(176, 122, 44, 38),
        macs=(2_853_650_432, 1_980_186_624, 644_300_800, 695_681_024),
        total_macs=9_837_580_288,
        total_statistics=60_288,
        num_classes=1000,
        image_size=224,
    ),
    "resnet50_imagenet": Published(
        parameters=(31_478_688, 30_259_104, 23_160_736, 21_583_776),
        total_parameters=132_039_336,
        taps=((56, 256), (28, 512), (14, 1024), (7, 2048)),
        entries=(254, 176, 62, 56),
        # not in the table: maps are 56 / 32 times as large as those of resnet50, 4000 logits
        macs=tuple(
            (macs - 2048 * 400) * 49 // 16 + 2048 * 4000
            for macs in (1_078_755_328, 743_211_008, 265_060_352, 214_728_704)
        ),
        total_macs=4_089_184_256 + (2_301_755_392 - 4 * 2048 * 400) * 49 // 16 + 4 * 2048 * 4000,
        total_statistics=187_264,
        num_classes=1000,
        image_size=224,
    ),
}
FAST = (
    "resnet20",
    "resnet8x4",
    "wrn_16_2",
    "vgg8",
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2",
)
NETWORKS = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in PUBLISHED
]


def size(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def macs(model):
    """Multiply-adds of one image: each kernel entry acts once at every place of the output."""
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(
        int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:-1]))
        for layer in kernels
    )


def entries(model):
    """How many arrays the authors' files hold of a model: a step counter for each norm, too."""
    norms = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
    return len(model.weights) + len(norms)


@dataclasses.dataclass(frozen=True)
class Built:
    """A network and each of its auxiliary classifiers as a model of its own."""

    name: str
    backbone: keras.Model
    heads: list[keras.Model]


@pytest.fixture(scope="module", params=NETWORKS)
def built(request):
    """One network at a time: some of them are big."""
    published = PUBLISHED[request.param]
    model = models.build(
        request.param,
        num_classes=published.num_classes,
        input_shape=(published.image_size, published.image_size, 3),
        stem_stride=1 if request.param == "mobilenet_v2" else None,
    )
    return Built(request.param, model, classifiers(model, 4 * published.num_classes))


def classifiers(model, width, policy="float32"):
    network = models.network_of(model)
    layers = Blocks(keras.DTypePolicy(policy), network.auxiliary_initialization)
    heads = []
    for head, unit in enumerate(network.taps, start=1):
        tap = keras.Input(model.get_layer(network.stages[unit]).output.shape[1:])
        heads.append(keras.Model(tap, network.auxiliary_logits(layers, tap, head, width)))
    return heads


def test_sizes_equal_the_published_table(built):
    published = PUBLISHED[built.name]
    taps = tuple((pixels, pixels, width) for pixels, width in published.taps)
    assert tuple(head.input.shape[1:] for head in built.heads) == taps
    assert {head.output.shape for head in built.heads} == {(None, 4 * published.num_classes)}
    parameters = tuple(size(head.trainable_variables) for head in built.heads)
    assert parameters == published.parameters
    total = size(built.backbone.trainable_variables) + sum(parameters)
    assert total == published.total_parameters
    assert tuple(entries(head) for head in built.heads) == published.entries


def test_multiply_adds_and_statistics_equal_the_published_table(built):
    published = PUBLISHED[built.name]
    assert tuple(macs(head) for head in built.heads) == published.macs
    assert macs(built.backbone) + sum(published.macs) == published.total_macs
    parts = (built.backbone, *built.heads)
    statistics = sum(size(part.non_trainable_variables) for part in parts)
    assert statistics == published.total_statistics


NAMES = {  # layers of the authors' files, and the shapes of their kernels or scales in Keras
    "resnet20": {
        "block_extractor1.1.2.conv2": (3, 3, 64, 64),
        "block_extractor2.0.0.downsample.1": (64,),
        "block_extractor3.0.0.conv1": (3, 3, 64, 64),
        "fc3": (64, 400),
    },
    "wrn_16_2": {
        "block_extractor1.1.layer.0.convShortcut": (1, 1, 64, 128),
        "block_extractor3.0.layer.1.conv2": (3, 3, 128, 128),
        "bn2": (128,),
    },
    "vgg8": {
        "block_extractor1.1.0": (3, 3, 64, 128),
        "block_extractor1.4.0": (3, 3, 128, 256),
        "block_extractor1.7.0": (3, 3, 256, 512),
        "block_extractor1.9.0": (3, 3, 512, 512),
        "block_extractor2.1.0": (3, 3, 128, 256),
        "block_extractor2.4.0": (3, 3, 256, 512),
        "block_extractor2.6.0": (3, 3, 512, 512),
        "block_extractor3.1.0": (3, 3, 256, 512),
        "block_extractor3.3.0": (3, 3, 512, 512),
        "block_extractor4.0.0": (3, 3, 512, 512),
        "block_extractor4.2.0": (3, 3, 512, 512),
    },
    "vgg13": {
        "block_extractor1.9.4": (512,),
        "block_extractor4.0.0": (3, 3, 512, 512),
        "fc4": (512, 400),
    },
    "mobilenet_v2": {
        "block_extractor4.0.0.conv.0": (1, 1, 160, 960),
        "block_extractor4.0.0.conv.3": (3, 3, 960, 1),
        "conv2_3.0": (1, 1, 160, 1280),
        "conv2_3.1": (1280,),
    },
    "shufflenet_v1": {
        "block_extractor1.0.0.conv1": (1, 1, 80, 60),
        "block_extractor3.0.0.conv1": (1, 1, 320, 240),
        "block_extractor3.0.3.conv3": (1, 1, 80, 960),
    },
    "shufflenet_v2": {
        "block_extractor1.2": (1, 1, 464, 1024),
        "block_extractor1.3": (1024,),
        "block_extractor2.1": (1, 1, 464, 1024),
        "block_extractor2.2": (1024,),
        "block_extractor3.0.0.conv1": (3, 3, 464, 1),
        "block_extractor3.1": (1, 1, 464, 1024),
    },
    "resnet50": {
        "block_extractor1.2.0.shortcut.0": (1, 1, 1024, 2048),
        "block_extractor1.2.2.conv1": (1, 1, 2048, 512),
        "block_extractor4.0.0.conv1": (1, 1, 2048, 512),
        "fc1": (2048, 400),
    },
    "resnet18_imagenet": {
        "block_extractor1.2.0.downsample.0": (1, 1, 256, 512),
        "fc4": (512, 4000),
    },
}


def test_names_are_the_authors(built):
    expected = {f"auxiliary_classifier.{name}": s for name, s in NAMES.get(built.name, {}).items()}
    layers = {layer.name: layer for head in built.heads for layer in head.layers if layer.weights}
    assert {name: layers[name].weights[0].shape for name in expected} == expected
    assert all(name.startswith("auxiliary_classifier.") for name in layers)
    last = [layer.name for layer in built.heads[-1].layers]
    assert not any("shortcut" in name or "downsample" in name for name in last)


FIRST_WEIGHTS = {  # convolutions, dense kernels, dense biases
    "resnet": ("fan_out", "pytorch", "zeros"),
    "resnet50": ("fan_out", "pytorch", "pytorch"),
    "imagenet": ("fan_out", "pytorch", "pytorch"),
    "wrn": ("fan_out", "pytorch", "zeros"),
    "vgg": ("pytorch", "pytorch", "pytorch"),
    "mobilenet": ("fan_out", "small", "zeros"),
    "shufflenet_v1": ("fan_out", "pytorch", "zeros"),
    "shufflenet_v2": ("pytorch", "pytorch", "pytorch"),
}


def test_first_weights(built):
    family = [rule for rule in FIRST_WEIGHTS if rule in built.name][-1]
    for head in built.heads:
        check_first_weights(head, *FIRST_WEIGHTS[family])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
def test_precision_of_the_logits(policy):
    arguments = {"num_classes": 3, "input_shape": (8, 8, 3), "dtype": policy}
    model = models.build("vgg8", **arguments)
    wide = "float64" if policy == "float64" else "float32"
    for head in classifiers(model, 12, policy):
        images = np.random.RandomState(0).standard_normal((2, *head.input.shape[1:]))
        assert head(images).dtype == wide
        assert head(images).shape == (2, 12)
