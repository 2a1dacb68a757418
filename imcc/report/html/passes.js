// Passes, the program before and after each, and the rule and source line of every change.

class PassesView {
  constructor(app) {
    this.app = app;
    this.all = false;
    this.mode = "diff";
    this.rule = "";
    const changed = app.head.stages.flatMap((stage, index) =>
      index && stage.changed ? [index] : [],
    );
    this.stage = changed[0] || 0;
    this.element = h("div", { class: "sides" });
    this.list = h("nav", { class: "card pass-list", "aria-label": "Passes" });
    this.detail = h("section", { class: "card", "aria-live": "off" });
    this.element.append(this.list, this.detail);
  }

  show(request) {
    if (request?.stage) this.stage = request.stage;
    this.drawList();
    this.drawDetail();
  }

  drawList() {
    const { stages } = this.app.head;
    const quiet = stages.filter((stage, index) => index && !stage.changed).length;
    const slowest = Math.max(...stages.map((stage) => stage.seconds));
    let phase = stages[0].phase;
    const items = stages.map((stage, index) => {
      if (!index || (!stage.changed && !this.all)) return null;
      const enters = stage.phase !== phase ? stage.phase : null;
      phase = stage.phase;
      const [name, options] = splitPass(stage.pass);
      return h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            class: stage.changed ? "pass" : "pass quiet-pass",
            "aria-current": index === this.stage ? "true" : null,
            onclick: () => {
              this.stage = index;
              this.rule = "";
              this.drawList();
              this.drawDetail();
              this.detail.scrollIntoView({ block: "start" });
            },
          },
          h("span", { class: "pass-number" }, String(index)),
          h(
            "span",
            { class: "pass-name" },
            name,
            options ? h("code", { class: "muted" }, ` ${options}`) : null,
          ),
          h(
            "span",
            { class: "pass-facts" },
            stage.changed ? plural(stage.rewrites, "rewrite") : "no change",
            " · ",
            quantity(stage.seconds * 1e9, "ns"),
          ),
          h(
            "span",
            { class: "pass-time", "aria-hidden": "true" },
            h("span", { style: { width: `${(100 * stage.seconds) / slowest}%` } }),
          ),
          enters ? h("span", { class: "chip accent" }, `enters phase ${enters}`) : null,
        ),
      );
    });
    clear(
      this.list,
      h("h2", {}, "Passes"),
      h(
        "p",
        { class: "small muted" },
        `Captured with ${plural(
          this.app.stages.program(0).reduce((sum, func) => sum + func.ops.length, 0),
          "op",
        )}; times are wall clock.`,
      ),
      h("ol", { class: "plain" }, items),
      quiet
        ? h(
            "button",
            {
              type: "button",
              class: "quiet small",
              onclick: () => {
                this.all = !this.all;
                this.drawList();
              },
            },
            this.all
              ? "Hide passes that changed nothing"
              : `Show ${plural(quiet, "pass")} that changed nothing`,
          )
        : null,
    );
  }

  drawDetail() {
    const { stages, head } = this.app;
    if (!this.stage) {
      clear(
        this.detail,
        h("h2", {}, "Passes"),
        h(
          "p",
          { class: "muted" },
          head.recorded
            ? "No pass changed this program."
            : "This artifact keeps no history. Compile the model again to see its passes.",
        ),
      );
      return;
    }
    const stage = stages.stages[this.stage];
    const facts = head.stages[this.stage];
    const rules = new Map();
    for (const rewrite of stage.rewrites) {
      const name = shortRule(rewrite.rule);
      rules.set(name, (rules.get(name) || 0) + 1);
    }
    const body = h("div", {});
    const [name, options] = splitPass(facts.pass);
    clear(
      this.detail,
      h(
        "div",
        { class: "row spread" },
        h("h2", {}, name),
        segments(
          "Form",
          [
            ["diff", "Side by side"],
            ["rewrites", "Rewrites"],
          ],
          this.mode,
          (mode) => {
            this.mode = mode;
            this.drawDetail();
          },
        ),
      ),
      h(
        "p",
        { class: "muted small" },
        [
          options && `options ${options}`,
          facts.promise && `promise: ${facts.promise}`,
          `phase ${facts.phase}`,
          quantity(facts.seconds * 1e9, "ns"),
          plural(facts.rewrites, "rewrite"),
        ]
          .filter(Boolean)
          .join(" · "),
      ),
      rules.size > 1
        ? h(
            "div",
            { class: "row rules", role: "group", "aria-label": "Show one rule" },
            [...rules].map(([rule, number]) =>
              h(
                "button",
                {
                  type: "button",
                  class: "chip",
                  "aria-pressed": String(this.rule === rule),
                  onclick: () => {
                    this.rule = this.rule === rule ? "" : rule;
                    this.drawDetail();
                  },
                },
                `${rule} ${count(number)}`,
              ),
            ),
          )
        : null,
      body,
      this.refusals(stage),
    );
    if (!stage.program) clear(body, h("p", { class: "muted" }, "This pass changed nothing."));
    else if (this.mode === "diff") this.diff(body);
    else this.rewrites(body, stage);
  }

  refusals(stage) {
    if (!stage.refusals.length) return null;
    return h(
      "details",
      {},
      h("summary", {}, `${plural(stage.refusals.length, "refused match")}`),
      stage.refusals
        .slice(0, 200)
        .map((one) =>
          h(
            "div",
            { class: "rewrite" },
            h(
              "p",
              { class: "small" },
              h("span", { class: "chip" }, shortRule(one.rule)),
              " ",
              one.reason,
            ),
            h("pre", { class: "line" }, code(this.app.stages.lines[one.op])),
          ),
        ),
    );
  }

  diff(body) {
    const { stages } = this.app;
    const made = rewritesByKey(stages, this.stage);
    const rows = diffRows(stages, stages.numbers(this.stage - 1), stages.numbers(this.stage));
    const wanted = (row) =>
      !row.same &&
      (!this.rule ||
        (made.get((row.after || row.before).key) || []).some(
          (one) => shortRule(one.rule) === this.rule,
        ));
    // Functions come first; declarations of resources and states stand at the end.
    const declares = (row) =>
      ["resource", "state", "other", "module"].includes((row.after || row.before).line.kind) &&
      (row.after || row.before).line.text !== "}";
    rows.sort((a, b) => declares(a) - declares(b));
    const near = rows.map(() => false);
    rows.forEach((row, index) => {
      if (!wanted(row)) return;
      for (let i = Math.max(0, index - 2); i <= Math.min(rows.length - 1, index + 2); i += 1)
        near[i] = true;
    });
    const shown = [];
    rows.forEach((row, index) => {
      if (near[index]) shown.push({ row, index });
      else if (shown.length && shown[shown.length - 1].hidden)
        shown[shown.length - 1].hidden.push(row);
      else shown.push({ hidden: [row] });
    });
    const grid = h("div", {
      class: "diff",
      role: "table",
      "aria-label": "Program before and after",
    });
    clear(
      body,
      h(
        "div",
        { class: "diff-head", "aria-hidden": "true" },
        h("span", {}, "before"),
        h("span", {}, "rule, source"),
        h("span", {}, "after"),
      ),
      grid,
    );
    portions(
      grid,
      shown,
      (item) => (item.hidden ? this.folded(item.hidden, made) : this.row(item.row, made)),
      150,
    );
  }

  folded(rows, made) {
    const button = h(
      "button",
      {
        type: "button",
        class: "folded",
        onclick: () => button.replaceWith(...rows.flatMap((row) => this.row(row, made))),
      },
      `${plural(rows.length, "line")} without change`,
    );
    return button;
  }

  row(row, made) {
    const rewrites = row.same ? [] : made.get((row.after || row.before).key) || [];
    const rules = [...new Set(rewrites.map((one) => shortRule(one.rule)))];
    const line = (row.after || row.before).line;
    const places = line.loc?.length ? line.loc : row.before?.line.loc || [];
    let marks = [];
    if (!row.same && row.before && row.after)
      marks = tokenMarks(row.before.line.text, row.after.line.text);
    const side = (item, mark, kind) =>
      h(
        "div",
        {
          class: `side ${row.same || !item ? "" : kind}`,
          role: "cell",
        },
        item
          ? h(
              "pre",
              { class: `line ${item.line.kind}` },
              row.same ? null : h("span", { class: "hidden" }, kind),
              code(item.line.text, mark),
            )
          : null,
      );
    const middle = h("div", { class: "middle", role: "cell" });
    const element = h(
      "div",
      { class: row.same ? "diff-row" : "diff-row changed", role: "row" },
      side(row.before, marks[0], "removed"),
      middle,
      side(row.after, marks[1], "added"),
    );
    if (!row.same) {
      middle.append(
        h(
          "button",
          {
            type: "button",
            class: "why",
            "aria-expanded": "false",
            onclick: (event) => this.explain(element, event.currentTarget, rewrites, places),
          },
          rules.length
            ? rules.map((rule) => h("span", { class: "chip accent" }, rule))
            : h("span", { class: "chip" }, "follows"),
          places.length
            ? h("span", { class: "place" }, `${baseName(places[0].file)}:${places[0].line}`)
            : null,
        ),
      );
    }
    return [element];
  }

  explain(element, button, rewrites, places) {
    if (element.nextSibling?.classList?.contains("explained")) {
      element.nextSibling.remove();
      button.setAttribute("aria-expanded", "false");
      return;
    }
    button.setAttribute("aria-expanded", "true");
    element.after(
      h(
        "div",
        { class: "explained" },
        rewrites.length
          ? rewrites.slice(0, 12).map((one) => this.rewrite(one, false))
          : h(
              "p",
              { class: "small muted" },
              "No rule of its own: the line follows from a change of what it uses.",
            ),
        rewrites.length > 12
          ? h("p", { class: "small muted" }, `and ${rewrites.length - 12} more`)
          : null,
        excerpts(this.app.stages, places),
      ),
    );
  }

  rewrite(one, withPlace) {
    const { stages } = this.app;
    const lines = (numbers, kind) =>
      numbers.map((number) =>
        h(
          "pre",
          { class: `line ${kind}` },
          h("span", { class: "hidden" }, kind),
          code(stages.lines[number]),
        ),
      );
    const places = [...one.before, ...one.after].flatMap((number) => stages.line(number).loc || []);
    return h(
      "div",
      { class: "rewrite" },
      h(
        "p",
        { class: "small" },
        h("span", { class: "chip accent" }, shortRule(one.rule)),
        " ",
        KINDS[one.kind] || one.kind,
        one.function ? h("span", { class: "muted" }, ` in @${one.function}`) : null,
        one.note ? `: ${one.note}` : null,
      ),
      lines(one.before, "removed"),
      lines(one.after, "added"),
      withPlace && places.length ? sourceLine(stages, places[0]) : null,
    );
  }

  rewrites(body, stage) {
    const held = stage.rewrites.filter((one) => !this.rule || shortRule(one.rule) === this.rule);
    const list = h("div", {});
    clear(body, list);
    portions(list, held, (one) => [this.rewrite(one, true)], 80);
  }
}

