# `make demo` shows the whole on a kind cluster of its own; `make test` runs every check. Both set up all that they need.
.DEFAULT_GOAL := help
PY := .venv/bin/python
CLUSTER ?= kind
export CLUSTER
# compiled Python is kept: dozens of tests start the commands anew
unexport PYTHONDONTWRITEBYTECODE

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-17s %s\n", $$1, $$2 }' Makefile

install: ## .venv with the package, its commands and the tools
	@./install.sh

demo: install ## cluster, operator, a model in segments, a question, and a move under load; BUSY=1 keeps a core of the machine busy meanwhile
	@$(if $(BUSY),BUSY=$(BUSY)) $(PY) -m e2e.demo

demo-down: install ## remove all that the demo made, but the cache
	@$(PY) -m e2e.cluster down --verify

check: install ## format, lint, types, import contracts
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

docs: install ## the documentation's site into build/site; fails for a link that leads nowhere
	@VIRTUAL_ENV=$(CURDIR)/.venv .venv/bin/uv pip install --quiet --require-hashes -r requirements-docs.txt
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

unit: install ## tests that need no cluster and no Docker engine
	@.venv/bin/pytest tests -m "not cluster" -n 3 --dist loadfile

coverage: install ## which lines and branches of operator and gateway the unit tests run, as a table and as build/coverage; no gate
	@.venv/bin/pytest tests -m "not cluster" -n 3 --dist loadfile --cov --cov-report=term --cov-report=html:build/coverage

prose: install ## README, docs, messages and the CRD's descriptions against the rules in .vale.ini; builds Vale once, by Go
	@$(PY) -m tests.prose

mutants: install ## small faults in the modules that decide and make transitions: which do tests not notice? hours; MODULE="decide optional" for some, SAMPLE=200 for a random sample of that size (SEED=0), MINUTES=30 to end early
	@VIRTUAL_ENV=$(CURDIR)/.venv .venv/bin/uv pip install --quiet --require-hashes -r requirements-mutants.txt
	@$(PY) -m tests.mutants $(MODULE) $(if $(JOBS),--jobs $(JOBS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED))

browser: ## Chromium, which ui-test needs: Debian's package, installed where there is none
	@command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

ui-test: install browser ## the page in headless Chromium; PICTURES=1 also writes the screenshots of docs
	@VIRTUAL_ENV=$(CURDIR)/.venv .venv/bin/uv pip install --quiet --require-hashes -r requirements-ui.txt
	@UI_TEST=1 .venv/bin/pytest tests/ui
	@$(if $(PICTURES),UI_TEST=1 $(PY) -m tests.ui.pictures docs/how-to)

hostile: install ## attacks on the gateway's process: what each costs, and whether others still get answers; NAMES="a b" for some
	@PYTHONPATH=images/gateway:images/segment $(PY) -m e2e.hostile $(NAMES)

data-plane: install ## tests of gateway and segments inside their images; an engine, but no cluster
	@.venv/bin/pytest e2e/test_data_plane.py -m "not long"

e2e: install ## tests on a kind cluster, which they start and remove
	@.venv/bin/pytest tests/integration e2e -m "cluster and not long"

disturbances: install ## two busy nodes, killed processes, no Prometheus, under load on a kind cluster; `make e2e-long` has them, too
	@.venv/bin/pytest -m "cluster" $(foreach test,killed_processes_come_back without_prometheus_it_serves_and_nothing_moves two_busy_nodes_lead_to_new_cuts,"e2e/test_adaptation.py::test_$(test)[steady]")

cluster-cases: install ## what real clusters do to the control plane, played on kind, as a table; QUICK=1 for what CI plays, ROWS="3 7" for some
	@$(PY) -m e2e.cluster_cases $(if $(QUICK),--quick) $(if $(JSON),--json) $(ROWS)

e2e-long: install ## every disturbance under steady and bursty load, new certificates, links, other families of addresses, the page in a browser, a soak; figures to docs/reference/adaptation-results.md
	@.venv/bin/pytest e2e/test_ip_families.py
	@E2E_LONG=1 .venv/bin/pytest e2e/test_adaptation.py e2e/test_operator_replaced.py e2e/test_upgrade.py e2e/test_gguf.py e2e/test_llamacpp.py e2e/test_links.py e2e/test_reuse.py e2e/test_filter.py e2e/test_goals.py e2e/test_priority.py e2e/test_scale.py tests/integration/test_bench_operator.py e2e/test_data_plane.py::test_a_short_soak_leaves_nothing_behind e2e/test_data_plane.py::test_loadgen_before_and_after_a_re_split
	@$(MAKE) --no-print-directory page-e2e

page-e2e: install browser ## the chart's page on a kind cluster, in headless Chromium: people sign in, ask what if, and see a segment move; also in `make e2e-long`
	@VIRTUAL_ENV=$(CURDIR)/.venv .venv/bin/uv pip install --quiet --require-hashes -r requirements-ui.txt
	@UI_TEST=1 .venv/bin/pytest e2e/test_page.py

upgrade-test: install ## the release before upgraded to this tree and rolled back, on a kind cluster under load; PREVIOUS_RELEASE=tag for another one
	@.venv/bin/pytest e2e/test_upgrade.py

conformance: install ## unchanged clients (openai, LangChain, lm-eval, tritonclient and others) against real segments, and what became of each model of the corpus, as tables; CLIENTS="LiteLLM" for some, MODELS=1 for the corpus alone
	@$(PY) -m e2e.conformance $(if $(MODELS),--models) $(CLIENTS)

bench-adaptation: install ## static against adaptive on the kind cluster, as a table, or with JSON=1 as JSON
	@$(PY) -m e2e.bench_adaptation $(if $(JSON),--json)

