"""Bytes to samples at 16 kHz, and where speech is in them."""
