"""Kernels for CPUs, in Python compiled by numba: products with packed weights, read as they are packed.

torch has one kernel for packed weights on a CPU, for 4 bits, that is two to three times slower where there is no
AVX-512. Here a kernel is a loop over `lanes`, 32 outputs side by side, which LLVM turns into the vectors that the
machine has. What is compiled is kept on disk (`compiled`). Not here: torch. Kernels take numpy arrays, which are views
of tensors.
"""
