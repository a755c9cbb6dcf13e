"""Fine-tune any Hugging Face LLM or VLM from one YAML file, from a laptop core to a cluster."""

from automodel_recipes.__about__ import __version__

__all__ = ["__version__"]
