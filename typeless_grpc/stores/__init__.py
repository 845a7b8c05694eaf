"""What outlives a process: jobs, uploads, sessions, keys, usage and rate limits, in databases and files."""
