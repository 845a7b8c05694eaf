"""The queue of jobs, by the library DBOS. No other package imports it."""
