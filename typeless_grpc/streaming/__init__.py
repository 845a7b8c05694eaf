"""Streams: text while audio still arrives, in sessions that outlive their connections."""
