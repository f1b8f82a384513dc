"""What the README and the pages of docs/ say is true: their code runs, their commands exist.

Pages are found by walking. The blocks of a page run in order, in one namespace, in a folder that
holds what a reader would have: `teacher.keras`, and where a page reads them `photos` and PyTorch
files. No block can be left out. Full data and epochs give way to small ones (`SMALLER`).
"""

import importlib.util
import inspect
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import tensorflow as tf

import keras_ssd as ssd

ROOT = pathlib.Path(__file__).parent.parent
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {file.relative_to(ROOT).as_posix(): file.read_text() for file in FILES}
BLOCK = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
WIDTH = 80  # columns of code that a page of the site shows without scrolling

SMALLER = {
    r'load\("(cifar100|digits)", batch_size=64\)': 'load("digits", batch_size=64).few_shot(0.4)',
    r'"(resnet(20|56|8x4)|wrn_40_2)"': '"resnet8"',
    r"initial_epoch=\d+, epochs=\d+": "initial_epoch=1, epochs=1 + 1",
    r"\bepochs=\d+(?! \+)": "epochs=1",
    r"min_score=0\.2": "min_score=0.0",  # of a teacher that knows nothing
    r"target=data\)": "target=data, detectors=[])",  # digits look alike
    r'ssd\.distribution\.get_strategy\("mirrored"\)': "two_replicas",  # a process can have only one
}


def blocks(page, *languages):
    """The fenced blocks of a page in some languages: (line, code)."""
    return [
        (PAGES[page].count("\n", 0, found.start(2)) + 1, found[2])
        for found in BLOCK.finditer(PAGES[page])
        if found[1].strip() in languages
    ]


def pages_with(*languages):
    return [page for page in PAGES if blocks(page, *languages)]


def lines_of(page, *languages):
    """The lines of a page's commands, comments and blank lines left out."""
    text = "\n".join(code for _, code in blocks(page, *languages)).replace("\\\n", " ")
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def small(code):
    for full, smaller in SMALLER.items():
        code = re.sub(full, smaller, code)
    return code


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_closed_and_in_a_language_that_is_tested(page):
    assert PAGES[page].count("```") == 2 * len(BLOCK.findall(PAGES[page]))
    languages = {found[1].strip() for found in BLOCK.finditer(PAGES[page])}
    assert languages <= {"python", "sh", "bash", "text", ""}


@pytest.mark.parametrize("page", [page for page in pages_with("python", "sh", "bash")])
def test_code_is_not_wider_than_a_page(page):
    limit = 100 if page == "README.md" else WIDTH
    for _, code in blocks(page, "python", "sh", "bash"):
        assert max(map(len, code.splitlines())) <= limit


@pytest.mark.parametrize("full", SMALLER)
def test_every_substitution_is_needed(full):
    assert any(re.search(full, code) for page in PAGES for _, code in blocks(page, "python"))


def big_network():
    """A classifier of the digits in any size."""
    any_size, grey = (None, None, 3), {"mean": [0.3] * 3, "std": [0.3] * 3}
    return ssd.models.build("resnet14", num_classes=10, input_shape=any_size, **grey)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a page runs, with the teacher that a reader has trained before."""
    monkeypatch.chdir(tmp_path)
    ssd.with_projection(big_network()).save("teacher.keras")
    return tmp_path


@pytest.fixture
def downloads(folder):
    """Files like those of the authors, of the networks that `SMALLER` puts in their place."""
    import torch

    shape = {"input_shape": (32, 32, 3)}
    plain = ssd.models.build("resnet8", num_classes=10, **shape)
    hsakd = ssd.with_auxiliary_classifiers(ssd.models.build("resnet8", num_classes=100, **shape))
    for file, network, key in (
        ("resnet56.pth", plain, "state_dict"),
        ("wrn_40_2_aux.pth.tar", hsakd, "net"),
    ):
        arrays = ssd.checkpoints.to_torch_state_dict(network)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save({key: tensors}, folder / file)


@pytest.fixture
def photos(folder, real_data):
    """Real photos of three classes, 40 each, in two formats and sizes."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("cifar10", data_dir=real_data / "tfds")
    names = builder.info.features["label"].names
    left = dict.fromkeys(("cat", "dog", "horse"), 40)
    for example in builder.as_dataset(split="test", shuffle_files=False):
        name = names[int(example["label"])]
        if not left.get(name):
            continue
        left[name] -= 1
        png = left[name] % 2
        photo = tf.image.resize(example["image"], (48, 40) if png else (50, 60), method="area")
        encode = tf.io.encode_png if png else tf.io.encode_jpeg
        file = folder / "photos" / name / f"{left[name]}.{'png' if png else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        tf.io.write_file(str(file), encode(tf.cast(photo, tf.uint8)))
    assert not any(left.values())


