# SPDX-License-Identifier: Apache-2.0
"""Classifiers in the place of language models: a row is one prediction, with a label for each class."""
