"""A third-party package that extends automodel-recipes."""
