#!/usr/bin/python
# Copyright the bpfilter maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bpfilter_deployment
short_description: Deploy bpfilter on a host, or take it back
version_added: 0.1.0
description:
  - Brings the deployment of a host to a stage, or confirms one that waits for it.
  - Nothing is changed where the deployment is on the way there already.
  - A lower stage is reached by way of C(off); iptables decides alone meanwhile.
author:
  - the bpfilter maintainers (@bpfilter)
options:
  stage:
    description: The stage to reach. C(off) leaves every packet to iptables.
    type: str
    choices: ['off', shadow, canary, enforce]
  interfaces:
    description: Where to attach. Needed where nothing is deployed yet.
    type: list
    elements: str
    default: []
  canary:
    description: What is decided in the stage C(canary); all conditions together.
    type: dict
    suboptions:
      interfaces:
        description: Packets that arrive here, some of O(interfaces).
        type: list
        elements: str
        default: []
      sources:
        description: Packets from these networks.
        type: list
        elements: str
        default: []
      share:
        description: This part of all flows, both directions of a flow alike.
        type: float
        default: 1.0
  confirm:
    description: Confirm the stage that waits under this id, so that it stays.
    type: str
  commit_id:
    description: The stage must be confirmed under this id within O(commit_seconds).
    type: str
  commit_seconds:
    description: Unless it is confirmed so soon, the kernel itself goes back to iptables.
    type: float
  gates:
    description: What must hold before packets are decided, such as V(packets=1000).
    type: list
    elements: str
    default: []
  waivers:
    description: Known differences, as C(bpfilter deploy --waive) takes them.
    type: list
    elements: str
    default: []
  policy:
    description: What to do when the rules change.
    type: str
    choices: [follow, hold]
    default: follow
  protect:
    description: C(ADDRESS:PORT) of connections that must not be locked out.
    type: list
    elements: str
    default: []
  accept_state_reset:
    description: Our edits of legacy tables may reset limits that decide verdicts.
    type: bool
    default: false
  accept_lockout:
    description: Go on even if the rules drop the operator's own connection.
    type: bool
    default: false
  wait:
    description: Wait until the stage is reached.
    type: bool
    default: true
  wait_timeout:
    description: Seconds to wait for the stage, closed gates included.
    type: int
    default: 120
extends_documentation_fragment:
  - bpfilter.host.api
attributes:
  check_mode:
    description: Asks the API with C(dry_run), which checks everything and changes nothing.
    support: full
  diff_mode:
    description: Shows stage, interfaces, canary and policy.
    support: full
"""

EXAMPLES = r"""
- name: Compare predictions with what iptables does
  bpfilter.host.bpfilter_deployment:
    stage: shadow
    interfaces: [eth0]

- name: Let programs decide a tenth of the flows
  bpfilter.host.bpfilter_deployment:
    stage: canary
    canary:
      share: 0.1

- name: Let programs decide, for a minute unless that is confirmed
  bpfilter.host.bpfilter_deployment:
    stage: enforce
    commit_id: rollout-7
    commit_seconds: 60

- name: Keep it
  bpfilter.host.bpfilter_deployment:
    confirm: rollout-7
"""

RETURN = r"""
deployment:
  description: The deployment as the API has it now.
  type: dict
  returned: always
stage:
  description: The stage now.
  type: str
  returned: always
  sample: enforce
