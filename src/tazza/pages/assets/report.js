// The page of a run: DATA.slices and DATA.memory hold columns, times in nanoseconds since the run began.
const { slices, tracks } = DATA;
const KIND_SHADES = { copy: "#2a9d8f", fill: "#94c973", wait: OTHER, record: "#6c757d", launch: "#6c757d", call: "#c58b4e" };
const KIND_WORDS = { copy: "copies", fill: "fills", wait: "waits", record: "records", launch: "launches", call: "other calls" };
const taskShades = new Map();
[...DATA.tasks].sort((a, b) => b.total_ns - a.total_ns).forEach((one, place) => {
  if (!taskShades.has(one.name)) taskShades.set(one.name, hue(place < HUES.length ? place : -1));
});

function sliceShade(i) {
  return slices.kind[i] === "task" ? taskShades.get(DATA.texts[slices.name[i]]) || OTHER : KIND_SHADES[slices.kind[i]];
}

// A line for each stream and host thread, with what ran on it.
class Lanes {
  constructor(view) {
    this.view = view;
    this.left = 190;
    this.lanes = tracks.map((track) => ({ ...track, slices: [], depth: [] })).map((lane, number) => ({ ...lane, number }));
    for (let i = 0; i < slices.start.length; i++) this.lanes[slices.track[i]].slices.push(i);
    for (const lane of this.lanes) {
      const open = [];
      for (const i of lane.slices) {
        while (open.length && open[open.length - 1] <= slices.start[i]) open.pop();
        lane.depth.push(open.length);
        open.push(slices.start[i] + slices.duration[i]);
      }
    }
    this.lanes = this.lanes.filter((lane) => lane.slices.length);
    // Devices first, host threads after them.
    this.lanes.sort((a, b) => (a.group === "host") - (b.group === "host") || a.number - b.number);
    this.node = canvas(this.lanes.length * 26 + 24, "What ran on each stream and host thread over time");
    const later = whenSized(this.node, () => this.draw());
    view.watchers.push(later);
    navigate(this.node, view, this.left, { hover: (event, time) => this.hover(event, time), draw: (range) => this.draw(range) });
  }
  draw(range = null) {
    const [pen, width] = this.node.prepare(), { view, left } = this, wide = width - left;
    if (wide < 10) return;
    const scale = wide / (view.to - view.from), bottom = this.lanes.length * 26;
    this.lanes.forEach((lane, row) => {
      const y = row * 26 + 3;
      pen.fillStyle = colour("--wash");
      pen.fillRect(left, y, wide, 20);
      pen.fillStyle = colour("--soft");
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      pen.fillText(shorten(pen, lane.group === "host" ? `thread ${lane.name}` : lane.name, left - 12), 0, y + 10);
      const rights = [];
      pen.save();
      pen.beginPath(); pen.rect(left, y, wide, 20); pen.clip();
      lane.slices.forEach((i, at) => {
        const x = left + (slices.start[i] - view.from) * scale, w = Math.max(1, slices.duration[i] * scale);
        const depth = Math.min(lane.depth[at], 3);
        if (x + w < left || x > width || x + w <= (rights[depth] ?? -1)) return;
        rights[depth] = x + w;
        pen.fillStyle = sliceShade(i);
        pen.globalAlpha = slices.kind[i] === "wait" ? 0.45 : 1;
        pen.fillRect(x, y + depth * 5, w > 3 ? w - 0.5 : w, 20 - depth * 5);
        pen.globalAlpha = 1;
        if (slices.note[i] === "failed") { pen.fillStyle = colour("--warn"); pen.fillRect(x, y, w, 3); }
        if (w > 40 && depth === lane.depth[at]) {
          pen.fillStyle = slices.kind[i] === "wait" ? colour("--ink") : "#ffffff";
          pen.fillText(shorten(pen, DATA.texts[slices.name[i]], Math.min(w, width - x) - 8), Math.max(x, left) + 4, y + 10);
        }
      });
      pen.restore();
    });
    timeAxis(pen, view, left, wide, bottom);
    drawRange(pen, view, left, wide, bottom, range);
  }
  hover(event, time) {
    const place = this.node.getBoundingClientRect();
    const lane = this.lanes[Math.floor((event.clientY - place.top) / 26)];
    const slack = (1.5 * (this.view.to - this.view.from)) / Math.max(1, place.width - this.left);
    let found = -1;
    for (const i of lane && event.clientX - place.left > this.left ? lane.slices : []) {
      if (slices.start[i] > time + slack) break;
      if (slices.start[i] + slices.duration[i] >= time - slack) found = i;
    }
    if (found < 0) { tip.hide(); return; }
    tip.show(event, [
      `${slices.kind[found]}: ${DATA.texts[slices.name[found]]}${slices.note[found] ? ` (${slices.note[found]})` : ""}`,
      `${seconds(slices.duration[found])}, from ${seconds(slices.start[found])} on ${lane.name}`,
      ...(slices.nbytes[found] ? [bytes(slices.nbytes[found])] : []),
    ]);
  }
}

