// The schedule as a timeline: tracks from above, time from the left, drawn on a canvas.

const LANE = 22;
const AXIS = 26;

class ScheduleView {
  constructor(app) {
    this.app = app;
    this.entry = "inference";
    this.canvas = h("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label":
        "Timeline. Right and left go to the next and previous op, plus and minus zoom, " +
        "0 shows all. The table below holds the same.",
    });
    this.scroller = h(
      "div",
      { class: "timeline" },
      h("div", { class: "timeline-space" }),
      this.canvas,
    );
    this.told = h("div", { class: "small told", role: "status" });
    this.rowsCard = h("section", { class: "card" });
    const entries = Object.keys(app.body.entry_points);
    this.card = h("section", { class: "card" });
    this.bar = h(
      "div",
      { class: "row" },
      entries.length > 1
        ? choice(
            "Entry",
            entries.map((name) => [name, `@${name}`]),
            this.entry,
            (value) => {
              this.entry = value;
              this.load();
            },
          )
        : null,
      h("span", { class: "row lanes" }),
      h("button", { type: "button", "aria-label": "Zoom in", onclick: () => this.zoom(1.6) }, "+"),
      h(
        "button",
        { type: "button", "aria-label": "Zoom out", onclick: () => this.zoom(1 / 1.6) },
        "−",
      ),
      h(
        "button",
        {
          type: "button",
          onclick: () => {
            this.from = 0;
            this.upto = this.end;
            this.draw();
          },
        },
        "Show all",
      ),
    );
    this.element = h("div", { class: "panel" }, this.card, this.rowsCard);
    this.events();
  }

  show() {
    if (!this.loaded) this.load();
    else this.draw();
  }

  load() {
    this.loaded = true;
    const tracks = this.app.body.tracks[this.entry];
    this.packed ??= tracks.length > 40;
    const ops = new Map(this.app.body.ops[this.entry].map((held) => [held.name, held]));
    const timed = tracks.map((track) => ({
      name: track.name,
      ops: track.ops.map((name) => ops.get(name)),
    }));
    this.order = timed
      .flatMap((track) => track.ops)
      .sort((a, b) => a.start_ns - b.start_ns || a.end_ns - b.end_ns);
    this.tracks = this.packed ? packed(timed) : timed;
    this.end = Math.max(0, ...this.order.map((held) => held.end_ns));
    this.from = 0;
    this.upto = this.end || 1;
    this.selected = null;
    this.layers = new Map();
    for (const held of this.order)
      if (!this.layers.has(held.layer)) this.layers.set(held.layer, this.layers.size);
    clear(
      this.bar.querySelector(".lanes"),
      segments(
        "Lanes",
        [
          ["each", "By place"],
          ["packed", "Packed"],
        ],
        this.packed ? "packed" : "each",
        (value) => {
          this.packed = value === "packed";
          this.load();
        },
      ),
    );
    clear(
      this.card,
      h(
        "div",
        { class: "row spread" },
        h("h2", {}, "Schedule"),
        h(
          "p",
          { class: "muted number" },
          `@${this.entry}: ${plural(this.order.length, "op")} in ${quantity(this.end, "ns")}`,
        ),
      ),
      this.order.length
        ? [
            this.bar,
            h(
              "p",
              { class: "small muted" },
              "Each colour is a layer. Drag or scroll sideways to move, Ctrl and wheel to zoom.",
            ),
            this.scroller,
            this.told,
          ]
        : h("p", { class: "muted" }, "This program has no schedule."),
    );
    clear(this.told, h("span", { class: "muted" }, "Select an op to see its times."));
    this.drawRows();
    this.draw();
  }

  drawRows() {
    const tbody = h("tbody", {});
    clear(
      this.rowsCard,
      h("h2", {}, "Ops in order of time"),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col" }, "Op"),
              h("th", { scope: "col" }, "Layer"),
              ["Starts", "At work", "Energy"].map((name) =>
                h("th", { scope: "col", class: "right" }, name),
              ),
            ),
          ),
          tbody,
        ),
      ),
    );
    portions(
      tbody,
      this.order,
      (held) => [
        h(
          "tr",
          {},
          h(
            "td",
            { class: "name" },
            h(
              "button",
              {
                type: "button",
                class: "link",
                onclick: () => {
                  this.choose(held, true);
                  this.card.scrollIntoView({ block: "start" });
                },
              },
              breakable(`%${held.name} ${held.op}`),
            ),
          ),
          h("td", { class: "name" }, breakable(held.layer)),
          h("td", { class: "right" }, quantity(held.start_ns, "ns")),
          h("td", { class: "right" }, quantity(held.busy_ns, "ns")),
          h("td", { class: "right" }, quantity(held.energy_pj, "pJ")),
        ),
      ],
      50,
    );
  }

  // -- drawing ---------------------------------------------------------------------------------

  get gutter() {
    return this.scroller.clientWidth < 560 ? 0 : 190;
  }

  draw() {
    const wide = this.scroller.clientWidth;
    if (!wide || !this.order.length) return;
    const named = this.gutter === 0 ? 15 : 0;
    this.lane = LANE + named;
    const content = AXIS + this.tracks.length * this.lane + 6;
    const high = Math.min(content, 460);
    this.scroller.style.height = `${high + 2}px`;
    this.scroller.firstChild.style.height = `${content}px`;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: wide * ratio, height: high * ratio });
    this.canvas.style.width = `${wide}px`;
    this.canvas.style.height = `${high}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const paint = (name) =>
      getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const colours = Array.from({ length: COLOURS }, (_, index) => paint(`--c${index}`));
    const [surface, text, muted, lineColour, accent] = [
      "--surface",
      "--text",
      "--muted",
      "--line",
      "--text",
    ].map(paint);
    pen.fillStyle = surface;
    pen.fillRect(0, 0, wide, high);
    const { gutter } = this;
    const x = (time) => gutter + ((time - this.from) / (this.upto - this.from)) * (wide - gutter);
    const scrolled = this.scroller.scrollTop;
    pen.font = `12px ${paint("--sans")}`;
    pen.textBaseline = "middle";
    this.axis(pen, x, wide, high, surface, muted, lineColour, false);
    this.tracks.forEach((track, index) => {
      const top = AXIS + index * this.lane - scrolled + named;
      if (top + LANE < AXIS - LANE || top > high) return;
      pen.strokeStyle = lineColour;
      pen.beginPath();
      pen.moveTo(0, top + LANE - 0.5);
      pen.lineTo(wide, top + LANE - 0.5);
      pen.stroke();
      pen.save();
      pen.beginPath();
      pen.rect(gutter, 0, wide - gutter, high);
      pen.clip();
      for (const held of track.ops) {
        const a = x(held.start_ns);
        const b = x(held.end_ns);
        if (b < gutter || a > wide) continue;
        pen.fillStyle = colours[this.layers.get(held.layer) % COLOURS];
        pen.fillRect(a, top + 3, Math.max(1, b - a - (b - a > 4 ? 0.6 : 0)), LANE - 7);
        if (held === this.selected) {
          pen.strokeStyle = accent;
          pen.lineWidth = 2;
          pen.strokeRect(a - 1.5, top + 1.5, Math.max(4, b - a + 3), LANE - 4);
          pen.lineWidth = 1;
        }
        const label = `${held.layer} ${held.op}`;
        if (b - a > 60) {
          const from = Math.max(a, gutter) + 6;
          const room = Math.min(b, wide) - from - 4;
          pen.fillStyle = surface;
          if (room > 40) pen.fillText(cutTo(pen, label, room), from, top + LANE / 2);
        }
      }
      pen.restore();
      pen.fillStyle = named ? muted : text;
      pen.fillText(
        cutTo(pen, track.name, (gutter || wide) - 12),
        4,
        named ? top - named / 2 + 2 : top + LANE / 2,
      );
    });
    this.axis(pen, x, wide, high, surface, muted, lineColour, true);
  }

  // The time axis: lines under the bars first, the figures above them last.
  axis(pen, x, wide, high, surface, muted, lineColour, figures) {
    const { gutter } = this;
    if (figures) {
      pen.fillStyle = surface;
      pen.fillRect(0, 0, wide, AXIS);
    }
    pen.fillStyle = muted;
    pen.strokeStyle = lineColour;
    for (const at of ticks(this.from, this.upto, Math.max(2, (wide - gutter) / 110))) {
      const place = x(at);
      if (place < gutter || place > wide) continue;
      if (!figures) {
        pen.beginPath();
        pen.moveTo(place + 0.5, AXIS - 5);
        pen.lineTo(place + 0.5, high);
        pen.stroke();
        continue;
      }
      const label = quantity(at, "ns");
      pen.fillText(label, Math.min(place + 3, wide - pen.measureText(label).width - 3), 11);
    }
  }

  // -- moving about ----------------------------------------------------------------------------

  zoom(factor, at = (this.from + this.upto) / 2) {
    const least = Math.max(this.end / 1e6, 1e-3);
    const span = Math.min(this.end, Math.max(least, (this.upto - this.from) / factor));
    const share = (at - this.from) / (this.upto - this.from);
    this.move(at - share * span, span);
  }

  move(from, span = this.upto - this.from) {
    this.from = Math.max(0, Math.min(from, this.end - span));
    this.upto = this.from + span;
    this.draw();
  }

  timeAt(event) {
    const box = this.canvas.getBoundingClientRect();
    return (
      this.from +
      ((event.clientX - box.left - this.gutter) / (box.width - this.gutter)) *
        (this.upto - this.from)
    );
  }

  opAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const track =
      this.tracks[
        Math.floor((event.clientY - box.top - AXIS + this.scroller.scrollTop) / this.lane)
      ];
    const time = this.timeAt(event);
    const near = ((this.upto - this.from) / (box.width - this.gutter)) * 3;
    const list = track
      ? track.ops.filter((held) => held.start_ns - near <= time && time <= held.end_ns + near)
      : [];
    return list.sort(
      (a, b) =>
        Math.abs(a.start_ns + a.end_ns - 2 * time) - Math.abs(b.start_ns + b.end_ns - 2 * time),
    )[0];
  }

  choose(held, move) {
    this.selected = held;
    if (move) {
      const span = Math.min(this.end, Math.max(held.busy_ns * 6, this.end / 4000));
      if (
        held.start_ns < this.from ||
        held.end_ns > this.upto ||
        held.busy_ns < (this.upto - this.from) / 400
      ) {
        this.move(held.start_ns + held.busy_ns / 2 - span / 2, span);
      }
      const index = this.tracks.findIndex((track) => track.ops.includes(held));
      const top = index * this.lane;
      if (
        top < this.scroller.scrollTop ||
        top > this.scroller.scrollTop + this.scroller.clientHeight - AXIS - LANE
      )
        this.scroller.scrollTop = top - 60;
    }
    this.tell(held);
    this.draw();
  }

  tell(held) {
    clear(
      this.told,
      h("strong", { class: "mono" }, `%${held.name} = ${held.op} `),
      `${held.layer}: `,
      `${quantity(held.start_ns, "ns")} to ${quantity(held.end_ns, "ns")}, `,
      `at work ${quantity(held.busy_ns, "ns")}, ${quantity(held.energy_pj, "pJ")}. `,
      h(
        "button",
        {
          type: "button",
          class: "link",
          onclick: () =>
            this.app.open("graph", {
              func: this.entry,
              key: `%${held.name}`,
              stage: this.app.head.stages.length - 1,
            }),
        },
        "Show it in the graph",
      ),
    );
  }

  events() {
    const { canvas } = this;
    let held = null;
    this.scroller.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.scroller);
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (event.ctrlKey) {
          event.preventDefault();
          this.zoom(Math.exp(-event.deltaY * 0.003), this.timeAt(event));
        } else if (event.deltaX || event.shiftKey) {
          event.preventDefault();
          this.move(
            this.from +
              ((event.deltaX || event.deltaY) / canvas.clientWidth) * (this.upto - this.from),
          );
        }
      },
      { passive: false },
    );
    canvas.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, from: this.from, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) {
        const over = this.opAt(event);
        canvas.style.cursor = over ? "pointer" : "grab";
        canvas.title = over
          ? `${over.layer}: %${over.name} ${over.op}, ${quantity(over.busy_ns, "ns")}`
          : "";
        return;
      }
      if (Math.abs(event.clientX - held.x) > 3) {
        held.moved = true;
        if (!canvas.hasPointerCapture(event.pointerId)) canvas.setPointerCapture(event.pointerId);
        this.move(
          held.from -
            ((event.clientX - held.x) / (canvas.clientWidth - this.gutter)) *
              (this.upto - this.from),
        );
      }
    });
    canvas.addEventListener("pointerup", (event) => {
      if (held && !held.moved) {
        const over = this.opAt(event);
        if (over) this.choose(over, false);
      }
      held = null;
    });
    canvas.addEventListener("pointercancel", () => {
      held = null;
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const at = this.order.indexOf(this.selected);
        this.choose(this.order[Math.max(0, Math.min(this.order.length - 1, at + step))], true);
      } else if (event.key === "+" || event.key === "=") this.zoom(1.6);
      else if (event.key === "-") this.zoom(1 / 1.6);
      else if (event.key === "0") this.move(0, this.end);
      else return;
      event.preventDefault();
    });
  }
}

// Ops of all tracks in as few lanes as do not overlap.
function packed(tracks) {
  const lanes = [];
  const all = tracks
    .flatMap((track) => track.ops)
    .sort((a, b) => a.start_ns - b.start_ns || b.end_ns - a.end_ns);
  for (const held of all) {
    const lane = lanes.find((one) => one.end <= held.start_ns);
    if (lane) {
      lane.ops.push(held);
      lane.end = held.end_ns;
    } else lanes.push({ ops: [held], end: held.end_ns });
  }
  return lanes.map((lane, index) => ({
    name: lanes.length > 1 ? `lane ${index + 1}` : "all places",
    ops: lane.ops,
  }));
}

function cutTo(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let length = text.length;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > room)
    length = Math.floor(length * 0.9);
  return length > 1 ? `${text.slice(0, length)}…` : "";
}
