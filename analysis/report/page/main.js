// The page's state, and what happens on a key, a choice, a change.
"use strict";

const $ = (id) => document.getElementById(id);
const MANY = 12; // settings: beyond, one a curve is shown among the videos
const NEAR = [1.5, 2, 2.5, 3];

const state = {
  benches: [], bench: null, hidden: new Set(), picked: null, metric: null, speed: "macs", sort: null, order: "worst", among: "all",

  /** The settings of methods that are not hidden. */
  get methods() {
    return this.bench.methods.filter((m) => !this.hidden.has(m.method));
  },

  /** Those of them among the videos: all, or of each curve the one nearest to a speedup; the picked one in any case. */
  get settings() {
    if (this.among === "all") return this.methods;
    const target = Number(this.among), best = new Map();
    const off = (m) => Math.abs(Math.log((m.macs ?? 1) / target));
    for (const m of this.methods) if (!best.has(m.curve) || off(m) < off(best.get(m.curve))) best.set(m.curve, m);
    return this.methods.filter((m) => best.get(m.curve) === m || m.id === this.bench.reference || m.id === this.picked);
  },

  set(changes) {
    Object.assign(this, changes);
    drawPlot(this, $("plot"));
    drawTable(this, $("table"));
    if (["hidden", "metric", "order", "among", "bench"].some((key) => key in changes)) sections.draw();
    this.emphasise();
  },

  /** Follow a setting's method through the page, or stop to. */
  pick(id) {
    this.picked = this.picked === id ? null : id;
    if (this.among !== "all") sections.draw();
    this.emphasise();
  },

  /** Everything of the followed method stands out. */
  emphasise() {
    const method = this.bench.methods.find((m) => m.id === this.picked)?.method ?? null;
    document.body.toggleAttribute("data-following", method !== null);
    for (const each of document.querySelectorAll("[data-method]")) {
      each.classList.toggle("followed", each.dataset.method === method);
      each.classList.toggle("picked", this.picked !== null && each.dataset.id === this.picked);
    }
    for (const each of document.querySelectorAll("[data-id] button, .mark")) {
      each.setAttribute("aria-pressed", String(each.closest("[data-id]").dataset.id === this.picked));
    }
  },
};

const player = new Player(showTime);
const sections = new Sections(state, player, $("prompts"));
const stage = new Stage(state, player, sections, $("stage"));
sections.compare = (prompt, id) => stage.show(prompt, id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const REPORT = {
  deliver([file, samples]) {
    deliveries.get(file)?.(samples);
  },

  start({ benches, figures }) {
    state.benches = benches;
    drawFigures(figures);
    chooseLooks([...new Set(benches.flatMap((b) => b.methods.map((m) => m.method)))]);
    fill($("bench"), benches.map((b, i) => [i, benchName(b)]));
    $("benches").hidden = benches.length < 2;
    const [name, view] = location.hash.slice(1).split("?");
    const asked = benches.findIndex((b) => benchName(b) === decoded(name));
    $("bench").value = Math.max(0, asked);
    wire();
    openBench(benches[Math.max(0, asked)]);
    if (view) stage.restore(view);
    else if (!calm.matches && state.bench.video) player.play();
  },
};

/** A part of an address as text; as it is where it is damaged. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

let remembering = 0;

/** Keep what is shown in the page's address; soon, as browsers limit how often. */
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    history.replaceState(null, "", `#${encodeURIComponent(benchName(state.bench))}${stage.open ? `?${stage.address}` : ""}`);
  }, 150);
}

/** Names a bench by what tells it from the others. */
function benchName(bench) {
  const differ = (key) => new Set(state.benches.map((b) => JSON.stringify(b[key]))).size > 1;
  const same = state.benches.filter((b) => b.model === bench.model && b.experiment === bench.experiment && b.machine === bench.machine);
  const parts = [bench.experiment, bench.model, differ("machine") && bench.machine, same.length > 1 && `${size(bench)}, reference ${bench.reference}`];
  return parts.filter(Boolean).join(" · ");
}

const size = ({ sampling: s }) => (s.frames ? `${s.frames}×${s.height}×${s.width}, ${s.steps} steps` : "");

