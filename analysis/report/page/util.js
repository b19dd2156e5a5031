// Small things every other script uses: elements, numbers, and each method's look.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (a function is an event's listener) and children. */
function el(name, attributes = {}, ...children) {
  return dress(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, name), attributes, children);
}

function dress(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const known = (x) => x !== null && x !== undefined;

/** A score in the digits its metric deserves. */
const score = (x, metric) => (known(x) ? x.toFixed(/psnr/.test(metric) ? 2 : 4) : "–");
const times = (x) => (known(x) ? `${x.toFixed(2)}×` : "–");
const plain = (x, digits = 3) => (known(x) ? String(Number(x.toPrecision(digits))) : "–");

// Okabe and Ito's colours, which colour-blind readers tell apart; shapes tell methods apart once more.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#9a8700"];
const SHAPES = {
  circle: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
  square: "M-4.5,-4.5h9v9h-9z",
  up: "M0,-5.8L5.4,4.2H-5.4z",
  diamond: "M0,-6.2L5.4,0L0,6.2L-5.4,0z",
  down: "M0,5.8L5.4,-4.2H-5.4z",
};
const CONTROLS = ["none", "fewer_steps", "uniform", "replay"]; // no caching method of their own: grey
const looks = new Map();

/** Give every method a colour and a shape that it keeps over all benches. */
function chooseLooks(names) {
  const shapes = Object.keys(SHAPES);
  const cached = names.filter((name) => !CONTROLS.includes(name));
  const first = cached.filter((name) => name.startsWith("precisecache"));
  const rest = cached.filter((name) => !first.includes(name)).sort();
  first.forEach((name, i) => looks.set(name, { colour: "#d55e00", shape: shapes[i % shapes.length] }));
  const others = COLOURS.filter((colour) => colour !== "#d55e00");
  rest.forEach((name, i) => looks.set(name, { colour: others[i % others.length], shape: shapes[(i + 1) % shapes.length] }));
  CONTROLS.forEach((name, i) => looks.set(name, { colour: "var(--control)", shape: shapes[i % shapes.length] }));
}

const look = (method) => looks.get(method) ?? { colour: "var(--control)", shape: "circle" };

function swatch(method) {
  const { colour, shape } = look(method);
  return svg("svg", { class: "swatch", viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("path", { d: SHAPES[shape], fill: colour }));
}

/** A setting's name, its fields smaller; lines break between fields, or after _ and = of one that is too long. */
function named({ method, label }) {
  const fields = label.split(" ").slice(label.startsWith(method) ? 1 : 0);
  return [...breakable(method), ...fields.flatMap((field) => [" ", el("small", { class: "field" }, ...breakable(field))])];
}

const breakable = (text) => text.split(/(?<=[_=])/).flatMap((part) => [part, el("wbr")]);

/** Fill a <select>; keeps the choice if it is still there. */
function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  if (options.some(([value]) => value === before)) select.value = before;
  select.closest("label")?.toggleAttribute("hidden", options.length < 2);
}
