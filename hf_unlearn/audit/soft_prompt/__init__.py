# SPDX-License-Identifier: Apache-2.0
"""A trained prompt of vectors: is there one input that opens rows it was not made for?"""
