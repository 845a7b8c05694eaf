"""The composition root: turns settings into a running server. The only package that names concrete classes.

`starting.py` builds the product, `root.py` the server around an engine; each of the other modules wires one part of it.
This module imports nothing, because the rest of the program is imported while the model loads: see `starting.py`.
"""