const KINDS = {
  replace: "replaced",
  erase: "erased",
  insert: "inserted",
  redirect: "redirected uses",
  operand: "changed an operand",
  attribute: "changed attributes",
  annotate: "annotated",
  argument: "added an argument",
  results: "changed results",
  target: "set the target",
  function: "added a function",
  resource: "changed a resource",
  state: "added a state",
  phase: "entered a phase",
};

function splitPass(text) {
  const brace = text.indexOf("{");
  return brace < 0 ? [text, ""] : [text.slice(0, brace), text.slice(brace + 1, -1)];
}

function baseName(file) {
  return file.split(/[\\/]/).pop();
}

function sourceLine(stages, place) {
  const text = stages.source(place);
  return h(
    "p",
    { class: "small source-line" },
    h("span", { class: "muted" }, `${baseName(place.file)}:${place.line} `),
    text === undefined ? null : h("code", {}, text.trim()),
  );
}

// The user's source around each place, the place itself marked.
function excerpts(stages, places) {
  const seen = new Set();
  return places
    .filter((place) => {
      const key = `${place.file}:${place.line}`;
      return !seen.has(key) && seen.add(key);
    })
    .map((place) => {
      const file = stages.sources[place.file];
      const name = h("figcaption", { class: "small muted" }, `${place.file}, line ${place.line}`);
      if (!file || file[place.line] === undefined) {
        return h(
          "figure",
          { class: "excerpt" },
          name,
          h("p", { class: "small muted" }, "The source was not recorded."),
        );
      }
      const lines = [];
      for (let line = place.line - 3; line <= place.line + 3; line += 1) {
        if (file[line] === undefined) continue;
        lines.push(
          h(
            "span",
            { class: line === place.line ? "marked" : null },
            h("span", { class: "gutter" }, String(line).padStart(4)),
            file[line] || " ",
          ),
        );
      }
      return h(
        "figure",
        { class: "excerpt" },
        name,
        h("pre", { tabindex: "0", "aria-label": `Source of ${place.file}` }, lines),
      );
    });
}
