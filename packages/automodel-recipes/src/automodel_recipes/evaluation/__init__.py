"""Measure a model outside training: ``eval``."""
