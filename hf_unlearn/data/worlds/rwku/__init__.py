# SPDX-License-Identifier: Apache-2.0
"""RWKU in small: its files and models about the people of the embedded world."""
