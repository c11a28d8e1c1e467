// The page of a memory snapshot. Columns of DATA.blocks and DATA.events hold numbers; `texts` and `sites` what they mean.
const { texts, sites, blocks, events } = DATA;
const KINDS = ["allocate", "free", "oom"], STATES = ["live", "pending", "free"];
const text = (number) => number < 0 ? null : texts[number];
const siteText = (number) => number < 0 ? "" : sites[number].join("\n");
const shades = new Map();

// Owners in the order of their highest share, each with a colour; those beyond the hues are shown as one.
function history() {
  const count = events.time.length, live = new Map();
  const final = new Map(DATA.holdings.map((one) => [one.owner, 0]));
  for (const one of DATA.holdings) final.set(one.owner, final.get(one.owner) + one.nbytes);
  const delta = new Map(), lowest = new Map(), highest = new Map();
  for (let i = 0; i < count; i++) {
    if (events.kind[i] === 2) continue;
    const owner = texts[events.owner[i]], now = (delta.get(owner) || 0) + (events.kind[i] ? -1 : 1) * events.nbytes[i];
    delta.set(owner, now);
    lowest.set(owner, Math.min(lowest.get(owner) || 0, now));
    highest.set(owner, Math.max(highest.get(owner) || 0, now));
  }
  for (const owner of new Set([...final.keys(), ...delta.keys()])) {
    // What is live in the end, less what changed, was there before; lost events must not make it negative.
    const base = Math.max((final.get(owner) || 0) - (delta.get(owner) || 0), -(lowest.get(owner) || 0));
    live.set(owner, { base, peak: base + (highest.get(owner) || 0) });
  }
  const ranked = [...live.keys()].sort((a, b) => live.get(b).peak - live.get(a).peak || (a < b ? -1 : 1));
  ranked.forEach((owner, place) => shades.set(owner, hue(place < HUES.length ? place : -1)));
  const named = ranked.slice(0, HUES.length), rest = ranked.length > named.length;
  const place = new Map(ranked.map((owner, at) => [owner, Math.min(at, HUES.length)]));
  const series = [...named, ...(rest ? [`${ranked.length - named.length} others`] : [])].map((name, at) =>
    ({ name, shade: hue(at < HUES.length ? at : -1), values: new Float64Array(count + 1) }));
  const now = new Float64Array(series.length), times = new Float64Array(count + 1);
  for (const owner of ranked) now[place.get(owner)] += live.get(owner).base;
  const names = texts.map((name) => place.get(name) ?? -1);
  series.forEach((one, at) => { one.values[0] = now[at]; });
  for (let i = 0; i < count; i++) {
    const at = names[events.owner[i]];
    if (events.kind[i] !== 2) now[at] += (events.kind[i] ? -1 : 1) * events.nbytes[i];
    times[i + 1] = events.time[i];
    for (let s = 0; s < series.length; s++) series[s].values[i + 1] = now[s];
  }
  return { times, series };
}

// What lived after the first `count` events, as groups of equal owner, label, library and site.
function livingAt(count) {
  const living = new Map(), total = events.time.length, open = new Set();
  for (let i = 0; i < total; i++) {
    if (events.kind[i] === 0) open.add(events.address[i]);
    // Freed without having been allocated here: it lived from the beginning on.
    else if (events.kind[i] === 1 && !open.delete(events.address[i])) living.set(events.address[i], i);
  }
  for (let i = 0; i < blocks.address.length; i++) {
    if (blocks.state[i] < 2 && !open.has(blocks.address[i])) living.set(blocks.address[i], -1 - i);
  }
  for (let i = 0; i < count; i++) {
    if (events.kind[i] === 0) living.set(events.address[i], i);
    else if (events.kind[i] === 1) living.delete(events.address[i]);
  }
  const groups = new Map();
  for (const at of living.values()) {
    const [from, i] = at < 0 ? [blocks, -1 - at] : [events, at];
    const key = `${from.owner[i]},${from.label[i]},${from.library[i]},${from.site[i]}`;
    const group = groups.get(key);
    if (group) { group.nbytes += from.nbytes[i]; group.blocks += 1; } else {
      groups.set(key, { owner: text(from.owner[i]) || "", label: text(from.label[i]), library: text(from.library[i]),
        site: siteText(from.site[i]), nbytes: from.nbytes[i], blocks: 1 });
    }
  }
  return [...groups.values()].sort((a, b) => b.nbytes - a.nbytes);
}

