"""``python -m automodel_recipes``: the same command line as ``automodel-recipes``."""

import sys

from automodel_recipes.cli import main

if __name__ == "__main__":
    sys.exit(main())
