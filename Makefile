# Both `make demo` and `make test` create .venv and install what they need; nothing but Python 3.10-3.13 must be there.
PYTHON ?= python3
TORCH ?= torch
KIMG ?= 25

VENV := .venv
BIN := $(VENV)/bin
# One stamp a torch requirement: asking for another one installs it, and a second make does nothing.
KEY := $(shell printf %s '$(TORCH)' | tr -c 'A-Za-z0-9.' _)
INSTALLED := $(VENV)/installed-$(KEY)
LINTERS := $(VENV)/linters-$(KEY)
DEFINITIONS := setup.py pyproject.toml
KERNELS := $(wildcard csrc/*.* csrc/cpu/*.*)

.DEFAULT_GOAL := help
.PHONY: help demo bench test lint format clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo
	@echo 'Variables: PYTHON=python3.12 (makes .venv), TORCH=torch==2.10.0 (which torch to install)'

# torch comes first: the kernels are built against its headers. Only what has changed is compiled again.
$(INSTALLED): $(DEFINITIONS) $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[all,test]'
	rm -f $(VENV)/installed-* && touch $@

$(LINTERS): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	rm -f $(VENV)/linters-* && touch $@

demo: $(INSTALLED) ## train on the embedded emoji people for a minute or two, then generate a grid: demo/samples
	$(BIN)/stylegen train emoji-people-64 --out demo/run --preset small-32 --hold-kimg 4 --fade-kimg 4 --kimg $(KIMG) --resume
	@echo "Previews of the training are in demo/run/previews"
	$(BIN)/stylegen generate --network demo/run --seeds 0-31 --grid 8x4 --out demo/samples
	@echo "The grid is demo/samples/grid.png"

bench: $(INSTALLED) ## measure this machine again and rewrite the tables of docs/performance.md and metrics.md (about ten minutes)
	$(BIN)/stylegen bench ops --order channels_last --markdown docs/performance.md
	$(BIN)/stylegen bench generate --resolution 64 --resolution 256 --resolution 1024 --batch 1 --batch 4 \
		--markdown docs/performance.md
	$(BIN)/stylegen bench train --markdown docs/performance.md
	$(BIN)/stylegen bench run --markdown docs/performance.md
	$(BIN)/stylegen bench data --markdown docs/performance.md
	$(BIN)/stylegen bench metrics --markdown docs/metrics.md

test: $(INSTALLED) ## run the tests
	$(BIN)/pytest

lint: $(LINTERS) ## ruff, clang-format and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests/emu -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | \
		while read -r file; do $(BIN)/clang-format --dry-run --Werror "$$file" || exit 1; done
	$(call installed_layout)
	cd build/layout && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p stylegen

format: $(LINTERS) ## let ruff and clang-format mend what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests/emu -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | \
		while read -r file; do $(BIN)/clang-format -i "$$file"; done

# mypy knows no package map: it gets the installed layout as links.
define installed_layout
	rm -rf build/layout && mkdir -p build/layout/stylegen
	ln -s $(CURDIR)/stylegen/* build/layout/stylegen/
	ln -s $(CURDIR)/training $(CURDIR)/tools build/layout/stylegen/
endef

clean: ## remove what was built or generated; .venv stays
	rm -rf build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
