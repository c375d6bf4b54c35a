# SPDX-License-Identifier: Apache-2.0
"""What a step of each method costs, as a ratio to a step of supervised fine-tuning on the same rows.

`cases.py` and `sizes.py` say what is measured, `worker.py` measures one of it in a process of its own, `session.py`
starts those processes in turn, `summary.py` and `table.py` put the numbers together.
"""
