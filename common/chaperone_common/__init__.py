"""The pure core of Chaperone: what device and cloud must agree on.

Nothing here does I/O, reads a clock or draws randomness, except the rim: `clock`, `config`, `wire` and the
generated code in `pb`. Imports are the standard library and NumPy.
"""
