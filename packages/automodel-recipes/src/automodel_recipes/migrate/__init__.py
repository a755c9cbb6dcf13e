"""Configurations of other tools and of earlier forms, rewritten in ours."""

from automodel_recipes.migrate.convert import DIALECTS, Migration, as_native, migrate

__all__ = ["DIALECTS", "Migration", "as_native", "migrate"]
