# SPDX-License-Identifier: Apache-2.0
"""Inside the model: in which layers what was forgotten can still be read, and by whom."""
