# Copyright the bpfilter maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How modules reach the API."""

    DOCUMENTATION = r"""
options:
  socket:
    description: The unix socket of the API on the host.
    type: path
    default: /run/bpfilterd/api.sock
  timeout:
    description: Seconds until an answer is given up.
    type: int
    default: 60
"""