const OWNER_COLUMNS = [
  ["owner", (one) => el("span", {}, dot(shades.get(one.owner) || hue(-1)), one.owner), { key: (one) => one.owner }],
  ["label", (one) => one.label === null ? el("span", { class: "none", text: "none" }) : one.label,
    { key: (one) => one.label || "" }],
  ["library", (one) => one.library, { key: (one) => one.library }],
];

function siteCell(site) {
  if (!site) return el("span", { class: "none", text: "not recorded" });
  const [first, ...rest] = site.split("\n");
  if (!rest.length) return first;
  return el("details", {}, el("summary", { text: first }), ...rest.map((frame) => el("div", { text: frame })));
}

function showTimeline({ times, series }) {
  const lost = DATA.events_lost ? ` ${DATA.events_lost.toLocaleString("en-GB")} events were lost, because the recording `
    + "had no room for them: what was live then is an estimate." : "";
  if (times.length < 2) {
    section("timeline", "Live bytes over time", lost,
      none("Nothing was recorded. Record with ctx.memory.record(...) to see who held what when."));
    return null;
  }
  const view = new View(0, times[times.length - 1]);
  const refused = [];
  for (let i = 0; i < events.time.length && refused.length < 50; i++) {
    if (events.kind[i] === 2) refused.push([events.time[i], `refused ${bytes(events.nbytes[i])}`]);
  }
  const chart = new Stacked(view, times, series, {
    label: "Live bytes by owner over time", marks: refused, height: 280, pick: (index) => peak(index),
  });
  section("timeline", "Live bytes over time", `${events.time.length.toLocaleString("en-GB")} recorded changes, by owner. `
    + `Click, or press Enter, to list below what lived at that moment. ${HELP}${lost}`, view.buttons(), chart.node,
    legend(series.map((one) => [one.shade, one.name])));
  const place = section("peak", "What lived at the peak", "");
  const peak = (index) => {
    const top = chart.totals.indexOf(chart.totals.reduce((a, b) => Math.max(a, b), 0));
    const chosen = index === undefined ? top : index;
    const living = livingAt(chosen);
    const sum = living.reduce((all, one) => all + one.nbytes, 0);
    const when = `${chosen === top ? "the peak" : "the chosen moment"}, ${seconds(times[chosen])} after the start`;
    place.replaceChildren(
      el("h2", { text: chosen === top ? "What lived at the peak" : "What lived at the chosen moment" }),
      el("p", { text: `${bytes(sum)} in ${living.reduce((all, one) => all + one.blocks, 0).toLocaleString("en-GB")} `
        + `blocks at ${when}, the largest first. Open a call site to see where it was called from.` }),
      chosen === top ? "" : el("button", { type: "button", text: "Back to the peak", on: { click: () => peak() } }),
      living.length ? table([...OWNER_COLUMNS,
        ["blocks", (one) => one.blocks.toLocaleString("en-GB"), { num: true, key: (one) => one.blocks }],
        ["bytes", (one) => el("span", { text: bytes(one.nbytes), title: exact(one.nbytes) }),
          { num: true, key: (one) => one.nbytes }],
        ["call site", (one) => siteCell(one.site), { class: "site", key: (one) => one.site }],
      ], living, { first: 20 }) : none("Nothing was live."));
    chart.choose(chosen);
    place.dataset.total = sum;
  };
  peak();
  return chart;
}

// Segments -----------------------------------------------------------------------------------------------------------

function segmentRows() {
  const rows = DATA.segments.map((one, number) => ({ ...one, number, blocks: [], live: 0, pending: 0, largest: 0 }));
  for (let i = 0; i < blocks.address.length; i++) {
    const row = rows[blocks.segment[i]];
    if (!row) continue;
    row.blocks.push(i);
    if (blocks.state[i] === 2) row.largest = Math.max(row.largest, blocks.nbytes[i]);
    else row[STATES[blocks.state[i]]] += blocks.nbytes[i];
  }
  for (const row of rows) row.free = row.nbytes - row.live - row.pending;
  return rows;
}

