# SPDX-License-Identifier: Apache-2.0
"""What a recipe needs of GPUs, host memory and disk, before anything is downloaded or started.

`shapes.py` reads the model, `engines.py` how it is spread over GPUs, `workload.py` the recipe; `memory.py` adds up and
`switches.py` looks for what would make it fit. Formulas and what they were checked against: docs/performance.md.
"""
