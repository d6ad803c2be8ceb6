#!/usr/bin/python
# Copyright the bpfilter maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bpfilter_info
short_description: What bpfilter has deployed on a host
version_added: 0.1.0
description:
  - Reads the stage, the gates, a pending confirmation and what was compared.
  - Changes nothing.
author:
  - the bpfilter maintainers (@bpfilter)
options:
  events:
    description: Whether to read events too, and behind which number.
    type: int
extends_documentation_fragment:
  - bpfilter.host.api
attributes:
  check_mode:
    description: Reads only.
    support: full
"""

EXAMPLES = r"""
- name: Read what is deployed
  bpfilter.host.bpfilter_info:
  register: found

- name: Stop at a mismatch
  ansible.builtin.assert:
    that: not found.mismatches
"""

RETURN = r"""
deployment:
  description: The deployment as the API has it.
  type: dict
  returned: always
stage:
  description: The stage, C(off) if nothing is deployed.
  type: str
  returned: always
  sample: shadow
mismatches:
  description: Packets that iptables judged unlike their prediction.
  type: int
  returned: always
gates_open:
  description: Whether every gate on the way to the goal is open; true where no gate is looked at.
  type: bool
  returned: always
events:
  description: Events behind the given number.
  type: list
  elements: dict
  returned: when O(events) is given
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bpfilter.host.plugins.module_utils.api import ARGUMENTS, Api, Refused


def main():
    module = AnsibleModule(
        argument_spec=dict(ARGUMENTS, events={"type": "int"}), supports_check_mode=True
    )
    api = Api(module.params["socket"], module.params["timeout"])
    try:
        found = api.deployment()[0]
        result = {
            "deployment": found,
            "stage": found["stage"],
            "mismatches": (found.get("comparison") or {}).get("mismatches", 0),
            "gates_open": all(gate["passed"] for gate in found.get("gates", [])),
        }
        if module.params["events"] is not None:
            after = module.params["events"]
            result["events"] = api.ask("GET", f"/v1/events?after={after}")[0]["events"]
    except Refused as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
