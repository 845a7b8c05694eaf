"""Many live streams over several fronts, with an engine that only waits: what the control plane costs."""
