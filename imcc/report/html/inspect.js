// What is to be known of one op or one scope: type, place, cost, and its way through the passes.

class Inspector {
  constructor(app) {
    this.app = app;
    this.element = h("aside", { class: "card inspect", "aria-label": "Selection", tabindex: "-1" });
    this.empty();
  }

  empty() {
    clear(
      this.element,
      h("h3", {}, "Nothing selected"),
      h(
        "p",
        { class: "muted small" },
        "Select an op or a scope in the drawing, or search for one. " +
          "With the drawing in focus, arrow keys walk along edges, " +
          "Enter folds and unfolds a scope.",
      ),
    );
  }

  cost(func, key, stage) {
    const { app } = this;
    const last = app.stages.holder(app.stages.stages.length - 1);
    if (app.stages.holder(stage) !== last) return null;
    return app.costs.op(func, key);
  }

  op(view, node) {
    const { op } = node;
    const { app } = this;
    const cost = this.cost(view.func, op.key, view.stage);
    const title = op.results.length ? `%${op.results.join(", %")}` : op.op;
    clear(
      this.element,
      h("p", { class: "small muted" }, op.op),
      h("h3", { class: "mono" }, title),
      pairs([
        ["Type", op.types.map((type) => h("code", {}, type))],
        [
          "Scope",
          op.scope
            ? h(
                "button",
                {
                  type: "button",
                  class: "link",
                  onclick: () => view.reveal(view.tree.scopeNodes.get(op.scope) || node),
                },
                op.scope,
              )
            : null,
        ],
        [
          "Operands",
          op.operands.length
            ? h(
                "span",
                {},
                op.operands.map((one, index) => [
                  index ? ", " : "",
                  one.label ? `${one.label} ` : "",
                  this.valueLink(view, one.value),
                ]),
              )
            : null,
        ],
      ]),
      this.costPart(view, op, cost),
      h("h4", {}, "Source"),
      op.loc.length
        ? excerpts(app.stages, op.loc)
        : h("p", { class: "small muted" }, "No place in the model file."),
      this.historyPart(view, op),
      op.attributes.length
        ? [
            h("h4", {}, "Attributes"),
            pairs(op.attributes.map(([name, value]) => [breakable(name), h("code", {}, value)])),
          ]
        : null,
    );
    this.element.scrollTop = 0;
  }

  valueLink(view, name) {
    const node = view.tree.producers.get(name);
    if (!node) return h("code", {}, `%${name}`);
    return h(
      "button",
      { type: "button", class: "link mono", onclick: () => view.reveal(node) },
      `%${name}`,
    );
  }

  costPart(view, op, cost) {
    const { app } = this;
    const heading = h("h4", {}, "Cost");
    if (cost) return [heading, costOf(app, view.func, cost, eventList)];
    const later = this.becomes(view.func, op.key, view.stage);
    const made = later.map((key) => [key, app.costs.op(view.func, key)]).filter(([, held]) => held);
    if (!made.length) {
      return [
        heading,
        h(
          "p",
          { class: "small muted" },
          "Costs are known of the last program, and nothing of this op is left in it.",
        ),
      ];
    }
    return [
      heading,
      h("p", { class: "small muted" }, "Costs are known of the last program. There this op became"),
      h(
        "ul",
        { class: "plain small" },
        made.map(([key, held]) =>
          h(
            "li",
            {},
            h("code", {}, `${key} = ${held.op}`),
            " ",
            quantity(held.energy_pj, "pJ"),
            ", ",
            quantity(held.busy_ns, "ns"),
          ),
        ),
      ),
    ];
  }

