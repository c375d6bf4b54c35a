# SPDX-License-Identifier: Apache-2.0
"""The command `hf-unlearn`: the one part that knows data, trainers, audits and reports."""