function showSegments() {
  const rows = segmentRows();
  const free = rows.reduce((all, row) => all + row.free, 0);
  if (!rows.length) {
    section("segments", "Segments", "", none("The pools hold nothing from the device."));
    return;
  }
  const drawn = [...rows].sort((a, b) => b.nbytes - a.nbytes).slice(0, 40);
  const node = canvas(drawn.length * 20 + 4, "Map of the segments and the blocks in them");
  const widest = drawn[0].nbytes;
  const later = whenSized(node, () => {
    const [pen, width] = node.prepare();
    drawn.forEach((row, at) => {
      const y = at * 20 + 2, wide = Math.max(3, (width * row.nbytes) / widest);
      pen.fillStyle = colour("--free");
      pen.fillRect(0, y, wide, 16);
      let right = -1;
      for (const i of row.blocks) {
        if (blocks.state[i] === 2) continue;
        const x = (wide * blocks.offset[i]) / row.nbytes, w = (wide * blocks.nbytes[i]) / row.nbytes;
        if (x + w < right) continue;  // nothing of it would be seen
        pen.globalAlpha = blocks.state[i] === 1 ? 0.45 : 1;
        pen.fillStyle = shades.get(texts[blocks.owner[i]]) || hue(-1);
        pen.fillRect(x, y, Math.max(0.6, w - (w > 3 ? 1 : 0)), 16);
        right = x + 0.6;
      }
      pen.globalAlpha = 1;
    });
  });
  node.addEventListener("pointermove", (event) => {
    const place = node.getBoundingClientRect();
    const row = drawn[Math.floor((event.clientY - place.top - 2) / 20)];
    const offset = row ? ((event.clientX - place.left) / Math.max(3, (place.width * row.nbytes) / widest)) * row.nbytes : 0;
    if (!row || offset > row.nbytes) { tip.hide(); return; }
    const at = lastUpTo(row.blocks.map((i) => blocks.offset[i]), offset), i = row.blocks[at];
    const lines = [`segment ${hex(row.address)} of the ${row.pool} pool: ${bytes(row.nbytes)}, ${bytes(row.free)} free`];
    if (i !== undefined && offset < blocks.offset[i] + blocks.nbytes[i]) {
      const state = STATES[blocks.state[i]];
      lines.push(`${state} block ${hex(blocks.address[i])}: ${bytes(blocks.nbytes[i])}`
        + (state === "free" ? "" : `, ${bytes(blocks.requested[i])} asked for`));
      if (state !== "free") lines.push(`${text(blocks.owner[i])}, ${text(blocks.label[i]) ?? "no label"}`);
      if (blocks.site[i] >= 0) lines.push(sites[blocks.site[i]][0]);
    }
    tip.show(event, lines);
  });
  node.addEventListener("pointerleave", () => tip.hide());
  const words = `${rows.length} segment${rows.length === 1 ? "" : "s"}`;
  section("segments", "Segments", `What the pools hold from the device: ${words} with ${bytes(free)} free. The largest `
    + `block that fits is ${bytes(DATA.largest_placeable)}; ${(100 * DATA.fragmentation).toFixed(1)} % of the free bytes `
    + `lie where one block could not have them.${rows.length > drawn.length ? ` The ${drawn.length} largest are drawn.` : ""}`,
    node, legend([[colour("--free"), "free"], ...[...shades].slice(0, HUES.length).map(([name, shade]) => [shade, name])]),
    table([
      ["address", (row) => hex(row.address), { class: "code", key: (row) => row.number }],
      ["pool", (row) => row.pool, { key: (row) => row.pool }],
      ["bytes", (row) => bytes(row.nbytes), { num: true, key: (row) => row.nbytes }],
      ["live", (row) => bytes(row.live), { num: true, key: (row) => row.live }],
      ["pending", (row) => bytes(row.pending), { num: true, key: (row) => row.pending }],
      ["free", (row) => bytes(row.free), { num: true, key: (row) => row.free }],
      ["largest free", (row) => bytes(row.largest), { num: true, key: (row) => row.largest }],
    ], rows, { first: 10 }));
  later();
}

// Search -------------------------------------------------------------------------------------------------------------

