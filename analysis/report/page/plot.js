// Quality against speed: one point a setting, one line a curve (a method that does one thing, more or less of it). One tab stop; arrows go from point to point.
"use strict";

const PAD = { left: 52, right: 14, top: 12, bottom: 42 };

/** What can be read off a setting: its speed, quality and interval; null if either is missing. */
function reading(method, metric, speed) {
  const x = method[speed];
  const held = method.scores[metric.name];
  return known(x) && known(held?.mean) && x > 0 ? { method, x, y: held.mean, low: held.low, high: held.high } : null;
}

function drawPlot(state, box) {
  const { metric, speed } = state;
  const points = metric ? state.methods.map((m) => reading(m, metric, speed)).filter(Boolean).sort((a, b) => a.x - b.x) : [];
  if (!points.length) {
    box.replaceChildren(el("p", { class: "empty" }, "No setting has both a speed and a score."));
    return;
  }
  const width = Math.max(300, box.clientWidth), height = clamp(width * 0.5, 260, 460);
  const x = axis(points.map((p) => p.x), PAD.left, width - PAD.right, true);
  const y = axis(reach(points), height - PAD.bottom, PAD.top, false);
  const words = `${metric.title} against the speedup by ${speed === "macs" ? "MACs" : "latency"}, ${points.length} settings`;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": words });
  picture.append(grid(x, y, width, height, metric, speed));
  const drawn = svg("g");
  for (const curve of new Set(points.map((p) => p.method.curve))) drawn.append(line(points.filter((p) => p.method.curve === curve), x, y));
  const tip = el("div", { class: "tip", role: "status", hidden: true });
  const marks = points.map((point) => mark(state, point, x, y, tip, metric, speed));
  for (const each of marks) drawn.append(each);
  marks[Math.max(0, points.findIndex((p) => p.method.id === state.picked))].setAttribute("tabindex", "0");
  picture.addEventListener("keydown", (event) => walk(event, marks));
  picture.append(drawn);
  box.replaceChildren(picture, tip);
}

/** A scale from values to pixels with its ticks. */
function axis(values, from, to, logarithmic) {
  const f = logarithmic ? Math.log : (v) => v;
  const low = Math.min(...values), high = Math.max(...values);
  const margin = (f(high) - f(low) || (logarithmic ? 0.3 : Math.abs(high) * 0.1 || 1)) * 0.06;
  const a = f(low) - margin, b = f(high) + margin;
  const place = (v) => clamp(from + ((f(v) - a) / (b - a)) * (to - from), Math.min(from, to), Math.max(from, to));
  const ticks = logarithmic ? roundest(place, (v) => f(v) >= a && f(v) <= b) : even(a, b);
  return { place, ticks };
}

// of a logarithmic axis, the roundest first
const ROUND = [1, 2, 3, 5, 10, 20, 50, 4, 1.5, 2.5, 7, 15, 30, 3.5, 6, 8, 4.5, 1.25, 1.75, 2.2, 2.8, 3.2, 3.8, 1.1, 1.2, 1.3, 1.4, 0.5, 0.7, 0.8, 0.9];

/** As many of them as have 46 pixels each. */
function roundest(place, inside) {
  const kept = [];
  for (const tick of ROUND) if (inside(tick) && kept.every((other) => Math.abs(place(tick) - place(other)) >= 46)) kept.push(tick);
  return kept;
}

function even(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((s) => s * power >= rough);
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high; t += step) ticks.push(Number(t.toPrecision(6)));
  return ticks;
}

/** The points' qualities, and as much of their intervals as leaves the points two thirds of the axis. */
function reach(points) {
  const low = Math.min(...points.map((p) => p.y)), high = Math.max(...points.map((p) => p.y));
  const room = (high - low) / 4 || Infinity;
  return [Math.max(low - room, Math.min(...points.map((p) => p.low ?? p.y))), low, high, Math.min(high + room, Math.max(...points.map((p) => p.high ?? p.y)))];
}

