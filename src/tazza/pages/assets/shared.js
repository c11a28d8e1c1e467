// Building blocks of the pages. Every text goes in by textContent: what a label says is never markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const HUES = [
  "#4c78a8", "#f58518", "#54a24b", "#b279a2", "#72b7b2", "#e45756", "#d3a518", "#9d755d", "#e377a2", "#7f8fd1",
];
const OTHER = "#8b93a0";

function hue(number) { return number < 0 ? OTHER : HUES[number % HUES.length]; }

function el(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options || {})) {
    if (key === "text") node.textContent = value;
    else if (key === "on") for (const [name, act] of Object.entries(value)) node.addEventListener(name, act);
    else if (key === "style") for (const [name, text] of Object.entries(value)) node.style.setProperty(name, text);
    else node.setAttribute(key, value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function bytes(count) {
  let size = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(size) < 1024) return unit === "B" ? `${size} B` : `${size.toFixed(1)} ${unit}`;
    size /= 1024;
  }
  return `${size.toFixed(1)} TiB`;
}

function exact(count) { return `${count.toLocaleString("en-GB")} bytes`; }

function seconds(ns) {
  const size = Math.abs(ns);
  if (size >= 1e9) return `${(ns / 1e9).toFixed(size >= 1e11 ? 0 : 2)} s`;
  if (size >= 1e6) return `${(ns / 1e6).toFixed(size >= 1e8 ? 0 : 2)} ms`;
  if (size >= 1e3) return `${(ns / 1e3).toFixed(size >= 1e5 ? 0 : 1)} us`;
  return `${Math.round(ns)} ns`;
}

function percent(part, whole) { return whole ? `${(Math.round((1000 * part) / whole) / 10 + 0).toFixed(1)} %` : "-"; }

function hex(address) { return typeof address === "string" ? address : `0x${address.toString(16)}`; }

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

// Index of the last of `sorted` that is at most `value`, -1 where there is none.
function lastUpTo(sorted, value, end = sorted.length) {
  let low = 0, high = end;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1; else high = middle;
  }
  return low - 1;
}

// Page ---------------------------------------------------------------------------------------------------------------

const redraws = [];

function themeButton() {
  const root = document.documentElement;
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  return el("button", {
    type: "button", text: "Light / dark", "aria-label": "Switch between light and dark",
    on: { click: () => { root.dataset.theme = dark() ? "light" : "dark"; redraws.forEach((draw) => draw()); } },
  });
}

function header(title, subtitle, links) {
  const nav = el("nav", { "aria-label": "Sections" }, ...links.map(([id, text]) => el("a", { href: `#${id}`, text })));
  document.body.append(
    el("header", {}, el("div", {},
      el("h1", { text: title }), el("div", { class: "grow" }), nav, themeButton(),
      el("div", { class: "sub", text: subtitle }))),
    el("main", { id: "main" }), el("div", { id: "tip", hidden: "", role: "status" }));
  document.getElementById("missing").remove();
}

function section(id, title, hint, ...children) {
  const node = el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title`, text: title }), hint ? el("p", { text: hint }) : null, ...children);
  document.getElementById("main").append(node);
  return node;
}

function cards(list) {
  document.getElementById("main").append(el("div", { class: "cards" }, ...list.map(([value, name, title, mood]) =>
    el("div", { class: `card ${mood || ""}`, title: title || "" }, el("b", { text: value }), el("span", { text: name })))));
}

function none(text) { return el("p", { class: "none", text }); }

function dot(shade) { return el("span", { class: "dot", style: { background: shade } }); }

function legend(entries) {
  return el("ul", { class: "legend" }, ...entries.map(([shade, text]) => el("li", {}, dot(shade), text)));
}

const tip = {
  show(event, lines) {
    const box = document.getElementById("tip");
    box.replaceChildren(...lines.map((line) => typeof line === "string" ? el("div", { text: line }) : line));
    box.hidden = false;
    const place = box.getBoundingClientRect();
    box.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - place.width - 8))}px`;
    box.style.top = `${event.clientY + 18 + place.height > innerHeight
      ? Math.max(4, event.clientY - place.height - 10) : event.clientY + 16}px`;
  },
  hide() { document.getElementById("tip").hidden = true; },
};

