# SPDX-License-Identifier: Apache-2.0
"""Kinds of models that are unlearned from: language models, and classifiers."""
