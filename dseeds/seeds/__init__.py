"""The algorithm, synchronous SEEDS, on arrays: it knows neither files nor clusters.

The terms (cell, unit, home, owner, round, halo) are defined in docs/algorithm.md. The steps, in order:

1. Choose the cells, the intensity windows and the bins: `cell_size`, `intensity_windows`, `order_statistics` (exact
   percentiles), `histograms` (Otsu's threshold, equalised bins), `binning`.
2. Count the histograms of the blocks: `block_histograms`.
3. List the rounds and score their candidates: `schedule`, `scores`.
4. Move the units in rounds: `rounds`.
5. Turn the codes into labels, one for each component under a mask: `kernels.label_codes`, `kernels.mask_components`.
6. Join small supervoxels and build coarser levels, on the region adjacency graph: `contact_graph`, `min_size`,
   `hierarchy`.

`in_memory` does all steps for a volume in memory; `dseeds.engine` does them region by region. `kernels` holds the
loops that Numba compiles.
"""
