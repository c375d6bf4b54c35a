# SPDX-License-Identifier: Apache-2.0
"""A little training: does what was forgotten come back?"""
