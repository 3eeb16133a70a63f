// The page: asks for the log once, then listens; draws curves, the workers, the newest video, and an environment step by step.
// Everything shown as text goes through textContent: names in a database are anybody's.
"use strict";

const $ = (id) => document.getElementById(id);
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (value, digits = 4) =>
  value == null ? "–" : Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
const short = (value) =>
  value == null ? "–" : Math.abs(value) >= 1e6 ? number(value / 1e6, 3) + " M" : Math.abs(value) >= 1e4 ? number(value / 1e3, 3) + " k" : number(value);

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  if (text != null) made.textContent = text;
  return made;
}

// -- curves ----------------------------------------------------------------------------------------------------------

const log = { run_id: null, columns: { step: [] }, evaluations: [] };

/** A chart in the element `id`; `series()` gives its [{label, values, points}] over `log.columns.step`. */
class Chart {
  constructor(id, series, band) {
    Object.assign(this, { place: $(id), series, band, plot: null, labels: "", hidden: new Set() });
    this.legend = this.place.appendChild(element("div", null, { className: "legend" }));
    this.canvas = this.place.appendChild(element("div", null, { className: "plot" }));
    this.canvas.setAttribute("role", "img");
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.canvas);
  }

  size() {
    return { width: Math.max(this.canvas.clientWidth, 100), height: this.canvas.clientHeight };
  }

  draw() {
    const series = this.series();
    const labels = series.map((one) => one.label).join("\n");
    if (labels !== this.labels) this.forget();
    this.labels = labels;
    const data = [log.columns.step, ...series.map((one) => one.values)];
    if (!this.plot) this.build(series, data);
    else this.plot.setData(data);
    this.tell();
  }

  forget() {
    this.plot?.destroy();
    this.plot = null;
  }

  build(series, data) {
    const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line") } };
    const lines = series.map((one, at) => {
      const colour = ink("--c" + (one.colour ?? at % 6));
      const points = one.points ? { show: true, size: 8, fill: colour, stroke: colour } : { show: false };
      return {
        label: one.label, stroke: one.edge ? "transparent" : colour, width: 2, spanGaps: true, points,
        show: !this.hidden.has(one.label), ...(one.points ? { paths: () => null } : {}),
      };
    });
    this.plot = new uPlot({
      ...this.size(),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, values: (plot, splits) => splits.map(short), space: 70 },
        { ...axis, values: (plot, splits) => splits.map(short), size: 58 },
      ],
      series: [{}, ...lines],
      bands: this.band ? [{ series: this.band, fill: ink("--band") }] : [],
      hooks: { setCursor: [() => this.tell()] },
    }, data, this.canvas);
    this.legend.replaceChildren(...series.flatMap((one, at) => (one.edge ? [] : [this.button(one, at)])));
  }

  button(one, at) {
    const button = element("button", null, { type: "button" });
    button.style.setProperty("--of", `var(--c${one.colour ?? at % 6})`);
    button.setAttribute("aria-pressed", String(!this.hidden.has(one.label)));
    button.dataset.at = at;
    button.addEventListener("click", () => {
      const show = this.hidden.delete(one.label);
      if (!show) this.hidden.add(one.label);
      button.setAttribute("aria-pressed", String(show));
      this.plot.setSeries(at + 1, { show });
      if (at === 0 && this.band) for (const edge of this.band) this.plot.setSeries(edge, { show });
    });
    return button;
  }

  /** The numbers under the pointer, else the last ones. */
  tell() {
    if (!this.plot) return;
    const steps = log.columns.step;
    const at = this.plot.cursor.idx ?? steps.length - 1;
    const last = (values) => values.findLast((value) => value != null);
    const parts = [];
    for (const button of this.legend.children) {
      const one = this.series()[button.dataset.at];
      const value = this.plot.cursor.idx == null ? last(one.values) : one.values[at];
      button.textContent = `${one.label} ${number(value)}`;
      parts.push(button.textContent);
    }
    this.canvas.setAttribute("aria-label", `${parts.join(", ")} at step ${number(steps[at])}; ${steps.length} points`);
    this.canvas.dataset.points = steps.length;
  }
}

const column = (name) => log.columns[name] ?? log.columns.step.map(() => null);

/** The evaluations on the log's steps: each at the first row that is not before it. */
function evaluated() {
  const steps = log.columns.step, values = steps.map(() => null);
  for (const row of log.evaluations) {
    const at = steps.findIndex((step) => step >= row.step);
    if (steps.length) values[at < 0 ? steps.length - 1 : at] = row["eval/return"];
  }
  return values;
}

