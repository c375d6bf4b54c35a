# SPDX-License-Identifier: Apache-2.0
"""Rows, pairs and batches: what reaches a trainer, and the worlds and benchmarks it comes from."""
