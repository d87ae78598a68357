# Two commands a newcomer needs: `make demo` and `make test`. Everything goes into .venv; nothing else is touched.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
EXTRAS := triton,vision,demo,report,dev

.PHONY: install demo test test-slow lint compile bench check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(wildcard csrc/*.cpp csrc/*/*)
	@command -v $(PYTHON) >/dev/null || { echo "fastue: no '$(PYTHON)' on PATH; install Python 3.10 or newer, or pass PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "fastue: needs Python 3.10 or newer, $(PYTHON) is older"; exit 1; }
	@command -v g++ >/dev/null || echo "fastue: warning: no g++; installing without the C++ kernels, ops run on the PyTorch reference"
	@echo "== virtual environment in $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { echo "fastue: python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "== torch and build tools (versions: constraints.txt)"
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt torch numpy setuptools ninja
	@echo "== fastue, its C++ library, and the extras $(EXTRAS)"
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@$(PY) -m fastue info
	@touch $@

demo: install
	$(PY) -m fastue demo --out demo-run

# The interpreter runs the Triton kernels on the CPU; a required backend that is missing fails instead of skipping.
test: install
	FASTUE_REQUIRE=$${FASTUE_REQUIRE-cpp,triton} $(PY) -m pytest -q -m "not slow"

test-slow: install
	FASTUE_REQUIRE=$${FASTUE_REQUIRE-cpp,triton} $(PY) -m pytest -q -m slow -n 2 --timeout 7200

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Every GPU kernel, without a GPU: Triton to cubin, CUDA C++ compiled and linked where nvcc is installed.
compile: install
	$(PY) -m bench.compile

bench: install
	$(PY) -m bench.ops

check: lint compile test

clean:
	rm -rf $(VENV) build demo-run *.egg-info fastue/*.so
