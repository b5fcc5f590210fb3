# make demo   trains a small IoU-Net on synthetic pictures and shows what it does; results in runs/demo
#             (called again it goes on where it was stopped, or evaluates; SEED=1 DEMO=runs/demo1 for another run)
# make test   runs the tests
# make fuzz   compares prroi_pool's kernels with the reference on a million random RoIs, with sanitizers
# make gpu    on a machine with a CUDA GPU: its tests, benchmarks (ORIGINAL=DIR adds the authors' kernels) and
#             compute-sanitizer; figures in docs/benchmarks/ and docs/benchmarks.md
#             (also one by one: make gpu-test, gpu-benchmark, gpu-detector, gpu-sanitize, gpu-graphs)
# All first make .venv with everything pyproject.toml names. PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
CONSTRAIN ?= --constraint constraints.txt
VENV := .venv
RUN := $(VENV)/bin/python
DEMO ?= runs/demo
SEED ?= 0

# Threads that wait sleep instead of spinning, which beside another busy process slowed training several times over.
export OMP_WAIT_POLICY ?= PASSIVE

# With RUN=python the Python at hand is used, with what it has installed.
INSTALLED := $(if $(filter command line,$(origin RUN)),,$(VENV)/installed)
ROIS ?= 1000000

# Of a toolkit that is not on PATH, too.
SANITIZER ?= $(firstword $(wildcard $(CUDA_HOME)/bin/compute-sanitizer /usr/local/cuda/bin/compute-sanitizer) compute-sanitizer)

# The tools find the packages without an installation.
export PYTHONPATH := $(CURDIR)

.PHONY: demo test fuzz gpu gpu-test gpu-benchmark gpu-detector gpu-sanitize gpu-graphs lint clean

demo: $(VENV)/installed
	$(RUN) -m iounet.data.synthetic --output runs/synthetic
	$(RUN) tools/train.py --config-file configs/synthetic.yaml --resume OUTPUT_DIR $(DEMO) SEED $(SEED)

test: $(VENV)/installed
	$(RUN) -m pytest

fuzz: $(INSTALLED)
	$(RUN) tests/prroi_pool/fuzz.py --sanitize --rois $(ROIS)

gpu: gpu-test gpu-benchmark gpu-detector gpu-sanitize gpu-graphs

gpu-test: $(INSTALLED)
	$(RUN) -m pytest -k '(cuda or gpu) and not graph'

gpu-benchmark: $(INSTALLED)
	$(RUN) tools/benchmark_prroi.py --device cuda --seconds 1 $(if $(ORIGINAL),--original $(ORIGINAL)) \
	    --output docs/benchmarks/cuda.json --document docs/benchmarks.md

gpu-detector: $(INSTALLED)
	$(RUN) tools/benchmark.py --device cuda --seconds 20 \
	    --output docs/benchmarks/detector_cuda.json --document docs/benchmarks.md

gpu-sanitize: $(INSTALLED)
	$(SANITIZER) --error-exitcode 1 $(RUN) tests/prroi_pool/fuzz.py --device cuda --rois 20000

gpu-graphs: $(INSTALLED)
	$(RUN) -m pytest -k '(cuda or gpu) and graph'
	$(RUN) tools/benchmark.py --device cuda --cuda-graphs --seconds 20 \
	    --output docs/benchmarks/detector_cuda_graphs.json

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# An editable install: prroi_pool compiles its kernels from csrc/ on first use.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; choose another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test]' $(CONSTRAIN)
	touch $@

clean:
	rm -rf $(VENV)
