// The page: tabs, theme, and the body that is unpacked after the first content stands.

class App {
  constructor() {
    this.head = JSON.parse(document.getElementById("head").textContent);
    this.views = {};
    this.panels = {};
    this.titles();
    this.theme();
    this.tabs();
    clear(this.panels.overview, overview(this));
    clear(this.panels.accuracy, accuracyView(this));
    performance.mark("imcc:first-content");
    document.documentElement.dataset.state = "first-content";
    // Two frames, so that the first content is on the screen before the body is unpacked.
    requestAnimationFrame(() => requestAnimationFrame(() => this.unpack()));
    this.follow();
    window.addEventListener("resize", () => clear(this.panels.accuracy, accuracyView(this)));
    window.addEventListener("hashchange", () => this.follow());
  }

  titles() {
    const { head } = this;
    document.getElementById("model").textContent = head.model.name;
    const ops = Object.values(head.ops).reduce((sum, number) => sum + number, 0);
    document.getElementById("subtitle").textContent = [
      `on ${head.targets[0].name}`,
      plural(ops, "op"),
      `phase ${head.phase}`,
      `seed ${head.seed}`,
      `imcc ${head.imcc_version}`,
    ].join(" · ");
  }

  // -- theme -----------------------------------------------------------------------------------

  theme() {
    const button = document.getElementById("theme");
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const kept = () => {
      try {
        return localStorage.getItem("imcc-theme");
      } catch {
        return null;
      }
    };
    let chosen = ["light", "dark"].includes(kept()) ? kept() : "auto";
    const apply = () => {
      const now = chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
      document.documentElement.dataset.theme = now;
      button.textContent = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[
        chosen
      ];
      this.views.schedule?.draw();
    };
    button.addEventListener("click", () => {
      chosen = { auto: "light", light: "dark", dark: "auto" }[chosen];
      try {
        localStorage.setItem("imcc-theme", chosen);
      } catch {
        /* kept for this view only */
      }
      apply();
    });
    dark.addEventListener("change", apply);
    apply();
  }

  // -- tabs ------------------------------------------------------------------------------------

  tabs() {
    const bar = document.getElementById("tabs");
    const main = document.getElementById("main");
    this.buttons = {};
    for (const [name, title] of Object.entries(TABS)) {
      const button = h(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-controls": `panel-${name}`,
          "aria-selected": "false",
          "data-title": title,
          tabindex: "-1",
          onclick: () => this.open(name),
        },
        title,
      );
      const panel = h(
        "div",
        {
          class: "panel",
          role: "tabpanel",
          id: `panel-${name}`,
          "aria-labelledby": `tab-${name}`,
          hidden: true,
        },
        h("p", { class: "muted" }, "Unpacking …"),
      );
      this.buttons[name] = button;
      this.panels[name] = panel;
      bar.append(button);
      main.append(panel);
    }
    bar.addEventListener("keydown", (event) => {
      const names = Object.keys(TABS);
      const at = names.indexOf(this.current);
      const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[
        event.key
      ];
      if (next === undefined) return;
      event.preventDefault();
      const name = names[(next + names.length) % names.length];
      this.open(name);
      this.buttons[name].focus();
    });
  }

  follow() {
    const name = location.hash.slice(1);
    this.open(TABS[name] ? name : "overview");
  }

  open(name, request) {
    if (this.current !== name) {
      for (const key of Object.keys(TABS)) {
        const on = key === name;
        this.buttons[key].setAttribute("aria-selected", String(on));
        this.buttons[key].tabIndex = on ? 0 : -1;
        this.panels[key].hidden = !on;
      }
      this.current = name;
      this.buttons[name].scrollIntoView({ block: "nearest", inline: "nearest" });
      window.scrollTo(0, 0);
      if (location.hash.slice(1) !== name) history.replaceState(null, "", `#${name}`);
    }
    if (this.body) this.fill(name, request);
    else this.pending = request;
  }

  fill(name, request) {
    const make = {
      passes: () => new PassesView(this),
      graph: () => new GraphView(this),
      cost: () => new CostView(this),
      tiles: () => new TilesView(this),
      schedule: () => new ScheduleView(this),
    }[name];
    if (!make) return;
    if (!this.views[name]) {
      this.views[name] = make();
      clear(this.panels[name], this.views[name].element);
    }
    this.views[name].show(request);
  }

  // -- body ------------------------------------------------------------------------------------

  async unpack() {
    const packed = Uint8Array.from(atob(document.getElementById("body").textContent), (char) =>
      char.charCodeAt(0),
    );
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    this.body = JSON.parse(await new Response(stream).text());
    this.stages = new Stages(this.body.history);
    this.costs = new Costs(this.body);
    const dialects = new Set(
      this.body.history.lines
        .map((line) => /^(?:%\S.* = )?([a-z]\w*)\.[a-z]\w*/.exec(line)?.[1])
        .filter(Boolean),
    );
    this.kinds = new Map([...dialects].sort().map((name, index) => [name, index]));
    document.documentElement.dataset.state = "complete";
    performance.mark("imcc:complete");
    this.fill(this.current, this.pending);
  }
}

const TABS = {
  overview: "Overview",
  passes: "Passes",
  graph: "Graph",
  cost: "Cost",
  tiles: "Tiles",
  schedule: "Schedule",
  accuracy: "Accuracy",
};

new App();
