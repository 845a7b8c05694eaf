"""Decodes bytes to samples at 16 kHz, and detects speech in them."""
