"""Where a run's numbers go: the console, metrics.jsonl, and optional trackers."""
