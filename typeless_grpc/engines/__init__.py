"""Engines in processes of their own, on this machine or on others, behind the same `Engine` protocol.

On the side of the front: `remote.py` is an engine over a connection, `group.py` is one engine over several of them, and
`process.py` keeps the process of an engine running. On the side of the engine: `servicer.py` and `reports.py`.
"""
