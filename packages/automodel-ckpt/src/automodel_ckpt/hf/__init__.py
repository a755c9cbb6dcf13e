"""Hugging Face directories: names, files and checks. Needs the extra ``[hf]`` where transformers takes part."""
