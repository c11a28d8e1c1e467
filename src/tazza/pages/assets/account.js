// The account of a device: headings that add up, owners, and who holds what.
const HEADING_SHADES = {
  "live": "#4c78a8", "live: numpy": "#7fb0de", "pending": "#f58518", "cached": "#54a24b", "workspaces": "#b279a2",
  "pinned": "#72b7b2", "not touched yet": "#d3a518", "other of this process": "#e377a2", "file cache": "#9d755d",
  "kernel": "#7f8fd1", "kernel: free in processors' lists": "#b3bce6", "other processes": OTHER, "unexplained": "#e45756",
};

function headingShade(name, place) {
  return HEADING_SHADES[name] || (name.startsWith("foreign") ? "#2a9d8f" : hue(place + 3));
}

function showAccount(headings, used, total) {
  if (!headings.length) {
    section("account", "Account", "", none("Nothing was measured."));
    return;
  }
  const positive = headings.filter((one) => one.nbytes > 0);
  const sum = headings.reduce((all, one) => all + one.nbytes, 0);
  const shade = new Map(headings.map((one, place) => [one, headingShade(one.name, place)]));
  const bar = el("div", { class: "stack", role: "img", "aria-label": "Share of each heading" }, ...positive.map((one) =>
    el("div", {
      title: `${one.name}: ${bytes(one.nbytes)}`, style: { background: shade.get(one), flex: `${one.nbytes} 0 0` },
    })));
  const rows = table([
    ["heading", (one) => el("span", {}, dot(shade.get(one)), one.name), { key: (one) => one.name }],
    ["bytes", (one) => el("span", { text: bytes(one.nbytes), title: exact(one.nbytes) }),
      { num: true, key: (one) => one.nbytes }],
    ["share", (one) => percent(one.nbytes, used), { num: true, key: (one) => one.nbytes }],
    ["what it is", (one) => one.note],
  ], headings, { total: ["used, as the device reports it", bytes(used), percent(sum, used),
    sum === used ? `the headings add up to it; ${bytes(total - used)} of ${bytes(total)} are free`
      : `the headings add up to ${exact(sum)}, which differs by ${exact(sum - used)}`] });
  section("account", "Account", "Every used byte of the device under one heading. A heading below zero is memory that "
    + "was granted and never touched, which the device does not count.", bar, rows);
}

function showBalances(balances) {
  const title = "Contexts and budgets";
  if (!balances.length) { section("balances", title, "", none("No context is open on the device.")); return; }
  const largest = Math.max(1, ...balances.map((one) => Math.max(one.limit || 0, one.peak)));
  section("balances", title, "Live bytes (pending ones included) against the limit, or against the largest peak where "
    + "there is no limit; the mark is the peak. Those of one name are one row, with how many they are: live and reserve "
    + "of all together, peak and limit of the largest.", table([
    ["owner", (one) => one.accounts > 1 ? `${one.owner} (${one.accounts})` : one.owner, { key: (one) => one.owner }],
    ["live", (one) => el("span", { text: bytes(one.live), title: exact(one.live) }), { num: true, key: (one) => one.live }],
    ["peak", (one) => el("span", { text: bytes(one.peak), title: exact(one.peak) }), { num: true, key: (one) => one.peak }],
    ["limit", (one) => one.limit === null ? "none" : bytes(one.limit), { num: true, key: (one) => one.limit || 0 }],
    ["reserve", (one) => one.reserve ? bytes(one.reserve) : "-", { num: true, key: (one) => one.reserve }],
    ["refused", (one) => one.ooms, { num: true, key: (one) => one.ooms }],
    ["", (one) => meter(one.live, one.limit * one.accounts || largest, one.peak)],
  ], balances, { first: 100 }));
}

function showHoldings(holdings, shadeOf) {
  const title = "Who holds it";
  if (!holdings.length) { section("holdings", title, "", none("Nothing is live.")); return; }
  const largest = Math.max(1, ...holdings.map((one) => one.nbytes));
  section("holdings", title, "Live and pending memory by owner, label and library, the largest first.", table([
    ["owner", (one) => el("span", {}, dot(shadeOf(one.owner)), one.owner), { key: (one) => one.owner }],
    ["label", (one) => one.label === null ? el("span", { class: "none", text: "none" }) : one.label,
      { key: (one) => one.label || "" }],
    ["library", (one) => one.library, { key: (one) => one.library }],
    ["blocks", (one) => one.blocks.toLocaleString("en-GB"), { num: true, key: (one) => one.blocks }],
    ["bytes", (one) => el("span", { text: bytes(one.nbytes), title: exact(one.nbytes) }),
      { num: true, key: (one) => one.nbytes }],
    ["", (one) => meter(one.nbytes, largest)],
  ], holdings, { first: 25 }));
}