const charts = [
  new Chart("return", () => [
    { label: "mean of 100 episodes", values: column("play/return"), colour: 0 },
    { label: "highest tenth", values: column("play/return_high"), edge: true },
    { label: "lowest tenth", values: column("play/return_low"), edge: true },
    { label: "evaluated", values: evaluated(), points: true, colour: 1 },
  ], [2, 3]),
  new Chart("throughput", () => [
    { label: "steps/s learned from", values: column("play/steps_per_second"), colour: 0 },
  ]),
  new Chart("lag", () => [{ label: "updates", values: column("replay/lag"), colour: 3 }]),
  new Chart("losses", () => Object.keys(log.columns).filter((name) => name.startsWith("loss/"))
    .map((name) => ({ label: name.slice(5), values: column(name) }))),
];
const drawAll = () => charts.forEach((chart) => chart.draw());

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  charts.forEach((chart) => chart.forget());
  drawAll();
  viewer.show();
});

async function fetchJson(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await answer.text());
  const message = await answer.json();
  if (message.problem) throw new Error(message.problem);
  return message;
}

async function readHistory(run_id) {
  log.run_id = run_id;
  try {
    const { columns, evaluations } = await fetchJson("history");
    Object.assign(log, { columns: { step: [], ...columns }, evaluations });
    drawAll();
  } catch (error) {
    log.run_id = null; // the next event asks again
    complain(error.message);
  }
}

/** Appends the newest row and the newest evaluation, where they are new; whether one was. */
function append(row, evaluation) {
  const steps = log.columns.step, last = log.evaluations.at(-1), length = steps.length;
  const evaluated = evaluation.step != null && (evaluation.step !== last?.step || evaluation["eval/return"] !== last["eval/return"]);
  if (evaluated) log.evaluations.push(evaluation);
  if (row.step == null || row.step <= (steps.at(-1) ?? -1)) return evaluated;
  for (const name of Object.keys(row)) {
    if (!log.columns[name] && (name.startsWith("loss/") || name.startsWith("play/return") || name === "replay/lag" || name === "play/steps_per_second"))
      log.columns[name] = Array(length).fill(null);
  }
  for (const [name, values] of Object.entries(log.columns)) values.push(row[name] ?? null);
  return true;
}

// -- numbers, workers, videos ----------------------------------------------------------------------------------------

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  return minutes < 1 ? `${Math.round(seconds)} s` : minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const COLUMNS = [
  ["role", (worker) => worker.role],
  ["host", (worker) => worker.host],
  ["pid", (worker) => worker.pid, "count"],
  ["envs", (worker) => worker.num_envs || "", "count"],
  ["steps/s", (worker) => number(worker.steps_per_second, 3), "count"],
  ["version", (worker) => worker.version, "count"],
  ["lag", (worker) => number(worker.lag, 3), "count"],
  ["up", (worker) => duration(worker.uptime), "count"],
  ["waits for", (worker) => (worker.waits_for ? `${worker.waits_for} (${Math.round(worker.waits_seconds)} s)` : "") +
    (worker.seen > 5 ? ` silent for ${Math.round(worker.seen)} s` : ""), "long"],
  ["last error", (worker) => worker.error.split("\n").at(-1).slice(0, 200), "long"],
];

function showWorkers(workers) {
  $("nobody").hidden = workers.length > 0;
  const rows = workers.map((worker) => {
    const row = element("tr");
    row.dataset.id = worker.id;
    row.append(...COLUMNS.map(([label, text, kind]) => {
      const cell = element("td", text(worker), { className: kind ?? "" });
      cell.dataset.label = label;
      return cell;
    }));
    return row;
  });
  $("rows").replaceChildren(...rows);
}

function showNumbers(facts) {
  document.title = `${facts.run} – tinyverse`;
  $("run").textContent = facts.experiment && facts.experiment !== facts.run ? `${facts.run} (${facts.experiment})` : facts.run;
  $("bottleneck").textContent = [...new Set(Object.values(facts.waits)), facts.bottleneck].filter(Boolean).join("; ");
  const shown = {
    "mean return": number(facts.mean_return ?? facts.metrics["play/return"]), "steps": short(facts.step), "steps/s played": number(facts.steps_per_second, 3),
    "frames/s": number(facts.frames_per_second, 3), "update": short(facts.update), "version": facts.version < 0 ? "–" : short(facts.version),
    "sessions stored": short(facts.sessions), "reuse": number(facts.reuse, 3), "errors": facts.errors.length,
  };
  $("numbers").replaceChildren(...Object.entries(shown).map(([label, value]) => {
    const tile = element("div");
    tile.append(element("dt", label), element("dd", value));
    return tile;
  }));
}

