# SPDX-License-Identifier: Apache-2.0
"""RWKU (Jin et al. 2024, https://huggingface.co/papers/2406.10890): 200 famous people, forgotten one at a time."""
