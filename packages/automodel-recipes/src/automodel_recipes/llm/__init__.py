"""Recipes for language models."""
