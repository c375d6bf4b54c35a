# SPDX-License-Identifier: Apache-2.0
"""A run's result on the Hub: its card, and one push of what is meant to be public."""
