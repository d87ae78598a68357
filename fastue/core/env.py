"""The environment variables fastue reads: all of them, and only here. docs/ENVIRONMENT.md is the
same table."""

import os

# name: (default, meaning). FASTUE_BUILD_EXT is read by setup.py, before the package exists.
VARIABLES = {
    "FASTUE_BACKEND": ("auto", "backend of every op: auto, reference, cpp, triton or cuda"),
    "FASTUE_REQUIRE": (
        "",
        "comma-separated backends (or ffcv, browser) whose absence is a test failure, no skip",
    ),
    "FASTUE_BUILD_EXT": (
        "1",
        "at install time: 0 compiles nothing of csrc/, cpp leaves out the CUDA library",
    ),
    "RANK": (
        "0",
        "torchrun's own: number of this process among those that share a certificate's draws",
    ),
    "WORLD_SIZE": ("1", "torchrun's own: how many they are"),
    "TRITON_INTERPRET": ("0", "Triton's own: 1 runs Triton kernels on the CPU, slowly, for tests"),
}


def get(name: str) -> str:
    """Value of a variable of the table, or its default."""
    return os.environ.get(name) or VARIABLES[name][0]


def backend() -> str:
    name = os.environ.get("FASTUE_BACKEND")  # asked at every call of an op
    return name.strip().lower() if name else "auto"


def required_backends() -> frozenset[str]:
    return frozenset(name.strip() for name in get("FASTUE_REQUIRE").split(",") if name.strip())


def triton_interprets() -> bool:
    return get("TRITON_INTERPRET").strip().lower() in ("1", "true", "yes", "on", "y")


def rank() -> tuple[int, int]:
    """(rank, number of ranks) under torchrun; (0, 1) otherwise."""
    return int(get("RANK")), int(get("WORLD_SIZE"))


def settings() -> dict[str, str]:
    """Every variable that is set, for `fastue info`."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def malloc_is_set() -> bool:
    """Whether the user has settings of their own for the C library's heap (mallopt(3))."""
    return any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
