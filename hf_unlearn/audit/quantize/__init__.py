# SPDX-License-Identifier: Apache-2.0
"""Quantised and pruned weights: does what was forgotten come back in the model that is served?"""
