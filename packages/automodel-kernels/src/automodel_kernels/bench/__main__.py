"""``python -m automodel_kernels.bench``."""

import sys

from automodel_kernels.bench.cli import main

sys.exit(main())