// A table. Columns are [title, cell(row) -> text or node, options]: `num`, `class`, and `key(row)`, which makes it
// sortable. Beyond `first` rows a button shows more.
function table(columns, rows, { first = 50, total = null, caption = "" } = {}) {
  const body = el("tbody"), more = el("button", { type: "button" });
  let shown = first, order = rows;
  const fill = () => {
    const last = total ? [el("tr", { class: "total" }, ...total.map((text, place) =>
      el("td", { class: columns[place][2]?.num ? "num" : "", text })))] : [];
    body.replaceChildren(...order.slice(0, shown).map((row) => el("tr", {}, ...columns.map(([, cell, options]) => {
      const content = cell(row);
      const kind = [options?.num ? "num" : "", options?.class || ""].join(" ").trim();
      const node = el("td", kind ? { class: kind } : {});
      node.append(content === null || content === undefined ? "" : content);
      return node;
    }))), ...last);
    more.hidden = shown >= order.length;
    more.textContent = `Show more (${(order.length - shown).toLocaleString("en-GB")} left)`;
  };
  more.addEventListener("click", () => { shown += 200; fill(); });
  const heads = columns.map(([title, , options]) => {
    const head = el("th", { scope: "col", class: options?.num ? "num" : "" });
    if (!options?.key || rows.length < 2) { head.textContent = title; return head; }
    head.append(el("button", { type: "button", text: title, on: { click: () => {
      const up = head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sign = up ? 1 : -1, key = options.key;
      order = [...rows].sort((a, b) => (key(a) < key(b) ? -sign : key(a) > key(b) ? sign : 0));
      fill();
    } } }));
    return head;
  });
  fill();
  return el("div", {}, el("div", { class: "scroll" }, el("table", {},
    caption ? el("caption", { text: caption }) : null, el("thead", {}, el("tr", {}, ...heads)), body)), more);
}

function meter(part, whole, mark) {
  const share = (value) => `${Math.max(0, Math.min(100, (100 * value) / whole))}%`;
  const bar = el("i", { style: { width: whole ? share(part) : "0" } });
  return el("div", { class: "meter" }, bar, mark !== undefined && whole
    ? el("u", { style: { left: `calc(${share(mark)} - 2px)` } }) : null);
}

// Canvas -------------------------------------------------------------------------------------------------------------

function canvas(height, label) {
  const node = el("canvas", { tabindex: "0", role: "img", "aria-label": label, style: { height: `${height}px` } });
  node.prepare = () => {
    const ratio = devicePixelRatio || 1, width = node.clientWidth || 1;
    node.width = Math.round(width * ratio);
    node.height = Math.round(node.clientHeight * ratio);
    const pen = node.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, node.clientHeight);
    pen.font = '11px system-ui, "DejaVu Sans", sans-serif';
    return [pen, width, node.clientHeight];
  };
  return node;
}

function whenSized(node, draw) {
  let asked = false;
  const later = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
  new ResizeObserver(later).observe(node);
  redraws.push(later);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  return later;
}

function step(span, count, bases) {
  const rough = span / count;
  for (const base of bases) if (base >= rough) return base;
  return bases[bases.length - 1];
}

const TIME_STEPS = [], BYTE_STEPS = [];
for (let power = 0; power < 15; power++) for (const digit of [1, 2, 5]) TIME_STEPS.push(digit * 10 ** power);
for (let power = 0; power < 50; power++) BYTE_STEPS.push(2 ** power);

function timeAxis(pen, view, left, width, y) {
  const every = step(view.to - view.from, Math.max(2, width / 130), TIME_STEPS);
  pen.fillStyle = colour("--soft");
  pen.strokeStyle = colour("--line");
  pen.textAlign = "center";
  pen.textBaseline = "top";
  for (let at = Math.ceil(view.from / every) * every; at <= view.to; at += every) {
    const x = left + (width * (at - view.from)) / (view.to - view.from);
    pen.beginPath(); pen.moveTo(x, y); pen.lineTo(x, y + 4); pen.stroke();
    if (x < left + width - 22) pen.fillText(seconds(at), Math.max(x, left + 16), y + 6);
  }
}

