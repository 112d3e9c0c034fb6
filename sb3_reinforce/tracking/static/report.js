"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const style = getComputedStyle(document.documentElement);
const color = number => style.getPropertyValue("--c" + number % 8).trim();
const soft = style.getPropertyValue("--soft").trim(), grid = style.getPropertyValue("--line").trim();
const SMALL = 170, TALL = 300, FONT = '11px -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';
const plots = [], hidden = new Set();
const view = { smoothing: 0, log: false, seconds: false };

function element(tag, parent, text, properties) {
  const made = parent.appendChild(document.createElement(tag));
  if (text) made.textContent = text;
  return Object.assign(made, properties);
}
function short(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(4) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(4) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(4) + "k";
  if (size > 0 && size < 1e-3) return value.toExponential(1);
  return String(+value.toPrecision(4));
}
// exponential mean, without the bias of its start; smoothing 0 changes nothing
function smooth(values) {
  let mean = 0, weight = 0;
  return values.map(value => {
    if (value === null) return null;
    mean = view.smoothing * mean + (1 - view.smoothing) * value;
    weight = view.smoothing * weight + (1 - view.smoothing);
    return mean / weight;
  });
}
const positive = values => view.log ? values.map(value => value > 0 ? value : null) : values;

// The lines of a panel: for each curve the mean, both ends of its band and its runs, and behind them the evaluations.
function linesOf(panel) {
  const lines = [];
  const evaluations = panel.evaluations || [];
  for (const curve of panel.curves) {
    lines.push({ curve, kind: "mean", values: curve.mean });
    if (curve.high.length) lines.push({ curve, kind: "high", values: curve.high }, { curve, kind: "low", values: curve.low });
    for (const values of curve.runs) lines.push({ curve, kind: "run", values });
  }
  for (const curve of evaluations) {
    lines.push({ curve, kind: "evaluation", values: curve.mean });
    if (curve.best) lines.push({ curve, kind: "best", values: null });
  }
  return lines;
}
// Steps, or seconds of training where the curve has them
const axisOf = curve => view.seconds ? curve.seconds || [] : curve.x;
function tableOf({ curve, kind, values }) {
  const x = axisOf(curve);
  if (kind === "best") {
    const at = curve.x.findIndex(step => step >= curve.best[0]);
    const best = view.seconds ? x[at < 0 ? x.length - 1 : at] : curve.best[0];
    return best === undefined ? [[], []] : [[best], positive([curve.best[1]])];
  }
  if (!x.length) return [[], []];
  return [x, positive(kind === "mean" || kind === "run" ? smooth(values) : values)];
}
function columns(panel) {
  // seconds of several runs may repeat; uPlot wants rising x
  const tables = linesOf(panel).map(tableOf).map(([x, y]) => {
    const keep = x.map((value, i) => value !== null && (i === 0 || value > x[i - 1]));
    return [x.filter((_, i) => keep[i]), y.filter((_, i) => keep[i])];
  });
  return tables.some(([x]) => x.length) ? uPlot.join(tables) : [[], ...tables.map(() => [])];
}
const STYLES = {
  mean: stroke => ({ stroke, width: 2 }),
  run: stroke => ({ stroke: stroke + "80", width: 1 }),
  evaluation: stroke => ({ stroke, width: 1.5, dash: [6, 4] }),
  best: stroke => ({ stroke, width: 0, points: { show: true, size: 10, fill: stroke } }),
  // The axis comes from the lines: a wide band must not flatten them.
  high: () => ({ stroke: "transparent", width: 0, auto: false }),
  low: () => ({ stroke: "transparent", width: 0, auto: false }),
};
function rangeOf(_, low, high) {
  if (low === null || low === undefined) return view.log ? [1, 10] : [0, 1];
  if (view.log) return uPlot.rangeLog(low, high, 10, false);
  const room = (high - low) * .06 || Math.abs(high) * .1 || 1;
  return [low - room, high + room];
}
function draw(panel, parent, height) {
  const box = element("div", parent, "", { className: "panel", tabIndex: 0 });
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", panel.title + ": " + panel.curves.map(c => c.curve + " ends at " + short(c.mean.at(-1))).join("; "));
  const value = element("span", box, "", { className: "value" });
  element("h3", box, panel.title);
  element("code", box, panel.key);
  const target = element("div", box), lines = linesOf(panel), series = [{}], bands = [];
  for (const { curve, kind } of lines) {
    const stroke = color(data.curves.indexOf(curve.curve));
    if (kind === "high") bands.push({ series: [series.length, series.length + 1], fill: stroke + "2e" });
    const few = kind === "mean" && curve.mean.filter(y => y !== null).length < 30;
    series.push({ label: kind, spanGaps: false, points: { show: few, size: 5 }, ...STYLES[kind](stroke) });
  }
  const axis = { stroke: soft, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: FONT };
  const values = (_, ticks) => ticks.map(short);
  let plot;
  const make = () => {
    plot = new uPlot({
      width: target.clientWidth, height, series, bands, padding: [10, 20, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "step" }, points: { show: false }, y: false },
      scales: { x: { time: false }, y: { distr: view.log ? 3 : 1, range: rangeOf } },
      axes: [{ ...axis, values, space: 60, size: 26, gap: 2 }, { ...axis, values, size: 52 }],
      hooks: { setCursor: [self => {
        const x = self.cursor.left >= 0 ? self.posToVal(self.cursor.left, "x") : null;
        value.textContent = x === null ? "" : panel.curves.filter(curve => !hidden.has(curve.curve)).slice(0, 3)
          .map(curve => short(valueAt(curve, x))).filter(text => text).join(" | ") + " at " + short(x) + (view.seconds ? " s" : "");
      }] },
    }, columns(panel), target);
    lines.forEach(({ curve }, at) => { if (hidden.has(curve.curve)) plot.setSeries(at + 1, { show: false }); });
  };
  make();
  box.onkeydown = event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const width = plot.over.clientWidth, left = Math.max(0, plot.cursor.left);
    plot.setCursor({ left: Math.min(width, Math.max(0, left + move * width / 40)), top: plot.over.clientHeight / 2 });
  };
  const entry = { panel, box, target, height, lines, remake: () => { plot.destroy(); make(); entry.plot = plot; }, plot };
  plots.push(entry);
}
function valueAt(curve, x) {
  const axis = axisOf(curve);
  if (!axis.length || x > axis.at(-1)) return null;
  const next = axis.findIndex(each => each >= x);
  return curve.mean[next > 0 && x - axis[next - 1] < axis[next] - x ? next - 1 : next];
}
for (const panel of data.hero) draw(panel, document.getElementById("hero"), TALL);
for (const section of data.sections) {
  const parent = element("section", document.getElementById("sections"));
  element("h2", parent, section.title);
  element("p", parent, section.question);
  const inside = element("div", parent, "", { className: "grid" });
  for (const panel of section.panels) draw(panel, inside, SMALL);
  if (section.constant.length) {
    const folded = element("details", parent);
    element("summary", folded, "Constant: " + section.constant.map(([title]) => title).join(", "));
    for (const [title, key, number] of section.constant) element("div", folded, title + " (" + key + "): " + short(number));
  }
}

