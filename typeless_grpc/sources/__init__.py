"""Audio that a request names by a URI instead of containing it: what may be fetched, and how."""
