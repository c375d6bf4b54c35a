# SPDX-License-Identifier: Apache-2.0
"""Embedded worlds: invented data and small models that know it, made on this machine."""