const controls = document.getElementById("controls");
const buttons = element("div", controls), options = element("div", controls);
function show(name, button, visible) {
  visible ? hidden.delete(name) : hidden.add(name);
  button.setAttribute("aria-pressed", String(visible));
  for (const { lines, plot } of plots)
    lines.forEach(({ curve }, at) => { if (curve.curve === name) plot.setSeries(at + 1, { show: visible }); });
}
const curves = data.curves.map((name, number) => {
  const button = element("button", buttons);
  element("i", button, "", { className: "dot c" + number % 8 });
  button.append(name);
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => show(name, button, hidden.has(name));
  return { name, button };
});
function field(text, tag, properties) {
  return element(tag, element("label", options, text), "", properties);
}
const wanted = field("Runs", "input", { type: "search", placeholder: "name or setting" });
wanted.oninput = () => {
  const text = wanted.value.toLowerCase();
  const found = new Set();
  for (const row of document.querySelectorAll("#runs tbody tr")) {
    const fits = row.textContent.toLowerCase().includes(text);
    row.hidden = !fits;
    if (fits) found.add(+row.dataset.curve);
  }
  curves.forEach(({ name, button }, number) => {
    button.hidden = !found.has(number);
    if (found.has(number) === hidden.has(name)) show(name, button, found.has(number));
  });
};
const metric = field("Metrics", "input", { type: "search", placeholder: "return, kl, ..." });
metric.oninput = () => {
  const text = metric.value.toLowerCase();
  for (const { panel, box } of plots) box.hidden = !(panel.title + " " + panel.key).toLowerCase().includes(text);
  for (const section of document.querySelectorAll("#sections section"))
    section.hidden = !!text && !section.querySelector(".panel:not([hidden])");
};
const remakeAll = () => plots.forEach(entry => entry.remake());
const xAxis = field("x", "select");
for (const name of ["steps", "seconds"]) element("option", xAxis, name, { value: name });
if (![...data.hero, ...data.sections.flatMap(section => section.panels)].some(panel => panel.curves.some(curve => curve.seconds)))
  xAxis.lastChild.disabled = true;
xAxis.onchange = () => { view.seconds = xAxis.value === "seconds"; remakeAll(); };
const log = field("log y", "input", { type: "checkbox" });
log.onchange = () => { view.log = log.checked; remakeAll(); };
const slider = field("Smoothing", "input", { type: "range", min: 0, max: .98, step: .02, value: 0 });
slider.oninput = () => {
  view.smoothing = +slider.value;
  for (const { panel, plot } of plots) plot.setData(columns(panel), false), plot.redraw();
};
new ResizeObserver(() => {
  for (const { plot, target, height } of plots)
    if (target.clientWidth && target.clientWidth !== plot.width) plot.setSize({ width: target.clientWidth, height });
}).observe(document.querySelector("main"));
