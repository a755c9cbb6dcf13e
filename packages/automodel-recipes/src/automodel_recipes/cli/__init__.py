"""The command line: ``automodel-recipes COMMAND``."""

from automodel_recipes.cli.app import main

__all__ = ["main"]
