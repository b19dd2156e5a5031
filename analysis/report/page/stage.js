// One prompt, large: the reference and one setting in the same place, the next one a key away; zoom, crop, link, PNG.
"use strict";

const MOST = 16; // times enlarged
const SHARP = 3; // from here on, pixels are shown as squares

/** What part of every picture is seen: `zoom` times enlarged, from the point (x, y) on, in shares of its sides. */
const crop = {
  zoom: 1, x: 0, y: 0,

  set({ zoom = this.zoom, x = this.x, y = this.y }) {
    this.zoom = clamp(zoom, 1, MOST);
    [this.x, this.y] = [x, y].map((v) => clamp(v, 0, 1 - 1 / this.zoom));
    const { style } = document.body;
    style.setProperty("--zoom", this.zoom);
    style.setProperty("--x", `${-100 * this.x}%`);
    style.setProperty("--y", `${-100 * this.y}%`);
    document.body.toggleAttribute("data-sharp", this.zoom >= SHARP);
  },

  /** Enlarge about a point of the window (in shares of it) that stays where it is. */
  about(u, v, factor) {
    const zoom = clamp(this.zoom * factor, 1, MOST);
    this.set({ zoom, x: this.x + u / this.zoom - u / zoom, y: this.y + v / this.zoom - v / zoom });
  },
};

class Stage {
  constructor(state, player, sections, box) {
    Object.assign(this, { state, player, sections, box, prompt: null, at: null, split: 0.5, difference: false, turns: 0, asked: null, layers: new Map() });
    this.view = el("div", { class: "view", pointerdown: (e) => this.grab(e), wheel: (e) => this.wheel(e), dblclick: () => this.change(() => crop.set({ zoom: 1 })) });
    this.handle = el("i", { class: "handle", "aria-hidden": "true" });
    this.title = el("h2", {});
    this.tabs = el("div", { class: "tabs", role: "group", "aria-label": "Settings" });
    this.said = el("output", { class: "note" });
    const button = (text, key, act) => el("button", { type: "button", class: "chip", click: act }, text, " ", el("kbd", {}, key));
    box.append(
      el("div", { class: "bar" }, this.title,
        button("Split", "S", () => this.toggleSplit()), button("Difference", "V", () => this.toggleDifference()),
        button("Whole", "0", () => this.change(() => crop.set({ zoom: 1 }))), button("Crop as PNG", "P", () => this.save()),
        button("Link", "L", () => this.copyLink()), button("Close", "Esc", () => this.close())),
      this.tabs, el("div", { class: "room" }, this.view), this.said);
  }

  get open() {
    return this.prompt !== null;
  }

  /** Show a prompt; `at` is a setting's id, by default the first that is not the reference. */
  async show(prompt, at) {
    const { bench } = this.state, turn = ++this.turns;
    this.asked = prompt;
    const samples = await samplesOf(prompt);
    if (turn !== this.turns) return; // another prompt was asked for meanwhile, or none
    const { methods: all, settings } = this.state;
    const methods = (!at || settings.some((m) => m.id === at) ? settings : all).filter((m) => samples[m.id]?.video);
    if (!methods.length) return;
    this.sections.rest();
    this.empty();
    Object.assign(this, { prompt, methods, difference: false });
    this.at = (methods.find((m) => m.id === at) ?? methods.find((m) => m.id !== bench.reference) ?? methods[0]).id;
    this.title.textContent = prompt.title;
    this.view.style.aspectRatio = bench.video.width / bench.video.height;
    for (const method of methods) {
      const { video, difference } = samples[method.id];
      const of = (src, kind) => this.layer(src, kind, `${method.label}: ${kind}`);
      this.layers.set(method.id, { video: of(video, "video"), difference: difference ? of(difference, "difference") : null });
    }
    this.tabs.replaceChildren(...methods.map((m) => el("button", { type: "button", class: "chip", "data-tab": m.id, click: () => this.turnTo(m.id) }, swatch(m.method), ...named(m))));
    this.view.append(this.handle);
    this.box.hidden = false;
    document.querySelector("main").inert = document.querySelector("header").inert = true;
    this.box.focus({ preventScroll: true });
    this.change();
  }

  layer(src, kind, label) {
    const frame = el("div", { class: "frame" }, this.sections.video(src, kind, label));
    this.view.append(frame);
    return frame;
  }

  close() {
    this.turns += 1;
    if (!this.open) return;
    const { prompt } = this;
    this.empty();
    this.prompt = null;
    this.box.hidden = true;
    document.querySelector("main").inert = document.querySelector("header").inert = false;
    this.sections.draw();
    const section = [...this.sections.box.children].find((each) => each.prompt === prompt);
    section?.scrollIntoView({ block: "start" });
    section?.focus({ preventScroll: true });
    remember();
  }

  empty() {
    for (const video of this.view.querySelectorAll("video")) this.sections.release(video);
    this.view.replaceChildren();
    this.layers.clear();
  }

  /** The next setting (or the one before) in the place of this one. */
  turn(by) {
    const ids = this.methods.map((m) => m.id);
    this.turnTo(ids[(ids.indexOf(this.at) + by + ids.length) % ids.length]);
  }

  turnTo(id) {
    this.change(() => { this.at = id; });
  }

  toggleSplit() {
    this.change(() => { this.split = this.split > 0 ? 0 : 0.5; });
  }

  toggleDifference() {
    this.change(() => { this.difference = !this.difference; });
  }