@pytest.fixture
def heap(folder):
    """A folder of digits as image files."""
    (folder / "heap").mkdir()
    images = next(iter(ssd.data.load("digits", batch_size=120).train))[0]
    for number, image in enumerate(images):
        tf.io.write_file(str(folder / "heap" / f"{number}.png"), tf.io.encode_png(image))


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"))
def test_code_runs(page, folder, request):
    names = {"__name__": "__main__"}
    if '"photos"' in PAGES[page]:
        request.getfixturevalue("photos")
    if '"heap"' in PAGES[page]:
        request.getfixturevalue("heap")
    if "load_torch_weights(" in PAGES[page]:
        request.getfixturevalue("downloads")
    if 'get_strategy("mirrored")' in PAGES[page]:
        names["two_replicas"] = request.getfixturevalue("two_replicas")
    if page == "README.md":  # which calls the reader's own classifier so
        names["big_network"] = big_network()
    for line, code in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + small(code), f"<{page}>", "exec"), names)
    if "export_student(" in PAGES[page]:
        assert (folder / "student" / "saved_model.pb").is_file()


@pytest.mark.parametrize("page", pages_with("sh", "bash", ""))
def test_commands_exist(page):
    for line in lines_of(page, "sh", "bash"):
        assert is_command(line), f"no known command: {line}"
    for line in lines_of(page, ""):
        is_command(line)


@pytest.mark.parametrize("page", PAGES)
def test_targets_in_the_text_exist(page):
    for target in re.findall(r"`make ([^`]+)`", PAGES[page]):
        assert is_command(f"make {target}")


def is_command(line):
    """Whether a line is a command that is checked here; fails where it cannot work."""
    words = shlex.split(line)
    while "=" in words[0]:
        words = words[1:]  # variables of the environment
    if words[0] == "make":
        check_make(words[1:])
    elif words[0] == "python":
        check_python(words[1:])
    elif words[:2] == ["pip", "install"]:
        check_extras(words[2:])
    else:
        return False
    return True


def check_make(words):
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_variable else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name!r}"


def check_python(words):
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), f"no module {words[1]!r}"
        return
    script = ROOT / words[0]
    source = script.read_text()
    for shared in ("experiment", "strategy"):  # which define flags of several scripts
        if f"from {shared} import" in source:
            source += script.with_name(f"{shared}.py").read_text()
    for word in words[1:]:
        if word.startswith("--"):
            flag = word[2:].partition("=")[0]
            assert re.search(rf"""["'](--)?{flag}["']""", source), f"{words[0]} has no --{flag}"


def check_extras(words):
    project = (ROOT / "pyproject.toml").read_text()
    for word in words:
        for extra in re.findall(r"\[([\w,]+)\]", word):
            for name in extra.split(","):
                assert re.search(rf"^{name} = ", project, re.MULTILINE), f"no extra {name!r}"


@pytest.mark.parametrize(
    ("page", "preset"),
    [
        ("docs/methods/kd.md", "kd"),
        ("docs/methods/sskd.md", "sskd"),
        ("docs/methods/hsakd.md", "hsakd_teacher"),
        ("docs/methods/hsakd.md", "hsakd"),
        ("docs/methods/hsakd.md", "hsakd_online"),
        ("docs/methods/combined.md", "combined_teacher"),
        ("docs/methods/combined.md", "combined"),
        ("docs/methods/ssld.md", "ssld"),
        ("docs/methods/ega.md", "ega"),
    ],
)
def test_tables_of_arguments_are_those_of_the_preset(page, preset):
    section = PAGES[page].partition(f"argument of `presets.{preset}`")[2].partition("\n\n")[0]
    table = dict(re.findall(r"\| `(\w+)` \| ([^|]+) \|", section))
    parameters = inspect.signature(getattr(ssd.presets, preset)).parameters
    wanted = {name: str(parameter.default) for name, parameter in parameters.items()}
    assert {name: default.strip('" ') for name, default in table.items()} == wanted


@pytest.mark.parametrize("page", ["docs/index.md", "docs/methods/kd.md", "docs/methods/sskd.md"])
def test_results_are_those_of_the_readme(page):
    figures = re.findall(r"\d+\.\d+ \+- \d+\.\d+|\d+\.\d+, \d+\.\d+", PAGES[page])
    assert figures
    assert [figure for figure in figures if figure not in PAGES["README.md"]] == []


@pytest.mark.slow
def test_the_site_builds_and_needs_no_network(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    names = {page.relative_to(tmp_path).with_suffix(".md").as_posix() for page in pages}
    assert {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} <= names
    for page, html in pages.items():
        fetched = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=.?(https?:[^ >]*)", html)
        assert not fetched, page
        assert 'class="arithmatex"' not in html, page
    reference = "".join(html for page, html in pages.items() if page.parent.name == "api")
    shown = set(re.findall(r'<h[1-6] id="keras_ssd[\w.]*\.(\w+)"', reference))
    assert public_names() - shown == set()


def public_names():
    """All functions and classes that a user finds in the package and its public modules."""
    modules = [value for value in map(vars(ssd).get, ssd.__all__) if inspect.ismodule(value)]
    inner = [ssd.evaluation.figures, ssd.data.mining]
    names = set()
    for module in [ssd, *inner, *modules]:
        own = {
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
        }
        names |= set(getattr(module, "__all__", own))
    modules = {module.__name__.rpartition(".")[2] for module in [*inner, *modules]}
    return names - modules
