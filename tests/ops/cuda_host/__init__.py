"""The CUDA kernels and their glue, compiled as C++ for the CPU: no GPU, no CUDA toolkit, only g++
and torch."""
