"""Decodes containers in processes that can reach nothing but their input (docs/decisions/0010-decoder-processes.md)."""
