"""The services of the contract: each converts a message to values, makes one call, and converts its result."""
