"""The text after decoding: post-processing, and renditions of a transcript (SRT, WebVTT, …)."""
