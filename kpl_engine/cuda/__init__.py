"""Everything that touches the CUDA driver: devices, compiled kernels, checked launches. No mathematics.

Nothing here is imported with the package, and importing it does not import CUDA: a driver is opened by `open_driver`.
"""