function showVideo(newest, evaluation) {
  const video = $("video");
  if (evaluation["eval/return"] != null) {
    const error = evaluation["eval/standard_error"];
    $("evaluated").textContent = `Mean return ${number(evaluation["eval/return"])}${error == null ? "" : ` ± ${number(error, 2)}`}` +
      ` over ${evaluation["eval/episodes"]} episode${evaluation["eval/episodes"] === 1 ? "" : "s"} (version ${evaluation.version}); best ${number(evaluation["eval/best"])}.`;
  } else if (newest) $("evaluated").textContent = `Version ${newest.version}.`;
  const key = newest && `${newest.name} ${newest.seconds}`;
  const watched = !video.paused && !video.ended && !video.hidden; // nobody likes a video that is changed while it runs
  if (!newest || video.dataset.key === key || watched) return;
  video.dataset.key = key;
  video.hidden = false;
  video.setAttribute("aria-label", `Video of version ${newest.version}`);
  video.src = `video/${encodeURIComponent(newest.name)}?at=${newest.seconds}`;
}

function complain(text) {
  $("problem").textContent = text ?? "";
  $("problem").hidden = !text;
}

// -- an environment --------------------------------------------------------------------------------------------------

const viewer = {
  frames: null, sheet: new Image(), at: 0, due: 0, asking: false, asksAt: 0, bars: [],
  paused: matchMedia("(prefers-reduced-motion: reduce)").matches,

  choose(workers) {
    const players = workers.filter((worker) => worker.num_envs > 0 && (worker.role === "play" || worker.role === "human"));
    const names = new Map(players.map((worker) => [worker.id, `${worker.role} ${worker.pid} on ${worker.host}`]));
    const select = $("player"), chosen = select.value;
    if ([...select.options].map((option) => option.value).join() !== [...names.keys()].join()) {
      select.replaceChildren(...[...names].map(([id, name]) => element("option", name, { value: id })));
      if (names.has(chosen)) select.value = chosen;
      else this.reset();
    }
    const count = players.find((worker) => worker.id === select.value)?.num_envs ?? 0;
    if ($("env").options.length !== count) {
      $("env").replaceChildren(...Array.from({ length: count }, (_, at) => element("option", at + 1, { value: at })));
      this.reset();
    }
    if (!players.length) $("about").textContent = this.frames ? "The player has left; these were its last steps." : "Nobody plays.";
  },

  reset() {
    if ($("player").value) this.frames = null;
    this.asksAt = 0;
  },

  async ask(now) {
    const player = $("player").value, env = $("env").value;
    if (!player || env === "" || this.asking || now < this.asksAt) return;
    this.asking = true;
    this.asksAt = now + 1000;
    try {
      const after = this.frames?.id ?? "";
      const frames = await fetchJson(`frames?${new URLSearchParams({ player, env, after })}`);
      if (player !== $("player").value || env !== $("env").value) return;
      if (!frames.id) {
        if (!this.frames) $("about").textContent = "No steps of this environment are stored yet.";
        return;
      }
      const sheet = new Image();
      sheet.src = frames.sheet.picture;
      await sheet.decode();
      Object.assign(this, { frames, sheet, at: 0 });
      const values = frames.values_of == null ? frames.note : `values by version ${frames.values_of}`;
      $("about").textContent = [frames.human ? "a person plays" : `played by version ${frames.version}`, values].filter(Boolean).join("; ");
      $("scrub").max = frames.steps.length - 1;
      $("stage").hidden = false;
      this.show();
    } catch (error) {
      $("about").textContent = error.message;
    } finally {
      this.asking = false;
    }
  },

  tick(now) {
    requestAnimationFrame((later) => this.tick(later));
    if (document.hidden) return;
    const over = !this.frames || this.at >= this.frames.steps.length - 1;
    if (over && !(this.paused && this.frames)) this.ask(now);
    if (this.paused || over || now < this.due) return;
    this.due = Math.max(this.due + 1000 / $("speed").value, now - 100);
    this.at += 1;
    this.show();
  },

  show() {
    if (!this.frames) return;
    const { sheet, steps } = this.frames, row = steps[this.at], screen = $("screen");
    if (screen.width !== sheet.width || screen.height !== sheet.height) Object.assign(screen, { width: sheet.width, height: sheet.height });
    const left = (this.at % sheet.columns) * sheet.width, top = Math.floor(this.at / sheet.columns) * sheet.height;
    screen.getContext("2d").drawImage(this.sheet, left, top, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
    const action = typeof row.action === "number" ? number(row.action) : JSON.stringify(row.action);
    $("step").textContent = `step ${this.at + 1} of ${steps.length}: ` +
      (row.valid ? `action ${action}, reward ${number(row.reward, 3)}, value ${number(row.value, 3)}${row.end ? ", " + row.end : ""}` : "a new episode");
    $("scrub").value = this.at;
    $("scrub").setAttribute("aria-valuetext", $("step").textContent);
    this.showBars(row);
    this.showValue(steps);
  },

  showBars(row) {
    const numbers = row.q ?? row.probabilities ?? [];
    $("bars-title").textContent = row.q ? "Values of the actions" : numbers.length ? "Chances of the actions" : "Action";
    if (this.bars.length !== numbers.length) {
      this.bars = numbers.map((_, at) => {
        const item = element("li"), bar = element("span", null, { className: "bar" }), value = element("span", null, { className: "number" });
        item.append(element("span", at), bar, value);
        return { item, bar, value };
      });
      $("bars").replaceChildren(...this.bars.map((one) => one.item));
    }
    const least = row.q ? Math.min(...numbers) : 0, span = row.q ? Math.max(...numbers) - least : 1;
    numbers.forEach((value, at) => {
      const one = this.bars[at];
      one.bar.style.width = `${100 * (span > 0 ? (value - least) / span : 0)}%`;
      one.value.textContent = row.q ? number(value, 3) : `${(100 * value).toFixed(1)} %`;
      one.item.className = row.valid && row.action === at ? "taken" : "";
    });
  },

  showValue(steps) {
    const canvas = $("value"), scale = devicePixelRatio || 1;
    const width = (canvas.width = Math.round(canvas.clientWidth * scale)), height = (canvas.height = Math.round(canvas.clientHeight * scale));
    const pen = canvas.getContext("2d"), known = steps.map((row) => row.value).filter((value) => value != null);
    pen.font = `${11 * scale}px system-ui, sans-serif`;
    pen.fillStyle = ink("--soft");
    if (!known.length) return pen.fillText("not known", 2, 14 * scale);
    const least = Math.min(...known), most = Math.max(...known), edge = 13 * scale;
    const x = (at) => (width - 2) * (steps.length > 1 ? at / (steps.length - 1) : 0) + 1;
    const y = (value) => height - edge - (height - 2 * edge) * (most > least ? (value - least) / (most - least) : 0.5);
    pen.fillText(number(most, 3), 2, 10 * scale);
    pen.fillText(number(least, 3), 2, height - 2);
    pen.strokeStyle = ink("--c0");
    pen.lineWidth = 1.5 * scale;
    pen.beginPath();
    let drawing = false;
    steps.forEach((row, at) => {
      if (row.value == null || !row.valid) drawing = false; // an episode ends here
      else {
        if (drawing) pen.lineTo(x(at), y(row.value));
        else pen.moveTo(x(at), y(row.value));
        drawing = true;
      }
    });
    pen.stroke();
    const now = steps[this.at].value;
    if (now == null) return;
    pen.fillStyle = ink("--c1");
    pen.fillRect(x(this.at) - scale / 2, 0, scale, height);
    pen.beginPath();
    pen.arc(x(this.at), y(now), 3.5 * scale, 0, 7);
    pen.fill();
  },

  pause(paused) {
    this.paused = paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    $("pause").textContent = paused ? "Play" : "Pause";
  },
};

$("pause").addEventListener("click", () => viewer.pause(!viewer.paused));
$("scrub").addEventListener("input", () => {
  viewer.pause(true);
  viewer.at = Number($("scrub").value);
  viewer.show();
});
for (const id of ["player", "env"]) $(id).addEventListener("change", () => viewer.reset());

// -- the run ---------------------------------------------------------------------------------------------------------

async function receive(facts) {
  complain(facts.problem);
  if (facts.problem) return;
  if (log.run_id !== facts.run_id) await readHistory(facts.run_id);
  if (append(facts.metrics, facts.evaluation)) drawAll();
  showNumbers(facts);
  showWorkers(facts.workers);
  showVideo(facts.video, log.evaluations.at(-1) ?? {});
  viewer.choose(facts.workers);
}

$("columns").append(...COLUMNS.map(([label, , kind]) => element("th", label, { scope: "col", className: kind ?? "" })));
viewer.pause(viewer.paused);
const events = new EventSource("events");
events.addEventListener("open", () => (log.run_id = null)); // also after a break: what was missed is in the log
events.addEventListener("message", (event) => receive(JSON.parse(event.data)));
events.addEventListener("error", () => complain("The page's own process cannot be reached; trying again."));
requestAnimationFrame((now) => viewer.tick(now));
