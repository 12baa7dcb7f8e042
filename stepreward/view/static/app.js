// The page: it asks for the runs every two seconds, or reads a snapshot that the page carries. Strings of a run are set as text; HTML comes
// from the report's own functions, which escape it.
"use strict";

(() => {
  const { Chart, element, shown } = Charts;
  const POLL_MS = 2000, PAGE = 12;
  const given = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const html = (text) => { const box = document.createElement("template"); box.innerHTML = text; return [...box.content.childNodes]; };

  // --- Where the data come from ---

  async function ask(path, parameters = []) {
    const answer = await fetch(`api/${path}?${new URLSearchParams(parameters)}`);
    if (!answer.ok) throw new Error(`${answer.status}`);
    return answer.json();
  }
  const kept = given.snapshot;
  const source = kept ? {
    state: async () => kept.state,
    curves: async () => kept.curves,
    index: async (run) => kept.index[run],
    episodes: async (run, places) => places.map(([file, number]) => kept.episodes[run][`${file}/${number}`]),
    tree: async (run, file) => kept.trees[run][file] || "",
    details: async (run) => kept.details[run],
  } : {
    state: () => ask("state"),
    curves: (keys) => ask("curves", keys.map((key) => ["key", key])),
    index: (run) => ask("index", [["run", run]]),
    episodes: (run, places) => ask("episodes", [["run", run], ...places.map(([file, number]) => ["of", `${file}/${number}`])]),
    tree: (run, file) => ask("tree", [["run", run], ["file", file]]),
    details: (run) => ask("details", [["run", run]]),
  };

  // --- What is on the page ---

  let state = { runs: [], panels: [], now: 0 };
  const hidden = new Set(), met = new Set(), chosen = new Map(), charts = new Map();
  const recordings = new Map(); // run -> { version, index }
  const articles = new Map(); // run/file/number -> node
  const rows = new Map(); // run -> its row in the table
  let limit = PAGE, curvesOf = "", drawnTools = "", turn = 0;

  const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const several = () => state.runs.length > 1;
  const visible = () => state.runs.filter((run) => !hidden.has(run.id));
  const isChosen = (panel) => chosen.get(panel.title) ?? panel.first;
  const ago = (seconds) => (seconds < 90 ? `${Math.max(0, Math.round(seconds))} s ago` : seconds < 5400 ? `${Math.round(seconds / 60)} min ago`
    : seconds < 172800 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`);

  // --- Runs ---

  function drawRuns() {
    document.title = $("title").textContent = several() ? `${state.runs.length} runs` : (state.runs[0] || { name: "run" }).name;
    place($("runs"), state.runs.map(rowOf));
    const notices = state.runs.flatMap((run) => run.notices.map((text) => element("p", { className: "notice" }, several() ? `${run.name}: ${text}` : text)));
    $("notices").replaceChildren(...notices);
    const latest = Math.max(...state.runs.map((run) => run.changed_s));
    $("state").textContent = kept ? `saved on ${new Date(1000 * state.now).toLocaleString()}` : `live, last change ${ago(state.now - latest)}`;
    $("state").classList.remove("lost");
    if (several()) $("runs-section").append($("headlines"));
    state.runs.forEach(drawDetails);
  }

  // The row of a run is made once and then filled, so that its box keeps the focus.
  function rowOf(run) {
    if (!rows.has(run.id)) {
      const box = element("input", { type: "checkbox" });
      box.addEventListener("change", () => { if (box.checked) hidden.delete(run.id); else hidden.add(run.id); drawAll(true); });
      const name = element("span", {}), swatch = element("span", { className: `swatch c${run.colour}` });
      const cells = Array.from({ length: 7 }, () => element("td", {}));
      rows.set(run.id, { node: element("tr", {}, element("th", { scope: "row" }, element("label", {}, box, " ", swatch, name)), ...cells), box, name, swatch, cells });
    }
    const { node, box, name, swatch, cells } = rows.get(run.id);
    box.checked = !hidden.has(run.id);
    box.hidden = swatch.hidden = !several();
    write(name, run.name);
    const count = (value) => (value === null ? "–" : value.toLocaleString("en"));
    const texts = [run.method || "–", run.environment || "–", run.stage || "not started", count(run.iteration), count(run.env_steps),
      shown(run.success, true), run.gone ? "deleted" : ago(state.now - run.changed_s)];
    cells.forEach((cell, index) => write(cell, texts[index]));
    return node;
  }

  function drawDetails(run) {
    let box = $(`details-${run.id}`);
    if (!box) {
      const tables = element("div", { className: "tables" });
      const more = element("details", { className: "block" }, element("summary", {}, "Tables and config"), tables);
      const headline = element("div", { className: "headline" });
      box = several() ? element("details", { className: "block", id: `details-${run.id}` }, element("summary", {}, `${run.name}: results, tables, config`), headline, more)
        : element("div", { id: `details-${run.id}` }, headline, more);
      more.addEventListener("toggle", () => fillTables(box));
      $("headlines").append(box);
    }
    box.run = run;
    if (box.version !== run.version) {
      box.version = run.version;
      box.querySelector(".headline").replaceChildren(...html(run.summary));
      fillTables(box);
    }
  }

  async function fillTables(box) {
    const tables = box.querySelector(".tables");
    if (!tables.parentNode.open || tables.version === box.version) return;
    tables.version = box.version;
    const open = [...tables.querySelectorAll("details")].map((one) => one.open);
    tables.replaceChildren(...html(await source.details(box.run.id)));
    tables.querySelectorAll("details").forEach((one, index) => { one.open = open[index] || false; });
  }

  // --- Curves ---

  function drawChooser() {
    const words = $("find-chart").value.toLowerCase();
    const groups = new Map();
    for (const panel of state.panels) {
      if (!groups.has(panel.group)) groups.set(panel.group, []);
      groups.get(panel.group).push(panel);
    }
    const form = JSON.stringify([words, state.panels.map((panel) => [panel.title, isChosen(panel)])]);
    if ($("choices").form === form) return;
    $("choices").form = form;
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.panel : undefined;
    $("choices").replaceChildren(...[...groups].map(([group, panels]) => {
      const boxes = panels.filter((panel) => panel.title.toLowerCase().includes(words)).map((panel) => {
        const box = element("input", { type: "checkbox", checked: isChosen(panel) });
        box.dataset.panel = panel.title;
        box.addEventListener("change", () => { chosen.set(panel.title, box.checked); drawCurves(true); });
        return element("label", {}, box, element("span", {}, panel.title));
      });
      return boxes.length ? element("fieldset", {}, element("legend", {}, group), ...boxes) : "";
    }));
    if (focused) { const box = [...$("choices").querySelectorAll("input")].find((one) => one.dataset.panel === focused); if (box) box.focus(); }
  }

  let answer = { axes: {}, curves: {} };
  async function drawCurves(force = false) {
    drawChooser();
    const panels = state.panels.filter(isChosen);
    const keys = [...new Set(panels.flatMap((panel) => Object.keys(panel.keys)))];
    const needed = JSON.stringify([keys, state.runs.map((run) => [run.id, run.version])]);
    if (needed === curvesOf && !force) return;
    if (needed !== curvesOf) { answer = await source.curves(keys); curvesOf = needed; }
    const titles = new Set(panels.map((panel) => panel.title));
    for (const [title, chart] of charts) if (!titles.has(title)) { chart.remove(); charts.delete(title); }
    panels.forEach((panel, place) => {
      if (!charts.has(panel.title)) charts.set(panel.title, new Chart(panel));
      const chart = charts.get(panel.title);
      if ($("curves").children[place] !== chart.node) $("curves").insertBefore(chart.node, $("curves").children[place] || null);
      chart.show(panel, visible(), several(), answer, $("axis").value);
    });
    $("no-curves").hidden = panels.length > 0;
  }

  // --- Episodes ---

  async function readIndexes() {
    for (const run of state.runs) {
      const known = recordings.get(run.id);
      if (known && known.version === run.recorded_version) continue;
      const index = run.recorded ? await source.index(run.id) : [];
      recordings.set(run.id, { version: run.recorded_version, index });
      for (const key of articles.keys()) if (key.startsWith(`${run.id}/`)) articles.delete(key);
    }
  }

  function drawTools() {
    const runs = several() ? [["", "all visible runs"], ...state.runs.map((run) => [run.id, run.name])] : [];
    const of = state.runs.filter((run) => !$("of-run").value || run.id === $("of-run").value);
    const iterations = [...new Set(of.flatMap((run) => recordings.get(run.id).index.map((one) => one.iteration)).filter((n) => n !== null))].sort((a, b) => b - a);
    const at = [["latest", "the latest"], ["all", "all"], ...iterations.map((n) => [String(n), `${n}`])];
    const form = JSON.stringify([runs, at]);
    if (form !== drawnTools) {
      drawnTools = form;
      $("of-run").parentNode.hidden = !several();
      for (const [select, options] of [[$("of-run"), runs], [$("of-iteration"), at]]) {
        const value = select.value;
        select.replaceChildren(...options.map(([name, text]) => element("option", { value: name }, text)));
        select.value = options.some(([name]) => name === value) ? value : (options[0] || [""])[0];
      }
    }
    const place = iterations.indexOf(Number($("of-iteration").value));
    const single = /^\d+$/.test($("of-iteration").value);
    $("later").disabled = !single;
    $("earlier").disabled = !iterations.length || (single && place === iterations.length - 1);
    $("earlier").onclick = () => go(single ? iterations[place + 1] : iterations[$("of-iteration").value === "latest" && iterations.length > 1 ? 1 : 0]);
    $("later").onclick = () => go(place > 0 ? iterations[place - 1] : "latest");
  }

  function go(iteration) {
    $("of-iteration").value = String(iteration);
    limit = PAGE;
    drawEpisodes();
  }

  function selected() {
    const at = $("of-iteration").value || "latest", words = $("of-text").value.toLowerCase().trim(), outcome = $("of-outcome").value;
    const runs = visible().filter((run) => !$("of-run").value || run.id === $("of-run").value);
    const entries = runs.flatMap((run) => {
      const index = [...recordings.get(run.id).index].reverse();
      const those = at === "all" ? index : at === "latest" ? index.slice(0, 1) : index.filter((one) => String(one.iteration) === at);
      return those.map((one) => ({ run, one }));
    });
    let all = 0;
    const found = entries.flatMap(({ run, one }) => one.episodes.map((episode, number) => ({ run, one, episode, number })).filter(({ episode }) => {
      all += 1;
      return (!outcome || episode.success === (outcome === "solved")) && (!words || `${episode.task}\n${episode.text}`.toLowerCase().includes(words));
    }));
    if (at === "all") found.sort((a, b) => b.one.iteration - a.one.iteration);
    return { entries, found, all };
  }

  async function drawEpisodes() {
    const mine = ++turn;
    await readIndexes();
    if (mine !== turn) return;
    drawTools();
    const { entries, found, all } = selected();
    const page = found.slice(0, limit), wanted = new Map();
    for (const { run, one, number } of page) {
      if (articles.has(`${run.id}/${one.file}/${number}`)) continue;
      if (!wanted.has(run.id)) wanted.set(run.id, []);
      wanted.get(run.id).push([one.file, number]);
    }
    for (const [run, places] of wanted) {
      for (let first = 0; first < places.length; first += 30) {
        const part = places.slice(first, first + 30);
        const texts = await source.episodes(run, part);
        part.forEach(([file, number], index) => articles.set(`${run}/${file}/${number}`, element("div", { className: "shown-episode" }, ...html(texts[index]))));
      }
    }
    const trees = [];
    for (const run of new Set(entries.map((entry) => entry.run))) {
      const last = entries.find((entry) => entry.run === run && entry.one.tree);
      if (last) trees.push([run, last.one, await source.tree(run.id, last.one.file)]);
    }
    if (mine !== turn) return;
    const of = (run) => (several() ? [element("p", { className: "of" }, element("span", { className: `swatch c${run.colour}` }), run.name)] : []);
    place($("episodes"), page.map(({ run, one, number }) => {
      const node = articles.get(`${run.id}/${one.file}/${number}`);
      if (several() && !node.querySelector(".of")) node.prepend(...of(run));
      return node;
    }));
    const form = JSON.stringify(trees.map(([run, one, text]) => [run.id, one.file, text.length]));
    if ($("trees").form !== form) {
      $("trees").form = form;
      $("trees").replaceChildren(...trees.flatMap(([run, , text]) => [...of(run), ...html(text)]));
    }
    write($("found"), all ? `${found.length} of ${all} recorded episode${all === 1 ? "" : "s"}`
      : "No episode has been recorded yet: evaluations during training record them.");
    const broken = entries.filter(({ one }) => one.error).map(({ one }) => element("p", { className: "notice" }, one.error));
    $("broken").replaceChildren(...broken);
    $("more").hidden = found.length <= limit;
    $("more").textContent = `Show ${Math.min(PAGE, found.length - limit)} more`;
  }

  // Puts the nodes into the box; those that are there stay untouched, so that what is open remains open.
  function place(box, nodes) {
    const those = new Set(nodes);
    [...box.children].forEach((child) => { if (!those.has(child)) child.remove(); });
    nodes.forEach((node, index) => { if (box.children[index] !== node) box.insertBefore(node, box.children[index] || null); });
  }

  // --- The loop ---

  async function drawAll(force = false) {
    drawRuns();
    await drawCurves(force);
    await drawEpisodes();
  }

  async function update() {
    state = await source.state();
    state.runs.forEach((run, index) => { run.colour = (index % 8) + 1; });
    for (const run of state.runs.slice(8)) if (!met.has(run.id)) hidden.add(run.id); // more colours could not be told apart
    state.runs.forEach((run) => met.add(run.id));
    await drawAll();
    document.body.dataset.ready = "yes";
  }

  async function loop() {
    try {
      if (!document.hidden || !document.body.dataset.ready) await update();
    } catch (error) {
      if (kept) throw error;
      $("state").textContent = "no connection to the viewer; the page shows what it had";
      $("state").classList.add("lost");
    }
    if (!kept) setTimeout(loop, POLL_MS);
  }

  $("axis").addEventListener("change", () => drawCurves(true));
  $("find-chart").addEventListener("input", drawChooser);
  $("no-charts").addEventListener("click", () => { state.panels.forEach((panel) => chosen.set(panel.title, false)); drawCurves(true); });
  $("all-charts").addEventListener("click", () => { state.panels.forEach((panel) => { if (panel.group === "Main") chosen.set(panel.title, true); }); drawCurves(true); });
  for (const id of ["of-run", "of-iteration", "of-outcome"]) $(id).addEventListener("change", () => { limit = PAGE; drawEpisodes(); });
  $("of-text").addEventListener("input", () => { limit = PAGE; drawEpisodes(); });
  $("more").addEventListener("click", () => { limit += PAGE; drawEpisodes(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.u && chart.u.redraw()));
  loop();
})();
