# SPDX-License-Identifier: Apache-2.0
"""From the numbers of a run to something a person can read.

Everything is drawn from one structure, `report.json`: [`write_report`] turns it into json, markdown, a self-contained
HTML page and plots, [`print_report`] into a table on the terminal. Nothing here runs a model.
"""

from .schema import SCHEMA_VERSION, load_report, validate_report
from .terminal import print_report
from .write import write_report


__all__ = ["SCHEMA_VERSION", "load_report", "print_report", "validate_report", "write_report"]
