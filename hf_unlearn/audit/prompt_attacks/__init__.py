# SPDX-License-Identifier: Apache-2.0
"""Questions put in other words: is what was forgotten still reachable by a prompt?"""
