# Copyright the bpfilter maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The REST API of bpfilter over its unix socket; nothing but ansible.module_utils."""

from __future__ import annotations

import json
import time
from urllib.error import HTTPError, URLError

from ansible.module_utils.urls import open_url

SOCKET = "/run/bpfilterd/api.sock"
DEPLOYMENT = "/v1/deployment"

ARGUMENTS = {
    "socket": {"type": "path", "default": SOCKET},
    "timeout": {"type": "int", "default": 60},
}


class Refused(Exception):
    """The API refused or is not there; the message is for people."""


class Api:
    """One host's API."""

    def __init__(self, socket, timeout):
        self._socket = socket
        self._timeout = timeout

    def ask(self, method, path, body=None, headers=None):
        """The answer's document and its ETag."""
        sent = {"Accept": "application/json", "Content-Type": "application/json"}
        sent.update(headers or {})
        try:
            answer = open_url(
                "http://localhost" + path,
                method=method,
                data=None if body is None else json.dumps(body),
                headers=sent,
                unix_socket=self._socket,
                timeout=self._timeout,
                use_proxy=False,
            )
            return json.loads(answer.read() or b"{}"), answer.headers.get("ETag")
        except HTTPError as error:
            raise Refused(_problem(error)) from error
        except (URLError, OSError, ValueError) as error:
            raise Refused(f"the API at {self._socket} cannot be asked: {error}") from error

    def deployment(self):
        """What is deployed, and its ETag."""
        return self.ask("GET", DEPLOYMENT)

    def operate(self, path, body):
        """Start an operation and wait for its result."""
        found = self.ask("POST", path, body)[0]
        end = time.monotonic() + self._timeout
        while found["state"] not in ("done", "failed"):
            if time.monotonic() > end:
                raise Refused(f"{path} takes longer than {self._timeout} s")
            time.sleep(0.1)
            found = self.ask("GET", f"/v1/operations/{found['id']}")[0]
        if found["state"] == "failed":
            raise Refused(found["problem"].get("detail") or found["problem"]["title"])
        return found["result"]


def _problem(error):
    try:
        found = json.loads(error.read())
        said = found.get("detail") or found.get("title") or str(error)
        hint = found.get("hint")
        return f"{said} ({hint})" if hint else said
    except (ValueError, AttributeError):
        return str(error)
