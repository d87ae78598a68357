# Two commands a newcomer needs: `make demo` and `make test`. Everything goes into .venv; nothing else is touched.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check
EXTRAS := triton,vision,demo,report,convert,purify,dev
# What the tests must not skip: Triton, and C++ where there is a compiler.
REQUIRE := $(shell command -v $(firstword $(CXX)) >/dev/null && echo cpp,)triton

.PHONY: install demo test test-slow test-ffcv test-browser test-install lint compile bench check wheel clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(wildcard csrc/*.cpp csrc/*/*)
	@command -v $(PYTHON) >/dev/null || { echo "fastue: no '$(PYTHON)' on PATH; install Python 3.10 or newer, or pass PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "fastue: needs Python 3.10 or newer, $(PYTHON) is older; pass PYTHON=…"; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || echo "fastue: warning: no $(firstword $(CXX)) on PATH; the C++ library will not be built, ops run on the slower PyTorch reference"
	@echo "== virtual environment in $(VENV)"
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { echo "fastue: $(PYTHON) -m venv failed; on Debian: apt-get install python3-venv, then the same command again"; exit 1; }
	@echo "== torch and build tools (versions: constraints.txt); a minute or more"
	@$(PIP) install -qq -c constraints.txt torch numpy setuptools
	@echo "== fastue, its compiled libraries, and the extras $(EXTRAS)"
	@$(PIP) install -qq -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@$(PY) -m fastue info
	@touch $@

demo: install
	$(PY) -m fastue demo --out demo-run

# The interpreter runs the Triton kernels on the CPU; a required backend that is missing fails instead of skipping.
test: install
	FASTUE_REQUIRE=$${FASTUE_REQUIRE-$(REQUIRE)} $(PY) -m pytest -q -n 2 -m "not slow"

test-slow: install
	FASTUE_REQUIRE=$${FASTUE_REQUIRE-$(REQUIRE)} $(PY) -m pytest -q -m slow -n 2 --timeout 7200

# FFCV has no wheels: it is compiled against these packages of Debian and Ubuntu (root). No other version changes.
FFCV_PACKAGES := libopencv-dev libturbojpeg0-dev pkg-config

test-ffcv: install
	@pkg-config --exists opencv4 libturbojpeg 2>/dev/null || { echo "== $(FFCV_PACKAGES) (700 MB)"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $(FFCV_PACKAGES) >/dev/null; }
	@echo "== ffcv, compiled"
	@$(PIP) install -qq -c constraints.txt ffcv setuptools
	FASTUE_REQUIRE=$${FASTUE_REQUIRE-$(REQUIRE)},ffcv $(PY) -m pytest -q tests/data/test_ffcv.py

# The report in a real browser: Debian's chromium (root); elsewhere any Chromium or Chrome on PATH.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

test-browser: install
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; echo "== chromium (110 MB, 410 MB unpacked)"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends chromium >/dev/null
	FASTUE_REQUIRE=$${FASTUE_REQUIRE-$(REQUIRE)},browser $(PY) -m pytest -q tests/protocol/test_browser.py

# The two commands on machines that this one is made to look like; several GB of wheels, needs root.
test-install:
	tests/install/run.sh

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Every GPU kernel, without a GPU: Triton to cubin, CUDA C++ compiled and linked where nvcc is installed.
compile: install
	$(PY) -m bench.compile

bench: install
	$(PY) -m bench.ops

check: lint compile test

# The source package, and out of it one wheel with the C++ library for every Python and torch from 3.10 and 2.10 on.
wheel: install
	rm -rf build dist
	$(PY) setup.py -q sdist
	FASTUE_BUILD_EXT=cpp $(PIP) wheel -qq --no-deps --no-build-isolation -w dist dist/*.tar.gz
	@$(PY) -m zipfile -l dist/*.whl | grep 'fastue/_C\.' || { echo "fastue: the wheel lacks the C++ library: see fastue info"; exit 1; }
	@ls dist

clean:
	rm -rf $(VENV) build dist demo-run *.egg-info fastue/*.so fastue/_build.json
