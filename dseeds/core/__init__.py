"""Modules that all others may use; they import NumPy, Numba and llvmlite only.

- `geometry`: the lattice of cells, the units of each level, regions and windows: the vocabulary of the whole package.
- `jit`: compilation of the Numba kernels, and their compiled code on disk.
- `exact_sum`: sums of floating-point numbers that do not depend on the order of the terms.
- `checks`, `dtypes`, `duck_arrays`, `optional`: checks of parameters, dtypes, kinds of arrays, optional packages.
- `formatting`, `html`, `process`, `progress`: text, tables, memory in use, and the protocol of progress displays.
"""
