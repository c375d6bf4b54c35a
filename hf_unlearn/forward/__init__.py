# SPDX-License-Identifier: Apache-2.0
"""How rows go through the model, and what losses get of it."""
