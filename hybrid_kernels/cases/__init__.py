"""What is validated and measured: one definition of each case for `validate`, `bench` and pytest-benchmark.

The modules here and in `hybrid_kernels.benchmarking` import each other relatively and the package by its public names
(`hybrid_kernels.functional`, `.nn`, …): `bench --against` runs them on another commit's package.
"""
