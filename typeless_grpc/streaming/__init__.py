"""Streams: audio as it comes, text as soon as it is certain, and sessions that outlive their connections."""