  historyPart(view, op) {
    const steps = this.history(view.func, op.key, view.stage);
    const later = this.future(view.func, op.key, view.stage);
    const item = (step) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            class: "link",
            onclick: () => this.app.open("passes", { stage: step.stage }),
          },
          this.app.head.stages[step.stage].pass.split("{")[0],
        ),
        " ",
        h("span", { class: "chip" }, shortRule(step.rewrite.rule)),
        " ",
        h("span", { class: "small muted" }, KINDS[step.rewrite.kind] || step.rewrite.kind),
        step.text ? h("pre", { class: "line small", tabindex: "0" }, code(step.text)) : null,
      );
    return [
      h("h4", {}, "History"),
      h(
        "p",
        { class: "small muted" },
        steps.length ? "What led here, oldest first." : "It stands here as captured.",
      ),
      h("ol", { class: "history" }, steps.map(item)),
      later.length
        ? [
            h("p", { class: "small muted" }, "What happened to it afterwards."),
            h("ol", { class: "history" }, later.map(item)),
          ]
        : null,
    ];
  }

  // Back through the rewrites: from each to the ops that it took.
  history(func, key, stage) {
    const { stages } = this.app;
    let keys = new Set([key]);
    const made = [];
    for (let at = stage; at > 0; at -= 1) {
      const { rewrites } = stages.stages[at];
      for (let i = rewrites.length - 1; i >= 0; i -= 1) {
        const one = rewrites[i];
        if (one.function !== func) continue;
        const after = one.after.map((number) => stages.line(number));
        const hit = after.find((line) => line.kind === "op" && keys.has(line.key));
        if (!hit || one.kind === "redirect") continue;
        const before = one.before
          .map((number) => stages.line(number))
          .filter((line) => line.kind === "op");
        made.unshift({ stage: at, rewrite: one, text: before.map((line) => line.text).join("\n") });
        keys.delete(hit.key);
        for (const line of before) keys.add(line.key);
        if (!keys.size) return made;
      }
    }
    return made;
  }

  walk(func, key, stage, visit) {
    const { stages } = this.app;
    const keys = new Set([key]);
    for (let at = stage + 1; at < stages.stages.length; at += 1) {
      for (const one of stages.stages[at].rewrites) {
        if (one.function !== func || one.kind === "redirect") continue;
        const before = one.before.map((number) => stages.line(number).key);
        if (!before.some((held) => keys.has(held))) continue;
        const after = one.after.map((number) => stages.line(number));
        visit?.({ stage: at, rewrite: one, text: after.map((line) => line.text).join("\n") });
        if (one.kind === "replace" || one.kind === "erase") {
          for (const held of before) keys.delete(held);
        }
        for (const line of after) keys.add(line.key);
      }
    }
    return keys;
  }

  becomes(func, key, stage) {
    return [...this.walk(func, key, stage)];
  }

  future(func, key, stage) {
    const made = [];
    this.walk(func, key, stage, (step) => made.push(step));
    return made;
  }

  scope(view, node) {
    const held = view.app.costs.scope(view.func, node.group ? null : node.path);
    const kinds = new Map();
    const visit = (one) => {
      if (one.kind === "op") kinds.set(one.op.op, (kinds.get(one.op.op) || 0) + 1);
      else (one.children || []).forEach(visit);
    };
    visit(node);
    clear(
      this.element,
      h("p", { class: "small muted" }, node.group ? "group of neighbours" : "scope"),
      h("h3", { class: "mono" }, node.group ? node.name : node.path),
      h(
        "p",
        {},
        h(
          "button",
          { type: "button", onclick: () => view.toggle(node) },
          view.open.has(node.id) ? "Fold" : "Unfold",
        ),
      ),
      pairs([
        ["Ops", count(node.ops)],
        ["Energy", held ? quantity(held.energy_pj, "pJ") : null],
        ["At work", held ? quantity(held.busy_ns, "ns") : null],
        ["Area of its tiles", held && held.area_um2 ? quantity(held.area_um2, "um2") : null],
      ]),
      h("h4", {}, "Ops by kind"),
      h(
        "ul",
        { class: "plain small" },
        [...kinds]
          .sort((a, b) => b[1] - a[1])
          .map(([name, number]) => h("li", {}, h("code", {}, name), ` ${count(number)}`)),
      ),
    );
  }

  end(view, node) {
    clear(
      this.element,
      h("p", { class: "small muted" }, node.kind),
      h("h3", { class: "mono" }, node.name),
      pairs([["Type", h("code", {}, node.type)]]),
    );
  }
}

// The cost of an op in words and as events times figures.
function costOf(app, entry, cost, show = eventTable) {
  if (cost.free) return h("p", { class: "small" }, "Free: ", cost.free, ".");
  if (cost.unknown) return h("p", { class: "small" }, "Unknown: ", cost.unknown, ".");
  return [
    pairs([
      ["Energy", quantity(cost.energy_pj, "pJ")],
      [
        "At work",
        cost.note ? `${quantity(cost.busy_ns, "ns")}: ${cost.note}` : quantity(cost.busy_ns, "ns"),
      ],
      ["Starts", cost.start_ns === null ? null : quantity(cost.start_ns, "ns")],
      [
        "Not counted",
        cost.missing.length ? `no figure for ${cost.missing.map(words).join(", ")}` : null,
      ],
    ]),
    show(app, entry, cost.events),
  ];
}

function eventRows(app, entry, events) {
  const { components } = app.body.entry_points[entry];
  return Object.entries(events)
    .map(([event, number]) => {
      const figure = components[event.split(".")[0]]?.figures?.energy;
      return { event, number, figure, energy: figure ? number * figure.value : null };
    })
    .sort((a, b) => (b.energy || 0) - (a.energy || 0));
}

// The same as a list, for narrow places.
function eventList(app, entry, events) {
  return h(
    "dl",
    { class: "events" },
    eventRows(app, entry, events).map((row) => [
      h("dt", {}, h("code", {}, breakable(row.event)), h("strong", {}, quantity(row.energy, "pJ"))),
      h(
        "dd",
        {},
        row.figure
          ? `${count(row.number)} × ${row.figure.value} ${row.figure.unit}`
          : `${count(row.number)}, no figure`,
        row.figure
          ? h(
              "div",
              {},
              `${row.figure.source}${row.figure.node_nm ? `; ${row.figure.node_nm} nm` : ""}`,
            )
          : null,
      ),
    ]),
  );
}

function eventTable(app, entry, events) {
  const rows = eventRows(app, entry, events);
  return table(
    null,
    [
      { name: "Event", class: "name" },
      { name: "Count", right: true },
      { name: "Energy of one" },
      { name: "Energy", right: true },
    ],
    rows.map((row) => [
      row.event,
      count(row.number),
      row.figure
        ? h(
            "span",
            { title: row.figure.source },
            `${row.figure.value} ${row.figure.unit}`,
            h(
              "span",
              { class: "small muted source" },
              ` ${row.figure.source}`,
              row.figure.node_nm ? `; ${row.figure.node_nm} nm` : "",
            ),
          )
        : "no figure",
      quantity(row.energy, "pJ"),
    ]),
  );
}
