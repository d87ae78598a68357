"""What pyproject.toml cannot say: kernels/ is packaged as fastue.kernels, and how csrc/ is built.

    pip install --no-build-isolation -e .        with the compiled ops; needs torch and a C++ compiler
    FASTUE_BUILD_EXT=0 pip install -e .          without
Where torch or the compiler is missing or fails, the package is installed without them and a warning says so.
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# torch 2.10's stable ABI and Python 3.10's limited API: one binary for every later torch and Python.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CXX_FLAGS = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-ffp-contract=off", TORCH_TARGET]  # the same bits in every clone, and as the reference
CUDA_ARCHS = ("80", "90", "100")


def nvcc_flags(archs: tuple[str, ...] = CUDA_ARCHS) -> list[str]:
    """Machine code for each architecture, and PTX of the last for those to come."""
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    ptx = f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"
    return ["-O3", "-std=c++20", "-DUSE_CUDA", TORCH_TARGET, "-fmad=false", "-lineinfo", *code, ptx]


def sources(*patterns: str) -> list[str]:
    """Paths relative to the root, as setuptools wants them."""
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / "csrc").glob(pattern))


def warn(why: str) -> None:
    print(
        f"\n{'*' * 100}\nfastue: the compiled ops are NOT built: {why}\n"
        "fastue works without them, on the slower PyTorch reference. To build them: install torch and a C++ compiler "
        "(g++ 12 or later),\nthen  pip install --no-build-isolation --no-deps -e .\n"
        f"{'*' * 100}\n",
        file=sys.stderr,
    )


def extensions() -> tuple[list, dict]:
    """The extension modules and the build_ext command, both empty where they cannot or shall not be built."""
    if os.environ.get("FASTUE_BUILD_EXT", "1") == "0":
        return [], {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        warn(f"{error} (an isolated build cannot see the installed torch)")
        return [], {}

    modules = [
        CppExtension(
            "fastue._C",
            sources("bindings.cpp", "*/*_cpu.cpp"),
            py_limited_api=True,
            extra_compile_args=[*CXX_FLAGS, "-DPy_LIMITED_API=0x030A0000"],
            depends=sources("common/*.h"),
        )
    ]
    if torch.version.cuda is not None:
        modules.append(
            CUDAExtension(
                "fastue._cuda",
                sources("*/*_kernel.cu", "*/*_cuda.cpp"),
                py_limited_api=True,
                extra_compile_args={"cxx": [*CXX_FLAGS, "-DUSE_CUDA"], "nvcc": nvcc_flags()},
                depends=sources("common/*.h", "*/*.h"),
            )
        )

    class Build(BuildExtension):
        """BuildExtension that leaves an extension out, with a warning, when it cannot be compiled."""

        def run(self) -> None:
            try:
                super().run()
            except (Exception, SystemExit) as error:
                # Not there rather than half there: the install step copies every extension of this list.
                self.extensions = [e for e in self.extensions if Path(self.get_ext_fullpath(e.name)).exists()]
                warn(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    return modules, {"build_ext": Build}


if __name__ == "__main__":
    modules, commands = extensions()
    setup(
        packages=[*find_packages(include=["fastue", "fastue.*"]), "fastue.kernels"],
        package_dir={"fastue.kernels": "kernels"},
        ext_modules=modules,
        cmdclass=commands,
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if modules else {},
    )
