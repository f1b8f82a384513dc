"""Prints the lower bounds of the run-time dependencies as constraints for pip: `keras==3.12`."""

import pathlib
import re

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    bound = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
    if bound is None:
        raise SystemExit(f"A dependency must be NAME>=VERSION, got {requirement!r}.")
    print("==".join(bound.groups()))
