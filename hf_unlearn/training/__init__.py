# SPDX-License-Identifier: Apache-2.0
"""The trainer that every method is a subclass of, its settings, and what watches a run: launches, checkpoints,
signals, faults."""
