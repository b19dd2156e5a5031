// Under each video: what every denoising step did, and the method's indicator against its threshold.
"use strict";

const ACTIONS = { F: "computed", p: "computed in part", r: "reused" };
const HEIGHTS = { F: 12, p: 8, r: 3 };
const CURVE = 44, TOP = 2; // of the curve's box: pixels, and thresholds

/** The indicator's name in the field. */
const indicatorOf = (method) => (method.startsWith("precisecache") ? "LFD" : "indicator");

/** A strip and the line that reads it: a slider over denoising steps for the keyboard, a pointer's target otherwise. */
function strip(method, sample) {
  const steps = sample.actions.length;
  if (!steps) return el("p", { class: "reads" }, "no trace");
  const picture = svg("svg", { viewBox: `0 0 ${steps} ${CURVE + 14}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const curve = drawCurve(sample);
  if (curve) picture.append(...curve);
  [...sample.actions].forEach((action, i) => {
    const high = HEIGHTS[action];
    picture.append(svg("rect", { class: `act act-${action}`, x: i + 0.06, width: 0.88, y: CURVE + 14 - high, height: high }));
  });
  const cursor = svg("rect", { class: "cursor", x: 0, width: 1, y: 0, height: CURVE + 14, visibility: "hidden" });
  picture.append(cursor);
  const total = summary(sample);
  const reads = el("p", { class: "reads" }, total);
  const box = el("div", {
    class: "strip", role: "slider", tabindex: "0", "aria-label": `Denoising steps of ${method.label}`,
    "aria-valuemin": 1, "aria-valuemax": steps, "aria-valuenow": 1, "aria-valuetext": total,
  }, picture);
  let here = 0;
  const show = (i) => {
    here = clamp(i, 0, steps - 1);
    cursor.setAttribute("x", here);
    cursor.setAttribute("visibility", "visible");
    const words = tell(method, sample, here);
    reads.textContent = words;
    box.setAttribute("aria-valuenow", here + 1);
    box.setAttribute("aria-valuetext", words);
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    reads.textContent = total;
  };
  const at = (event) => show(Math.floor(((event.clientX - box.getBoundingClientRect().left) / box.clientWidth) * steps));
  box.addEventListener("pointermove", at);
  box.addEventListener("pointerdown", at);
  box.addEventListener("pointerleave", leave);
  box.addEventListener("blur", leave);
  box.addEventListener("focus", () => { if (box.matches(":focus-visible")) show(here); });
  box.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -here, End: steps };
    if (!(event.key in moves)) return;
    show(here + moves[event.key]);
    event.preventDefault();
    event.stopPropagation();
  });
  return el("div", {}, box, reads);
}

function summary(sample) {
  const count = (action) => [...sample.actions].filter((a) => a === action).length;
  const parts = [`${count("F")} of ${sample.actions.length} steps computed`];
  if (count("p")) parts.push(`${count("p")} in part`);
  if (count("r")) parts.push(`${count("r")} reused`);
  return parts.join(", ");
}

/** One step in words. */
function tell(method, sample, i) {
  const words = [`step ${i + 1}/${sample.actions.length}`];
  if (known(sample.sigma?.[i])) words.push(`σ ${sample.sigma[i].toFixed(3)}`);
  words.push(ACTIONS[sample.actions[i]]);
  if (known(sample.indicator?.[i])) words.push(`${indicatorOf(method.method)} ${plain(sample.indicator[i])}`);
  const held = sample.accumulated?.[i], limit = sample.threshold?.[i];
  if (known(limit)) words.push(known(held) ? `sum ${plain(held)} ${held < limit ? "<" : "≥"} δ ${plain(limit)}` : `δ ${plain(limit)}`);
  return words.join(" · ");
}

/** Bars: the indicator of each step. Line: what has accumulated since the last computed step. Both in thresholds. */
function drawCurve(sample) {
  const limits = sample.threshold?.filter(known);
  const values = sample.indicator;
  if (!values) return null;
  const unit = limits?.length ? null : Math.max(...values.filter(known)) || 1;
  const inUnits = (v, i) => v / (unit ?? sample.threshold[i] ?? limits[0]);
  const y = (v) => CURVE * (1 - Math.min(v, TOP) / TOP);
  const drawn = [];
  values.forEach((v, i) => {
    if (!known(v)) return;
    const at = y(inUnits(v, i));
    drawn.push(svg("rect", { class: "bar-lfd", x: i + 0.2, width: 0.6, y: at, height: CURVE - at }));
  });
  const line = (sample.accumulated ?? []).map((v, i) => (known(v) ? [i + 0.5, y(inUnits(v, i))] : null));
  const d = line.map((p, i) => (p ? `${line[i - 1] ? "L" : "M"}${p[0]},${p[1].toFixed(2)}` : "")).join("");
  if (d) drawn.push(svg("path", { class: "sum", d }));
  if (!unit) drawn.push(svg("line", { class: "delta", x1: 0, x2: values.length, y1: y(1), y2: y(1) }));
  return drawn;
}

/** What the strip's marks mean. */
function stripKey() {
  const item = (name, text) => el("li", {}, el("i", { class: `k k-${name}` }), text);
  return el("ul", { class: "key" }, item("F", "computed"), item("p", "in part"), item("r", "reused"),
    item("lfd", "LFD (or the method's own indicator) of a step"), item("sum", "accumulated since the last computed step"), item("delta", "threshold δ"));
}
