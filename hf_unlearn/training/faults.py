# SPDX-License-Identifier: Apache-2.0
"""How training ends before its time, on all processes at the same step."""

import signal


class NonFiniteError(ArithmeticError):
    """Training met a loss or weights that are not finite."""


class Terminated(SystemExit):
    """SIGTERM ended the run after a checkpoint; the exit status is 143, as of any process that SIGTERM ends."""

    def __init__(self):
        super().__init__(128 + signal.SIGTERM)


STOPPED_TOGETHER = (NonFiniteError, Terminated)
