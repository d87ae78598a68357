#!/usr/bin/env bash
# The README's two commands in fresh clones, on machines that this one is made to look like (unshare: root).
#   tests/install/run.sh [CASE...]      default: stock empty
#   stock        PyPI's own torch, which is built for CUDA, and no CUDA toolkit
#   empty        the same, with a toolkit folder that holds nothing, in CUDA_HOME, too
#   cuda         PyPI's own torch and this machine's nvcc
#   cpu          a CPU build of torch, which this machine's pip has to offer (PIP_FIND_LINKS), and no toolkit
#   no-compiler  the same, without a C++ compiler
#   wheel        `make wheel`, installed without a compiler on each Python from 3.10 to 3.13 that is here
#   uv           the README's lines for an environment of one's own, with uv
# COMMANDS="demo" leaves the tests out. FOLDER keeps the clones; else they are in a new temporary one.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
FOLDER=${FOLDER:-$(mktemp -d)}
COMMANDS=${COMMANDS:-demo test}
COMPILERS="cc c++ gcc g++ clang clang++"

clone() { rm -rf "${FOLDER:?}/$1" && git clone -q "$ROOT" "$FOLDER/$1" && cd "$FOLDER/$1"; }

# Only PyPI, as on a machine without settings of its own.
only_pypi() {
  unset PIP_FIND_LINKS PIP_EXTRA_INDEX_URL
  export PIP_CONFIG_FILE=/dev/null
}

# A command on a machine without a CUDA toolkit and without the programs that HIDE names: /usr is an overlay.
bare() {
  HIDE="nvcc ${HIDE:-}" unshare --mount --propagation private bash -euc '
    layer=$(mktemp -d)
    mount -t tmpfs tmpfs "$layer" && mkdir "$layer/upper" "$layer/work"
    mount -t overlay overlay -o "lowerdir=/usr,upperdir=$layer/upper,workdir=$layer/work" /usr
    rm -rf /usr/local/cuda*
    unset CUDA_HOME CUDA_PATH
    for name in $HIDE; do
      type -aP "$name" | sed -n "s#^\(/usr\|/bin\)/#&#p" | xargs -r rm -f
      hash -r; ! type -P "$name" || { echo "cannot hide $name"; exit 1; }
    done
    [[ -z ${EMPTY_TOOLKIT:-} ]] || { mkdir /usr/local/cuda && export CUDA_HOME=/usr/local/cuda; }
    exec "$@"' bare "$@"
}

# expect TEXT...: every one of them in what `fastue info` prints.
expect() {
  local text info
  info=$(.venv/bin/fastue info)
  echo "$info" | tail -2
  for text in "$@"; do grep -qF -- "$text" <<<"$info" || { echo "fastue info lacks: $text"; return 1; }; done
}

make_all() {
  local command
  for command in $COMMANDS; do "$@" make --no-print-directory "$command"; done
}

stock() {
  only_pypi
  make_all bare
  expect "cpp library built" "cuda library not built: no nvcc" "torch built for CUDA: 1"
}

empty() {
  export EMPTY_TOOLKIT=1
  stock
}

cuda() {
  only_pypi
  make_all
  expect "cpp library built" "cuda library built"
}

cpu() {
  make_all bare
  expect "cpp library built" "cuda library not built: the installed torch has no CUDA" "torch built for CUDA: no"
}

no-compiler() {
  HIDE=$COMPILERS make_all bare
  expect "cpp library not built: no C++ compiler" "cuda library not built"
}

wheel() {
  local version torch="torch==2.10.0"
  make --no-print-directory wheel
  only_pypi
  for version in 3.10 3.11 3.12 3.13; do
    "python$version" --version >/dev/null 2>&1 || { echo "no python$version here: not tested"; continue; }
    "python$version" -m venv --clear .venv
    HIDE=$COMPILERS bare .venv/bin/pip install -qq "$torch" "$(ls dist/*.whl)[demo,report]"
    (cd / && HIDE=$COMPILERS bare "$OLDPWD/.venv/bin/fastue" demo --out "$OLDPWD/demo-$version")
    .venv/bin/python -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
    expect "cpp library built"
    torch="torch"
  done
}

uv() {
  python3 -m venv tool && tool/bin/pip install -qq uv
  export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  local install="tool/bin/uv pip install -q"
  tool/bin/uv venv -q --python 3.11 .venv
  $install -c constraints.txt torch "setuptools>=77"
  $install -c constraints.txt --no-build-isolation -e ".[vision,report,demo]"
  .venv/bin/fastue demo --out demo-run
  expect "cpp library built"
}

[[ $# -gt 0 ]] || set -- stock empty
for name in "$@"; do
  echo "== $name"
  (clone "$name" && "$name")
  echo "== $name: passed"
done
