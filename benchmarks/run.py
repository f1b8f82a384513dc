"""Runs the benchmarks, one process each, and writes their figures to a report and a table.

    python benchmarks/run.py           # `make bench`, about half an hour on two cores
    python benchmarks/run.py --full    # `make bench-full`: more pairs, more turns, the profile

Ratios travel between machines, seconds do not: run nothing else meanwhile. KERAS_SSD_DATA in the
environment names a folder with `tfds/` and `teachers/`, which `quality` needs and `pipeline` uses.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

from absl import app, flags

SECTIONS = {
    "overhead": "A step over its bare parts (the frozen teacher's forward, the student's update)",
    "auxiliary": "A step with auxiliary classifiers over its bare parts; the largest network",
    "embedding_graph": "A step of EGA, with a head that learns, over its bare parts",
    "cached_teacher": "The SSKD step with a stored teacher, over the student alone",
    "teacher": "A frozen teacher's forward over the plain network's (float32, Keras' batch norm)",
    "whole_step": "The SSKD step",
    "peers": "The SSKD step over its peers'",
    "growth": "Growth of a step (resnet8 -> resnet8)",
    "pipeline": "The input pipeline",
    "operations": "Where the time of a student's update goes",
    "quality": "A folded bfloat16 teacher against the same in float32 (CIFAR-100)",
}
DOCS = pathlib.Path(__file__).parent.parent / "docs"
FULL_ONLY = ("operations", "quality")
ENVIRONMENT = {  # glibc keeps its memory: PyTorch gains up to a fifth, TensorFlow nothing
    "peers": {
        "MALLOC_MMAP_THRESHOLD_": str(2**33),
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "MALLOC_TOP_PAD_": str(2**28),
    },
}

_FULL = flags.DEFINE_bool("full", False, "Everything, with more turns.")
_ONLY = flags.DEFINE_multi_enum(
    "only", [], list(SECTIONS), "A section to run (again and again); the others keep their figures."
)
_REPORT = flags.DEFINE_string("report", str(DOCS / "benchmarks.json"), "The figures.")
_PAGE = flags.DEFINE_string(
    "page", str(DOCS / "benchmarks.md"), "The page whose table is written anew."
)
_SECTION = flags.DEFINE_string("section", None, "Runs one section in this process and prints it.")

_BEGIN, _END = "<!-- figures -->\n", "<!-- end of the figures -->"


def main(_: list[str]) -> None:
    """Runs the sections and writes both files."""
    if _SECTION.value:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        figures = importlib.import_module(_SECTION.value).measure(_FULL.value)
        print(json.dumps(figures))
        return
    chosen = _ONLY.value or [s for s in SECTIONS if _FULL.value or s not in FULL_ONLY]
    path = pathlib.Path(_REPORT.value)
    report = json.loads(path.read_text()) if path.exists() else {"sections": {}}
    about = _about_this_run()
    for section in chosen:
        start = time.perf_counter()
        print(f"{section} ...", end=" ", flush=True)
        report["sections"][section] = {**about, "figures": _run(section)}
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        _write_table(pathlib.Path(_PAGE.value), _table(report["sections"]))
    print(f"\n{_table(report['sections'])}")


def _run(section: str) -> dict[str, dict]:
    command = [sys.executable, __file__, "--section", section]
    command += ["--full"] if _FULL.value else []
    environment = {**os.environ, **ENVIRONMENT.get(section, {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        return {section: {"failed": f"exit {done.returncode}: see what it printed"}}
    return json.loads(done.stdout.splitlines()[-1])


def _about_this_run() -> dict[str, object]:
    packages = ("keras-ssd", "keras", "tensorflow", "torch", "numpy")
    versions = {package: _version(package) for package in packages}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": f"{_cores()} cores, {_processor()}",
        "versions": {"python": platform.python_version(), **versions},
        "full": _FULL.value,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _cores() -> int | None:
    """The cores that this process may use."""
    known = getattr(os, "sched_getaffinity", None)  # Linux
    return len(known(0)) if known else os.cpu_count()


def _processor() -> str:
    """The processor and which units for half precision it has."""
    info = pathlib.Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = dict(line.partition(":")[::2] for line in info.read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    units = ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16")
    present = [unit for unit in units if unit in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(present) or 'no halves'})"


def _table(sections: dict[str, dict]) -> str:
    parts = []
    for name, title in SECTIONS.items():
        if name not in sections:
            continue
        run = sections[name]
        versions = ", ".join(f"{p} {v}" for p, v in run["versions"].items() if v)
        parts.append(f"### {title}\n")
        parts.append(f"{run['date']}, commit {run['commit']}, {run['machine']}; {versions}.\n")
        parts.append(_rows(run["figures"]) + "\n")
    return "\n".join(parts)


def _rows(figures: dict[str, dict]) -> str:
    if any("ratio" in figure for figure in figures.values()):
        lines = ["| | ratio | of the turns | seconds | goal |", "|---|---|---|---|---|"]
        return "\n".join(lines + [_ratio_row(name, figure) for name, figure in figures.items()])
    lines = ["| | |", "|---|---|"]
    for name, figure in figures.items():
        cells = [f"{key} {_shown(value)}" for key, value in figure.items()]
        lines.append(f"| {name} | {'; '.join(cells)} |")
    return "\n".join(lines)


def _ratio_row(name: str, figure: dict) -> str:
    if "ratio" not in figure:
        shown = "; ".join(f"{key} {value}" for key, value in figure.items())
        return f"| {name} | {shown} | | | |"
    goal = figure.get("goal", "")
    met = "" if goal == "" else " met" if figure["ratio"] <= goal else " missed"
    spread = f"{figure['from']} .. {figure['to']}" if "from" in figure else ""
    seconds = f"{figure['seconds']} / {figure['other seconds']}"
    return f"| {name} | **{figure['ratio']}** | {spread} | {seconds} | {goal}{met} |"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _write_table(page: pathlib.Path, table: str) -> None:
    """Puts the table between the two marks of the page."""
    before, _, rest = page.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    page.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}")


if __name__ == "__main__":
    app.run(main)