function openBench(bench) {
  state.hidden = new Set();
  state.picked = null;
  state.bench = bench;
  bench.reference_macs = (bench.methods.find((m) => known(m.macs))?.macs ?? 0) * (bench.methods.find((m) => known(m.macs))?.pmacs ?? 0) * 1e15;
  $("about").textContent = [bench.model, size(bench), bench.hardware.gpu ?? bench.hardware.cpu, `torch ${bench.hardware.torch}`, bench.comparison ? `${bench.methods.length - 1} folders, ${bench.prompts_in_all} videos each` : `${bench.methods.length} settings, ${bench.prompts_in_all} prompts`].filter(Boolean).join(" · ");
  fill($("metric"), bench.metrics.map((m) => [m.name, m.title]));
  state.metric = bench.metrics.find((m) => m.name === $("metric").value) ?? null;
  fill($("speed"), [["macs", "by MACs"], ...(bench.methods.some((m) => known(m.speedup)) ? [["speedup", "by latency"]] : [])]);
  state.speed = $("speed").value;
  const cached = bench.methods.filter((m) => m.id !== bench.reference);
  fill($("order"), [["worst", "worst first"], ...[...new Set(cached.map((m) => m.method))].sort().map((name) => [name, `worst of ${name} first`]), ["name", "by prompt"]]);
  state.order = $("order").value = "worst";
  const many = bench.methods.length > MANY;
  fill($("settings"), [["all", `all ${bench.methods.length}`], ...(many ? NEAR.map((x) => [x, `of each curve the nearest to ${x}×`]) : [])]);
  state.among = $("settings").value = many ? "2" : "all";
  drawChips();
  notes(bench);
  if (bench.comparison) document.querySelector("h1").textContent = "Videos beside their reference";
  $("plot").closest("section").hidden = Boolean(bench.comparison); // folders of videos have no speed
  $("transport").hidden = !bench.video;
  if (bench.video) {
    player.timing(bench.video.fps, bench.video.frames);
    $("seek").max = bench.video.frames - 1;
    document.body.style.setProperty("--card", `${clamp(bench.video.width, 170, 300)}px`);
    document.body.style.setProperty("--shape", bench.video.width / bench.video.height);
  } else player.pause();
  state.set({ bench });
}

/** Drawings made elsewhere: what is drawn, each question with its answer, and all the words on demand. */
function drawFigures(figures) {
  $("figures").hidden = $("to-figures").hidden = !figures.length;
  $("figures-drawn").replaceChildren(...figures.map(drawFigure));
}

const CLAIM = /^([^?]+\?) (.*Here: (yes|no|undecided)\..*)$/s; // as `analysis figures` writes one

function drawFigure({ file, title, words: [drawn, ...said] }) {
  const note = (text) => el("p", { class: "note" }, text);
  const folded = (heading, texts) => el("details", {}, el("summary", {}, ...heading), ...texts.map(note));
  const claims = said.map((text) => CLAIM.exec(text)).filter(known);
  const rest = said.filter((text) => !CLAIM.test(text));
  return el("figure", {}, el("a", { href: file }, el("img", { src: file, alt: title, loading: "lazy" })), known(drawn) ? note(drawn) : null,
    ...claims.map(([, question, words, answer]) => folded([question, " ", el("b", {}, answer)], [words])), rest.length ? folded(["More"], rest) : null);
}

function drawChips() {
  const names = [...new Set(state.bench.methods.map((m) => m.method))];
  const chip = (name) => el("button", {
    type: "button", class: "chip", "aria-pressed": String(!state.hidden.has(name)),
    click: (event) => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      event.currentTarget.setAttribute("aria-pressed", String(!state.hidden.has(name)));
      state.set({ hidden: state.hidden });
    },
  }, swatch(name), name);
  $("chips").replaceChildren(...names.map(chip));
}

