"""Static validation: every problem of a configuration, found without importing torch or running its targets."""

from automodel_recipes.validation.report import Deferred, Report
from automodel_recipes.validation.validate import check, validate

__all__ = ["Deferred", "Report", "check", "validate"]
