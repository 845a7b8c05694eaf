"""Which parts of a recording are decoded: where its speech is, and where it is cut into chunks."""
