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
