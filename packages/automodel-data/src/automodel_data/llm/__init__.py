"""Datasets of text: one class or function per file, all giving rows of token ids with their mask decided."""
