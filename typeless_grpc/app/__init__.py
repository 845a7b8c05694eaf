"""The composition root: settings in, a server out. The only package that names concrete classes.

`starting.py` is the product, `root.py` the server around an engine; each of the others wires one part of it. Nothing is
imported here, because what a server needs is imported while its model loads: see `starting.py`.
"""
