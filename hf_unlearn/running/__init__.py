# SPDX-License-Identifier: Apache-2.0
"""A run that can be killed at any moment and go on: launches, whole checkpoints, signals, faults."""
