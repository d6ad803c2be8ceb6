// SPDX-License-Identifier: Apache-2.0
// Puts the parts of the page that the server sends in their places. Everything works without it.
"use strict";

const waiting = new Map();

function place(name, html) {
  const part = document.getElementById("live-" + name);
  if (!part) return;
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  if (focused && focused.matches("input, select")) {
    waiting.set(name, html); // somebody is writing there
    return;
  }
  waiting.delete(name);
  const open = new Set([...part.querySelectorAll("details[open]")].map((each) => each.id));
  part.innerHTML = html; // made and escaped by the server
  for (const each of part.querySelectorAll("details")) each.open ||= open.has(each.id);
  if (focused && focused.id) document.getElementById(focused.id)?.focus();
}

// What the visitor just did was said; a stage that comes says the rest.
let stages = 0;
function tellStage() {
  if (++stages > 1) document.getElementById("done")?.remove();
  const stage = document.querySelector(".stage.here")?.firstChild.textContent.trim();
  if (stage) document.title = stage + " · bpfilter";
}

function say(words) {
  document.getElementById("connection").textContent = words;
}

if (location.search) history.replaceState(null, "", "./");
const source = new EventSource("live");
source.addEventListener("parts", (event) => {
  say("live");
  const parts = JSON.parse(event.data);
  for (const [name, html] of Object.entries(parts)) place(name, html);
  if (parts.stage) tellStage();
});
source.addEventListener("over", () => {
  source.close();
  location.assign("sign-in");
});
source.addEventListener("error", () => say("not connected: what you see may be old"));
document.addEventListener("focusout", () => {
  setTimeout(() => waiting.forEach((html, name) => place(name, html)), 0);
});
