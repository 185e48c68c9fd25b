# The project's commands. `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
SCALE ?= small
JOBS ?= 2
CASES ?= 10000
OUTPUT ?= out
CRITEO ?= ../shared/data/criteo/train.txt.gz
NOVELS ?= ../shared/data/text/100_english_novels.tar.gz
POSTS ?= ../shared/data/text/digitalgov/digitalgov_news.jsonl.gz
CIFAR ?= ../shared/data/cifar10/CIFAR-10-images.tar.gz
TINY_IMAGENET ?= ../shared/data/tiny-imagenet/tiny-imagenet-50.tar.gz
LM_RECIPES := lm_regimes lm_few_tokens lm_fig1_scaling lm_fig2a_codistillation lm_fig2b_partition lm_fig4_staleness lm_two_phase lm_averages
CLICK_COSTS := ablations rivals_equal_budget teacher_precision churn_anchor async_baseline_criteo
LM_COSTS := rivals_equal_budget_lm predictions_exchange teacher_precision_lm async_baseline async_codistill
IMAGE_COSTS := imagenet_equal_budget teacher_overfit async_baseline_images
IMAGE_RECIPES := imagenet_fig3 imagenet_few_images

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IMAGES := $(READY) data/cifar10_24/store.json data/tiny_imagenet_24/store.json
# The images of $$recipe, where they are prepared
WITH_IMAGES = $$(images=cifar10; [ $$recipe = imagenet_equal_budget ] && images=tiny_imagenet; \
	[ -f data/$${images}_24/store.json ] && echo --data-path data)

.PHONY: demo test test-all test-lowest test-cluster gpu-check fuzz check docs format reproduce index reproduce-criteo tune-criteo reproduce-lm tune-lm reproduce-imagenet tune-imagenet reproduce-costs \
	golden compare dist check-tag try-wheel clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "odist needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

## The main job on data that is made on the spot: train, compare, table and figure in out/demo/, which git ignores.
## The committed report is made by `make demo OUTPUT=reports`
demo: $(READY)
	$(BIN)/odist reproduce demo --jobs $(JOBS) --output $(OUTPUT)
	@sed -n '1,40p' $(OUTPUT)/demo/demo.md

## All tests but those marked slow, on two cores; test-all has every test, as continuous integration
test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow'

test-all: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

## All tests but those marked slow with the lowest versions that pyproject.toml allows, in .venv-lowest; needs uv
test-lowest:
	uv venv --clear --python $(PYTHON) .venv-lowest
	uv pip install --python .venv-lowest --resolution lowest-direct --torch-backend cpu --editable '.[dev]'
	.venv-lowest/bin/python -m pytest -q -n 2 --dist loadfile -m 'not slow'

## A run on real engines: Debian's Slurm (apt-get install slurm-wlm munge) and torchrun, each on two nodes that are network
## namespaces of this machine. Needs Linux and root; what is missing is skipped and named
test-cluster: $(READY)
	cd tests/cluster && ../../$(BIN)/python -m pytest -q on_slurm.py on_torchrun.py

## On one GPU, in ten minutes: the tests that need one, then speed and memory of the paper-scale models, reports/hardware/NAME.md
gpu-check: $(READY)
	@$(BIN)/python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || \
		{ echo "gpu-check needs a GPU: torch sees no CUDA device here"; exit 2; }
	$(BIN)/python -m pytest -q -m gpu tests
	$(BIN)/odist bench gpu --output reports/hardware

