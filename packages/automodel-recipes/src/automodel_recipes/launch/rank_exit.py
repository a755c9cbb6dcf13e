"""How the process of a rank ends: everything is flushed and finished, but the interpreter is not torn down.

A collective's worker thread drops its tensors a moment after the collective has returned, and needs the interpreter's
lock for it. A thread that asks for that lock during teardown is unwound by Python before 3.14, and C++ answers with
``terminate called without an active exception``: exit code 134 after a run that lost nothing.
"""

import atexit
import contextlib
import logging
import os
import sys


class RankExit:
    """Created before anything else registers with ``atexit``, so that it ends the process after all of them."""

    def __init__(self) -> None:
        self.code = 1
        """Exit code of the process: that of a crash until the command has returned."""
        atexit.register(self._end)

    def _end(self) -> None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # whoever read it has left
                stream.flush()
        os._exit(self.code)
