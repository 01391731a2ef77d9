"""What a GPU must be told, and the kernels that a CPU computes with."""
