# SPDX-License-Identifier: Apache-2.0
"""What commands do: recipes, checks before anything is loaded, audits, and their reports."""
