"use strict";
// In Airflow the page lies in a frame of the same origin, which may neither open windows nor leave the page.
const framed = window.parent !== window;
try {
  // The light switch of Airflow.
  const outer = window.parent.document.documentElement;
  const follow = () => {
    const theme = ["dark", "light"].find((name) => outer.classList.contains(name));
    if (framed && theme) document.documentElement.dataset.theme = theme;
  };
  follow();
  new MutationObserver(follow).observe(outer, { attributes: true, attributeFilter: ["class"] });
} catch { /* another origin shows the page: the system's choice holds */ }

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-out]");
  if (!link || !framed) return;
  event.preventDefault();
  const outer = window.parent.document.createElement("a");
  outer.href = link.href;
  if (link.dataset.out) { outer.target = "_blank"; outer.rel = "noopener noreferrer"; }
  outer.click();
});

// While something runs the page is read again, and keeps what is open.
const PAUSE_MS = 5000;
async function look() {
  const shown = document.querySelector("main");
  if (!("live" in shown.dataset)) return;
  if (!document.hidden) {
    try {
      const answer = await fetch(location.href);
      const text = await answer.text();
      const next = new DOMParser().parseFromString(text, "text/html").querySelector("main");
      if (answer.ok && next) {
        for (const one of next.querySelectorAll("details[id]")) {
          const before = document.getElementById(one.id);
          if (before) one.open = before.open;
        }
        document.querySelector("main").replaceWith(next);
      }
    } catch { /* the next look may succeed */ }
  }
  setTimeout(look, PAUSE_MS);
}
setTimeout(look, PAUSE_MS);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

// What people decide here goes to Airflow's own API, as from its own forms: it asks for the permission and records who it was.
const api = new URL(document.querySelector("main").dataset.up || "./", location.href).pathname + "api/v2";
async function call(method, path, body) {
  const answer = await fetch(api + path, {
    method, headers: { "Content-Type": "application/json" }, body: body && JSON.stringify(body),
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const why = typeof said.detail === "string" ? said.detail : JSON.stringify(said.detail ?? {});
    throw new Error(answer.status === 403 ? "you may not do this here" : `${answer.status}: ${why}`);
  }
  return said;
}

function element(name, text, more = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  return Object.assign(made, more);
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.rollback) return;
  event.preventDefault();
  const said = form.querySelector("output"), button = form.querySelector("button");
  const { version, reason } = Object.fromEntries(new FormData(form));
  button.disabled = true;
  try {
    const run = await call("POST", `/dags/${encodeURIComponent(form.dataset.rollback)}/dagRuns`,
      { logical_date: null, conf: { version, reason } });
    said.textContent = `started: ${run.dag_run_id} of ${run.dag_id}; this page shows the result in a minute`;
  } catch (error) { said.textContent = error.message; button.disabled = false; }
});

// Open questions about a release, with the answers that Airflow's own form has.
async function questions(section) {
  const found = await call("GET", "/dags/~/dagRuns/~/hitlDetails?response_received=false&limit=100");
  const open = found.hitl_details.filter((one) => one.task_instance.task_id.endsWith("approve_release"));
  section.hidden = !open.length;
  for (const one of open) {
    const at = one.task_instance, form = element("form"), said = element("output");
    const reason = element("input", "", { size: 40, ariaLabel: "Reason" });
    const link = element("a", "its checklist", { href: new URL(`${document.querySelector("main").dataset.up}dags/${encodeURIComponent(at.dag_id)}/runs/${encodeURIComponent(at.dag_run_id)}/plugin/release-checklist`, location.href) });
    link.dataset.out = "";
    form.append(element("h3", `${one.subject} (${at.dag_run_id})`), link, element("pre", one.body), reason);
    for (const option of one.options) {
      const button = element("button", option, { type: "button" });
      button.onclick = async () => {
        try {
          await call("PATCH", `/dags/${encodeURIComponent(at.dag_id)}/dagRuns/${encodeURIComponent(at.dag_run_id)}/taskInstances/${encodeURIComponent(at.task_id)}/${at.map_index}/hitlDetails`,
            { chosen_options: [option], params_input: { approval_reason: reason.value } });
          form.replaceChildren(element("p", `${option}: recorded for ${at.dag_run_id}`));
        } catch (error) { said.textContent = error.message; }
      };
      form.append(button);
    }
    form.append(said);
    section.append(form);
  }
}
document.querySelectorAll("[data-questions]").forEach((section) => questions(section).catch(() => {}));