function grid(x, y, width, height, metric, speed) {
  const group = svg("g", { class: "axes", "aria-hidden": "true" });
  for (const t of x.ticks) {
    const at = x.place(t);
    group.append(svg("line", { x1: at, x2: at, y1: PAD.top, y2: height - PAD.bottom }));
    group.append(svg("text", { x: at, y: height - PAD.bottom + 16, "text-anchor": "middle" }, `${t}×`));
  }
  for (const t of y.ticks) {
    const at = y.place(t);
    group.append(svg("line", { x1: PAD.left, x2: width - PAD.right, y1: at, y2: at }));
    group.append(svg("text", { x: PAD.left - 7, y: at + 4, "text-anchor": "end" }, String(t)));
  }
  const better = known(metric.ideal) ? `${metric.ideal} is best` : metric.lower ? "lower is better" : "higher is better";
  group.append(svg("text", { class: "title", x: (PAD.left + width - PAD.right) / 2, y: height - 6, "text-anchor": "middle" }, `speedup by ${speed === "macs" ? "MACs" : "latency"} →`));
  group.append(svg("text", { class: "title", x: 0, y: 0, "text-anchor": "middle", transform: `translate(13 ${(PAD.top + height - PAD.bottom) / 2}) rotate(-90)` }, `${metric.title} (${better})`));
  return group;
}

function line(points, x, y) {
  const { method } = points[0].method;
  const d = points.map((p, i) => `${i ? "L" : "M"}${x.place(p.x).toFixed(1)},${y.place(p.y).toFixed(1)}`).join("");
  const dotted = CONTROLS.includes(method) ? "2 3" : null;
  return svg("path", { class: "line", "data-method": method, d, stroke: look(method).colour, "stroke-dasharray": dotted, "aria-hidden": "true" });
}

function mark(state, point, x, y, tip, metric, speed) {
  const { method } = point, at = [x.place(point.x), y.place(point.y)];
  const { colour, shape } = look(method.method);
  const interval = known(point.low) ? ` [${score(point.low, metric.name)}, ${score(point.high, metric.name)}]` : "";
  const words = `${times(point.x)}, ${metric.title.split(",")[0]} ${score(point.y, metric.name)}${interval}`;
  const group = svg("g", {
    class: "mark", role: "button", tabindex: "-1", "data-id": method.id, "data-method": method.method,
    "aria-label": `${method.label}: ${words}`, "aria-pressed": String(state.picked === method.id),
  });
  if (known(point.low)) group.append(svg("line", { class: "whisker", stroke: colour, x1: at[0], x2: at[0], y1: y.place(point.low), y2: y.place(point.high) }));
  group.append(svg("circle", { class: "reach", cx: at[0], cy: at[1], r: 11 }));
  group.append(svg("path", { class: "point", d: SHAPES[shape], fill: colour, transform: `translate(${at[0].toFixed(1)} ${at[1].toFixed(1)})` }));
  const show = () => {
    tip.replaceChildren(el("b", {}, swatch(method.method), el("span", {}, ...named(method))), el("span", {}, words), el("span", {}, `${plain(method.computed)}/${method.steps} steps computed, ${speed === "macs" ? "" : `${times(method.macs)} by MACs, `}n = ${method.n}`));
    tip.hidden = false;
    const scale = group.ownerSVGElement.clientWidth / group.ownerSVGElement.viewBox.baseVal.width;
    const left = clamp(at[0] * scale - tip.offsetWidth / 2, 0, group.ownerSVGElement.clientWidth - tip.offsetWidth);
    const above = at[1] * scale - tip.offsetHeight - 14;
    tip.style.transform = `translate(${left}px, ${above > 0 ? above : at[1] * scale + 16}px)`;
  };
  for (const event of ["pointerenter", "focus"]) group.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) group.addEventListener(event, () => { tip.hidden = true; });
  group.addEventListener("click", () => state.pick(method.id));
  return group;
}

/** Arrows move along the points, Enter or space picks one. */
function walk(event, marks) {
  const here = marks.indexOf(document.activeElement);
  if (here < 0) return;
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -here, End: marks.length - 1 - here };
  if (event.key in steps) {
    marks[here].setAttribute("tabindex", "-1");
    const next = marks[clamp(here + steps[event.key], 0, marks.length - 1)];
    next.setAttribute("tabindex", "0");
    next.focus();
  } else if (event.key === "Enter" || event.key === " ") marks[here].dispatchEvent(new MouseEvent("click"));
  else return;
  event.preventDefault();
  event.stopPropagation();
}
