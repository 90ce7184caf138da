# PairMill's front door. `make help` lists what there is.
RECIPE ?= recipes/demo.toml
DATA   ?= data/$(basename $(notdir $(RECIPE)))
ENGINE ?= local
PORT   ?= 8765
PYTHON ?= $(shell command -v python3.11 || command -v python3)

export NO_ALBUMENTATIONS_UPDATE = 1
# Threads that wait in their sleep: a fifth slower on idle cores, but not ten times slower on busy ones.
export OMP_WAIT_POLICY ?= passive
# Every stage and hundreds of tests start processes: without compiled modules each would compile all its imports anew.
export PYTHONDONTWRITEBYTECODE =
READY  := .venv/.ready
MILL   := .venv/bin/pairmill
STAGE  = $(MILL) $@ --data "$(DATA)" --recipe "$(RECIPE)" --engine "$(ENGINE)" $(if $(WORKERS),--workers "$(WORKERS)") $(if $(ONLY),--only "$(ONLY)")
STAGES := ingest screen download filter extract train evaluate embed catalog report

.DEFAULT_GOAL := help
.PHONY: help setup demo $(STAGES) retry align study models export-model verify export export-features import-features rules sql explore summary bench-data bench-features bench-train bench-explore
.PHONY: detector test test-slow lint format

help: ## this list
	@echo "make TARGET [RECIPE=recipes/demo.toml] [DATA=data/demo] [ENGINE=local|ray] [WORKERS=n]"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## the packages, in .venv, at the versions of requirements.lock

$(READY): requirements.lock pyproject.toml
	"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"PairMill needs Python 3.11 or 3.12, not {v}: make PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	.venv/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	@touch $@

demo: $(READY) ## every stage below on a real, noisy collection, to three small models and a report
	@$(MILL) demo --data "$(DATA)" --recipe "$(RECIPE)" --engine "$(ENGINE)" --port "$(PORT)" $(if $(WORKERS),--workers "$(WORKERS)")

ingest: $(READY) ## read the URL lists; each (url, text) pair once, unreadable rows to quarantine
	@$(STAGE)
screen: $(READY) ## apply the rules that need only url and text, before anything is downloaded
	@$(STAGE)
download: $(READY) ## fetch the images that are left, into WebDataset shards
	@$(STAGE)
retry: $(READY) ## fetch again what failed for a cause that can change
	@$(STAGE)
filter: $(READY) ## apply the rules that need the image; fetches nothing
	@$(STAGE)
extract: $(READY) ## region, grid, patch and pixel features, once a model  [ONLY=region,grid]
	@$(STAGE)
train: $(READY) ## pretrain the recipe's models from the cached features  [ONLY=uniter]
	@$(STAGE)
evaluate: $(READY) ## image-text retrieval on the test split  [ONLY=uniter]
	@$(STAGE)
embed: $(READY) ## where dual encoders put each text and image, for `make sql` and others  [ONLY=clip]
	@$(STAGE)
catalog: $(READY) ## SQL views over everything, in catalog.duckdb
	@$(STAGE)
align: $(READY) ## score each pair by a trained dual encoder, for `filter`'s rules on alignment
	@$(STAGE)
report: $(READY) ## one HTML page: the funnel, pictures, curves, retrieval
	@$(STAGE)

rules: $(READY) ## every rule, what it takes and where it comes from
	@$(MILL) rules

sql: $(READY) ## ask the catalog: Q="FROM funnel" [FORMAT=csv|json|jsonl|parquet] [OUT=file]; a prompt without Q
	@$(MILL) sql --data "$(DATA)" $(if $(FORMAT),--format "$(FORMAT)") $(if $(OUT),--out "$(OUT)") $(if $(value Q),-- "$$QUERY")
sql: export QUERY := $(value Q)
unexport Q # the shell gets the query as it was written, and make does not look for variables in it

explore: $(READY) ## a local web app: SQL with pictures, thresholds, search, duplicates, funnels  [PORT=8080]
	@$(MILL) explore --data "$(DATA)" --recipe "$(RECIPE)" --port "$(PORT)"
