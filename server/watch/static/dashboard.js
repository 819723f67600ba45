// The live page: a copy of the run's tables, changed by events and drawn once a frame.
// All text comes from files of devices and servers: it is set as textContent, and the page's policy forbids the rest.

import { draw } from "./chart.js";

const ROUNDS_SHOWN = 10, DEVICES_SHOWN = 50, LOG_LINES = 200, QUIET_MS = 10000;
const STATUS = { running: "running", finished: "finished", stopped: "stopped", new: "no round yet" };
const RATES = { wer: "word error rate", cer: "character error rate" };
const rateColumn = () => (state.run.metric === "cer" ? 3 : 2);
const byId = (id) => document.getElementById(id);
const fresh = () => ({ run: null, rounds: [], curve: [], checks: [], devices: new Map(), log: [], reasons: Object.create(null) });
let state = fresh(), page = { rounds: 0, devices: 0 }, waiting = false, announced = 0;

// ---- formats

const decimals = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
function bytes(count) {
  if (count === null || count === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) { count /= 1000; unit++; }
  return `${unit ? Number(count.toPrecision(3)) : count} ${units[unit]}`;
}
function ago(seconds) {
  if (seconds < 100) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}
const digitsOf = (step) => Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
const inWords = (refused) => Object.entries(refused).map(([reason, count]) => `${count} × ${state.reasons[reason] ?? reason}`).join("; ");

// ---- elements

function element(name, text, kind) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}
function row(cells) {
  const node = element("tr");
  for (const [text, kind] of cells) node.append(element("td", text, kind));
  return node;
}
// What has not changed stays: a selection, or the place of a screen reader, outlives a redraw.
function fill(parent, made) {
  made.forEach((node, place) => {
    const old = parent.children[place];
    if (!old) parent.append(node);
    else if (!old.isEqualNode(node)) old.replaceWith(node);
  });
  while (parent.children.length > made.length) parent.lastElementChild.remove();
}
function setText(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

// ---- events

function take({ run, rounds, curve, checks, devices, log, reasons }) {
  state.run = run;
  for (const [key, found] of Object.entries({ rounds, curve, checks })) {
    state[key].length = found.from;
    for (const each of found.rows) state[key].push(each);
  }
  Object.assign(state.reasons, reasons);
  for (const [client, ...moving] of devices.moving) known(client).moving = moving;
  for (const [client, seldom] of Object.entries(devices.seldom)) known(client).seldom = seldom;
  for (const client of devices.gone) state.devices.delete(client);
  state.log = state.log.concat(log).slice(-LOG_LINES);
  soon();
}
function known(client) {
  if (!state.devices.has(client)) state.devices.set(client, { client, moving: [0, 0, 0, 0], seldom: ["", "", 0, {}, ""] });
  return state.devices.get(client);
}
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; render(); });
}
function render() {
  if (!state.run) return;
  const start = performance.now();
  renderHead(); renderCharts(); renderRounds(); renderDevices(); renderRefused(); renderLedger(); renderLog(); announce();
  document.documentElement.dataset.drawMs = (performance.now() - start).toFixed(1);
  document.documentElement.dataset.round = state.run.round;
}

// ---- parts of the page

function renderHead() {
  const { run } = state;
  setText("name", run.name);
  setText("status", STATUS[run.status] ?? run.status);
  byId("status").className = `badge ${run.status}`;
  setText("model", run.model);
  document.title = `${run.name}: round ${run.round}`;
  byId("verdict").hidden = !run.verdict;
  setText("verdict", run.verdict);
  const rounds = state.rounds, last = rounds.at(-1), at = rateColumn();
  const evaluated = state.curve.filter((each) => each[at] !== null);
  const first = evaluated[0], best = evaluated.at(-1), check = state.curve.at(-1) ?? state.checks.at(-1);
  const sum = (index) => rounds.reduce((total, each) => total + (each[index] ?? 0), 0);
  const tiles = [
    ["round", run.target ? `${run.round} of ${run.target}` : `${run.round}`, ageText()],
    ["loss", decimals(last?.[1], 3), check ? `held out ${decimals(check[1], 3)}` : ""],
    [RATES[run.metric], percent(best?.[at]), first && best !== first ? `${percent(first[at])} before` : ""],
    ["devices", last ? `${last[2]} of ${last[3]}` : "–", `${state.devices.size} known`],
    ["bytes up", bytes(sum(4)), `${bytes(sum(5))} down`],
    ["seconds a round", decimals(last?.[6], 1), ""],
  ];
  if (run.privacy) {
    const { spent, limit, delta } = run.privacy;
    tiles.push(["privacy, ε spent", `${decimals(spent ?? 0, 2)} of ${limit}`, delta ? `δ ${delta.toExponential()}` : ""]);
  }
  fill(byId("tiles"), tiles.map(([name, value, more]) => {
    const group = element("div"), shown = element("dd", value);
    if (more) shown.append(element("small", more));
    group.append(element("dt", name), shown);
    return group;
  }));
  const bar = byId("progress");
  bar.parentElement.hidden = !run.target;
  if (run.target) { bar.max = run.target; bar.value = Math.min(run.round, run.target); }
}
function ageText() {
  const { run } = state;
  return run.changed && run.status !== "finished" ? `${ago(Date.now() / 1000 - run.changed)} ago` : "";
}