bench-model: install ## what is predicted of plans beside what is measured on the kind cluster; JSON=1 likewise
	@$(PY) -m e2e.bench_model $(if $(JSON),--json)

tutorial: install ## run the commands of docs/tutorial.md, and put what they print into the page
	@$(PY) -m e2e.tutorial

soak: install ## load with cancels, cutovers and kills for SECONDS (1800), then a look for leaks; one line of figures
	@$(PY) -m e2e.soak $(if $(SECONDS),--seconds $(SECONDS))

bench-operator: install ## the operator's time, memory and API requests with pretend nodes; JSON=1 likewise
	@$(PY) -m e2e.bench_operator $(if $(JSON),--json)

release-dry-run: install ## package, chart, parts lists and notes of a release, made and checked in build/release; uploads nothing
	@[ -x build/release-venv/bin/python ] || .venv/bin/uv venv --quiet --python .venv/bin/python build/release-venv
	@.venv/bin/uv pip install --quiet --python build/release-venv/bin/python --require-hashes -r requirements-uv.txt -r requirements-release.txt
	@build/release-venv/bin/python -m tests.release build/release

prepare: install ## what a cluster and the images are made of, into the cache
	@$(PY) -m e2e.cluster --name splitinference-test prepare

test: check docs prepare unit data-plane e2e ## every check, each disturbance that is quick to play

crd: install ## after a change of crds/: the chart's copy and the reference page
	@cp crds/splitinference.yaml charts/splitinference/files/crd.yaml
	@$(PY) -m tests.crd_reference

manifests: install ## after a change of the chart: config/base, for those who use Kustomize
	@$(PY) -m tests.manifests

models: install ## after a change of the rules of models: their reference page
	@$(PY) -m tests.models_reference

COMPILE = .venv/bin/uv pip compile --quiet --generate-hashes --no-annotate --custom-compile-command "make requirements"
WHEELS = --python-platform x86_64-manylinux_2_35
# A gateway never downloads: what tokenizers wants for that stays out.
NOT_IN_GATEWAY = $(foreach name,huggingface-hub hf-xet httpx2 httpcore2 fsspec filelock tqdm truststore packaging pyyaml,--no-emit-package $(name))
requirements: install ## all requirements*.txt anew, with hashes, from pyproject.toml and requirements*.in; PACKAGE=name to raise one, UPGRADE=1 for all
	@$(COMPILE) $(RAISE) pyproject.toml --extra dev --universal --python-version 3.11 -o requirements-dev.txt
	@$(COMPILE) $(RAISE) requirements-mutants.in -c requirements-dev.txt --universal --python-version 3.11 -o requirements-mutants.txt
	@$(COMPILE) $(RAISE) pyproject.toml -c requirements-dev.txt --universal --python-version 3.11 -o requirements-plugin.txt
	@$(COMPILE) $(RAISE) requirements-ui.in -c requirements-dev.txt --universal --python-version 3.11 -o requirements-ui.txt
	@$(COMPILE) $(RAISE) requirements-uv.in --universal --python-version 3.11 -o requirements-uv.txt
	@$(COMPILE) requirements-build.in --universal --python-version 3.11 -o requirements-build.txt
	@$(COMPILE) $(RAISE) requirements-docs.in -c requirements-dev.txt --universal --python-version 3.11 -o requirements-docs.txt
	@$(COMPILE) $(RAISE) requirements-release.in --python-version 3.12 $(WHEELS) -o requirements-release.txt
	@$(COMPILE) $(RAISE) pyproject.toml --python-version 3.13 $(WHEELS) -o images/operator/requirements.txt
	@$(COMPILE) $(RAISE) images/gateway/requirements.in --python-version 3.13 $(WHEELS) $(NOT_IN_GATEWAY) -o images/gateway/requirements.txt
	@for name in requirements requirements-convert requirements-triton requirements-libllama; do \
	  $(COMPILE) images/segment/$$name.in --no-deps --python-version 3.13 $(WHEELS) -o images/segment/$$name.txt; done
	@$(COMPILE) $(RAISE) images/segment/requirements-libllama-build.in --python-version 3.13 $(WHEELS) \
	  -o images/segment/requirements-libllama-build.txt
	@$(COMPILE) $(RAISE) images/segment/requirements-test.in --python-version 3.13 $(WHEELS) -o images/segment/requirements-test.txt
	@$(COMPILE) $(RAISE) images/gateway/requirements-test.in -c images/gateway/requirements.txt --python-version 3.13 $(WHEELS) \
	  -o images/gateway/requirements-test.txt
	@$(COMPILE) $(RAISE) images/segment/requirements-gpu.in --python-version 3.12 $(WHEELS) -o images/segment/requirements-gpu.txt
conformance-requirements: install ## the lists of packages of `make conformance` anew, with hashes; PACKAGE and UPGRADE as above
	@for name in $(notdir $(basename $(wildcard e2e/conformance/requirements/*.in))); do \
	  .venv/bin/uv pip compile --quiet --generate-hashes --no-annotate --custom-compile-command "make conformance-requirements" $(RAISE) --universal \
	    --python-version 3.11 e2e/conformance/requirements/$$name.in -o e2e/conformance/requirements/$$name.txt; done
RAISE = $(if $(PACKAGE),--upgrade-package $(PACKAGE)) $(if $(UPGRADE),--upgrade)

format: install ## write the format
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

.PHONY: browser ui-test page-e2e conformance conformance-requirements crd models manifests docs upgrade-test tutorial release-dry-run requirements help install coverage prose mutants hostile prepare demo demo-down check unit e2e disturbances cluster-cases e2e-long bench-adaptation bench-model bench-operator soak test data-plane format
