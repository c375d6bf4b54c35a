# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn audit meta`: our own audits are audited, on models of which it is known what they know."""