function renderCharts() {
  const overBytes = document.querySelector("input[name=axis]:checked").value === "bytes";
  const sent = new Map([[0, 0]]);
  let total = 0;
  for (const each of state.rounds) sent.set(each[0], (total += each[4] ?? 0));
  const place = overBytes ? (round) => sent.get(round) ?? total : (round) => round;
  const train = state.rounds.filter((each) => !each[9]).map((each) => [place(each[0]), each[1]]);
  const held = state.curve.map((each) => [place(each[0]), each[1]]).filter((each) => each[1] !== null);
  const guard = state.checks.map((each) => [place(each[0]), each[1]]).filter((each) => each[1] !== null);
  const at = rateColumn(), name = RATES[state.run.metric];
  const rate = state.curve.filter((each) => each[at] !== null).map((each) => [place(each[0]), each[at]]);
  const formatX = overBytes ? bytes : (value) => `${value}`;
  const until = place(state.rounds.at(-1)?.[0] ?? 0);  // both charts end there, so that they can be compared
  draw(byId("loss"), [
    { kind: "train", points: train }, { kind: "guard", dots: true, points: guard }, { kind: "held", dots: true, points: held },
  ], { formatX, until, formatY: (value, step) => value.toFixed(digitsOf(step)) });
  draw(byId("rate"), [{ kind: "held", dots: true, points: rate }],
    { formatX, until, formatY: (value, step) => `${(100 * value).toFixed(digitsOf(100 * step))} %`, fromZero: true });
  byId("guard-key").hidden = !guard.length;
  const ends = (points, format) => points.length ? `from ${format(points[0][1])} to ${format(points.at(-1)[1])}` : "nothing measured yet";
  const trained = train.filter((each) => each[1] !== null), three = (value) => value.toFixed(3);
  byId("loss").setAttribute("aria-label",
    `Training loss ${ends(trained, three)}; held-out loss ${ends(held, three)}; the table of rounds has the numbers`);
  byId("rate").setAttribute("aria-label", `${name} on held-out speech: ${ends(rate, percent)}`);
  setText("rate-name", name);
  setText("rate-key", state.run.metric.toUpperCase());
}

function pages(id, key, count, size, names) {
  const most = Math.max(0, Math.ceil(count / size) - 1);
  page[key] = Math.min(page[key], most);
  const nav = byId(id);
  if (!nav.firstChild) {
    const [before, after] = names.map((name) => element("button", name));
    before.onclick = () => { page[key]--; soon(); };
    after.onclick = () => { page[key]++; soon(); };
    nav.append(before, element("span"), after);
  }
  const [before, word, after] = nav.children;
  before.disabled = page[key] === 0;
  after.disabled = page[key] === most;
  const start = page[key] * size;
  word.textContent = count ? `${start + 1}–${Math.min(count, start + size)} of ${count}` : "none";
  return start;
}
function renderRounds() {
  const rounds = state.rounds, start = pages("rounds-pages", "rounds", rounds.length, ROUNDS_SHOWN, ["newer", "older"]);
  const shown = rounds.slice(Math.max(0, rounds.length - start - ROUNDS_SHOWN), rounds.length - start).reverse();
  const made = shown.map(([number, loss, answered, asked, up, down, seconds, , refused, closing]) => row([
    [`${number}`], [decimals(loss, 4)], [closing ? "–" : `${answered} of ${asked}`], [decimals(seconds, 1)], [bytes(up)], [bytes(down)],
    [closing ? `record of the guard: back to ${closing}` : inWords(refused), "words"],
  ]));
  fill(byId("rounds").tBodies[0], made);
}

