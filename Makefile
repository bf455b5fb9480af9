# Every target sets up what it needs; a fresh clone needs only Python >= 3.11 and make.
# pip follows your own settings: with PIP_EXTRA_INDEX_URL set to PyTorch's index of CPU wheels,
# Linux gets the small CPU build instead of the CUDA one.

PYTHON ?= python3
NAME ?= cpu
FOLDER ?= runs/demo
BIN := .venv/bin
OLD_HF := .venv-hf-5.17
READY := .venv/.ready
# In these tests, which call all mixers and their ops, each call has the shapes and types of its
# signature checked; that takes half of the time again, and torch.compile does not get through it.
SHAPED := tests/mixers tests/model/test_every_mixer.py
COMPILED := tests/model/test_compile.py

# Without kept bytecode each of the tests' processes compiles everything again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test suite beside fmt check bench hf docs

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile

demo: $(READY)  ## the whole story in about two minutes: train, score, generate, compare the forms
	$(BIN)/retnet demo

test: $(READY)  ## everything CI checks: `check`, the tests and every example in the docs
	$(MAKE) --no-print-directory --jobs=2 suite beside

# A file's tests share what its fixtures start, so one process runs them all (`loadfile`).
# `check` is one process, and many tests wait for servers: together they fill two cores.
suite: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --jaxtyping-packages=retnet,beartype.beartype $(SHAPED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(addprefix --ignore=,$(SHAPED) $(COMPILED))

beside: check $(OLD_HF)/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest $(COMPILED)
	OMP_NUM_THREADS=1 $(OLD_HF)/bin/python -m pytest tests/hf

check: $(READY)  ## lint, format, types and the one-way rooms; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports

fmt: $(READY)  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(READY)  ## measure this CPU in ten minutes, and write docs/performance.md; or make bench NAME=decode
	$(BIN)/retnet bench $(NAME) --page docs/performance.md

hf: $(READY) $(OLD_HF)/.ready  ## use a trained folder in both versions of transformers: make hf FOLDER=runs/demo
	$(BIN)/python tests/hf/on_a_folder.py $(FOLDER)
	$(OLD_HF)/bin/python tests/hf/on_a_folder.py $(FOLDER)

docs: $(READY)  ## run every example in README.md and docs/
	OMP_NUM_THREADS=1 $(BIN)/pytest README.md docs

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than Python 3.11; install one and name it: make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

# The oldest transformers we support, beside the packages of .venv, which it sees.
$(OLD_HF)/.ready: $(READY) constraints-hf-5.17.txt
	$(BIN)/python -m venv --clear --without-pip $(OLD_HF)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	  > "$$($(OLD_HF)/bin/python -c 'import site; print(site.getsitepackages()[0])')/venv.pth"
	$(BIN)/python -m pip --python $(OLD_HF)/bin/python install --no-deps --ignore-installed --no-compile \
	  -r constraints-hf-5.17.txt
	@touch $@
