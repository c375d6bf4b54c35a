# SPDX-License-Identifier: Apache-2.0
"""A weight mask: only the weights that a score chooses train, whatever the method and the optimizer."""