## Hostile input at random: damaged snapshots and checkpoints, hostile rows, text and images; a table of counts
fuzz: $(READY)
	cd tests && PYTHONPATH=.. ../$(BIN)/python -m fuzz --cases $(CASES) --jobs $(JOBS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy odist

## The site, in out/site/; a broken link or a warning ends it
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "out/site/index.html"

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## The pages of the paper's tables and figures at SCALE, some four hours on two cores at small, and the page of all; runs that are
## finished are used again, so the same command goes on
reproduce: $(READY)
	$(BIN)/odist reproduce demo --jobs $(JOBS)
	@$(MAKE) --no-print-directory reproduce-criteo reproduce-lm reproduce-imagenet index

## reports/index.html and the table in README.md, from the records of all reports
index: $(READY)
	$(BIN)/odist index --readme README.md

## Table 1 of the paper: synthetic rows, and real ones where CRITEO names a train.txt. Values seen fewer than four times
## become one rare value: recipes/criteo_table1.md
data/criteo/store.json: $(READY)
	@if [ -f "$(CRITEO)" ]; then $(BIN)/odist prepare criteo --input "$(CRITEO)" --output data/criteo --min-count 4; \
	else echo "no Criteo rows at CRITEO=$(CRITEO): skipping the real half of the table"; fi

reproduce-criteo: $(READY) data/criteo/store.json
	$(BIN)/odist reproduce criteo_table1 --scale $(SCALE) --jobs $(JOBS) $$([ -f data/criteo/store.json ] && echo --data-path data/criteo)

tune-criteo: $(READY) data/criteo/store.json
	$(BIN)/odist tune criteo_table1 --scale $(SCALE) --jobs $(JOBS) $$([ -f data/criteo/store.json ] && echo --data-path data/criteo)

## Figures 1, 2a, 2b, 4 and two-phase distillation: text from NOVELS and POSTS (any files that prepare text reads)
data/lm/store.json: $(READY)
	@if [ -f "$(NOVELS)" ]; then $(BIN)/odist prepare text --input "$(NOVELS)" --input "$(POSTS)" --output data/lm \
		--vocabulary 1000 --validation-fraction 0.004; \
	else echo "no text at NOVELS=$(NOVELS): only SCALE=smoke runs, on synthetic text"; fi

reproduce-lm: $(READY) data/lm/store.json
	@for recipe in $(LM_RECIPES); do $(BIN)/odist reproduce $$recipe --scale $(SCALE) --jobs $(JOBS) \
		$$([ -f data/lm/store.json ] && echo --data-path data/lm) || exit $$?; done

tune-lm: $(READY) data/lm/store.json
	$(BIN)/odist tune lm --scale $(SCALE) --jobs $(JOBS) $$([ -f data/lm/store.json ] && echo --data-path data/lm)

## What each choice costs and brings: ablations, rivals at an equal budget, predictions in place of weights, cheap teachers, a released
## model as an anchor, asynchronous SGD, the equal budget of Sodhani et al., which checkpoint teaches. Some three hours on two cores at
## SCALE=small, so not part of `make reproduce`
reproduce-costs: $(IMAGES) data/criteo/store.json data/lm/store.json
	@for recipe in $(CLICK_COSTS); do $(BIN)/odist reproduce $$recipe --scale $(SCALE) --jobs $(JOBS) \
		$$([ -f data/criteo/store.json ] && echo --data-path data/criteo) || exit $$?; done
	@for recipe in $(LM_COSTS); do $(BIN)/odist reproduce $$recipe --scale $(SCALE) --jobs $(JOBS) \
		$$([ -f data/lm/store.json ] && echo --data-path data/lm) || exit $$?; done
	@for recipe in $(IMAGE_COSTS); do $(BIN)/odist reproduce $$recipe --scale $(SCALE) --jobs $(JOBS) $(WITH_IMAGES) || exit $$?; done
	@$(MAKE) --no-print-directory index

## Figure 3, and where images are few: images from CIFAR, for the equal budget from TINY_IMAGENET, any tars or folders that prepare
## imagenet reads. Medium and paper scale read data/tiny_imagenet and data/imagenet (recipes/imagenet_fig3.md), teacher_overfit at
## paper scale data/cifar100
data/cifar10_24/store.json: $(READY)
	@if [ -e "$(CIFAR)" ]; then $(BIN)/odist prepare imagenet --input "$(CIFAR)" --decode 24 --output data/cifar10_24; \
	else echo "no images at CIFAR=$(CIFAR): only SCALE=smoke runs, on synthetic images"; fi

data/tiny_imagenet_24/store.json: $(READY)
	@if [ -e "$(TINY_IMAGENET)" ]; then $(BIN)/odist prepare imagenet --input "$(TINY_IMAGENET)" --decode 24 --output data/tiny_imagenet_24; \
	else echo "no images at TINY_IMAGENET=$(TINY_IMAGENET): only SCALE=smoke runs, on synthetic images"; fi

reproduce-imagenet: $(READY) data/cifar10_24/store.json
	@for recipe in $(IMAGE_RECIPES); do $(BIN)/odist reproduce $$recipe --scale $(SCALE) --jobs $(JOBS) $(WITH_IMAGES) || exit $$?; done

tune-imagenet: $(IMAGES)
	@for recipe in $(IMAGE_RECIPES) $(IMAGE_COSTS); do $(BIN)/odist tune $$recipe --scale $(SCALE) --jobs $(JOBS) $(WITH_IMAGES) || exit $$?; done

## Rewrite the golden loss traces after a change that was meant
golden: $(READY)
	ODIST_GOLDEN=write $(BIN)/python -m pytest -q tests/test_golden.py

## Whether the golden runs have the same weights, bit for bit, as at another commit: make compare REV=v0.1.0
compare: $(READY)
	$(BIN)/python tests/compare_revisions.py $(REV)

## The source archive and the wheel, in dist/
dist: $(READY)
	rm -rf dist
	$(BIN)/python -m hatchling build

## Whether TAG names the version of odist/__init__.py
check-tag:
	@version=v$$($(PYTHON) -c 'import odist; print(odist.__version__)'); \
		[ "$(TAG)" = "$$version" ] || { echo "the tag is $(TAG), the version of odist/__init__.py $$version"; exit 1; }

## Install the wheel of dist/ into .venv-wheel and train, evaluate and compare with it in an empty folder
try-wheel:
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/odist-*.whl
	.ci/smoke .venv-wheel/bin/odist

clean:
	rm -rf $(VENV) .venv-lowest .venv-wheel build dist runs data out .pytest_cache .mypy_cache .ruff_cache
