"""The teachers of `ega_cifar100.py`: an encoder trained here without labels, or any other one."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
from typing import Any

import keras
from absl import flags
from contrastive_views import Distorted
from strategy import in_scope, is_chief

import keras_ssd as ssd

KINDS = """contrastive[:network] (trained here, without labels), keras:file.keras,
applications:name (ImageNet weights), hub:preset (KerasHub), saved_model:folder or
function:module:name"""

_TEACHER = flags.DEFINE_string("teacher", "contrastive:resnet8x4", f"One of {KINDS}.")
_OUTPUT = flags.DEFINE_string("teacher_output", None, "Which of its outputs is the embedding.")
_POOLING = flags.DEFINE_enum(
    "teacher_pooling", None, ["mean", "first_token"], "How tokens or maps become one vector."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "teacher_image_size", None, "Height and width it takes; the data's own if none.", 1
)
_MEAN_AND_STD = {
    "clip": {},
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "unit": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "symmetric": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "none": {"mean": None, "std": None},
}
_NORMALIZATION = flags.DEFINE_enum(
    "teacher_normalization",
    None,
    sorted(_MEAN_AND_STD),
    "Of images of --teacher_image_size; clip for hub:clip..., and to be given for all others.",
)
_EPOCHS = flags.DEFINE_integer("teacher_epochs", 200, "Epochs of the contrastive encoder.", 1)
_BATCH = flags.DEFINE_integer("teacher_batch_size", 128, "Its images a step, two views of each.", 2)
_TEMPERATURE = flags.DEFINE_float("teacher_temperature", 0.2, "Of its contrastive task.")

SETTINGS = (
    "teacher",
    "teacher_output",
    "teacher_pooling",
    "teacher_image_size",
    "teacher_normalization",
    "teacher_epochs",
    "teacher_batch_size",
    "teacher_temperature",
)


@in_scope
def encoder(
    source: str | pathlib.Path, folder: pathlib.Path, data: dict, precision: str
) -> ssd.FrozenTeacher:
    """The frozen encoder that `--teacher` names.

    Args:
        source: The data set, as in `keras_ssd.data.load`.
        folder: Where an encoder that is trained here is kept, and found again.
        data: Other arguments of `keras_ssd.data.load`.
        precision: The dtype policy of an encoder that is trained here.
    """
    kind, _, what = _TEACHER.value.partition(":")
    options = _options(kind, what)
    if kind == "contrastive":
        return _contrastive(what or "resnet8x4", source, folder, data, precision)
    if kind == "keras":
        return ssd.frozen_encoder(keras.models.load_model(what), **options)
    if kind == "applications":
        network = getattr(keras.applications, what)(include_top=False, pooling="avg")
        return ssd.frozen_encoder(network, **options)
    if kind == "hub":
        import keras_hub  # an extra, and slow to import

        return ssd.frozen_encoder(keras_hub.models.Backbone.from_preset(what), **options)
    if kind == "saved_model":
        return ssd.frozen_encoder(what, **options)
    if kind == "function":
        module, _, function = what.partition(":")
        sys.path.insert(0, str(pathlib.Path.cwd()))
        return ssd.frozen_encoder(getattr(importlib.import_module(module), function), **options)
    raise SystemExit(f"--teacher must be {' '.join(KINDS.split())}, got {_TEACHER.value!r}.")


def _options(kind: str, what: str) -> dict[str, Any]:
    """What `frozen_encoder` is told; refuses flags that would be ignored."""
    for flag in (_OUTPUT, _POOLING, _IMAGE_SIZE):
        if kind == "contrastive" and flag.value is not None:
            raise SystemExit(f"--{flag.name} is for other teachers than contrastive: leave it out.")
    options: dict[str, Any] = {"output": _OUTPUT.value, "pooling": _POOLING.value}
    normalization = _NORMALIZATION.value
    if _IMAGE_SIZE.value is None:
        if normalization is not None:
            raise SystemExit("--teacher_normalization needs --teacher_image_size: give both.")
        return options
    if normalization is None and kind == "hub" and what.startswith("clip"):
        normalization = "clip"
    if normalization is None:
        raise SystemExit(
            f"How {_TEACHER.value} wants its images normalised is not known: give "
            f"--teacher_normalization, one of {', '.join(sorted(_MEAN_AND_STD))} (none for a "
            "network that does it itself, as MobileNetV3, EfficientNet and ConvNeXt of "
            "keras.applications; symmetric is -1 to 1)."
        )
    first = ssd.layers.ImagePreprocessing(_IMAGE_SIZE.value, **_MEAN_AND_STD[normalization])
    return {**options, "preprocessing": first}


def _contrastive(
    network: str, source: str | pathlib.Path, folder: pathlib.Path, data: dict, precision: str
) -> ssd.FrozenTeacher:
    """The encoder in `folder`, trained where there is none."""
    path = folder / "encoder.keras"
    _keep_settings(network, source, folder)
    if path.exists():
        trained = keras.models.load_model(path)
    else:
        trained = _pretrain(network, source, path, data, precision)
    embeds = ssd.named_outputs(ssd.strip_heads(trained), {"embedding": "embedding"})
    return ssd.frozen_encoder(embeds, output="embedding")


def _keep_settings(network: str, source: str | pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the encoder's settings beside it, or refuses one, done or begun, of others."""
    settings = {
        "network": network,
        "data": str(source.resolve() if isinstance(source, pathlib.Path) else source),
        "epochs": _EPOCHS.value,
        "batch_size": _BATCH.value,
        "temperature": _TEMPERATURE.value,
    }
    path = folder / "encoder.json"
    found = [name for name in ("encoder.keras", "encoder_backup") if (folder / name).exists()]
    if not found and not is_chief():
        return
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")
        return
    if not path.exists():
        print(f"{folder / found[0]} is taken, and nothing tells how it was trained.", flush=True)
        return
    kept = json.loads(path.read_text())
    others = [f"{name} {kept.get(name)}" for name in settings if kept.get(name) != settings[name]]
    if others:
        raise SystemExit(
            f"{folder / found[0]} was trained with {', '.join(others)}, which the flags have "
            "otherwise: give those, or another --output."
        )


def _pretrain(
    network: str, source: str | pathlib.Path, path: pathlib.Path, data: dict, precision: str
) -> keras.Model:
    """Trains an encoder to tell images apart, on all training images and no label."""
    splits = ssd.data.load(source, _BATCH.value, **data)
    keras.utils.set_random_seed(0)
    student = ssd.with_projection(ssd.models.build(network, splits.info, dtype=precision))
    pretext = ssd.objectives.ContrastivePretext(_TEMPERATURE.value)
    distiller = ssd.Distiller(student=student, objectives=[pretext], views=Distorted())
    rate = keras.optimizers.schedules.CosineDecay(0.05, _EPOCHS.value * len(splits.train))
    distiller.compile(ssd.optimizers.SGD(rate, momentum=0.9, weight_decay=1e-4))
    images = splits.train.map(lambda image, _: image)
    backup = ssd.callbacks.Backup(path.parent / "encoder_backup")
    distiller.fit(images, epochs=_EPOCHS.value, verbose=2, callbacks=[backup])
    with ssd.distribution.chief_path(path) as own:
        student.save(own)
    return student
