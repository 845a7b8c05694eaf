"""What is fuzzed: one module for each reader of bytes from outside.

Each has `one(data)`, which tries one input and raises for what must not happen; `MAX_BYTES` of an input; and `seeds()`,
the inputs to begin with. Errors of the family in `errors.py` that a reader declares are its answers; all others are
findings.
"""
