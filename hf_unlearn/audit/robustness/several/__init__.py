# SPDX-License-Identifier: Apache-2.0
"""Several audits of robustness of the same models, in one report."""
