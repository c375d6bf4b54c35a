#!/usr/bin/env bash
# What this library does on the GPUs of this machine, in under 8 minutes: one JSON and one table.
#   scripts/gpu_check.sh [FOLDER] [--minutes 8] [--parts kernels bench run qlora sharded]
# Without a GPU, or in little memory, the parts that fit run with tiny models; what was left out is named.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" scripts/gpu_check.py "$@"
