# SPDX-License-Identifier: Apache-2.0
"""Tables and the figure of requests that were served one after another. Reads only the content of `requests.json`."""
