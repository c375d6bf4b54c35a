# SPDX-License-Identifier: Apache-2.0
"""Values of rows that do not change, on disk: by row index, whole or not at all."""