// The window of time that charts show, shared by those that belong together.
class View {
  constructor(begin, end) {
    this.begin = begin; this.end = Math.max(end, begin + 1);
    this.from = this.begin; this.to = this.end;
    this.watchers = [];
  }
  set(from, to) {
    const span = Math.min(Math.max(to - from, 50), this.end - this.begin);
    this.from = Math.max(this.begin, Math.min(from, this.end - span));
    this.to = this.from + span;
    this.watchers.forEach((watch) => watch());
  }
  zoom(factor, centre = (this.from + this.to) / 2) {
    this.set(centre - (centre - this.from) * factor, centre + (this.to - centre) * factor);
  }
  pan(share) { const by = share * (this.to - this.from); this.set(this.from + by, this.to + by); }
  all() { this.set(this.begin, this.end); }
  buttons() {
    const make = (text, act) => el("button", { type: "button", text, on: { click: act } });
    return el("div", { class: "bar" },
      make("Zoom in", () => this.zoom(0.5)), make("Zoom out", () => this.zoom(2)),
      make("Earlier", () => this.pan(-0.4)), make("Later", () => this.pan(0.4)), make("All", () => this.all()));
  }
}

// Mouse and keys for a chart: drag to zoom into a range, Ctrl + wheel, double click, arrows, plus, minus, 0.
function navigate(node, view, left, { hover, pick, draw }) {
  const time = (event) => {
    const place = node.getBoundingClientRect();
    const share = (event.clientX - place.left - left) / (place.width - left);
    return view.from + Math.max(0, Math.min(1, share)) * (view.to - view.from);
  };
  let start = null;
  node.addEventListener("pointerdown", (event) => {
    if (event.button === 0) { start = [event.clientX, time(event)]; node.setPointerCapture(event.pointerId); }
  });
  node.addEventListener("pointermove", (event) => {
    hover(event, time(event));
    if (start && Math.abs(event.clientX - start[0]) > 4) draw([start[1], time(event)]);
  });
  node.addEventListener("pointerup", (event) => {
    if (!start) return;
    const [x, from] = start, to = time(event);
    start = null;
    if (Math.abs(event.clientX - x) > 4) view.set(Math.min(from, to), Math.max(from, to));
    else pick?.(to, event);
  });
  node.addEventListener("pointercancel", () => { start = null; draw(); });
  node.addEventListener("pointerleave", () => { tip.hide(); if (!start) draw(); });
  node.addEventListener("dblclick", () => view.all());
  node.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    view.zoom(event.deltaY > 0 ? 1.25 : 0.8, time(event));
  }, { passive: false });
  const keys = {
    ArrowLeft: () => view.pan(-0.1), ArrowRight: () => view.pan(0.1), "+": () => view.zoom(0.8), "=": () => view.zoom(0.8),
    "-": () => view.zoom(1.25), 0: () => view.all(), Home: () => view.all(),
    Enter: () => pick?.((view.from + view.to) / 2),
  };
  node.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (act && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); act(); }
  });
}

const HELP = "Drag to zoom into a range, double click for all; Ctrl and the wheel, or the keys + - 0 and the arrows, do the same.";

