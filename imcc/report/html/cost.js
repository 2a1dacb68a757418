// Energy, time and area by layer, component and op, with the way to each number.

class Costs {
  constructor(body) {
    this.ops = {};
    this.scopes = {};
    for (const [entry, list] of Object.entries(body.ops)) {
      const ops = new Map();
      const scopes = new Map();
      for (const held of list) {
        ops.set(`%${held.name}`, held);
        const steps = held.layer.split(".");
        steps.forEach((step, index) => {
          const path = steps.slice(0, index + 1).join(".");
          const sum = scopes.get(path) || { energy_pj: 0, busy_ns: 0, area_um2: 0, ops: 0 };
          sum.energy_pj += held.energy_pj || 0;
          sum.busy_ns += held.busy_ns;
          sum.ops += 1;
          scopes.set(path, sum);
        });
      }
      for (const layer of body.entry_points[entry].layers) {
        const steps = layer.name.split(".");
        steps.forEach((step, index) => {
          const sum = scopes.get(steps.slice(0, index + 1).join("."));
          if (sum) sum.area_um2 += layer.area_um2;
        });
      }
      this.ops[entry] = ops;
      this.scopes[entry] = scopes;
    }
  }

  op(entry, key) {
    return this.ops[entry]?.get(key) || null;
  }

  scope(entry, path) {
    return path === null ? null : this.scopes[entry]?.get(path) || null;
  }
}

const METRICS = {
  energy: { name: "Energy", key: "energy_pj", unit: "pJ", total: "energy_pj" },
  time: { name: "Time at work", key: "busy_ns", unit: "ns", total: "latency_ns" },
  area: { name: "Area", key: "area_um2", unit: "um2", total: "area_um2" },
};

class CostView {
  constructor(app) {
    this.app = app;
    this.entry = "inference";
    this.metric = "energy";
    this.by = "layer";
    this.order = "value";
    this.filter = "";
    this.body = h("section", { class: "card" });
    const entries = Object.keys(app.body.entry_points);
    this.bar = h(
      "div",
      { class: "row card toolbar" },
      entries.length > 1
        ? choice(
            "Entry",
            entries.map((name) => [name, `@${name}`]),
            this.entry,
            (value) => {
              this.entry = value;
              this.draw();
            },
          )
        : null,
      segments(
        "By",
        [
          ["layer", "By layer"],
          ["component", "By component"],
          ["op", "By op"],
        ],
        this.by,
        (value) => {
          this.by = value;
          this.draw();
        },
      ),
      segments(
        "Quantity",
        Object.entries(METRICS).map(([key, held]) => [key, held.name]),
        this.metric,
        (value) => {
          this.metric = value;
          this.draw();
        },
      ),
      choice(
        "Order",
        [
          ["value", "largest first"],
          ["program", "program order"],
        ],
        this.order,
        (value) => {
          this.order = value;
          this.draw();
        },
      ),
      field(
        "",
        h("input", {
          type: "search",
          placeholder: "filter by name",
          "aria-label": "Filter by name",
          oninput: (event) => {
            this.filter = event.target.value.trim().toLowerCase();
            this.draw();
          },
        }),
      ),
    );
    this.element = h("div", { class: "panel" }, this.bar, this.body);
  }

  show() {
    if (!this.body.firstChild) this.draw();
  }

  get point() {
    return this.app.body.entry_points[this.entry];
  }

  rows() {
    const { key } = METRICS[this.metric];
    if (this.by === "component") {
      return Object.entries(this.point.components)
        .map(([name, held]) => ({
          name,
          value: this.metric === "time" ? null : held[key],
          held,
        }))
        .filter(
          (row) => this.metric === "area" || row.value || Object.keys(row.held.events || {}).length,
        );
    }
    if (this.by === "op") {
      return this.app.body.ops[this.entry]
        .filter((held) => !held.free)
        .map((held) => ({
          name: `%${held.name} ${held.op}`,
          under: held.layer,
          value: this.metric === "area" ? null : held[key],
          held,
        }));
    }
    return this.point.layers.map((held) => ({ name: held.name, value: held[key], held }));
  }