function shorten(pen, text, width) {
  if (width < 12) return "";
  if (pen.measureText(text).width <= width) return text;
  let low = 0, high = Math.min(text.length, 200);
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pen.measureText(`${text.slice(0, middle)}\u2026`).width <= width) low = middle; else high = middle - 1;
  }
  return low ? `${text.slice(0, low)}\u2026` : "";
}

function showPictures() {
  const view = new View(0, Math.max(1, DATA.elapsed_ns));
  const lanes = new Lanes(view);
  const left = DATA.slices_left_out
    ? ` ${DATA.slices_left_out.toLocaleString("en-GB")} short ones are not drawn; the tables count them all.` : "";
  if (lanes.lanes.length) {
    const used = new Set(slices.kind);
    section("timeline", "What ran when", `A line for each stream, then each host thread. ${HELP}${left}`,
      view.buttons(), lanes.node, legend([
        ...[...taskShades].slice(0, HUES.length).map(([name, shade]) => [shade, name]),
        ...Object.entries(KIND_SHADES).filter(([kind]) => used.has(kind) && kind !== "record")
          .map(([kind, shade]) => [shade, KIND_WORDS[kind]]),
      ]));
  } else {
    section("timeline", "What ran when", "", none("Nothing was launched, copied or filled in a stream."));
  }
  const memory = DATA.memory;
  if (memory.times.length) {
    const series = memory.series.map((one, place) => ({ name: one.name, shade: hue(place < HUES.length ? place : -1), values: one.values }));
    const chart = new Stacked(view, memory.times, series, { label: "Live bytes by owner over time", height: 220 });
    chart.left = lanes.lanes.length ? lanes.left : chart.left;
    section("memory", "Live bytes over time", "What contexts and budgets held, on the same axis as above; a budget's bytes "
      + "are shown as its own, not as its context's.", chart.node, legend(series.map((one) => [one.shade, one.name])));
  } else {
    section("memory", "Live bytes over time", "", none("Nothing was allocated through a context."));
  }
}

function showStreams() {
  const count = (one, kind) => one.counts[kind] || 0;
  if (!DATA.streams.length) return;
  section("streams", "Streams", "How much ran on each. Busy is the time of tasks, copies and fills; waiting is the time in "
    + "which the stream stood still because something else was not over.", table([
    ["stream", (one) => one.name, { key: (one) => one.name }],
    ["device", (one) => one.group, { key: (one) => one.group }],
    ["tasks", (one) => count(one, "task").toLocaleString("en-GB"), { num: true, key: (one) => count(one, "task") }],
    ["failed", (one) => one.failed ? el("span", { class: "bad", text: one.failed }) : "0", { num: true, key: (one) => one.failed }],
    ["copies", (one) => count(one, "copy").toLocaleString("en-GB"), { num: true, key: (one) => count(one, "copy") }],
    ["fills", (one) => count(one, "fill").toLocaleString("en-GB"), { num: true, key: (one) => count(one, "fill") }],
    ["moved", (one) => bytes(one.nbytes), { num: true, key: (one) => one.nbytes }],
    ["busy", (one) => seconds(one.busy_ns), { num: true, key: (one) => one.busy_ns }],
    ["waiting", (one) => seconds(one.waiting_ns), { num: true, key: (one) => one.waiting_ns }],
    ["", (one) => meter(one.busy_ns, DATA.elapsed_ns)],
  ], DATA.streams, { first: 30 }));
}

