// The graph of a stage: laid out when it is first looked at, drawn where it is in sight.

const OP_HEIGHT = 42;
const CLOSED_HEIGHT = 46;
const FEW = 60;

class GraphView {
  constructor(app) {
    this.app = app;
    this.layout = new LayoutService();
    this.stage = app.head.stages.length - 1;
    this.func = "inference";
    this.constants = false;
    this.paint = "kind";
    this.view = { x: 0, y: 0, k: 1 };
    this.inspector = new Inspector(app);
    this.toolbar = h("div", { class: "row card toolbar" });
    this.world = s("g", {});
    this.svg = s(
      "svg",
      {
        class: "graph",
        tabindex: "0",
        role: "application",
        "aria-label":
          "Graph. Arrow keys walk along edges, Enter folds and unfolds, " +
          "plus and minus zoom, 0 fits.",
      },
      s(
        "defs",
        {},
        s(
          "marker",
          {
            id: "arrow",
            viewBox: "0 0 8 8",
            refX: "7",
            refY: "4",
            markerWidth: "8",
            markerHeight: "8",
            markerUnits: "userSpaceOnUse",
            orient: "auto",
          },
          s("path", { d: "M0 0 L8 4 L0 8 z", class: "arrow" }),
        ),
      ),
      this.world,
    );
    this.wait = h("p", { class: "waiting" }, "Laying out the graph …");
    this.legend = h("div", { class: "graph-key" });
    this.canvas = h(
      "div",
      { class: "canvas card" },
      this.svg,
      this.wait,
      this.legend,
      this.zoomButtons(),
    );
    this.element = h(
      "div",
      { class: "panel" },
      this.toolbar,
      h("div", { class: "graph-sides" }, this.canvas, this.inspector.element),
    );
    this.pointers();
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  show(request) {
    if (request?.stage !== undefined) this.stage = request.stage;
    if (request?.func) this.func = request.func;
    if (this.tree && !request) return;
    this.load(request?.key);
  }

  load(key) {
    const functions = this.app.stages.program(this.stage);
    const held = functions.find((one) => one.name === this.func) || functions[0];
    this.func = held.name;
    this.tree = new ScopeTree(held, this.constants);
    this.open = this.tree.opening(FEW);
    this.selected = null;
    this.inspector.empty();
    this.drawToolbar(functions);
    const wanted = key && this.tree.byKey.get(key);
    if (wanted) this.reveal(wanted);
    else this.arrange().then(() => this.fit());
  }

  drawToolbar(functions) {
    const stages = this.app.head.stages
      .map((stage, index) => [
        String(index),
        index ? `${index}. after ${splitPass(stage.pass)[0]}` : "0. captured",
        stage.changed || !index,
      ])
      .filter((one) => one[2]);
    const held = String(this.app.stages.holder(this.stage));
    this.results = h("ul", {
      class: "results",
      id: "found",
      role: "listbox",
      hidden: true,
      "aria-label": "Found",
    });
    this.search = h("input", {
      type: "search",
      placeholder: "name, op or scope",
      role: "combobox",
      "aria-expanded": "false",
      "aria-controls": "found",
      "aria-label": "Search the graph",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.find(),
      onkeydown: (event) => this.searchKey(event),
    });
    clear(
      this.toolbar,
      choice("Program", stages, held, (value) => {
        this.stage = Number(value);
        this.load();
      }),
      functions.length > 1
        ? choice(
            "Function",
            functions.map((one) => [one.name, `@${one.name}`]),
            this.func,
            (value) => {
              this.func = value;
              this.load();
            },
          )
        : null,
      h("div", { class: "search" }, this.search, this.results),
      h(
        "div",
        { class: "row" },
        h("button", { type: "button", onclick: () => this.fold(false) }, "Fold all"),
        h("button", { type: "button", onclick: () => this.fold(true) }, "Unfold all"),
      ),
      choice(
        "Colour",
        [
          ["kind", "kind of op"],
          ["energy_pj", "energy"],
          ["busy_ns", "time at work"],
        ],
        this.paint,
        (value) => {
          this.paint = value;
          this.redraw();
        },
      ),
      h(
        "label",
        { class: "field" },
        h("input", {
          type: "checkbox",
          checked: this.constants,
          onchange: (event) => {
            this.constants = event.target.checked;
            this.load();
          },
        }),
        "constants",
      ),
    );
  }

  zoomButtons() {
    const button = (label, text, act) =>
      h("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    return h(
      "div",
      { class: "zoom" },
      button("Zoom in", "+", () => this.zoom(1.4)),
      button("Zoom out", "−", () => this.zoom(1 / 1.4)),
      button("Show the whole graph", "⤢", () => this.wholeView()),
    );
  }

  // -- layout ----------------------------------------------------------------------------------

  size(node, open) {
    if (node.kind === "scope") {
      const label = node.name.length + (node.again > 1 ? 4 : 0);
      const wide = Math.min(
        280,
        Math.max(120, 44 + 7.6 * label, open ? 0 : 40 + 6.3 * this.facts(node).length),
      );
      return { w: wide, h: open ? 0 : CLOSED_HEIGHT };
    }
    const [first, second] = this.labels(node);
    return {
      w: Math.min(230, Math.max(96, 22 + Math.max(7.5 * first.length, 6.3 * second.length))),
      h: OP_HEIGHT,
    };
  }

  facts(node) {
    const held = this.app.costs.scope(this.func, node.group ? null : node.path);
    return [plural(node.ops, "op"), held && held.energy_pj ? quantity(held.energy_pj, "pJ") : null]
      .filter(Boolean)
      .join(" · ");
  }

  labels(node) {
    if (node.kind !== "op") return [node.name, shortType(node.type)];
    return [node.op.op, shortType(node.op.types[0] || "")];
  }

  async arrange() {
    this.wait.hidden = false;
    const asked = (this.asked || 0) + 1;
    this.asked = asked;
    performance.mark("imcc:layout-started");
    const box = this.tree.drawing(this.open, (node, open) => this.size(node, open));
    const made = await this.layout.run(box);
    if (asked !== this.asked) return;
    this.flatten(made);
    this.wait.hidden = true;
    this.canvas.dataset.nodes = String(this.items.length);
    performance.mark("imcc:graph-drawn");
    this.redraw();
  }

  // Boxes and routes in the coordinates of the whole, parents before what they hold.
  flatten(root) {
    this.items = [];
    this.routes = [];
    this.places = new Map();
    this.whole = { w: root.w, h: root.h };
    const visit = (box, x, y) => {
      for (const child of box.children) {
        const item = {
          node: this.tree.nodes.get(child.id),
          x: x + child.x,
          y: y + child.y,
          w: child.w,
          h: child.h,
          open: Boolean(child.children),
        };
        this.items.push(item);
        this.places.set(child.id, item);
        if (child.children) visit(child, item.x, item.y);
      }
      box.routes.forEach((points, index) => {
        const edge = box.edges[index];
        this.routes.push({
          from: edge.from,
          to: edge.to,
          source: edge.fromPort || edge.from,
          points: points.map(([px, py]) => [px + x, py + y]),
          ends: !edge.to.startsWith("out:") && !edge.toPort,
        });
      });
    };
    visit(root, 0, 0);
    for (const route of this.routes) {
      const ys = route.points.map((point) => point[1]);
      const xs = route.points.map((point) => point[0]);
      route.box = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
    }
  }

  // -- drawing ---------------------------------------------------------------------------------

  redraw() {
    this.world.replaceChildren();
    this.drawn = new Map();
    this.scale = this.scaleOfPaint();
    this.drawKey();
    this.draw();
  }

  // What the colours say.
  drawKey() {
    if (this.paint === "kind") {
      const shown = new Set(this.tree.leaves.map((leaf) => leaf.op.op.split(".")[0]));
      const names = [...this.app.kinds.keys()].filter((name) => shown.has(name));
      clear(
        this.legend,
        legend(new Map(names.map((name) => [name, colour(this.app.kinds.get(name))])), names),
      );
    } else {
      const unit = this.paint === "energy_pj" ? "pJ" : "ns";
      clear(
        this.legend,
        h(
          "span",
          { class: "small muted" },
          this.scale
            ? `pale to full: 0 to ${quantity(this.scale, unit)}`
            : "Costs are known of the last program.",
        ),
      );
    }
  }

  draw() {
    if (!this.items || this.canvas.offsetParent === null) return;
    const { x, y, k } = this.view;
    const wide = this.svg.clientWidth;
    const tall = this.svg.clientHeight;
    this.world.setAttribute("transform", `translate(${x} ${y}) scale(${k})`);
    this.svg.classList.toggle("far", k < 0.4);
    const margin = 200 / k;
    const sight = [
      -x / k - margin,
      -y / k - margin,
      (wide - x) / k + margin,
      (tall - y) / k + margin,
    ];
    const inSight = (a, b, c, d) => c > sight[0] && a < sight[2] && d > sight[1] && b < sight[3];
    const wanted = new Set();
    const layers = [[], [], []];
    const want = (key, layer, make) => {
      wanted.add(key);
      if (!this.drawn.has(key)) layers[layer].push([key, make]);
    };
    for (const item of this.items) {
      if (!inSight(item.x, item.y, item.x + item.w, item.y + item.h)) continue;
      want(item.node.id, item.open ? 0 : 2, () => this.box(item));
    }
    this.routes.forEach((route, index) => {
      if (inSight(...route.box)) want(`route ${index}`, 1, () => this.route(route));
    });
    if (!this.groups || !this.groups[0].isConnected) {
      this.groups = [0, 1, 2].map(() => s("g", {}));
      this.world.append(...this.groups);
    }
    for (const [key, element] of this.drawn) {
      if (!wanted.has(key)) {
        element.remove();
        this.drawn.delete(key);
      }
    }
    layers.forEach((list, layer) => {
      const made = list.map(([key, make]) => {
        const element = make();
        this.drawn.set(key, element);
        return element;
      });
      this.groups[layer].append(...made);
    });
    this.mark();
  }

  box(item) {
    const { node } = item;
    const chosen = () => this.choose(node);
    if (node.kind === "scope") return this.scopeBox(item);
    const [first, second] = this.labels(node);
    const group = s(
      "g",
      {
        class: `node ${node.kind}`,
        transform: `translate(${item.x} ${item.y})`,
        "data-id": node.id,
        onclick: chosen,
      },
      s(
        "title",
        {},
        node.kind === "op"
          ? `${node.op.key} = ${node.op.op}\n${node.op.types.join(", ")}\n${node.op.scope}`
          : `${node.name}: ${node.type}`,
      ),
      s("rect", { width: item.w, height: item.h, rx: node.kind === "op" ? 5 : item.h / 2 }),
      node.kind === "op"
        ? s("rect", {
            class: "mark",
            width: 5,
            height: item.h - 8,
            x: 4,
            y: 4,
            rx: 2.5,
            style: { fill: this.colourOf(node) },
          })
        : null,
      s(
        "text",
        { x: item.w / 2 + (node.kind === "op" ? 4 : 0), y: 18, class: "first" },
        cut(first, (item.w - 18) / 7.4),
      ),
      s(
        "text",
        { x: item.w / 2 + (node.kind === "op" ? 4 : 0), y: 33, class: "second" },
        cut(second, (item.w - 18) / 6.2),
      ),
    );
    return group;
  }

  scopeBox(item) {
    const { node } = item;
    const name = node.again > 1 ? `${node.name} (${node.again})` : node.name;
    const facts = this.facts(node);
    return s(
      "g",
      {
        class: `node scope ${item.open ? "open" : "closed"}`,
        transform: `translate(${item.x} ${item.y})`,
        "data-id": node.id,
      },
      s(
        "title",
        {},
        `${node.path || node.name}: ${facts}. Click to ${item.open ? "fold" : "unfold"}.`,
      ),
      s("rect", {
        width: item.w,
        height: item.h,
        rx: 8,
        onclick: () => (item.open ? this.choose(node) : this.toggle(node)),
      }),
      s(
        "g",
        { class: "scope-head", onclick: () => this.toggle(node) },
        s("rect", { class: "head", width: item.w, height: item.open ? 28 : item.h, rx: 8 }),
        s("path", {
          class: "fold",
          d: item.open ? "M10 11 l8 0 l-4 6 z" : "M11 11 l6 4.5 l-6 4.5 z",
        }),
        s("text", { x: 24, y: 19, class: "first left" }, cut(name, (item.w - 34) / 7.3)),
        item.open
          ? null
          : s("text", { x: 24, y: 36, class: "second left" }, cut(facts, (item.w - 30) / 6.2)),
      ),
      item.open || this.paint === "kind"
        ? null
        : s("rect", {
            class: "mark",
            width: 5,
            height: item.h - 8,
            x: item.w - 9,
            y: 4,
            rx: 2.5,
            style: { fill: this.colourOf(node) },
          }),
    );
  }

  route(route) {
    let d = `M${route.points[0].join(" ")}`;
    for (let i = 1; i < route.points.length; i += 1) {
      const [fx, fy] = route.points[i - 1];
      const [tx, ty] = route.points[i];
      d +=
        Math.abs(fx - tx) < 0.5
          ? `L${tx} ${ty}`
          : `C${fx} ${(fy + ty) / 2} ${tx} ${(fy + ty) / 2} ${tx} ${ty}`;
    }
    return s("path", {
      class: "edge",
      d,
      "marker-end": route.ends ? "url(#arrow)" : null,
      "data-from": route.from,
      "data-to": route.to,
    });
  }

  colourOf(node) {
    if (this.paint === "kind") {
      if (node.kind !== "op") return node.kind === "scope" ? "transparent" : "var(--edge)";
      return colour(this.app.kinds.get(node.op.op.split(".")[0]) ?? 8);
    }
    const share = Math.sqrt(Math.max(0, this.weight(node)) / (this.scale || 1));
    return share > 0
      ? `color-mix(in srgb, var(--c1) ${Math.round(12 + 88 * share)}%, var(--sunken))`
      : "transparent";
  }

  weight(node) {
    if (node.kind === "op")
      return this.inspector.cost(this.func, node.op.key, this.stage)?.[this.paint] || 0;
    if (node.kind !== "scope" || node.group) {
      return (node.children || []).reduce((sum, child) => sum + this.weight(child), 0);
    }
    return this.app.costs.scope(this.func, node.path)?.[this.paint] || 0;
  }

  scaleOfPaint() {
    if (this.paint === "kind") return 1;
    return Math.max(
      0,
      ...this.items.filter((item) => !item.open).map((item) => this.weight(item.node)),
    );
  }

  // -- selection -------------------------------------------------------------------------------

  mark() {
    const id = this.selected?.id;
    for (const [key, element] of this.drawn) {
      if (key.startsWith("route ")) {
        const near = element.dataset.from === id || element.dataset.to === id;
        element.classList.toggle("near", near);
      } else element.classList.toggle("selected", key === id);
    }
  }

  choose(node) {
    this.selected = node;
    if (node.kind === "op") this.inspector.op(this, node);
    else if (node.kind === "scope") this.inspector.scope(this, node);
    else this.inspector.end(this, node);
    say(`Selected ${node.kind === "op" ? `${node.op.key} ${node.op.op}` : node.name}`);
    this.mark();
  }

  async toggle(node) {
    const before = this.places.get(node.id);
    const at = before && [
      before.x * this.view.k + this.view.x,
      before.y * this.view.k + this.view.y,
    ];
    if (this.open.has(node.id)) this.open.delete(node.id);
    else this.open.add(node.id);
    await this.arrange();
    const after = this.places.get(node.id);
    // What was clicked stays under the pointer.
    if (at && after) {
      this.view.x = at[0] - after.x * this.view.k;
      this.view.y = at[1] - after.y * this.view.k;
      this.draw();
    }
    this.choose(node);
    say(`${node.name} ${this.open.has(node.id) ? "unfolded" : "folded"}`);
  }

  async fold(open) {
    this.open = new Set([""]);
    if (open) for (const node of this.tree.scopes()) this.open.add(node.id);
    this.selected = null;
    this.inspector.empty();
    await this.arrange();
    this.fit();
    say(open ? "All scopes unfolded" : "All scopes folded");
  }

  async reveal(node) {
    for (let at = node.parent; at; at = at.parent) this.open.add(at.id);
    await this.arrange();
    this.choose(node);
    this.centre(node);
  }

  centre(node) {
    const item = this.places.get(node.id);
    if (!item) return;
    this.view.k = Math.min(1.2, Math.max(0.75, this.view.k));
    this.view.x = this.svg.clientWidth / 2 - (item.x + item.w / 2) * this.view.k;
    const middle = item.open ? item.y + 30 : item.y + item.h / 2;
    this.view.y = this.svg.clientHeight / 2 - middle * this.view.k;
    this.draw();
  }
}

function cut(text, room) {
  const most = Math.max(3, Math.floor(room));
  if (text.length <= most) return text;
  const head = Math.ceil((most - 1) / 2);
  return `${text.slice(0, head)}…${text.slice(text.length - (most - 1 - head))}`;
}

// tensor<Bx16x8x8xf32> reads B×16×8×8 f32, a handle by its name.
function shortType(type) {
  const tensor = /^tensor<((?:[\w*]+x)*)(.+)>$/.exec(type);
  if (tensor) return `${tensor[1].slice(0, -1).replaceAll("x", "×")} ${tensor[2]}`.trim();
  const handle = /^!([\w.]+)</.exec(type);
  return handle ? handle[1] : type;
}