// Stacked areas of live bytes. `times` ascends; `series` are {name, shade, values}; each pixel shows the moment with
// the most bytes in it, so that no peak is lost however many moments there are.
class Stacked {
  constructor(view, times, series, { height = 260, label, pick = null, marks = [] }) {
    Object.assign(this, { view, times, series, marks });
    this.left = 74;
    this.chosen = null;
    this.totals = new Float64Array(times.length);
    for (const one of series) for (let i = 0; i < times.length; i++) this.totals[i] += one.values[i];
    this.node = canvas(height, label);
    const later = whenSized(this.node, () => this.draw());
    view.watchers.push(later);
    navigate(this.node, view, this.left, {
      hover: (event, time) => this.hover(event, time), draw: (range) => this.draw(range),
      pick: pick && ((time) => pick(this.at(time))),
    });
  }
  // The moment that a pixel around `time` shows.
  at(time) {
    const span = (this.view.to - this.view.from) / Math.max(1, this.node.clientWidth - this.left);
    return this.highest(time - span / 2, time + span / 2);
  }
  highest(from, to) {
    let best = lastUpTo(this.times, from);
    const end = lastUpTo(this.times, to);
    for (let i = best + 1; i <= end; i++) if (best < 0 || this.totals[i] > this.totals[best]) best = i;
    return best;
  }
  choose(index) { this.chosen = index; this.draw(); }
  draw(range = null) {
    const [pen, width, height] = this.node.prepare();
    const { view, left } = this, bottom = height - 24, wide = width - left;
    if (wide < 10) return;
    const columns = new Int32Array(wide);
    let top = 1;
    for (let x = 0; x < wide; x++) {
      const from = view.from + (x / wide) * (view.to - view.from), to = from + (view.to - view.from) / wide;
      columns[x] = this.highest(from, to);
      if (columns[x] >= 0) top = Math.max(top, this.totals[columns[x]]);
    }
    const every = step(top, 4, BYTE_STEPS);
    top = Math.ceil(top / every) * every;
    const y = (value) => bottom - (value / top) * (bottom - 8);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let value = 0; value <= top; value += every) {
      pen.strokeStyle = colour("--line");
      pen.beginPath(); pen.moveTo(left, y(value) + 0.5); pen.lineTo(width, y(value) + 0.5); pen.stroke();
      pen.fillStyle = colour("--soft");
      pen.fillText(bytes(value), left - 8, y(value));
    }
    const base = new Float64Array(wide);
    for (const one of this.series) {
      pen.fillStyle = one.shade;
      pen.beginPath();
      for (let x = 0; x < wide; x++) {
        pen.lineTo(left + x, y(base[x]));
        pen.lineTo(left + x + 1, y(base[x]));
      }
      for (let x = wide - 1; x >= 0; x--) {
        if (columns[x] >= 0) base[x] += one.values[columns[x]];
        pen.lineTo(left + x + 1, y(base[x]));
        pen.lineTo(left + x, y(base[x]));
      }
      pen.fill();
    }
    timeAxis(pen, view, left, wide, bottom);
    const line = (time, shade, text) => {
      if (time < view.from || time > view.to) return;
      const x = left + (wide * (time - view.from)) / (view.to - view.from);
      pen.strokeStyle = pen.fillStyle = shade;
      pen.beginPath(); pen.moveTo(x, 2); pen.lineTo(x, bottom); pen.stroke();
      pen.textAlign = x > width - 90 ? "right" : "left";
      pen.textBaseline = "top";
      if (text) pen.fillText(text, x + (x > width - 90 ? -4 : 4), 2);
    };
    for (const [time, text] of this.marks) line(time, colour("--warn"), text);
    if (this.chosen !== null && this.chosen >= 0) line(this.times[this.chosen], colour("--pick"), "shown below");
    drawRange(pen, view, left, wide, bottom, range);
  }
  hover(event, time) {
    const index = this.at(time);
    if (index < 0) { tip.hide(); return; }
    const rows = this.series.map((one) => [one.values[index], one]).filter(([value]) => value > 0)
      .sort((a, b) => b[0] - a[0]).slice(0, 8);
    tip.show(event, [
      `${seconds(this.times[index])}: ${bytes(this.totals[index])} live`,
      ...rows.map(([value, one]) => el("div", {}, dot(one.shade), `${one.name}: ${bytes(value)}`)),
    ]);
  }
}

function drawRange(pen, view, left, wide, bottom, range) {
  if (!range) return;
  const [a, b] = range.map((time) => left + (wide * (time - view.from)) / (view.to - view.from));
  pen.globalAlpha = 0.25;
  pen.fillStyle = colour("--accent");
  pen.fillRect(Math.min(a, b), 0, Math.abs(b - a), bottom);
  pen.globalAlpha = 1;
}

// Says in an attribute of the root when the page was first painted, in milliseconds since it was opened.
function painted() {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.dataset.painted = performance.now().toFixed(1);
  }));
}
