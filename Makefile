PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= deepfm
DATA := examples/movielens/data
CONFIG := examples/movielens/$(MODEL).config
RUN := examples/movielens/runs/$(MODEL)
PLUGINS := $(wildcard plugins/tzrec-*)
BUILT := dist build plugins/*/build constraints/*/build
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# One pin file per tested stack; a machine with an NVIDIA driver gets the CUDA builds.
STACK := $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
SHIM := $(if $(filter cpu,$(STACK)),./constraints/fbgemm-gpu-cpu-shim)

.PHONY: setup demo test test-slow check bench protos docs conformance dist clean

setup: $(VENV)/.done

$(VENV)/.tools:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel
	touch $@

$(VENV)/.done: pyproject.toml constraints/$(STACK).txt $(wildcard constraints/fbgemm-gpu-cpu-shim/*.toml) $(wildcard plugins/*/pyproject.toml) | $(VENV)/.tools
	$(BIN)/python -m pip install -q -c constraints/$(STACK).txt --no-build-isolation $(SHIM) -e ".[dev,demo]" $(addprefix -e ./,$(PLUGINS))
	$(BIN)/python -m pip check
	touch $@

# A second run skips what is done: each step leaves a file behind.
demo: setup $(DATA)/baseline.json $(RUN)/predictions
	$(BIN)/python examples/movielens/report.py --model-dir $(RUN) --predictions $(RUN)/predictions --baseline $(DATA)/baseline.json

$(DATA)/prepared.json: examples/movielens/prepare.py | setup
	$(BIN)/python examples/movielens/prepare.py --out $(DATA)

$(DATA)/baseline.json: $(DATA)/prepared.json examples/movielens/baselines.py
	$(BIN)/python examples/movielens/baselines.py --data $(DATA) --out $@

$(RUN)/.trained: $(CONFIG) $(DATA)/prepared.json
	rm -rf $(RUN)
	$(BIN)/tzrec train $(CONFIG)
	touch $@

$(RUN)/.evaluated: $(RUN)/.trained
	$(BIN)/tzrec eval $(CONFIG)
	touch $@

$(RUN)/predictions: $(RUN)/.evaluated
	$(BIN)/tzrec predict $(CONFIG) --input $(DATA)/eval.parquet --output $@ --reserved-columns user_id,item_id,label --overwrite

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

check: setup .venv-protos/.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	.venv-protos/bin/python scripts/protos.py --check
	$(BIN)/python scripts/zoo.py --check
	$(BIN)/python scripts/docs.py --check

bench: setup
	$(BIN)/python benchmarks/cli_start.py
	$(BIN)/python benchmarks/engine.py

protos: .venv-protos/.done
	.venv-protos/bin/python scripts/protos.py

docs: setup
	$(BIN)/python scripts/zoo.py
	$(BIN)/python scripts/docs.py

# What the pages say of traits; takes minutes. Writes the pages too.
conformance: setup
	OMP_NUM_THREADS=1 $(BIN)/python scripts/docs.py --conformance

# What an earlier build left beside the sources would get into the wheels. With fixed times the same sources give the
# same wheels. dist/cpu is apart because pip prefers the stand-in for fbgemm-gpu in it to the real one.
dist: export SOURCE_DATE_EPOCH = 1577836800
dist: $(VENV)/.tools
	rm -rf $(BUILT)
	$(BIN)/python -m pip wheel -q --no-deps --no-index --no-build-isolation -w dist . $(addprefix ./,$(PLUGINS))
	$(BIN)/python -m pip wheel -q --no-deps --no-index --no-build-isolation -w dist/cpu ./constraints/fbgemm-gpu-cpu-shim
	ls dist/*.whl dist/cpu/*.whl

# grpcio-tools wants an older protobuf than the runtime we use, so it lives alone.
.venv-protos/.done:
	$(PYTHON) -m venv .venv-protos
	.venv-protos/bin/python -m pip install -q grpcio-tools==1.76.0
	touch $@

clean:
	rm -rf $(VENV) .venv-protos $(BUILT) examples/movielens/data examples/movielens/runs
