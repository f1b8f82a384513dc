"""Imports point one way, and what is optional stays optional."""

import ast
import itertools
import pathlib
import subprocess
import sys

import pytest

import keras_ssd

PACKAGE = pathlib.Path(keras_ssd.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
MAY_IMPORT = {  # what these may know of keras_ssd
    "arguments": set(),
    "losses": {"arguments", "losses"},
    "collectives": set(),
    "batch": {"collectives"},
    "views": {"collectives"},
    "objectives": {"arguments", "losses", "batch", "collectives", "objectives"},
}
KNOWN_TO_NOBODY = {"presets", "evaluation"}  # but to keras_ssd/__init__.py
OPTIONAL = {"keras_hub", "matplotlib", "safetensors", "sklearn", "tensorflow_datasets", "torch"}


def imported(*nodes):
    """Every imported name in full, wherever below these nodes the import stands."""
    for node in itertools.chain.from_iterable(map(ast.walk, nodes)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def family_of(name):
    return name.partition(".")[0]


def known_of_the_package(path):
    """What a file imports of keras_ssd, without `keras_ssd.`."""
    names = imported(ast.parse(path.read_text()))
    return {name.partition(".")[2] for name in names if family_of(name) == "keras_ssd"}


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module):
    known = {family_of(name) for name in known_of_the_package(MODULES[module])}
    assert "" not in known, "import the names, not keras_ssd"
    if family_of(module) in MAY_IMPORT:
        assert known <= MAY_IMPORT[family_of(module)]
    assert not known & (KNOWN_TO_NOBODY - {family_of(module)})


def test_the_distiller_knows_objectives_by_their_contract():
    modules = {name: path for name, path in MODULES.items() if family_of(name) == "distiller"}
    assert modules
    for path in modules.values():
        known = {name for name in known_of_the_package(path) if family_of(name) == "objectives"}
        assert known <= {"objectives.Objective", "objectives.HardLabels"}


@pytest.mark.parametrize("module", MODULES)
def test_what_else_is_imported(module):
    tree = ast.parse(MODULES[module].read_text())
    assert "examples" not in {family_of(name) for name in imported(tree)}
    always = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not OPTIONAL & {family_of(name) for name in imported(*always)}


@pytest.mark.slow
def test_the_package_is_imported_without_optional_packages():
    """Keras itself tries to import some of them, so they are hidden rather than looked for."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))"
    subprocess.run([sys.executable, "-c", f"{hide}; import keras_ssd"], check=True)
