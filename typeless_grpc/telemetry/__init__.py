"""Logs, metrics and traces: implements the observers that inner packages declare."""
