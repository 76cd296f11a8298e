// A question of Airflow with many rows or pairs, shown one after another. What is sent is what Airflow's own form sends.
const sheet = document.getElementById("sheet");

// The Markdown of a question: an introduction, then a heading for each part with texts in fences, which may hold anything.
function parts(body) {
  const found = [];
  let part = { title: "", texts: [], intro: [] }, fence = null, name = "", text = [];
  found.push(part);
  for (const line of body.split("\n")) {
    if (fence) {
      if (line === fence) { part.texts.push({ name, text: text.join("\n") }); fence = null; } else text.push(line);
    } else if (/^`{3,}$/.test(line)) { fence = line; text = [];
    } else if (line.startsWith("### ")) { part = { title: line.slice(4), texts: [], intro: [] }; name = ""; found.push(part);
    } else if (/^\*\*[^*]+\*\*$/.test(line)) name = line.slice(2, -2);
    else if (line) part.intro.push(line);
  }
  return found;
}

function control(name, field, given, changed) {
  const schema = field.schema, choices = (schema.enum || []).filter((one) => one !== null);
  const label = element("label", schema.title || name);
  if (choices.length) {
    const row = element("div", "", { className: "choices", role: "group", ariaLabel: label.textContent });
    choices.forEach((choice, at) => {
      const button = element("button", `${at + 1} ${choice}`, { type: "button", className: given[name] === choice ? "" : "plain", ariaPressed: String(given[name] === choice) });
      button.dataset.key = String(at + 1);
      button.onclick = () => { given[name] = choice; changed(true); };
      row.append(button);
    });
    return row;
  }
  if (schema.type === "boolean" || [schema.type].flat().includes("boolean")) {
    const box = element("input", "", { type: "checkbox", checked: given[name] === true });
    box.onchange = () => { given[name] = box.checked; changed(false); };
    label.prepend(box);
    return label;
  }
  const area = element("textarea", given[name] || "", { rows: 3, cols: 70, placeholder: schema.description || field.description || "" });
  area.oninput = () => { given[name] = area.value.trim() ? area.value : null; changed(false); };
  label.append(area);
  return label;
}

async function answerSheet() {
  const place = sheet.dataset.place, kept = `tuneline:${place}`;
  const question = await call("GET", place);
  if (question.response_received) { sheet.replaceChildren(element("p", "This question was answered.")); return; }
  const [first, ...shown] = parts(question.body || "");
  const fields = Object.entries(question.params).map(([name, field]) => ({ name, field, part: /^(?:Pair|Row) \d+/.exec(field.schema.title || "")?.[0] }));
  const given = Object.fromEntries(fields.map((one) => [one.name, one.field.value ?? null]));
  try { Object.assign(given, JSON.parse(sessionStorage.getItem(kept) || "{}")); } catch { /* begin anew */ }
  const of = (part) => fields.filter((one) => one.part && (part.title === one.part || part.title.startsWith(`${one.part} `)));
  const answered = (part) => of(part).some((one) => given[one.name] !== null && given[one.name] !== false);
  let at = Math.max(0, shown.findIndex((part) => !answered(part)));

  function go(step) { at = Math.min(Math.max(at + step, 0), shown.length); draw(); }
  function keep() { sessionStorage.setItem(kept, JSON.stringify(given)); }
  // A choice goes on by itself, unless it asks for a text.
  function changed(name, chosen) {
    keep();
    if (!chosen) return;
    if (given[name] === "correct") { draw(); sheet.querySelector("textarea")?.focus(); } else go(1);
  }

  function draw() {
    const done = shown.filter(answered).length, part = shown[at];
    const bar = element("progress", "", { max: shown.length, value: done, ariaLabel: "progress" });
    const head = element("header"), nav = element("div", "", { className: "choices" });
    head.append(element("h1", question.subject), element("span", `${done} of ${shown.length} `), bar);
    const back = element("button", "← undo (u)", { type: "button", className: "plain", disabled: at === 0 });
    const on = element("button", "go on (n) →", { type: "button", className: "plain", disabled: at === shown.length });
    back.dataset.key = "u"; on.dataset.key = "n";
    back.onclick = () => { go(-1); for (const one of of(shown[at])) given[one.name] = one.field.value ?? null; keep(); draw(); };
    on.onclick = () => go(1);
    nav.append(back, on);
    const content = [];
    if (part) {
      content.push(element("h2", part.title), ...part.intro.map((line) => element("p", line)));
      const texts = element("div", "", { className: "texts" });
      for (const one of part.texts) {
        const box = element("section");
        box.append(element("h3", one.name), element("pre", one.text));
        texts.append(box);
      }
      content.push(texts, ...of(part).map((one) => control(one.name, one.field, given, (chosen) => changed(one.name, chosen))));
    } else {
      content.push(element("h2", "Send"), element("p", `${done} of ${shown.length} are answered.`));
      content.push(...fields.filter((one) => !one.part).map((one) => control(one.name, one.field, given, keep)));
      const said = element("output");
      for (const option of question.options) {
        const button = element("button", option, { type: "button", className: option === question.options[0] ? "" : "plain" });
        button.onclick = async () => {
          try {
            await call("PATCH", place, { chosen_options: [option], params_input: given });
            sessionStorage.removeItem(kept);
            sheet.replaceChildren(element("h1", question.subject), element("p", `${option}: sent.`));
          } catch (error) { said.textContent = error.message; }
        };
        content.push(button);
      }
      content.push(said);
    }
    sheet.replaceChildren(head, ...(at === 0 ? first.intro.map((line) => element("p", line, { className: "soft" })) : []), ...content, nav);
  }

  document.addEventListener("keydown", (event) => {
    const typing = ["TEXTAREA", "INPUT"].includes(event.target.tagName);
    if (typing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) { go(1); return; }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const button = [...sheet.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
    if (button && !button.disabled) { event.preventDefault(); button.click(); }
  });
  draw();
}
answerSheet().catch((error) => sheet.replaceChildren(element("p", `The question can't be shown: ${error.message}.`)));
