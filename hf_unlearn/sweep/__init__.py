# SPDX-License-Identifier: Apache-2.0
"""Many runs from one file: methods, settings, seeds and targets.

`spec.py` and `targets.py` read what is asked for, `expand.py` makes runs of it, `manifest.py` lists them,
`progress.py` tells what is done, `worker.py` starts processes, `slurm.py` writes a script for a cluster, and
`collect.py` gathers what came out for `report/sweep.py`. Recipes are parsed by whoever calls; nothing here knows the
command line.
"""
