// One clock for all videos in view. The first of them leads; the others are kept within a fraction of its frame.
"use strict";

const TRIES = 4; // seeks to a frame that some video does not show
const TO_PAINT = 100; // milliseconds from a video's arrival at a frame until it has told that it shows it

class Player {
  /** `changed(frame, playing)` is called whenever either may have changed. */
  constructor(changed) {
    Object.assign(this, { videos: new Set(), frames: 1, fps: 12, rate: 1, position: 0, playing: false, ticking: false, changed });
    this.moving = 0; // counts seeks and starts, so that a later one overrules an earlier one that still waits
  }

  /** A bench's videos all have the same length. */
  timing(fps, frames) {
    Object.assign(this, { fps, frames });
    this.position = Math.min(this.position, this.middle(frames - 1));
  }

  /** A time inside a frame, away from its borders. */
  middle(frame) {
    return (frame + 0.5) / this.fps;
  }

  get frame() {
    return clamp(Math.floor(this.position * this.fps + 1e-3), 0, this.frames - 1);
  }

  get ready() {
    return [...this.videos].filter((v) => v.readyState >= 2 && !v.error);
  }

  add(video) {
    this.videos.add(video);
    const join = () => {
      if (!this.videos.has(video)) return;
      video.currentTime = this.playing ? this.position : this.middle(this.frame);
      video.playbackRate = this.rate;
      if (this.playing) start(video);
    };
    if (video.readyState >= 1) join();
    else video.addEventListener("loadedmetadata", join, { once: true });
    const note = (_, { mediaTime }) => {
      video.shown = mediaTime;
      video.noting = video.requestVideoFrameCallback(note);
    };
    if (video.requestVideoFrameCallback) video.noting = video.requestVideoFrameCallback(note);
  }

  remove(video) {
    this.videos.delete(video);
    if (video.noting !== undefined) video.cancelVideoFrameCallback(video.noting); // a video that comes back begins anew
    video.shown = undefined;
    video.pause();
  }

  async play() {
    if (this.playing) return;
    this.playing = true;
    this.changed();
    if (this.frame >= this.frames - 1) this.position = 0;
    await this.startTogether(this.position);
    if (!this.ticking) this.tick();
  }

  pause() {
    if (!this.playing) return;
    const lead = this.ready[0];
    if (lead) this.position = lead.currentTime;
    this.playing = false;
    this.seek(this.frame);
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  /** Show this frame of every video; goes on playing from there if it was. */
  async seek(frame) {
    this.position = this.middle(clamp(frame, 0, this.frames - 1));
    if (this.playing) await this.startTogether(this.position);
    else {
      const mine = (this.moving += 1);
      for (const video of this.videos) video.pause();
      this.changed();
      let astray = [...this.videos];
      for (let tries = 0; tries < TRIES && astray.length; tries += 1) {
        await this.allAt(this.position, astray);
        await new Promise((resolve) => setTimeout(resolve, TO_PAINT));
        if (mine !== this.moving || this.playing) return;
        astray = this.ready.filter((video) => !this.shows(video, this.frame));
      }
    }
  }

  /** Whether a paused video is at a frame, and shows it: on a busy machine it may go on showing another one. */
  shows(video, frame) {
    const shown = Math.floor(video.shown * this.fps + 0.25); // Firefox tells the time asked for, Chromium the frame's own
    const painted = video.shown === undefined || shown === frame;
    return painted && Math.abs(video.currentTime - this.middle(frame)) * this.fps < 0.1;
  }

  step(by) {
    if (this.playing) this.pause();
    this.seek(this.frame + by);
  }

  setRate(rate) {
    this.rate = rate;
    for (const video of this.videos) video.playbackRate = rate;
  }

  async startTogether(position) {
    const mine = (this.moving += 1);
    for (const video of this.videos) video.pause();
    await this.allAt(position);
    if (mine !== this.moving || !this.playing) return;
    for (const video of this.ready) start(video);
  }

  /** Seek videos, by default all; resolves when they have arrived, or after two seconds. */
  allAt(time, videos = this.videos) {
    const able = [...videos].filter((v) => v.readyState >= 1 && !v.error); // not `ready`: that excludes who still seeks
    const arrived = able.map((video) => new Promise((resolve) => {
      video.addEventListener("seeked", resolve, { once: true });
      video.currentTime = time;
    }));
    return Promise.race([Promise.all(arrived), new Promise((resolve) => setTimeout(resolve, 2000))]);
  }

  tick() {
    this.ticking = this.playing;
    if (!this.playing) return;
    const [lead, ...others] = this.ready;
    if (lead && !lead.seeking) {
      if (lead.ended || lead.currentTime > this.frames / this.fps - 0.01) {
        this.position = 0;
        this.startTogether(0);
      } else if (!lead.paused) {
        this.position = lead.currentTime;
        for (const video of others) this.follow(video, lead.currentTime);
      }
    }
    this.changed();
    requestAnimationFrame(() => this.tick());
  }

  /** Far off: seek. A little off: run faster or slower until it is there. */
  follow(video, time) {
    if (video.seeking || video.ended) return;
    const frames = (video.currentTime - time) * this.fps;
    if (Math.abs(frames) > 1) video.currentTime = time;
    video.playbackRate = this.rate * (Math.abs(frames) > 0.1 ? clamp(1 - frames / 4, 0.8, 1.25) : 1);
    if (video.paused) start(video);
  }
}

/** Play, and take a refusal (a page in the background, a source taken away) for what it is. */
function start(video) {
  video.play().catch(() => {});
}
