# Each target does all its own set-up: python3 and make are enough.

PYTHON ?= python3
SEEDS ?= 1
ARGS ?=
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: quickstart equality test test-slow test-oldest check format docs bench bench-full clean

quickstart: $(VENV)/quickstart.installed  ## a teacher, a student and a SavedModel, in minutes
	$(BIN)/python examples/quickstart.py --seeds $(SEEDS)

equality: $(VENV)/dev.installed  ## 1 = 2 = 4 replicas = 2 workers, for a tiny network or your own
	$(BIN)/python examples/equality.py $(ARGS)

test: $(VENV)/dev.installed  ## all tests but the slow ones
	$(PYTEST)

test-slow: $(VENV)/dev.installed  ## real images, several processes; the Distiller's tests on the fused kernel
	$(PYTEST) -m slow
	KERAS_SSD_FUSED=1 $(PYTEST) tests/distiller tests/test_teacher.py

test-oldest: $(OLDEST)/installed  ## the Distiller's tests on the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest tests/distiller tests/test_teacher.py

check: $(VENV)/dev.installed docs  ## lint, format, types, imports point one way, the documentation builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.installed  ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev.installed  ## the documentation as pages in site/, begin with site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/dev.installed  ## the figures of docs/benchmarks.md, in half an hour; nothing else may run
	$(BIN)/python benchmarks/run.py

bench-full: $(VENV)/dev.installed  ## more pairs, more turns, the profile, the quality of a halved teacher
	$(BIN)/python benchmarks/run.py --full

clean:
	rm -rf $(VENV) $(OLDEST) build dist runs site

$(VENV)/%.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

$(OLDEST)/installed: pyproject.toml tests/oldest.py
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt --editable . pytest scikit-learn
	$(OLDEST)/bin/python -m pip list
	touch $@
