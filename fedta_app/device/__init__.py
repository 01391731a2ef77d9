"""Settings of CUDA devices, and kernels for CPUs."""