function showTasks() {
  if (!DATA.tasks.length) return;
  const longest = Math.max(1, ...DATA.tasks.map((one) => one.total_ns));
  section("tasks", "Tasks", "By name, the one that took most first.", table([
    ["task", (one) => el("span", {}, dot(taskShades.get(one.name) || OTHER), one.name), { key: (one) => one.name }],
    ["count", (one) => one.count.toLocaleString("en-GB"), { num: true, key: (one) => one.count }],
    ["together", (one) => seconds(one.total_ns), { num: true, key: (one) => one.total_ns }],
    ["each, on average", (one) => seconds(one.total_ns / one.count), { num: true, key: (one) => one.total_ns / one.count }],
    ["the longest", (one) => seconds(one.longest_ns), { num: true, key: (one) => one.longest_ns }],
    ["", (one) => meter(one.total_ns, longest)],
  ], DATA.tasks, { first: 20 }));
}

function showLeaks() {
  if (!DATA.leaks.length) {
    section("leaks", "Leaks", "", none("Nothing was live any more when the program had ended."));
    return;
  }
  const sum = DATA.leaks.reduce((all, one) => all + one.nbytes, 0);
  const count = DATA.leaks.reduce((all, one) => all + one.blocks, 0);
  section("leaks", "Leaks", `${count.toLocaleString("en-GB")} block${count === 1 ? "" : "s"} with ${bytes(sum)} were still live when the `
    + "program had ended.", table([
    ["label", (one) => one.label === null ? el("span", { class: "none", text: "none" }) : one.label, { key: (one) => one.label || "" }],
    ["owner", (one) => one.owner, { key: (one) => one.owner }],
    ["library", (one) => one.library, { key: (one) => one.library }],
    ["blocks", (one) => one.blocks.toLocaleString("en-GB"), { num: true, key: (one) => one.blocks }],
    ["bytes", (one) => el("span", { text: bytes(one.nbytes), title: exact(one.nbytes) }), { num: true, key: (one) => one.nbytes }],
    ["allocated at", (one) => one.site.length ? el("details", {}, el("summary", { text: one.site[0] }),
      ...one.site.slice(1).map((frame) => el("div", { text: frame }))) : el("span", { class: "none", text: "not recorded" }),
    { class: "site", key: (one) => one.site[0] || "" }],
  ], DATA.leaks, { first: 30 }));
}

header(DATA.title, DATA.subtitle, [
  ["timeline", "Timeline"], ["memory", "Memory"], ["account", "Account"], ["leaks", "Leaks"], ["run", "Run"],
]);
const leaked = DATA.leaks.reduce((all, one) => all + one.nbytes, 0);
cards([
  [seconds(DATA.elapsed_ns), "time", `${seconds(DATA.processor_ns)} of processor time`],
  [DATA.outcome, "outcome", "", DATA.failed ? "bad" : "good"],
  [DATA.streams.reduce((all, one) => all + (one.counts.task || 0), 0).toLocaleString("en-GB"), "tasks"],
  [bytes(DATA.peak), DATA.limit === null ? "peak of the context" : `peak, limit ${bytes(DATA.limit)}`, exact(DATA.peak)],
  [leaked ? bytes(leaked) : "none", "leaked", exact(leaked), leaked ? "bad" : ""],
  [DATA.health, "health", "", DATA.health === "ok" ? "" : "bad"],
]);
showPictures();
showStreams();
showTasks();
showAccount(DATA.headings, DATA.used, DATA.total);
showBalances(DATA.balances);
showHoldings(DATA.holdings, () => OTHER);
showLeaks();
section("run", "Run", "", table([["", (fact) => fact[0]], ["", (fact) => fact[1], { class: "code" }]], DATA.facts));
painted();
