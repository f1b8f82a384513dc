"""`keras.distillation` and keras_ssd beside each other: what is computed, honoured, saved, refused.

    python benchmarks/peer_defects.py                     # prints every table, about three minutes
    python benchmarks/peer_defects.py --only losses  # one section
    python benchmarks/peer_defects.py --write             # writes them into the page, too

The page is docs/coming_from_keras_distillation.md. Only the times in `steps` depend on the
machine.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import pathlib
import platform
import re
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import app, flags, logging

SECTIONS = (
    "losses",
    "steps",
    "arguments",
    "replicas",
    "files",
    "limits",
)
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "coming_from_keras_distillation.md"

_ONLY = flags.DEFINE_multi_enum("only", list(SECTIONS), list(SECTIONS), "A section to run.")
_WRITE = flags.DEFINE_bool("write", False, f"Write the tables into docs/{PAGE.name}, too.")


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    logging.set_verbosity(logging.ERROR)
    tf.get_logger().setLevel("ERROR")  # hundreds of small graphs: TensorFlow warns of retracing
    warnings.simplefilter("ignore")  # what a library says of a misuse is not what is compared
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, devices)
    for section in _ONLY.value:
        tables = importlib.import_module(f"keras_distillation.{section}").measure()
        keras.backend.clear_session()
        text = "\n\n".join([_about(section), *(table.markdown() for table in tables)])
        print(f"{text}\n", flush=True)
        if _WRITE.value:
            _write(section, text)


def _about(section: str) -> str:
    packages = ("keras-ssd", "keras", "tensorflow", "numpy")
    versions = [f"python {platform.python_version()}"]
    versions += [f"{package} {importlib.metadata.version(package)}" for package in packages]
    command = f"python benchmarks/peer_defects.py --only {section}"
    return f"`{command}`, {datetime.date.today().isoformat()}; {', '.join(versions)}."


def _write(section: str, text: str) -> None:
    """Puts the tables between the section's marks in the page."""
    begin, end = f"<!-- figures of {section} -->", "<!-- end of the figures -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    page = PAGE.read_text()
    if not pattern.search(page):
        raise ValueError(f"{PAGE} holds no `{begin}`: add it and `{end}` where the tables belong.")
    PAGE.write_text(pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page))


if __name__ == "__main__":
    app.run(main)
