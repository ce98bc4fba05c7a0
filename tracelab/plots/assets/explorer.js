// The trace explorer. One function for both lives of it: as a widget with a kernel that draws
// any trace, and as a static page that has only the figures it carries. All foreign text goes
// into the page as text nodes.
function traceExplorer(el, content, ask) {
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const root = make("div", "tracelab-explorer");
  el.replaceChildren(root);
  const bar = root.appendChild(make("div", "bar"));
  const counted = make("span", "counted");
  const choices = {};
  for (const [field, title] of [["kind", "Kind"], ["service", "Service"], ["hop", "Hop"]]) {
    const label = bar.appendChild(make("label", "", title + " "));
    const select = label.appendChild(make("select"));
    select.dataset.field = field;
    select.append(new Option("all", ""));
    for (const value of [...new Set(content.rows.map((row) => row[field]))].sort()) {
      if (value) select.append(new Option(value.length > 60 ? value.slice(0, 59) + "…" : value, value));
    }
    select.addEventListener("change", fill);
    choices[field] = select;
  }
  bar.append(counted);
  const frame = root.appendChild(make("div", "cases"));
  const table = frame.appendChild(make("table"));
  const head = table.appendChild(make("thead")).appendChild(make("tr"));
  for (const title of ["", "kind", "cause or error", "hop", "span", "sure", "trace id", "span id"]) {
    head.append(make("th", "", title));
  }
  const body = table.appendChild(make("tbody"));
  const detail = root.appendChild(make("div", "detail"));
  detail.append(make("p", "hint", "Click a row to see its trace; click an id to copy it."));
  const note = detail.appendChild(make("p", "note"));
  const evidence = detail.appendChild(make("ul", "evidence"));
  const drawing = root.appendChild(make("div", "drawing"));
  let wanted = null;

  function copyable(id) {
    const button = make("button", "id", id);
    button.type = "button";
    button.title = "copy " + id;
    button.addEventListener("click", async (event) => {
      event.stopPropagation();
      await copy(id);
      button.classList.add("copied");
      setTimeout(() => button.classList.remove("copied"), 900);
    });
    return button;
  }

  async function copy(text) {
    // First the old way: it works in pages opened from a file, and asks for no permission.
    const area = document.body.appendChild(make("textarea", "", text));
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) await navigator.clipboard.writeText(text);
  }

  function fill() {
    const shown = content.rows.filter((row) =>
      Object.entries(choices).every(([field, select]) => !select.value || row[field] === select.value));
    counted.textContent = shown.length + " of " + content.total + " cases";
    body.replaceChildren(...shown.map((row) => {
      const line = make("tr");
      line.tabIndex = 0;
      line.append(make("td", "severity " + row.severity, row.severity));
      for (const field of ["kind", "why", "hop", "span"]) {
        line.append(make("td", "", row[field]));
        line.lastChild.title = row[field];
      }
      line.append(make("td", "", row.confidence === null ? "" : row.confidence.toFixed(2)));
      line.append(make("td", "ids"), make("td", "ids"));
      line.children[6].append(copyable(row.trace_id));
      line.children[7].append(copyable(row.span_id));
      line.addEventListener("click", () => open(row, line));
      line.addEventListener("keydown", (event) => { if (event.key === "Enter") open(row, line); });
      return line;
    }));
  }

  function open(row, line) {
    for (const other of body.querySelectorAll(".chosen")) other.classList.remove("chosen");
    line.classList.add("chosen");
    evidence.replaceChildren(...row.evidence.map((text) => make("li", "", text)));
    if (row.caller_trace_id && row.caller_trace_id !== row.trace_id) {
      const item = evidence.appendChild(make("li", "", "probably called from trace "));
      item.append(copyable(row.caller_trace_id), " ");
      const jump = item.appendChild(make("button", "jump", "show that trace"));
      jump.type = "button";
      jump.addEventListener("click", () => show(row.caller_trace_id));
    }
    show(row.trace_id);
  }

  function show(traceId) {
    wanted = traceId;
    if (content.figures[traceId]) return draw(traceId, content.figures[traceId]);
    window.Plotly.purge(drawing);
    drawing.replaceChildren();
    note.textContent = ask
      ? "drawing …"
      : "This page carries the pictures of some traces only; run the notebook to see this one.";
    if (ask) ask(traceId);
  }

  function draw(traceId, spec) {
    content.figures[traceId] = spec;
    if (traceId !== wanted) return;
    note.textContent = "";
    window.Plotly.react(drawing, spec.data, spec.layout, { responsive: true, displaylogo: false });
  }

  fill();
  return { draw };
}
