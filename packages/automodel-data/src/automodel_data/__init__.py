"""Text and vision-language data for fine-tuning: masks, packing, mixing and an order that resumes exactly."""

from automodel_data.__about__ import __version__

__all__ = ["__version__"]
