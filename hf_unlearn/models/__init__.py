# SPDX-License-Identifier: Apache-2.0
"""Models: their files, adapters on them, and what of them can be unlearned from."""
