"""measure/kernels."""
