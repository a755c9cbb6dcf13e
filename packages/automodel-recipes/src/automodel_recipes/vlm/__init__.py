"""Vision-language recipes."""
