#!/usr/bin/python
# Copyright the bpfilter maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bpfilter_plan
short_description: Translate and prove a host's rules, change nothing
version_added: 0.1.0
description:
  - Says what becomes of every rule, and whether the translation is proven.
author:
  - the bpfilter maintainers (@bpfilter)
options:
  ruleset:
    description: Text of iptables-save. Without it, the live rules.
    type: str
  family:
    description: The rules' family. Without it, what the text says, or IPv4.
    type: str
    choices: [ipv4, ipv6]
extends_documentation_fragment:
  - bpfilter.host.api
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
"""

EXAMPLES = r"""
- name: Only go on with a proven plan
  bpfilter.host.bpfilter_plan:
  register: plan
  failed_when: not plan.proven
"""

RETURN = r"""
plan:
  description: The plan report.
  type: dict
  returned: always
proven:
  description: Whether the tables are proven to equal the rules, completely.
  type: bool
  returned: always
fates:
  description: How many rules have which fate.
  type: dict
  returned: always
  sample: {"native": 12, "residual": 3, "punt": 0, "unreachable": 0, "kept": 2}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bpfilter.host.plugins.module_utils.api import ARGUMENTS, Api, Refused


def main():
    options = {
        "ruleset": {"type": "str"},
        "family": {"type": "str", "choices": ["ipv4", "ipv6"]},
    }
    module = AnsibleModule(argument_spec=dict(ARGUMENTS, **options), supports_check_mode=True)
    asked = {name: module.params[name] for name in options if module.params[name] is not None}
    try:
        plan = Api(module.params["socket"], module.params["timeout"]).operate("/v1/plans", asked)
    except Refused as error:
        module.fail_json(msg=str(error))
    proven = plan["proof"]["holds"] and plan["proof"]["complete"]
    module.exit_json(changed=False, plan=plan, proven=proven, fates=plan["fates"])


if __name__ == "__main__":
    main()
