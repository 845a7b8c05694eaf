"""Values and rules that every layer shares: transcripts, and the languages that they are in."""