"""

import time
from ipaddress import ip_network

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bpfilter.host.plugins.module_utils.api import (
    ARGUMENTS,
    DEPLOYMENT,
    Api,
    Refused,
)

STAGES = ["off", "shadow", "canary", "enforce"]


def narrowed(canary):
    """What a canary decides, in one form: networks as the API writes them."""
    if canary is None:
        return None
    sources = sorted(str(ip_network(text)) for text in canary["sources"])
    return {
        "interfaces": sorted(canary["interfaces"]),
        "sources": sources,
        "share": canary["share"],
    }


def shown(found):
    """What a diff compares."""
    running = found["goal"] != "off"
    return {
        "stage": found["goal"],
        "interfaces": sorted(found.get("interfaces", [])) if running else [],
        "canary": narrowed(found.get("canary")) if running else None,
        "policy": found.get("policy") if running else None,
    }


def wanted(params, before):
    """The same of what is asked for."""
    if params["stage"] == "off":
        return {"stage": "off", "interfaces": [], "canary": None, "policy": None}
    canary = narrowed(params["canary"]) if params["stage"] == "canary" else None
    interfaces = sorted(params["interfaces"]) or before["interfaces"]
    if canary and canary == before["canary"] and canary["interfaces"] == before["interfaces"]:
        interfaces = canary["interfaces"]
    return {
        "stage": params["stage"],
        "interfaces": interfaces,
        "canary": canary,
        "policy": params["policy"],
    }


def body(params, after):
    """The request for the API."""
    asked = {name: params[name] for name in ("gates", "waivers", "policy", "protect")}
    asked.update({name: params[name] for name in ("accept_state_reset", "accept_lockout")})
    asked.update(stage=params["stage"], interfaces=after["interfaces"])
    if params["stage"] == "canary":
        asked["canary"] = after["canary"]
    if params["commit_id"] is not None and params["stage"] in ("canary", "enforce"):
        asked["commit"] = {"id": params["commit_id"], "seconds": params["commit_seconds"]}
    return asked


def wait_for(api, stage, seconds):
    """The deployment once it has reached a stage; Refused if it does not."""
    end = time.monotonic() + seconds
    seen = False
    while True:
        found = api.deployment()[0]
        seen = seen or found["running"]
        if found["stage"] == stage and found["running"] == (stage != "off"):
            return found
        if stage != "off" and seen and not found["running"]:
            said = [event["sentence"] for event in api.ask("GET", "/v1/events")[0]["events"]]
            raise Refused(f"stage {stage} was not reached: " + (said[-1] if said else "it ended"))
        if time.monotonic() > end:
            closed = [gate["sentence"] for gate in found.get("gates", []) if not gate["passed"]]
            why = "; ".join(closed) or "bpfilterd did not get there"
            raise Refused(f"still in stage {found['stage']} after {seconds} s: {why}")
        time.sleep(0.2)


def lower(api, found, after):
    """Go back to off where the stage to reach, or its extent, cannot be reached from here."""
    present = shown(found)
    back = STAGES.index(after["stage"]) < STAGES.index(found["stage"])
    narrow = present["canary"] or {"interfaces": []}
    elsewhere = present["interfaces"] != after["interfaces"] and not narrow["interfaces"]
    another = None not in (present["canary"], after["canary"])
    another = another and present["canary"] != after["canary"]
    if found["running"] and (back or elsewhere or another):
        api.ask("POST", DEPLOYMENT + "/rollback")
        wait_for(api, "off", 30)


def deploy(api, module):
    """Reach the stage; what changed."""
    params = module.params
    found, tag = api.deployment()
    before = shown(found)
    after = wanted(params, before)
    changed = before != after
    if changed:
        if not module.check_mode and after["stage"] != "off":
            lower(api, found, after)
            tag = api.deployment()[1]
        query = "?dry_run=true" if module.check_mode else ""
        api.ask("PUT", DEPLOYMENT + query, body(params, after), {"If-Match": tag})
    if not module.check_mode:
        found = api.deployment()[0]
        if params["wait"]:
            found = wait_for(api, params["stage"], params["wait_timeout"])
    return {"changed": changed, "diff": {"before": before, "after": after}, "deployment": found}


def confirm(api, module):
    """Confirm a stage; changed unless it was confirmed before."""
    found = api.deployment()[0]
    waits = (found.get("confirm") or {}).get("id") == module.params["confirm"]
    if not module.check_mode:
        api.ask("POST", f"{DEPLOYMENT}/commits/{module.params['confirm']}/confirm")
        found = api.deployment()[0]
    diff = {"before": {"confirmed": not waits}, "after": {"confirmed": True}}
    return {"changed": waits, "diff": diff, "deployment": found}


def main():
    options = {
        "stage": {"type": "str", "choices": STAGES},
        "canary": {
            "type": "dict",
            "options": {
                "interfaces": {"type": "list", "elements": "str", "default": []},
                "sources": {"type": "list", "elements": "str", "default": []},
                "share": {"type": "float", "default": 1.0},
            },
        },
        "interfaces": {"type": "list", "elements": "str", "default": []},
        "confirm": {"type": "str"},
        "commit_id": {"type": "str"},
        "commit_seconds": {"type": "float"},
        "gates": {"type": "list", "elements": "str", "default": []},
        "waivers": {"type": "list", "elements": "str", "default": []},
        "policy": {"type": "str", "choices": ["follow", "hold"], "default": "follow"},
        "protect": {"type": "list", "elements": "str", "default": []},
        "accept_state_reset": {"type": "bool", "default": False},
        "accept_lockout": {"type": "bool", "default": False},
        "wait": {"type": "bool", "default": True},
        "wait_timeout": {"type": "int", "default": 120},
    }
    module = AnsibleModule(
        argument_spec=dict(ARGUMENTS, **options),
        required_one_of=[["stage", "confirm"]],
        mutually_exclusive=[["stage", "confirm"]],
        required_together=[["commit_id", "commit_seconds"]],
        required_if=[["stage", "canary", ["canary"]]],
        supports_check_mode=True,
    )
    api = Api(module.params["socket"], module.params["timeout"])
    try:
        narrowed(module.params["canary"])
    except ValueError as error:
        module.fail_json(msg=f"canary: {error}")
    try:
        result = deploy(api, module) if module.params["stage"] else confirm(api, module)
    except Refused as error:
        module.fail_json(msg=str(error))
    module.exit_json(stage=result["deployment"]["stage"], **result)


if __name__ == "__main__":
    main()
