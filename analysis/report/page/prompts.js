// A section a prompt: every method's video, its difference from the reference, its strip. Drawn when it comes near.
"use strict";

const deliveries = new Map(); // file -> function waiting for its data

/** Load a prompt's samples: a script that calls REPORT.deliver. */
function samplesOf(prompt) {
  prompt.loading ??= new Promise((resolve, reject) => {
    deliveries.set(prompt.file, resolve);
    document.head.append(el("script", { src: prompt.file, error: reject }));
  });
  return prompt.loading;
}

/** The sections in the order asked for: by the worst score of the methods shown, or of one, or by name. */
function ordered(state) {
  const { metric, order } = state;
  const prompts = [...state.bench.prompts];
  if (order === "name") return prompts.sort((a, b) => a.title.localeCompare(b.title));
  const shown = state.settings.filter((m) => order === "worst" || m.method === order);
  return prompts.sort((a, b) => worst(a, shown, metric).rank - worst(b, shown, metric).rank);
}

/** The worst of these methods on a prompt; rank: smaller is worse. */
function worst(prompt, methods, metric) {
  let found = { rank: Infinity };
  for (const method of methods) {
    const value = metric && prompt.scores[method.id]?.[metric.name];
    if (!known(value)) continue;
    const rank = known(metric.ideal) ? -Math.abs(value - metric.ideal) : metric.lower ? -value : value;
    if (rank < found.rank) found = { rank, value, method };
  }
  return found;
}

/** In the reference's place: what the difference's colours mean. */
function scale(full) {
  return el("p", { class: "difference blank" }, "difference from here", el("span", { class: "scale" }, "0", el("i"), `${full}/255`));
}

class Sections {
  constructor(state, player, box) {
    Object.assign(this, { state, player, box, near: new Set(), compare: () => {} });
    this.observer = new IntersectionObserver((entries) => {
      for (const entry of entries) entry.isIntersecting ? this.enter(entry.target) : this.leave(entry.target);
    }, { rootMargin: "60% 0px" });
  }

  /** No section keeps a video. */
  rest() {
    this.observer.disconnect();
    for (const section of this.box.children) this.leave(section);
  }

  draw() {
    this.rest();
    this.box.replaceChildren(...ordered(this.state).map((prompt) => this.section(prompt)));
    for (const section of this.box.children) this.observer.observe(section);
  }

  section(prompt) {
    const { metric } = this.state;
    const least = worst(prompt, this.state.settings, metric);
    const words = least.method ? `worst: ${least.method.label}, ${score(least.value, metric.name)}${/psnr/.test(metric.name) ? " dB" : ""}` : "";
    const section = el("article", { tabindex: "-1", "aria-label": prompt.title }, el("h3", {}, prompt.title, el("small", {}, words), this.state.bench.video ? el("button", { type: "button", class: "chip", click: () => this.compare(prompt) }, "Compare ", el("kbd", {}, "C")) : null), el("div", { class: "cards", "aria-busy": "true" }));
    section.prompt = prompt;
    return section;
  }

  async enter(section) {
    this.near.add(section);
    const cards = section.lastElementChild;
    try {
      const samples = await samplesOf(section.prompt);
      if (!this.near.has(section) || !section.isConnected) return;
      const methods = this.state.settings.filter((m) => samples[m.id]);
      cards.style.setProperty("--cards", methods.length);
      cards.replaceChildren(...methods.map((m) => this.card(section.prompt, m, samples[m.id])));
      cards.style.minHeight = "";
    } catch {
      cards.replaceChildren(el("p", { class: "empty" }, `${section.prompt.file} cannot be read: keep the folder's files together.`));
    }
    cards.removeAttribute("aria-busy");
    this.state.emphasise();
  }

  /** Out of reach: give the decoders back, and keep the place on the page. */
  leave(section) {
    if (!this.near.delete(section)) return;
    const cards = section.lastElementChild;
    for (const video of cards.querySelectorAll("video")) this.release(video);
    cards.style.minHeight = `${cards.offsetHeight}px`;
    cards.replaceChildren();
  }

  card(prompt, method, sample) {
    const { bench } = this.state;
    const reference = method.id === bench.reference;
    const media = [];
    const frame = (...about) => el("div", { class: "frame", click: () => this.compare(prompt, method.id) }, this.video(...about));
    if (sample.video) media.push(frame(sample.video, "video", `${method.label}: ${prompt.title}`));
    if (sample.difference) media.push(frame(sample.difference, "difference", `${method.label}: difference from the reference`));
    else if (sample.video) media.push(reference ? scale(bench.video.full) : el("p", { class: "difference blank" }, "no reference to compare with"));
    return el("figure", { "data-id": method.id, "data-method": method.method },
      el("figcaption", {}, el("b", {}, swatch(method.method), el("span", {}, ...named(method))), el("span", {}, ...this.numbers(prompt, method, sample, reference))),
      media.length ? el("div", { class: "media" }, ...media) : null,
      bench.comparison ? null : strip(method, sample),
      ...sample.notes.map((note) => el("p", { class: "reads warn" }, note)));
  }

  /** What it saved on this prompt, and its scores there. */
  numbers(prompt, method, sample, reference) {
    const { bench } = this.state;
    const scores = bench.metrics.filter((m) => !/^latent/.test(m.name) && known(prompt.scores[method.id]?.[m.name])).slice(0, 3)
      .map((m) => `${m.title.split(",")[0]} ${score(prompt.scores[method.id][m.name], m.name)}`);
    const saved = bench.comparison ? [] : [times(bench.reference_macs / sample.macs)];
    const words = [...(reference ? ["reference"] : saved), ...scores];
    return words.flatMap((word, i) => [i ? " · " : "", el("span", {}, word)]);
  }

  video(src, kind, label) {
    const { width, height } = this.state.bench.video;
    const video = el("video", { class: kind, width, height, muted: true, playsinline: true, preload: "auto", "aria-label": label, tabindex: "-1" });
    video.muted = true; // the attribute alone does not mute what a script made
    this.player.add(video);
    this.load(video, src);
    return video;
  }

  /** From a server whole: not every one lets a browser seek in a file. */
  async load(video, src) {
    if (!location.protocol.startsWith("http")) video.src = src;
    else {
      const whole = await (await fetch(src)).blob();
      if (this.player.videos.has(video)) video.src = URL.createObjectURL(whole);
    }
  }

  /** Give a video's decoder back. */
  release(video) {
    this.player.remove(video);
    if (video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.load();
  }
}
