# make try       tightens loose boxes on six photographs with the model in weights/; less than a minute; results in runs/try
# make demo      trains and evaluates a small IoU-Net on synthetic images; less than ten minutes; results in runs/demo
#                (run it again to resume or to evaluate; SEED=1 DEMO=runs/demo1 starts another run)
# make test      runs the tests except the slow ones; less than ten minutes
# make test-all  runs all tests, including builds, torchrun launches, killed processes and whole trainings
# make test-oldest
#                runs the tests of prroi_pool with the oldest Python and PyTorch that it supports
# make lint      checks style, types, spelling, and builds the documentation, whose links and docstrings are checked
# make docs      builds the documentation; open site/index.html
# make fuzz      compares prroi_pool's kernels with the reference on a million random RoIs, with sanitizers
# make gpu       on a machine with a CUDA GPU: runs the GPU tests, compute-sanitizer, a kernel profile and the benchmarks;
#                figures go to docs/benchmarks/ and docs/benchmarks.md. ORIGINAL=DIR adds the authors' kernels, which need nvcc.
#                (separate targets: gpu-test, gpu-sanitize, gpu-profile, gpu-benchmark, gpu-detector)
# Times are for two CPU cores. The first call also creates .venv and installs the dependencies of pyproject.toml.
# PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
CONSTRAIN ?= --constraint constraints.txt
VENV := .venv
RUN := $(VENV)/bin/python
DEMO ?= runs/demo
SEED ?= 0

# Waiting threads sleep instead of spinning; spinning slows training several times on a machine with other load.
export OMP_WAIT_POLICY ?= PASSIVE

# RUN=python uses the current Python and its packages instead of .venv.
INSTALLED := $(if $(filter command line,$(origin RUN)),,$(VENV)/installed)
ROIS ?= 1000000
# A worker takes up to 3 GB of memory. The tests of a file share slow fixtures, so one worker runs the whole file.
WORKERS ?= 2
PARALLEL := --numprocesses $(WORKERS) --dist loadfile

# Both are also found in a CUDA toolkit that is not on PATH. Only gpu-sanitize and gpu-profile need a toolkit.
SANITIZER ?= $(firstword $(wildcard $(CUDA_HOME)/bin/compute-sanitizer /usr/local/cuda/bin/compute-sanitizer) compute-sanitizer)
NCU ?= $(firstword $(wildcard $(CUDA_HOME)/bin/ncu /usr/local/cuda/bin/ncu) ncu)
GPU_ROIS ?= 20000
GPU_SECONDS ?= 1
GPU_DETECTOR_SECONDS ?= 10
# Folder for the logs of `make gpu-...` and copies of its figures.
GPU_LOGS ?= runs/gpu

# Lets the tools import the packages without an installation.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# pipefail: `command | tee log` exits with the status of the command.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: try demo test test-all test-oldest fuzz gpu gpu-test gpu-sanitize gpu-profile gpu-benchmark gpu-detector docs lint clean

try: $(VENV)/installed
	@$(RUN) examples/tighten_photos.py

demo: $(VENV)/installed
	$(RUN) -m iounet.data.synthetic --output runs/synthetic
	$(RUN) tools/train.py --config-file configs/synthetic_energy.yaml --resume OUTPUT_DIR $(DEMO) SEED $(SEED)

test: $(VENV)/installed
	$(RUN) -m pytest $(PARALLEL) -m 'not slow'

test-all: $(VENV)/installed
	$(RUN) -m pytest $(PARALLEL)

# prroi_pool needs torch.library.register_autograd (PyTorch 2.4) and the syntax of Python 3.10. The whole project needs newer
# versions, see pyproject.toml. --confcutdir skips tests/conftest.py, which needs iounet.
PYTHON_OLDEST ?= $(shell for p in python3.10 ~/.pyenv/versions/3.10.*/bin/python python3; do \
    $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2> /dev/null && echo $$p && break; done)
test-oldest:
ifeq ($(PYTHON_OLDEST),)
	@echo 'test-oldest: skipped, no Python 3.10 to 3.12 found; choose one with make test-oldest PYTHON_OLDEST=...'