const RANK = { excluded: 0, "backing-off": 1, ok: 2 };
const lag = (each) => state.run.round - each.moving[0];
const nameOf = (each) => each.seldom[0] || `device ${each.client}`;
const ORDERS = {
  attention: (a, b) => (RANK[a.seldom[1]] ?? 3) - (RANK[b.seldom[1]] ?? 3) || lag(b) - lag(a) || ORDERS.name(a, b),
  name: (a, b) => collator.compare(nameOf(a), nameOf(b)),
  lag: (a, b) => lag(b) - lag(a),
  bytes: (a, b) => b.moving[2] + b.moving[3] - a.moving[2] - a.moving[3],
};
const collator = new Intl.Collator(undefined, { numeric: true });
function renderDevices() {
  const wanted = byId("find").value.trim().toLowerCase();
  let found = [...state.devices.values()];
  if (wanted) found = found.filter((each) => `${nameOf(each)} client ${each.client} ${each.seldom[1]}`.toLowerCase().includes(wanted));
  found.sort(ORDERS[byId("order").value]);
  const start = pages("devices-pages", "devices", found.length, DEVICES_SHOWN, ["previous", "next"]);
  const made = found.slice(start, start + DEVICES_SHOWN).map((each) => {
    const [seen, , up, down] = each.moving, [, standing, until, refused, word] = each.seldom;
    const kind = standing === "excluded" ? "text bad" : standing === "backing-off" ? "text warn" : "text";
    const stands = standing === "backing-off" ? `waits until round ${until}` : standing;
    const said = [inWords(refused), word].filter(Boolean).join(" — ");
    const cells = row([[nameOf(each), "name"], [stands, kind], [`${seen}`], [`${lag(each)}`], [bytes(up)], [bytes(down)], [said, "words"]]);
    if (each.seldom[0]) cells.firstChild.append(element("small", `client ${each.client}`));  // names may be alike
    return cells;
  });
  fill(byId("devices").tBodies[0], made);
}

function renderRefused() {
  const total = Object.create(null);
  for (const each of state.rounds) for (const [reason, count] of Object.entries(each[8])) total[reason] = (total[reason] ?? 0) + count;
  const found = Object.entries(total).sort((a, b) => b[1] - a[1]);
  const items = found.map(([reason, count]) => element("li", `${count} × ${state.reasons[reason] ?? reason} (${reason})`));
  fill(byId("refused"), items.length ? items : [element("li", "none", "quiet")]);
}

function renderLedger() {
  const { ledger, resume, status } = state.run;
  const pairs = [["head of its chain", ledger.head || "–"], ["checksum of the weights", ledger.checksum || "–"], ["size", bytes(ledger.bytes)]];
  fill(byId("ledger"), pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  byId("resume").hidden = !resume || status !== "stopped";
  setText("command", resume);
}

function renderLog() {
  const box = byId("log").parentElement, atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
  setText("log", state.log.join("\n") || "nothing yet");
  if (atEnd) box.scrollTop = box.scrollHeight;
}

// A screen reader hears of rounds at most every ten seconds.
function announce() {
  const last = state.rounds.at(-1);
  if (!last || Date.now() - announced < QUIET_MS) return;
  announced = Date.now();
  setText("announce", `Round ${last[0]}: loss ${decimals(last[1], 3)}, ${last[2]} of ${last[3]} devices`);
}

// ---- controls and connection

document.querySelectorAll("input[name=axis]").forEach((each) => each.addEventListener("change", soon));
byId("order").addEventListener("change", () => { page.devices = 0; soon(); });
byId("find").addEventListener("input", () => { page.devices = 0; soon(); });
new ResizeObserver(soon).observe(byId("loss"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
setInterval(() => { if (state.run?.status === "running") soon(); }, 5000);

byId("copy").addEventListener("click", async () => {
  const command = byId("command");
  try {
    await navigator.clipboard.writeText(command.textContent);
    setText("copied", "copied");
  } catch {
    getSelection().selectAllChildren(command);
    setText("copied", "selected: copy it with the keyboard");
  }
});

const source = new EventSource("events");
source.addEventListener("whole", (event) => { state = fresh(); take(JSON.parse(event.data)); });
source.addEventListener("change", (event) => take(JSON.parse(event.data)));
source.addEventListener("open", () => setText("connection", ""));
source.addEventListener("error", () => setText("connection", "The connection is lost; trying again."));