function notes(bench) {
  const left = bench.prompts_in_all - bench.prompts.length;
  const video = bench.video
    ? `Difference: |video − reference| of the mp4 files, black where none, brightest from ${bench.video.full} of 255 on; compression is in it.`
    : "The records' videos are not here, only what every step did: they are made on the machine that samples, and not kept in git.";
  const cut = left ? `The ${bench.prompts.length} worst of ${bench.prompts_in_all} prompts; ${left} are left out.` : "";
  $("videos-note").textContent = [video, cut].filter(Boolean).join(" ");
  $("key").replaceChildren(...(bench.comparison ? [] : [stripKey()]));
  const names = bench.metrics.map((m) => m.name).join(", ");
  $("table-note").textContent = bench.comparison
    ? `Against the reference folder's video of the same name; brackets are 95 % intervals of a bootstrap over videos. ${names}: definitions in docs/fidelity.md.`
    : `${bench.machine}. Against the uncached video of the same machine; brackets are 95 % intervals of a bootstrap over prompts. ${names}: definitions in results/README.md.`;
  $("plot-note").textContent = bench.metrics.length ? "Bars: 95 % intervals over prompts. Lines join settings that differ only in how much is saved; dotted: controls." : "";
}

function wire() {
  const choose = (id, change) => $(id).addEventListener("change", () => change($(id).value));
  choose("bench", (value) => {
    openBench(state.benches[value]);
    remember();
  });
  choose("metric", (value) => state.set({ metric: state.bench.metrics.find((m) => m.name === value) }));
  choose("speed", (value) => state.set({ speed: value }));
  choose("order", (value) => state.set({ order: value }));
  choose("settings", (value) => state.set({ among: value }));
  choose("rate", (value) => player.setRate(Number(value)));
  choose("view", (value) => { document.body.dataset.view = value; });
  $("play").addEventListener("click", () => player.toggle());
  $("back").addEventListener("click", () => player.step(-1));
  $("forth").addEventListener("click", () => player.step(1));
  $("seek").addEventListener("input", () => { player.pause(); player.seek(Number($("seek").value)); });
  for (const link of document.querySelectorAll("nav a, .skip")) link.addEventListener("click", jump);
  document.addEventListener("keydown", onKey);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar changes the height alone
    width = innerWidth;
    drawPlot(state, $("plot"));
    state.emphasise();
  });
}

/** To a section: the address keeps the name of the bench. */
function jump(event) {
  event.preventDefault();
  const section = document.querySelector(event.currentTarget.getAttribute("href"));
  section.scrollIntoView();
  section.focus({ preventScroll: true });
}

function showTime() {
  const { frame, frames, fps, playing } = player;
  $("play").textContent = playing ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  $("seek").value = frame;
  $("seek").setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
  $("time").textContent = `${frame + 1}/${frames} · ${(frame / fps).toFixed(2)} s`;
  if (stage.open && !playing) remember();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inside = event.target.closest("input, select, textarea");
  const press = event.target.closest("button, summary, [role=button]") && event.key === " ";
  if ((inside && inside.id !== "seek") || press) return;
  const last = player.frames - 1;
  const back = () => player.step(-1), forth = () => player.step(1);
  const keys = {
    " ": () => player.toggle(), ArrowLeft: back, ArrowRight: forth, a: back, d: forth,
    ...(stage.open ? { ...stage.keys, Tab: () => stage.turn(event.shiftKey ? -1 : 1), j: () => stage.follow(1), k: () => stage.follow(-1) } : { Escape: () => stage.close(), j: () => go(1), k: () => go(-1), v: nextView, c: compareHere }),
  };
  if (inside) Object.assign(keys, { Home: () => { player.pause(); player.seek(0); }, End: () => { player.pause(); player.seek(last); } });
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || (!state.bench.video && !"jk".includes(event.key.toLowerCase()))) return;
  event.preventDefault();
  act();
}

function nextView() {
  const views = [...$("view").options].map((o) => o.value);
  $("view").value = document.body.dataset.view = views[(views.indexOf($("view").value) + 1) % views.length];
}

/** The prompt in focus, else the one at the window's top: its place among all, from -1. */
function here(all) {
  const focused = all.indexOf(document.activeElement.closest("article"));
  const first = all.findIndex((section) => section.getBoundingClientRect().top > 24);
  return focused >= 0 ? focused : (first < 0 ? all.length : first) - 1;
}

function compareHere() {
  const all = [...$("prompts").children];
  if (all.length) stage.show(all[Math.max(0, here(all))].prompt, state.picked);
}

/** To the next or previous prompt. */
function go(by) {
  const all = [...$("prompts").children];
  const target = all[clamp(here(all) + by, 0, all.length - 1)];
  target?.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "start" });
  target?.focus({ preventScroll: true });
}
