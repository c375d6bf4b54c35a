# SPDX-License-Identifier: Apache-2.0
"""A searched prefix of tokens: is there one text, that somebody could type, which opens rows it was not made for?"""