  draw() {
    const metric = METRICS[this.metric];
    const { app } = this;
    const all = this.rows();
    if (
      (this.by === "component" && this.metric === "time") ||
      (this.by === "op" && this.metric === "area")
    ) {
      clear(
        this.body,
        h(
          "p",
          { class: "muted" },
          this.by === "op"
            ? "Area belongs to layers and components, not to ops."
            : "Time at work belongs to layers and ops, not to components.",
        ),
      );
      return;
    }
    const rows = all.filter(
      (row) => !this.filter || `${row.name} ${row.under || ""}`.toLowerCase().includes(this.filter),
    );
    if (this.order === "value") rows.sort((a, b) => (b.value ?? -1) - (a.value ?? -1));
    const most = Math.max(0, ...rows.map((row) => row.value || 0));
    const total = this.point[metric.total];
    const colours = componentColours({ point: this.point });
    const names = [...colours.keys()];
    const stacked = this.metric === "energy" && this.by === "layer" && names.length > 0;
    const tbody = h("tbody", {});
    const unknown = this.point.unknown || [];
    clear(
      this.body,
      h(
        "div",
        { class: "row spread" },
        h("h2", {}, `${metric.name} by ${this.by}`),
        h("p", { class: "muted number" }, `@${this.entry}: ${quantity(total, metric.unit)}`),
      ),
      stacked ? legend(colours, names) : null,
      this.metric === "time"
        ? h(
            "p",
            { class: "small muted" },
            "Layers may work at the same time, so these need not add up to the latency. ",
            "See the schedule.",
          )
        : null,
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "cost" },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h(
                "th",
                { scope: "col" },
                { layer: "Layer", component: "Component", op: "Op" }[this.by],
              ),
              h("th", { scope: "col", class: "bar" }, ""),
              h("th", { scope: "col", class: "right" }, metric.name),
              h("th", { scope: "col", class: "right" }, "Share"),
            ),
          ),
          tbody,
        ),
      ),
      unknown.length
        ? h(
            "details",
            {},
            h("summary", {}, `${plural(unknown.length, "cost")} not known, not in the totals`),
            h(
              "ul",
              { class: "plain small" },
              tally(unknown)
                .slice(0, 100)
                .map((item) => h("li", {}, item)),
            ),
          )
        : null,
    );
    portions(
      tbody,
      rows,
      (row) => {
        const parts = stacked
          ? names
              .map((name) => [name, row.held.energy_by_component_pj?.[name] || 0])
              .filter(([, value]) => value > 0)
          : null;
        const fill = this.by === "component" ? colours.get(row.name) || "var(--c8)" : "var(--c0)";
        const line = h(
          "tr",
          {},
          h(
            "td",
            { class: "name" },
            h(
              "button",
              {
                type: "button",
                class: "link expand",
                "aria-expanded": "false",
                onclick: (event) => this.expand(line, event.currentTarget, row),
              },
              breakable(row.name),
            ),
            row.under ? h("div", { class: "small muted" }, row.under) : null,
          ),
          h(
            "td",
            { class: "bar" },
            parts ? stackedBar(parts, most, colours, "pJ") : plainBar(row.value, most, fill),
          ),
          h("td", { class: "right" }, quantity(row.value, metric.unit)),
          h("td", { class: "right muted" }, percent(row.value, total)),
        );
        return [line];
      },
      60,
    );
    if (!rows.length)
      tbody.append(
        h(
          "tr",
          {},
          h(
            "td",
            { colspan: "4", class: "muted" },
            all.length ? "No name matches." : "This target gives no cost.",
          ),
        ),
      );
    void app;
  }

  expand(line, button, row) {
    if (line.nextSibling?.classList?.contains("explained")) {
      line.nextSibling.remove();
      button.setAttribute("aria-expanded", "false");
      return;
    }
    button.setAttribute("aria-expanded", "true");
    line.after(h("tr", { class: "explained" }, h("td", { colspan: "4" }, this.reason(row))));
  }

  reason(row) {
    if (this.by === "op") {
      return h(
        "div",
        { class: "panel tight" },
        costOf(this.app, this.entry, row.held),
        h(
          "p",
          {},
          h(
            "button",
            {
              type: "button",
              class: "link",
              onclick: () =>
                this.app.open("graph", {
                  func: this.entry,
                  key: `%${row.held.name}`,
                  stage: this.app.head.stages.length - 1,
                }),
            },
            "Show it in the graph",
          ),
        ),
      );
    }
    if (this.by === "component") return this.componentReason(row);
    const { held } = row;
    if (this.metric === "time") {
      const ops = this.app.body.ops[this.entry].filter(
        (one) => one.layer === held.name && !one.free,
      );
      return table(
        "Sum over ops of how long each is at work",
        [{ name: "Op", class: "name" }, { name: "How" }, { name: "Time", right: true }],
        ops.map((one) => [
          `%${one.name} ${one.op}`,
          one.note || one.unknown || "",
          quantity(one.busy_ns, "ns"),
        ]),
      );
    }
    if (this.metric === "area")
      return this.areaReason(Object.entries(held.instances || {}), "No tiles of its own.");
    const show = document.documentElement.clientWidth < 640 ? eventList : eventTable;
    return [
      show(this.app, this.entry, held.events || {}),
      held.unknown ? h("p", { class: "small" }, `Not counted: ${held.unknown}.`) : null,
    ];
  }

  areaReason(instances, none) {
    if (!instances.length) return h("p", { class: "small muted" }, none);
    return table(
      "Instances x area of one",
      [
        { name: "Component", class: "name" },
        { name: "Instances", right: true },
        { name: "Area of one" },
        { name: "Area", right: true },
      ],
      instances.map(([name, number]) => {
        const figureOf = this.point.components[name]?.figures?.area;
        return [
          name,
          count(number),
          figureOf
            ? h(
                "span",
                {},
                `${figureOf.value} µm²`,
                h(
                  "span",
                  { class: "small muted source" },
                  ` ${figureOf.source}; ${figureOf.node_nm} nm`,
                ),
              )
            : "no figure",
          figureOf ? quantity(number * figureOf.value, "um2") : "unknown",
        ];
      }),
    );
  }

  componentReason({ name, held }) {
    if (this.metric === "area") {
      return this.areaReason(
        held.instances ? [[name, held.instances]] : [],
        "It belongs to no tile, or its area is counted with another component.",
      );
    }
    const rows = this.point.layers.flatMap((layer) =>
      Object.entries(layer.events || {})
        .filter(([event]) => event.split(".")[0] === name)
        .map(([event, number]) => ({ layer, event, number })),
    );
    const figureOf = held.figures?.energy;
    rows.sort((a, b) => b.number - a.number);
    return [
      figureOf
        ? h(
            "p",
            { class: "small" },
            `${figureOf.value} ${figureOf.unit}, ${figureOf.node_nm} nm. `,
            h(
              "span",
              { class: "muted" },
              figureOf.source,
              figureOf.note ? `; ${figureOf.note}` : "",
            ),
          )
        : h("p", { class: "small" }, "No figure for its energy."),
      table(
        rows.length > 40 ? `The 40 of ${rows.length} layers with the most events` : null,
        [
          { name: "Layer", class: "name" },
          { name: "Event", class: "name" },
          { name: "Count", right: true },
          { name: "Energy", right: true },
        ],
        rows
          .slice(0, 40)
          .map((row) => [
            row.layer.name,
            row.event,
            count(row.number),
            figureOf ? quantity(row.number * figureOf.value, "pJ") : "unknown",
          ]),
      ),
    ];
  }
}