  /** Do something, then show the stage as it now is, and what it shows in the page's address. */
  change(act = () => {}) {
    act();
    const { reference } = this.state.bench, { at, split } = this;
    const beside = at !== reference && this.layers.has(reference) && split > 0;
    for (const [id, { video, difference }] of this.layers) {
      const asked = id === at, differs = asked && this.difference && difference !== null;
      video.classList.toggle("off", !((asked && !differs) || (beside && id === reference)));
      difference?.classList.toggle("off", !differs);
      for (const frame of [video, difference].filter(known)) {
        frame.classList.toggle("top", asked);
        frame.style.clipPath = asked && beside ? `inset(0 0 0 ${100 * split}%)` : "";
      }
    }
    this.handle.hidden = !beside;
    this.handle.style.left = `${100 * split}%`;
    for (const tab of this.tabs.children) tab.setAttribute("aria-pressed", String(tab.dataset.tab === at));
    this.tell();
    remember();
  }

  /** The setting's scores on this prompt. */
  tell(words = null) {
    const { bench } = this.state, method = this.methods.find((m) => m.id === this.at);
    const scores = bench.metrics.filter((m) => known(this.prompt.scores[this.at]?.[m.name])).map((m) => `${m.title} ${score(this.prompt.scores[this.at][m.name], m.name)}`);
    const zoom = crop.zoom > 1 ? [`${crop.zoom.toFixed(1)}× enlarged`] : [];
    this.said.textContent = words ?? [this.at === bench.reference ? "reference" : method.label, ...scores, ...zoom].join(" · ");
  }

  wheel(event) {
    event.preventDefault();
    this.change(() => crop.about(...this.point(event), Math.exp(-event.deltaY / 300)));
  }

  /** A pointer's place, in shares of the view. */
  point(event) {
    const { left, top, width, height } = this.view.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  /** Drag the split; an enlarged picture is dragged everywhere else. */
  grab(event) {
    const [u] = this.point(event), onHandle = !this.handle.hidden && (crop.zoom === 1 || Math.abs(u - this.split) * this.view.clientWidth < 14);
    const before = { x: crop.x, y: crop.y, at: this.point(event) };
    this.view.setPointerCapture(event.pointerId);
    const move = (e) => this.change(() => {
      const [now, v] = this.point(e);
      if (onHandle) this.split = clamp(now, 0.001, 0.999);
      else crop.set({ x: before.x - (now - before.at[0]) / crop.zoom, y: before.y - (v - before.at[1]) / crop.zoom });
    });
    if (onHandle) move(event);
    this.view.addEventListener("pointermove", move);
    this.view.addEventListener("pointerup", () => this.view.removeEventListener("pointermove", move), { once: true });
  }

  /** What is seen of the setting, as a PNG in the video's own pixels. */
  save() {
    const { video, difference } = this.layers.get(this.at);
    const source = (this.difference && difference ? difference : video).querySelector("video");
    const [width, height] = [source.videoWidth, source.videoHeight].map((side) => Math.round(side / crop.zoom));
    const canvas = el("canvas", { width, height });
    canvas.getContext("2d").drawImage(source, crop.x * source.videoWidth, crop.y * source.videoHeight, width, height, 0, 0, width, height);
    const name = [this.prompt.title, this.at, `frame ${this.player.frame + 1}`].join(" ").replace(/[^\w.=-]+/g, "-");
    try {
      canvas.toBlob((blob) => {
        if (!blob) return this.tell("no frame is there yet: try again");
        el("a", { href: URL.createObjectURL(blob), download: `${name}.png` }).click();
        this.tell(`saved ${name}.png, ${width}×${height} pixels`);
      });
    } catch { // a page opened from disk may not read its own videos
      this.tell("Browsers save pictures only of pages from a server: run python -m http.server in the report's folder.");
    }
  }

  copyLink() {
    remember();
    const done = (words) => this.tell(words);
    (navigator.clipboard?.writeText(location.href) ?? Promise.reject()).then(() => done("the link is copied"), () => done("copy the page's address: it restores this view"));
  }

  /** What restores the view, for the page's address. */
  get address() {
    const { at, split, difference } = this, { zoom, x, y } = crop;
    const parts = { prompt: this.prompt.title, setting: at, frame: this.player.frame + 1, split: split.toFixed(3), difference: Number(difference), crop: [zoom, x, y].map((v) => v.toFixed(4)) };
    return new URLSearchParams(parts).toString();
  }

  /** The next prompt, or the one before, with the same setting. */
  follow(by) {
    const prompts = [...this.sections.box.children].map((section) => section.prompt);
    this.show(prompts[clamp(prompts.indexOf(this.asked) + by, 0, prompts.length - 1)], this.at);
  }

  async restore(address) {
    const asked = new URLSearchParams(address), prompt = this.state.bench.prompts.find((p) => p.title === asked.get("prompt"));
    if (!prompt) return;
    const [zoom, x, y] = (asked.get("crop") ?? "1,0,0").split(",").map(Number);
    crop.set([zoom, x, y].every(Number.isFinite) ? { zoom, x, y } : {});
    this.player.pause();
    this.player.seek((Number(asked.get("frame")) || 1) - 1);
    await this.show(prompt, asked.get("setting"));
    if (this.open) this.change(() => { this.split = clamp(Number(asked.get("split")) || 0, 0, 0.999); this.difference = asked.get("difference") === "1"; });
  }

  /** The stage's keys, by name. */
  get keys() {
    const enlarge = (factor) => () => this.change(() => crop.about(0.5, 0.5, factor));
    return {
      Escape: () => this.close(), s: () => this.toggleSplit(), v: () => this.toggleDifference(), p: () => this.save(), l: () => this.copyLink(),
      "+": enlarge(1.5), "=": enlarge(1.5), "-": enlarge(1 / 1.5), 0: () => this.change(() => crop.set({ zoom: 1 })),
    };
  }
}
