// The table of settings: a click on a heading sorts, a click on a name follows the method.
"use strict";

/** The columns: what they are called, a number to sort by (or text), and what is shown. `minor`: hidden where it is narrow. */
function columns(metrics) {
  const byMetric = metrics.map((metric) => ({
    title: metric.title, hint: `${metric.name}, mean over videos`, minor: metrics.indexOf(metric) > 0, rising: metric.lower,
    of: (m) => m.scores[metric.name]?.mean, show: (m) => score(m.scores[metric.name]?.mean, metric.name),
    interval: (m) => m.scores[metric.name],
    digits: metric.name,
  }));
  return [
    { title: "setting", hint: "method, and the fields in which its settings differ", of: (m) => m.label, rising: true },
    { title: "steps", hint: "steps at which the transformer ran, of all", minor: true, rising: true, of: (m) => m.computed, show: (m) => (known(m.computed) ? `${plain(m.computed)}/${m.steps}` : "–") },
    { title: "PMACs", hint: "10^15 multiply-accumulates a video", minor: true, rising: true, of: (m) => m.pmacs, show: (m) => plain(m.pmacs) },
    { title: "MACs ÷", hint: "the reference's MACs over the setting's", of: (m) => m.macs, show: (m) => times(m.macs) },
    { title: "latency, s", hint: "the denoising loop, median", minor: true, rising: true, of: (m) => m.latency, show: (m) => plain(m.latency) },
    { title: "speedup", hint: "of all videos: MACs ÷ times the efficiency of the timed calls; ± half their range", of: (m) => m.speedup, show: (m) => (known(m.speedup) ? times(m.speedup) + half(m) : "–") },
    { title: "efficiency", hint: "the timed call's speedup over its own MACs' ratio, both timed in turn on this machine", minor: true, of: (m) => m.efficiency, show: (m) => (known(m.efficiency) ? m.efficiency.toFixed(2) : "–") },
    ...byMetric,
    { title: "n", hint: "videos", minor: true, of: (m) => m.n, show: (m) => String(m.n) },
  ];
}

function half(m) {
  const [low, high] = m.speedup_range;
  return high > low ? ` ± ${((high - low) / 2).toFixed(2)}` : "";
}

function drawTable(state, box) {
  const held = columns(state.bench.metrics).filter((c) => state.bench.methods.some((m) => known(c.of(m))));
  const sort = state.sort && held.find((c) => c.title === state.sort.title);
  const rows = [...state.methods];
  if (sort) rows.sort((a, b) => (state.sort.rising ? 1 : -1) * compare(sort.of(a), sort.of(b), state.sort.rising));
  const head = el("tr", {}, ...held.map((c, i) => heading(state, c, i)));
  const body = rows.map((m) => row(state, m, held));
  box.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

/** Missing values come last either way. */
function compare(a, b, rising) {
  if (!known(a) || !known(b)) return (known(a) ? -1 : known(b) ? 1 : 0) * (rising ? 1 : -1);
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
}

function heading(state, column, index) {
  const sorted = state.sort?.title === column.title;
  const direction = sorted ? (state.sort.rising ? "ascending" : "descending") : "none";
  const arrow = sorted ? (state.sort.rising ? " ↑" : " ↓") : "";
  const press = () => {
    const rising = sorted ? !state.sort.rising : Boolean(column.rising);
    state.set({ sort: { title: column.title, rising } });
    document.querySelectorAll("#table th button")[index].focus();
  };
  return el("th", { scope: "col", "aria-sort": direction, class: column.minor ? "minor" : null, title: column.hint },
    el("button", { type: "button", click: press }, column.title, el("span", { "aria-hidden": "true" }, arrow)));
}

function row(state, method, held) {
  const name = el("button", { type: "button", "aria-pressed": String(state.picked === method.id), click: () => state.pick(method.id) }, swatch(method.method), el("span", {}, ...named(method)));
  const cells = held.slice(1).map((column) => {
    const interval = column.interval?.(method);
    const spread = known(interval?.low) ? `95 % interval over prompts: ${score(interval.low, column.digits)} to ${score(interval.high, column.digits)}` : null;
    return el("td", { class: column.minor ? "minor" : null, title: spread }, column.show(method), spread ? el("small", {}, ` [${score(interval.low, column.digits)}, ${score(interval.high, column.digits)}]`) : null);
  });
  const failed = method.error ? el("small", { class: "failed" }, `failed: ${method.error}`) : null;
  return el("tr", { "data-id": method.id, "data-method": method.method }, el("th", { scope: "row" }, name, failed), ...cells);
}
