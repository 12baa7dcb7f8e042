// Line charts of one or several runs, drawn by uPlot (vendored). Text and colours come from the page, so that both themes work.
"use strict";

const Charts = (() => {
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
  const WHOLE = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((power) => [1, 2, 5].map((part) => part * 10 ** power));
  const AXES = { tick: "tick", env_steps: "environment steps", wall_s: "minutes" };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const faded = (name, alpha) => {
    const found = colour(name);
    return /^#[0-9a-f]{6}$/i.test(found) ? found + alpha : found;
  };

  function element(tag, properties = {}, ...children) {
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in found) found[name] = value;
      else found.setAttribute(name, value);
    }
    found.append(...children);
    return found;
  }

  function shown(value, rate) {
    if (value === null || value === undefined) return "–";
    const text = rate ? `${(100 * value).toFixed(1)} %` : String(Number(value.toPrecision(4)));
    return text.replace("-", "−");
  }

  // Ticks on another axis: linear between the records whose steps and seconds are known.
  function along(ticks, axis, map) {
    if (axis === "tick") return ticks;
    const [from, to] = [map.tick, map[axis]];
    if (!from.length) return ticks.map(() => null);
    const scale = axis === "wall_s" ? 1 / 60 : 1;
    let at = 0;
    return ticks.map((tick) => {
      while (at < from.length - 2 && from[at + 1] < tick) at += 1;
      if (from.length === 1 || tick <= from[0]) return to[0] * scale;
      const share = Math.min(1, (tick - from[at]) / (from[at + 1] - from[at] || 1));
      return (to[at] + share * (to[at + 1] - to[at])) * scale;
    });
  }

  // Without points that have no place on the axis; of several at one place, the last.
  function table(x, y) {
    const places = new Map();
    x.forEach((value, index) => { if (value !== null) places.set(value, y[index]); });
    const sorted = [...places.keys()].sort((a, b) => a - b);
    return [sorted, sorted.map((value) => places.get(value))];
  }

  // The lines of a panel: one for each visible run and metric that has values.
  function linesOf(panel, runs, several, curves) {
    const found = [];
    Object.entries(panel.keys).forEach(([key, label], place) => {
      for (const run of runs) {
        const curve = (curves[key] || {})[run.id];
        if (!curve || !curve[0].length) continue;
        const many = Object.keys(panel.keys).length > 1;
        found.push({
          curve, run, colour: several ? run.colour : (place % 8) + 1, dash: several ? DASHES[place % DASHES.length] : [],
          label: several ? (many ? `${run.name} · ${label}` : run.name) : label,
        });
      }
    });
    return found;
  }

  class Chart {
    constructor(panel) {
      this.panel = panel;
      this.plot = element("div", { className: "plot", tabIndex: 0, role: "img" });
      this.legend = element("ul", { className: "legend" });
      const note = element("span", {}, panel.note);
      this.node = element("figure", { role: "group", "aria-label": panel.title }, element("figcaption", {}, panel.title, note), this.plot, this.legend);
      this.plot.addEventListener("keydown", (event) => this.move(event));
      this.observer = new ResizeObserver(() => {
        if (this.u && this.plot.clientWidth) this.u.setSize({ width: this.plot.clientWidth, height: 210 });
      });
      this.observer.observe(this.plot);
    }

    // runs: visible ones; several: whether the page has several; answer: axes and curves; axis: tick, env_steps or wall_s.
    show(panel, runs, several, answer, axis) {
      this.panel = panel;
      this.lines = linesOf(panel, runs, several, answer.curves);
      this.node.hidden = !this.lines.length;
      if (!this.lines.length) return;
      const tables = [], series = [{}], bands = [];
      for (const line of this.lines) {
        const [x, y, meanX, mean] = line.curve;
        const map = answer.axes[line.run.id];
        const name = `--c${line.colour}`;
        const points = { show: x.length <= 30, size: 5 };
        if (line.curve.length > 4) {
          for (const end of [5, 6]) tables.push(table(along(line.curve[4], axis, map), line.curve[end]));
          bands.push({ series: [series.length + 1, series.length], fill: () => faded(name, "26") });
          for (let end = 0; end < 2; end += 1) series.push({ stroke: "transparent", width: 0, spanGaps: true, points: { show: false } });
        }
        if (mean.length) {
          tables.push(table(along(x, axis, map), y));
          series.push({ stroke: () => faded(name, "40"), width: 1, spanGaps: true, points: { show: false } });
        }
        line.at = series.length;
        tables.push(mean.length ? table(along(meanX, axis, map), mean) : table(along(x, axis, map), y));
        series.push({ stroke: () => colour(name), width: 2, dash: line.dash, spanGaps: true, points });
      }
      const data = uPlot.join(tables);
      this.stages = several ? [] : this.lines[0].run.stages.map(([tick, stage]) => [along([tick], axis, answer.axes[this.lines[0].run.id])[0], stage]);
      const form = JSON.stringify([axis, panel.rate, this.lines.map((line) => [line.label, line.colour, line.curve[2].length > 0, line.curve[0].length <= 30, line.curve.length])]);
      if (form !== this.form) {
        this.form = form;
        this.rebuild(series, bands, data, axis);
      } else {
        this.u.setData(data, !this.zoomed);
        if (this.zoomed) this.u.redraw();
      }
      this.values(null);
      const last = this.lines.map((line) => `${line.label} ${shown(line.curve[1].at(-1), panel.rate)}`).join(", ");
      this.plot.setAttribute("aria-label", `${panel.title}, last values: ${last}. Arrow keys move along the curve, Escape shows all of it.`);
    }

    rebuild(series, bands, data, axis) {
      if (this.u) this.u.destroy();
      this.zoomed = false;
      const { rate, lowest } = this.panel;
      const line = { stroke: () => colour("--soft"), font: "11px system-ui, sans-serif", labelFont: "11px system-ui, sans-serif",
        grid: { stroke: () => colour("--line"), width: 1 }, ticks: { stroke: () => colour("--line"), width: 1, size: 4 } };
      const range = rate ? [-0.02, 1.02] : (u, low, high) => {
        if (low === null) return [0, 1];
        if (lowest !== null && low < lowest) low = lowest;
        const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
        return [low - room, high + room];
      };
      this.u = new uPlot({
        width: this.plot.clientWidth || 380, height: 210, legend: { show: false }, padding: [14, 8, 0, 0],
        cursor: { sync: { key: "runs", scales: ["x", null] }, y: false, drag: { x: true, y: false }, points: { size: 7 } },
        scales: { x: { time: false }, y: { range } }, series, bands,
        axes: [{ ...line, incrs: axis === "wall_s" ? undefined : WHOLE, size: 34, label: AXES[axis], labelSize: 14, labelGap: 0 },
          { ...line, size: 52, values: (u, ticks) => ticks.map((tick) => (rate ? `${Math.round(100 * tick)} %` : shown(tick, false))) }],
        hooks: {
          setCursor: [(u) => this.values(u.cursor.idx)],
          setSelect: [(u) => { this.zoomed = this.zoomed || u.select.width > 0; }],
          drawClear: [(u) => this.mark(u)],
        },
      }, data, this.plot);
      this.u.over.addEventListener("dblclick", () => { this.zoomed = false; });
    }

    // Dotted lines between the stages of a run, with their names above.
    mark(u) {
      if (this.stages.length < 2) return;
      const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
      ctx.save();
      ctx.font = `${10 * ratio}px system-ui, sans-serif`;
      ctx.fillStyle = colour("--soft");
      ctx.strokeStyle = colour("--faint");
      ctx.setLineDash([2 * ratio, 3 * ratio]);
      const places = this.stages.map(([x]) => Math.max(bbox.left, u.valToPos(x, "x", true)));
      this.stages.forEach(([, stage], index) => {
        const left = places[index], right = Math.min(bbox.left + bbox.width, places[index + 1] ?? Infinity);
        if (left > bbox.left && left < bbox.left + bbox.width) {
          ctx.beginPath(); ctx.moveTo(left, bbox.top); ctx.lineTo(left, bbox.top + bbox.height); ctx.stroke();
        }
        if (right - left > ctx.measureText(stage).width + 6 * ratio) ctx.fillText(stage, left + 2 * ratio, bbox.top - 3 * ratio);
      });
      ctx.restore();
    }

    // The legend shows the values at the cursor, and the last ones without it.
    values(index) {
      this.legend.replaceChildren(...this.lines.map((line) => {
        let value = line.curve[1].at(-1);
        if (index !== null && index !== undefined && this.u) {
          const column = this.u.data[line.at];
          let at = index;
          while (at > 0 && (column[at] === null || column[at] === undefined)) at -= 1;
          value = column[at];
        }
        const style = line.dash.length ? (line.dash[0] > 3 ? " dashed" : " dotted") : "";
        return element("li", {}, element("span", { className: `swatch c${line.colour}${style}` }), line.label, element("b", {}, shown(value, this.panel.rate)));
      }));
    }

    move(event) {
      const u = this.u, count = u.data[0].length;
      const now = u.cursor.idx ?? count - 1;
      const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: count - 1 }[event.key];
      if (event.key === "Escape") {
        this.zoomed = false;
        u.setData(u.data, true);
        u.setCursor({ left: -10, top: -10 });
      } else if (next !== undefined) {
        event.preventDefault();
        const at = Math.max(0, Math.min(count - 1, next));
        u.setCursor({ left: u.valToPos(u.data[0][at], "x"), top: u.over.clientHeight / 2 });
      }
    }

    remove() {
      this.observer.disconnect();
      if (this.u) this.u.destroy();
      this.node.remove();
    }
  }

  return { Chart, element, shown };
})();
