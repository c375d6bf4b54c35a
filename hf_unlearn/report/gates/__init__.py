# SPDX-License-Identifier: Apache-2.0
"""A run held against thresholds."""
