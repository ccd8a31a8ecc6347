"""Every operator against the float64 reference, on this machine: what `hybrid-kernels validate` does."""
