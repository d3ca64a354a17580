"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const css = name => getComputedStyle(root).getPropertyValue(name).trim();
  const font = "12px system-ui, \"DejaVu Sans\", sans-serif";
  const joined = shape => shape === "lines" || shape === "steps";
  const titled = (a, more = a.unit) => more ? `${a.label} (${more})` : a.label;
  const axisTitle = a => titled(a, [a.unit, a.log && "log scale"].filter(Boolean).join(", "));
  const number = v => v == null ? "-" : Number(v.toPrecision(4)).toString();
  // tick is a number on an axis: large ones in thousands, millions, ...
  const tick = v => {
    const k = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([one]) => Math.abs(v) >= Math.max(one, 1e4));
    return k ? number(v / k[0]) + k[1] : number(v);
  };
  const charts = []; // of all figures, for redrawing

  // The markers, one a style: they tell curves apart where colours do not.
  const markers = [
    (c, x, y, r) => { c.arc(x, y, r, 0, 7); c.fill(); },
    (c, x, y, r) => { c.rect(x - r * .9, y - r * .9, r * 1.8, r * 1.8); c.fill(); },
    (c, x, y, r) => { c.moveTo(x, y - r * 1.1); c.lineTo(x + r, y + r * .8); c.lineTo(x - r, y + r * .8); c.closePath(); c.fill(); },
    (c, x, y, r) => { c.moveTo(x, y - r * 1.2); c.lineTo(x + r * 1.2, y); c.lineTo(x, y + r * 1.2); c.lineTo(x - r * 1.2, y); c.closePath(); c.fill(); },
    (c, x, y, r) => { c.moveTo(x - r, y - r); c.lineTo(x + r, y + r); c.moveTo(x + r, y - r); c.lineTo(x - r, y + r); c.stroke(); },
    (c, x, y, r) => { c.arc(x, y, r, 0, 7); c.stroke(); },
    (c, x, y, r) => { c.rect(x - r * .9, y - r * .9, r * 1.8, r * 1.8); c.stroke(); },
    (c, x, y, r) => { c.moveTo(x - r * 1.2, y); c.lineTo(x + r * 1.2, y); c.moveTo(x, y - r * 1.2); c.lineTo(x, y + r * 1.2); c.stroke(); },
  ];

  // hatched is a style's colour with its hatching, for areas.
  const hatched = (u, style) => {
    const size = 8 * devicePixelRatio, tile = document.createElement("canvas");
    tile.width = tile.height = size;
    const c = tile.getContext("2d");
    c.fillStyle = css("--c" + style);
    c.fillRect(0, 0, size, size);
    c.strokeStyle = css("--ground");
    c.lineWidth = 1.5 * devicePixelRatio;
    c.beginPath();
    for (const k of figures.hatches[style]) {
      if (k === "-") { c.moveTo(0, size / 2); c.lineTo(size, size / 2); }
      if (k === "|") { c.moveTo(size / 2, 0); c.lineTo(size / 2, size); }
      if (k === "/") for (const d of [-size, 0, size]) { c.moveTo(d, size); c.lineTo(d + size, 0); }
      if (k === "\\") for (const d of [-size, 0, size]) { c.moveTo(d, 0); c.lineTo(d + size, size); }
    }
    c.stroke();
    return u.ctx.createPattern(tile, "repeat");
  };

  // overlay draws what uPlot has no series for: single trials, intervals, markers, instants and lines of agreement.
  const overlay = (f, panel, first) => u => {
    const c = u.ctx, px = devicePixelRatio, {left, top, width, height} = u.bbox;
    const X = v => u.valToPos(v, "x", true), Y = v => u.valToPos(v, "y", true);
    c.save();
    c.font = `${12 * px}px system-ui, "DejaVu Sans", sans-serif`;
    c.beginPath();
    c.rect(left, top, width, height);
    c.clip();
    c.strokeStyle = c.fillStyle = css("--text");
    c.lineWidth = px;
    c.textAlign = "left";
    c.textBaseline = "alphabetic";
    const ends = [];
    for (const m of f.marks || []) {
      const x = X(m.x);
      c.setLineDash([5 * px, 4 * px]);
      c.beginPath(); c.moveTo(x, top); c.lineTo(x, top + height); c.stroke();
      if (!first) continue;
      const w = c.measureText(m.label).width;
      const at = x + w + 4 * px > left + width ? x - w - 4 * px : x + 4 * px;
      let row = 0;
      while (row < ends.length && ends[row] > at) row++;
      ends[row] = at + w + 4 * px;
      c.fillStyle = css("--ground");
      c.fillRect(at - px, top + (2 + 15 * row) * px, w + 2 * px, 14 * px);
      c.fillStyle = css("--text");
      c.fillText(m.label, at, top + (13 + 15 * row) * px);
    }
    for (const l of panel.lines || []) {
      if (f.x.log || panel.y.log) continue;
      c.setLineDash([2 * px, 4 * px]);
      c.strokeStyle = c.fillStyle = css("--faint");
      c.beginPath(); c.moveTo(X(f.x.min), Y(l.y + l.slope * f.x.min)); c.lineTo(X(f.x.max), Y(l.y + l.slope * f.x.max)); c.stroke();
      c.textAlign = "right";
      c.fillText("dotted: " + l.label, left + width - 4 * px, top + height - 6 * px);
      c.textAlign = "left";
    }
    c.setLineDash([]);
    if (panel.lanes) {
      c.strokeStyle = css("--rule");
      for (let i = 1; i <= panel.lanes.length; i++) { c.beginPath(); c.moveTo(left, Y(i)); c.lineTo(left + width, Y(i)); c.stroke(); }
    }
    panel.curves.forEach((curve, i) => {
      if (!u.series[i + 1].show) return;
      for (const s of curve.s || []) {
        const a = X(s.from), w = Math.max(X(s.to) - a, px), low = Y(s.low), high = Y(s.high); // what is short is seen all the same
        if (s.kind === "main") {
          c.fillStyle = hatched(u, curve.style);
          c.strokeStyle = css("--text");
          c.fillRect(a, high, w, low - high);
          if (w > 3 * px) c.strokeRect(a, high, w, low - high);
          const text = c.measureText(curve.name).width;
          if (text + 8 * px < w) {
            const x = a + (w - text) / 2, y = (low + high) / 2;
            c.fillStyle = css("--ground");
            c.fillRect(x - 3 * px, y - 8 * px, text + 6 * px, 16 * px);
            c.fillStyle = css("--text");
            c.fillText(curve.name, x, y + 4 * px);
          }
          continue;
        }
        c.fillStyle = css("--c" + curve.style);
        c.globalAlpha = s.kind === "beside" ? .4 : 1;
        c.fillRect(a, high, w, low - high);
        c.globalAlpha = 1;
        c.strokeStyle = css(s.kind === "beside" ? "--c" + curve.style : "--ground"); // details stand side by side, and are told apart by their edges
        if (w > 3 * px) c.strokeRect(a, high, w, low - high);
      }
      if (curve.shape === "bars" && !panel.stacked) {
        c.fillStyle = hatched(u, curve.style);
        c.strokeStyle = css("--text");
        (curve.p || []).slice(0, -1).forEach(([x, y], k) => {
          if (!(y > 0)) return;
          const a = X(x), w = X(curve.p[k + 1][0]) - a, high = Y(y), low = Y(panel.y.min);
          c.fillRect(a, high, w, low - high);
          c.strokeRect(a, high, w, low - high);
        });
      }
    });
    if (!panel.stacked) {
      panel.curves.forEach((curve, i) => {
        if (!u.series[i + 1].show) return;
        c.strokeStyle = c.fillStyle = css("--c" + curve.style);
        c.globalAlpha = .45;
        c.beginPath();
        for (const [x, y] of curve.t || []) { const a = X(x) - 9 * px, b = Y(y); c.moveTo(a, b); c.arc(a, b, 2 * px, 0, 7); } // beside the interval, not under it
        c.fill();
        c.globalAlpha = 1;
      });
      panel.curves.forEach((curve, i) => {
        if (!u.series[i + 1].show) return;
        c.strokeStyle = c.fillStyle = css("--c" + curve.style);
        c.lineWidth = 1.8 * px;
        const size = (curve.p || []).length > 100 ? 3 : 5;
        for (const [x, y, low, high] of curve.p || []) {
          if (low != null && high != null) {
            const a = X(x), lo = Y(Math.max(low, panel.y.min)), hi = Y(high), cap = 4 * px;
            c.beginPath();
            c.moveTo(a, lo); c.lineTo(a, hi); c.moveTo(a - cap, lo); c.lineTo(a + cap, lo); c.moveTo(a - cap, hi); c.lineTo(a + cap, hi);
            c.stroke();
          }
          if (curve.marked && y != null) { c.beginPath(); markers[curve.style](c, X(x), Y(y), size * px); }
        }
      });
    }
    c.restore();
  };

  // aligned puts all curves over one x, as uPlot wants it: undefined where a curve has no point, null where it has a gap.
  const aligned = panel => {
    const xs = [...new Set(panel.curves.flatMap(c => [...(c.p || []).map(p => p[0]), ...(c.s || []).map(s => s.from)]))].sort((a, b) => a - b);
    const at = new Map(xs.map((x, i) => [x, i]));
    const columns = panel.curves.map(c => {
      const column = new Array(xs.length);
      for (const p of c.p || []) column[at.get(p[0])] = p[1];
      return column;
    });
    if (panel.stacked) {
      for (let i = 1; i < columns.length; i++) columns[i] = columns[i].map((v, k) => (v || 0) + (columns[i - 1][k] || 0));
    }
    return [xs, ...columns];
  };

  // The places of a logarithmic axis, each labelled: the more of it there is, the fewer in a decade.
  const decades = (low, high) => {
    const steps = high / low <= 200 ? [1, 2, 5] : [1], all = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      for (const d of steps) {
        const v = Number(`${d}e${e}`);
        if (v >= low && v <= high) all.push(v);
      }
    }
    return all;
  };
  // The places of an axis: those that were tried, or the usual ones.
  const places = axis => axis.ticks ? {
    splits: () => axis.ticks.map(t => t.v), filter: (_, splits) => splits, values: () => axis.ticks.map(t => t.label || ""),
  } : ({
    ...(axis.log ? {splits: () => decades(axis.min, axis.max), filter: (_, splits) => splits} : {}),
    values: (_, splits) => splits.map(v => v == null ? "" : tick(v)),
  });

  const grid = () => ({stroke: () => css("--rule"), width: 1});
  const draw = (element, f) => {
    const holder = element.querySelector(".plot"), read = element.querySelector(".read");
    const width = Math.max(holder.clientWidth, 240);
    const us = f.panels.map((panel, n) => {
      const last = n === f.panels.length - 1, names = f.x.names;
      const longest = names ? Math.max(...names.map(s => s.length)) : 0;
      const tilted = names && longest * names.length * 7.5 > width - 90;
      const depth = tilted ? Math.min(longest * 4.5, 240) : 0; // of the names below the axis; one of more than 53 letters reaches into its title
      const data = aligned(panel), order = panel.curves.map((_, i) => i);
      const series = [{}, ...panel.curves.map(curve => ({
        label: curve.name,
        stroke: () => css(panel.stacked ? "--text" : "--c" + curve.style),
        fill: panel.stacked ? u => hatched(u, curve.style) : undefined,
        width: panel.stacked ? 1 : joined(curve.shape) ? 2 : 0,
        dash: panel.stacked ? undefined : figures.dashes[curve.style],
        points: {show: false},
        paths: panel.stacked ? uPlot.paths.bars({size: [.7, 90]}) : curve.shape === "steps" ? uPlot.paths.stepped({align: 1}) : curve.shape === "lines" ? uPlot.paths.linear() : () => null,
      }))];
      if (panel.stacked) { // the whole first: each next one covers its lower part
        order.reverse();
        series.splice(1, series.length - 1, ...order.map(i => series[i + 1]));
        data.splice(1, data.length - 1, ...order.map(i => data[i + 1]));
      }
      const u = new uPlot({
        width, height: (f.panels.length > 1 ? 200 : 300) + (last ? 24 : 0) + (last ? depth : 0),
        legend: {show: false},
        cursor: {drag: {x: false, y: false}, sync: {key: f.key, setSeries: false}, points: {show: false}},
        padding: [10, tilted ? Math.min(longest * 5, width / 3) : 14, 4, 0],
        scales: {
          x: {time: false, distr: f.x.log ? 3 : 1, range: [f.x.min, f.x.max]},
          y: {distr: panel.y.log ? 3 : 1, range: [panel.y.min, panel.y.max]},
        },
        axes: [{
          stroke: () => css("--text"), font, labelFont: font, label: last ? axisTitle(f.x) : undefined, labelSize: 20, grid: names ? {show: false} : grid(), ticks: grid(),
          size: tilted ? depth + 20 : 34, rotate: tilted ? -40 : 0,
          ...(names ? {splits: () => names.map((_, i) => i), values: () => names} : places(f.x)),
        }, {
          stroke: () => css("--text"), font, labelFont: font, label: axisTitle(panel.y), labelSize: 20, size: 58, grid: grid(), ticks: grid(),
          ...(panel.lanes ? {label: undefined, size: 90, grid: {show: false}, splits: () => panel.lanes.map((_, i) => panel.lanes.length - i - .5), values: () => panel.lanes} : places(panel.y)),
        }],
        series,
        hooks: {
          draw: [overlay(f, panel, n === 0)],
          setCursor: [u => {
            const i = u.cursor.idx;
            if (i == null) { read.textContent = "\u00a0"; return; }
            const x = data[0][i];
            if (panel.lanes) { // all that lasts where the cursor is
              const at = u.posToVal(u.cursor.left, "x"), near = (f.x.max - f.x.min) * 1e-6;
              const here = panel.lanes.map((lane, k) => [lane, panel.curves.flatMap(c => (c.s || []).filter(s => s.lane === k && s.from <= at + near && s.to >= at - near)
                .map(s => `${c.name}${s.label ? " of " + s.label : ""} ${number(s.to - s.from)} ${f.x.unit}${s.kind === "beside" ? " beside" : ""}`))]);
              read.textContent = `${titled(f.x)}: ${number(at)}; ` + here.filter(([, all]) => all.length).map(([lane, all]) => `${lane}: ${all.join(", ")}`).join("; ");
              return;
            }
            const parts = [];
            f.panels.forEach(p => p.curves.forEach(c => {
              const at = (c.p || []).find(q => q[0] === x);
              if (at && at[1] != null) parts.push(`${c.name}: ${number(at[1])}${p.y.unit ? " " + p.y.unit : ""}${at[2] != null && at[3] != null ? ` [${number(at[2])}, ${number(at[3])}]` : ""}${at[4] ? `, n = ${at[4]}` : ""}`);
            }));
            read.textContent = `${names ? names[Math.round(x)] : titled(f.x) + " " + number(x)}; ${parts.join("; ")}`;
          }],
        },
      }, data, holder);
      u.order = order;
      return u;
    });
    holder.addEventListener("keydown", e => {
      const u = us[0], xs = u.data[0];
      let i = u.cursor.idx ?? -1;
      if (e.key === "ArrowRight") i++; else if (e.key === "ArrowLeft") i--; else if (e.key === "Home") i = 0; else if (e.key === "End") i = xs.length - 1; else return;
      e.preventDefault();
      i = Math.min(Math.max(i, 0), xs.length - 1);
      us.forEach(v => v.setCursor({left: v.valToPos(xs[i], "x"), top: v.over.clientHeight / 2}));
    });
    for (const button of element.querySelectorAll(".legend button")) {
      button.addEventListener("click", () => {
        const show = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", show);
        us.forEach((u, n) => u.order.forEach((i, k) => {
          if (f.panels[n].curves[i].name === button.dataset.curve) u.setSeries(k + 1, {show});
        }));
      });
    }
    charts.push({holder, us, width, heights: us.map(u => u.height)});
  };

  // What is seen first is drawn first; the rest follows in slices, so that the page answers meanwhile.
  const waiting = [...document.querySelectorAll("figure[data-figure]")];
  let done = 0;
  const drawOne = element => { draw(element, figures.figures[element.dataset.figure]); done++; };
  const finish = () => {
    const until = performance.now() + 30;
    while (waiting.length && performance.now() < until) drawOne(waiting.shift());
    if (waiting.length) setTimeout(finish, 0); else { root.dataset.drawnMs = performance.now().toFixed(0); root.dataset.drawn = done; observe(); }
  };
  const all = () => { while (waiting.length) drawOne(waiting.shift()); };
  const redraw = () => charts.forEach(c => c.us.forEach(u => u.redraw(true, true)));
  const observe = () => {
    const o = new ResizeObserver(() => charts.forEach(c => {
      const width = Math.max(c.holder.clientWidth, 240);
      if (width !== c.width) {
        c.width = width;
        c.us.forEach(u => u.setSize({width, height: u.height}));
      }
    }));
    o.observe(document.body);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const paper = 680; // what a sheet of paper has for a figure, in CSS pixels
  const resize = (width, share) => charts.forEach(c => c.us.forEach((u, i) => u.setSize({width: width(c), height: share * c.heights[i]})));
  addEventListener("beforeprint", () => { root.classList.add("printing"); all(); resize(c => Math.min(c.width, paper), .85); redraw(); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); resize(c => c.width, 1); redraw(); });
  requestAnimationFrame(() => setTimeout(() => { root.dataset.interactiveMs = performance.now().toFixed(0); finish(); }, 0));
})();
