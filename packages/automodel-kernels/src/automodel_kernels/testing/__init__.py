"""How a kernel is held to account: the error bound, the norm ratio, and the faults that the bound must catch."""

from automodel_kernels.testing.bounds import assert_as_good_as, mutations, relative_error
from automodel_kernels.testing.guards import guarded, guards_intact

__all__ = ["assert_as_good_as", "guarded", "guards_intact", "mutations", "relative_error"]
