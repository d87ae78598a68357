"""Triton kernels, one file an op. Packaged as fastue.kernels; imports torch and Triton only."""

if __name__ != "fastue.kernels":
    raise ImportError(
        "this folder is the package fastue.kernels: install the project and import it by that name"
    )
