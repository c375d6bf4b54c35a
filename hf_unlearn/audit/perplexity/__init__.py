# SPDX-License-Identifier: Apache-2.0
"""Perplexity on general text: what unlearning cost a language model."""
