"""Fault injection for checkpoint directories: the judge of this package, usable on your own file systems too."""
