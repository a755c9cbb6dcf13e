"""What finished and running runs have written down: read, compare, draw, report."""
