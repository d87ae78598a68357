"""Before anything imports Triton: the tests run its kernels on the CPU. One thread a process: the cores are shared."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