else
	test -e .venv-oldest/installed || { $(PYTHON_OLDEST) -m venv .venv-oldest && .venv-oldest/bin/python -m pip install --quiet \
	    --disable-pip-version-check --no-compile torch==2.4.0 torchvision==0.19.0 numpy pytest pytest-timeout pytest-xdist && touch .venv-oldest/installed; }
	.venv-oldest/bin/python -m pytest $(PARALLEL) tests/prroi_pool --confcutdir tests/prroi_pool -m 'not slow and not gpu'
endif

fuzz: $(INSTALLED)
	$(RUN) tests/prroi_pool/fuzz.py --sanitize --rois $(ROIS)

# Each target takes a few minutes. `make -k gpu` continues after a target that fails.
gpu: gpu-test gpu-sanitize gpu-profile gpu-benchmark gpu-detector

gpu-test: $(INSTALLED) | $(GPU_LOGS)
	$(RUN) -m pytest -m gpu $(PYTEST) 2>&1 | tee $(GPU_LOGS)/test.log

# PyTorch's caching allocator would hide reads beyond a tensor. initcheck must also see the writes of other kernels.
gpu-sanitize: $(INSTALLED) | $(GPU_LOGS)
	for tool in memcheck racecheck synccheck initcheck; do \
	    only=$$([ $$tool = initcheck ] || echo --kernel-name kernel_substring=prroi_pool); \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool --error-exitcode 1 $$only \
	        $(RUN) tests/prroi_pool/fuzz.py --device cuda --rois $(GPU_ROIS) > $(GPU_LOGS)/$$tool.log 2>&1 & \
	    pids="$$pids $$!"; \
	done; \
	failed=0; for pid in $$pids; do wait $$pid || failed=1; done; \
	tail -n 5 $(GPU_LOGS)/*check.log; exit $$failed

gpu-profile: $(INSTALLED) | $(GPU_LOGS)
	$(NCU) --clock-control none --profile-from-start off --set detailed --csv --page raw \
	    --kernel-name 'regex:(forward|rois_backward)_(channels_last|strided)|features_backward|channels_to_the_end' \
	    $(RUN) -m benchmarks.profile_kernels > $(GPU_LOGS)/kernels.csv

gpu-benchmark: $(INSTALLED) | $(GPU_LOGS)
	$(RUN) -m benchmarks.operator --device cuda --seconds $(GPU_SECONDS) $(if $(ORIGINAL),--original $(ORIGINAL)) \
	    --output docs/benchmarks/cuda.json --document docs/benchmarks.md 2>&1 | tee $(GPU_LOGS)/benchmark.log
	cp docs/benchmarks/cuda.json $(GPU_LOGS)

# Refinement by predicted IoU with CUDA graphs (the default) and without, then refinement by energy.
gpu-detector: $(INSTALLED) | $(GPU_LOGS)
	$(RUN) -m benchmarks.detector --device cuda --seconds $(GPU_DETECTOR_SECONDS) \
	    --output docs/benchmarks/detector_cuda.json --document docs/benchmarks.md 2>&1 | tee $(GPU_LOGS)/detector.log
	$(RUN) -m benchmarks.detector --device cuda --seconds $(GPU_DETECTOR_SECONDS) --no-cuda-graphs \
	    --output docs/benchmarks/detector_cuda_without_graphs.json 2>&1 | tee $(GPU_LOGS)/detector_without_graphs.log
	$(RUN) -m benchmarks.detector --device cuda --seconds $(GPU_DETECTOR_SECONDS) --config-file configs/coco_r50_energy.yaml \
	    --output docs/benchmarks/detector_energy_cuda.json 2>&1 | tee $(GPU_LOGS)/detector_energy.log
	cp docs/benchmarks/detector_*cuda*.json $(GPU_LOGS)

$(GPU_LOGS):
	mkdir -p $@

lint: $(VENV)/installed docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell

# The variable turns off an advertisement for another generator.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict
	@echo 'the documentation is in site/; open site/index.html'

# An editable install. `python -m prroi_pool` compiles the kernels now instead of on first use.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is required, found " + sys.version.split()[0] + "; choose another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test,docs]' $(CONSTRAIN)
	$(RUN) -m prroi_pool > /dev/null || true
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest site
