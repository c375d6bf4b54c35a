# SPDX-License-Identifier: Apache-2.0
"""Sampled answers: how likely is it that one of many draws tells what was forgotten?"""
