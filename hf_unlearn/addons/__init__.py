# SPDX-License-Identifier: Apache-2.0
"""What changes how a method trains, for every method."""