function search(query) {
  const wanted = query.trim().toLowerCase(), found = [];
  if (!wanted) return found;
  const textHit = texts.map((one) => one.toLowerCase().includes(wanted));
  const siteHit = sites.map((frames) => frames.some((frame) => frame.toLowerCase().includes(wanted)));
  const digits = /^(0x)?[0-9a-f]+$/.test(wanted) ? wanted.replace(/^0x/, "") : null;
  const scan = (from, states) => {
    for (let i = 0; i < from.address.length; i++) {
      if (states[i] === 2 && from === blocks) continue;
      if (textHit[from.owner[i]] || textHit[from.label[i]] || textHit[from.library[i]] || siteHit[from.site[i]]
        || (digits && hex(from.address[i]).includes(digits, 2))) found.push([from, i]);
    }
  };
  scan(blocks, blocks.state);
  scan(events, events.kind);
  return found;
}

function showSearch() {
  const results = el("div", { "aria-live": "polite" });
  const input = el("input", { type: "search", placeholder: "label, owner, library, file, function or address",
    "aria-label": "Search in blocks and events", autocomplete: "off", spellcheck: "false" });
  let waiting = 0;
  const run = () => {
    const found = search(input.value);
    const sum = found.reduce((all, [from, i]) => all + (from === blocks ? from.nbytes[i] : 0), 0);
    const what = ([from, i]) => from === blocks ? `${STATES[from.state[i]]} now` : KINDS[from.kind[i]];
    if (!input.value.trim()) { results.replaceChildren(); delete results.dataset.found; return; }
    results.replaceChildren(el("p", { class: "hint", text: found.length ? `${found.length.toLocaleString("en-GB")} found; `
      + `those that are live hold ${bytes(sum)}.` : "Nothing found." }));
    if (found.length) results.append(table([
      ["what", what, { key: what }],
      ["time", ([from, i]) => from === blocks ? "" : seconds(from.time[i]),
        { num: true, key: ([from, i]) => from === blocks ? -1 : from.time[i] }],
      ["bytes", ([from, i]) => bytes(from.nbytes[i]), { num: true, key: ([from, i]) => from.nbytes[i] }],
      ["address", ([from, i]) => hex(from.address[i]), { class: "code", key: ([from, i]) => hex(from.address[i]) }],
      ["owner", ([from, i]) => text(from.owner[i]) || "", { key: ([from, i]) => text(from.owner[i]) || "" }],
      ["label", ([from, i]) => text(from.label[i]) ?? "", { key: ([from, i]) => text(from.label[i]) || "" }],
      ["library", ([from, i]) => text(from.library[i])],
      ["call site", ([from, i]) => siteCell(siteText(from.site[i])), { class: "site" }],
    ], found, { first: 100 }));
    results.dataset.found = found.length;
  };
  input.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(run, 60); });
  input.addEventListener("keydown", (event) => { if (event.key === "Escape") { input.value = ""; run(); } });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== input) { event.preventDefault(); input.focus(); }
  });
  section("search", "Search", "In what is live and in all recorded changes. The key / comes here, Escape clears.",
    input, results);
}

header(`Memory of ${DATA.device}`, `Snapshot of ${DATA.when}, tazza ${DATA.version}`, [
  ["account", "Account"], ["holdings", "Holders"], ["timeline", "Timeline"], ["segments", "Segments"], ["search", "Search"],
]);
const past = history();
const isLive = (name) => name === "live" || name.startsWith("live:") || name === "pending";
const liveBytes = DATA.headings.filter((one) => isLive(one.name)).reduce((all, one) => all + one.nbytes, 0);
cards([
  [bytes(DATA.used), `used of ${bytes(DATA.total)}`, exact(DATA.used)],
  [bytes(liveBytes), "live in contexts", exact(liveBytes)],
  [bytes(Math.max(0, ...DATA.balances.filter((one) => one.depth < 2).map((one) => one.peak))), "highest peak of a context"],
  [bytes(DATA.largest_placeable), "largest placeable block", exact(DATA.largest_placeable)],
  [`${(100 * DATA.fragmentation).toFixed(1)} %`, "fragmentation of the pools' free memory"],
  [DATA.events.time.length.toLocaleString("en-GB"), "recorded changes"],
]);
showAccount(DATA.headings, DATA.used, DATA.total);
showBalances(DATA.balances);
showHoldings(DATA.holdings, (owner) => shades.get(owner) || hue(-1));
showTimeline(past);
showSegments();
showSearch();
painted();