explore: PORT = 8080

study: $(READY) ## systems side by side: MODELS="uniter vilbert" [FEATURES="region grid"] [SEEDS=3] [STEPS=300] [BATCH=64] [SCALE=tiny]
	@$(MILL) study --data "$(DATA)" --recipe "$(RECIPE)" --models "$(MODELS)" $(if $(FEATURES),--features "$(FEATURES)") $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(STEPS),--steps "$(STEPS)") $(if $(BATCH),--batch "$(BATCH)") $(if $(SCALE),--scale "$(SCALE)")

models: $(READY) ## every system of recipes/models with its number of parameters, beside its authors'
	@$(MILL) models

export-model: $(READY) ## a trained dual encoder of pixels in open_clip's format: ONLY=clip OUT=folder
	@$(MILL) export-model --data "$(DATA)" --recipe "$(RECIPE)" --only "$(ONLY)" --out "$(OUT)"

verify: $(READY) ## read every file again and name what is damaged
	@$(STAGE)

export: $(READY) ## what is kept, for other programs: TO=webdataset|parquet|jsonl|huggingface|fiftyone|open_clip OUT=folder [WHERE="split = 'train'"]
	@$(MILL) export --data "$(DATA)" --engine "$(ENGINE)" --to "$(TO)" --out "$(OUT)" $(if $(WORKERS),--workers "$(WORKERS)") $(if $(value WHERE),--where="$$CONDITION")
export: export CONDITION := $(value WHERE)
unexport WHERE # as Q above

export-features: $(READY) ## features for other programs: EXTRACTOR=region TO=webdataset|uniter-npz|lxmert-tsv OUT=folder
	@$(MILL) export-features --data "$(DATA)" --extractor "$(EXTRACTOR)" --to "$(TO)" --out "$(OUT)" $(if $(WHERE),--where "$$CONDITION")
export-features: export CONDITION := $(value WHERE)

import-features: $(READY) ## published features into a dataset: EXTRACTOR=name FROM=lxmert-tsv|uniter-npz|hdf5|webdataset FILES="..."
	@$(MILL) import-features --data "$(DATA)" --extractor "$(EXTRACTOR)" --from "$(FROM)" $(if $(MATCH),--match "$(MATCH)") $(if $(CLASSES),--classes "$(CLASSES)") $(FILES)

summary: $(READY) ## the dataset's numbers so far, also as summary.json
	@$(MILL) summary --data "$(DATA)"

bench-data: $(READY) ## how fast the data stages are, beside their peers in the same run: an hour  [QUICK=1]
	.venv/bin/python -m tests.bench.data $(if $(QUICK),--quick)

bench-features: $(READY) ## how fast extraction, the feature store and its loader are, likewise: an hour  [QUICK=1]
	.venv/bin/python -m tests.bench.features $(if $(QUICK),--quick)

bench-train: $(READY) ## how fast training steps are beside transformers', and what batches and the loader cost: half an hour  [QUICK=1]
	.venv/bin/python -m tests.bench.train $(if $(QUICK),--quick)

bench-explore: $(READY) ## how fast SQL answers on 10 M pairs and the explorer on 1 M, beside pandas: an hour  [QUICK=1]
	.venv/bin/python -m tests.bench.explore $(if $(QUICK),--quick)

detector: $(READY) ## train the small detector of clip art that the demo falls back on: an hour
	.venv/bin/python -m pipeline.demo.detector

test: $(READY) ## the tests, in so many processes at once: JOBS=2
	.venv/bin/python -m pytest --numprocesses "$(JOBS)" --dist loadfile --no-loadscope-reorder
test: JOBS ?= 2

test-slow: $(READY) ## the tests that take minutes: whole demos, kills at random moments
	.venv/bin/python -m pytest -m slow -o faulthandler_timeout=2400

lint: $(READY) ## ruff and mypy
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: $(READY) ## let ruff put the code in order
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
