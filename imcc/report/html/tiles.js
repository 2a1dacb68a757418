// The map of tiles: which matrix holds which crossbars.

class TilesView {
  constructor(app) {
    this.app = app;
    this.element = h("div", { class: "panel" });
  }

  show() {
    if (this.element.firstChild) return;
    const placement =
      this.app.body.placement.inference ||
      Object.values(this.app.body.placement).find((held) => held);
    if (!placement) {
      this.element.append(
        h(
          "section",
          { class: "card" },
          h("h2", {}, "Map of tiles"),
          h("p", { class: "muted" }, "This program is not placed on tiles."),
        ),
      );
      return;
    }
    this.placement = placement;
    this.size = placement.levels.reduce((product, [, number]) => product * number, 1);
    const level = placement.levels[0]?.[0] || placement.unit;
    const groups = new Map();
    placement.matrices.forEach((matrix, index) => {
      const last = Math.floor((matrix.first + matrix.count - 1) / this.size);
      for (let group = Math.floor(matrix.first / this.size); group <= last; group += 1) {
        if (!groups.has(group)) groups.set(group, []);
        groups.get(group).push(index);
      }
    });
    const used = placement.matrices.reduce((sum, matrix) => sum + matrix.count, 0);
    const all = groups.size * this.size;
    const inner = placement.levels
      .map(
        ([name, number], index) =>
          `${number} ${words(
            placement.levels[index + 1]
              ? `${placement.levels[index + 1][0]}s`
              : `${placement.unit}s`,
          )} in a ${words(name)}`,
      )
      .join(", ");
    const grid = h("div", {
      class: groups.size > 24 ? "tiles" : "tiles few",
      role: "list",
      "aria-label": "Tiles",
    });
    this.chosen = h(
      "div",
      { class: "small", role: "status" },
      h("span", { class: "muted" }, "Point at or focus a tile to see what it holds."),
    );
    this.element.append(
      h(
        "section",
        { class: "card" },
        h(
          "div",
          { class: "row spread" },
          h("h2", {}, "Map of tiles"),
          h(
            "p",
            { class: "muted number" },
            `${count(used)} of ${count(all)} ${placement.unit}s in use `,
            `on ${plural(groups.size, level)} (${percent(used, all)})`,
          ),
        ),
        h(
          "p",
          { class: "small muted" },
          `${inner}. Each square is a ${placement.unit}; each colour is a matrix.`,
        ),
        this.chosen,
        grid,
      ),
      this.matrices(),
    );
    portions(
      grid,
      [...groups].sort((a, b) => a[0] - b[0]),
      ([group, held]) => [this.tile(level, group, held)],
      120,
    );
  }

  tile(level, group, held) {
    const [inside, outer] = this.shape();
    const cell = 7;
    const gap = 5;
    const block = inside.columns * cell;
    const tall = inside.rows * cell;
    const wide = outer.columns * (block + gap) - gap;
    const high = outer.rows * (tall + gap) - gap;
    const at = (unit) => {
      const peer = Math.floor(unit / inside.count);
      const own = unit % inside.count;
      return [
        (peer % outer.columns) * (block + gap) + (own % inside.columns) * cell,
        Math.floor(peer / outer.columns) * (tall + gap) + Math.floor(own / inside.columns) * cell,
      ];
    };
    const squares = (from, upto) => {
      let d = "";
      for (let unit = from; unit < upto; unit += 1) {
        const [x, y] = at(unit);
        d += `M${x + 0.5} ${y + 0.5}h${cell - 1}v${cell - 1}h${1 - cell}z`;
      }
      return d;
    };
    const names = held.map((index) => this.placement.matrices[index]);
    const used = names.map((matrix) => [
      Math.max(0, matrix.first - group * this.size),
      Math.min(this.size, matrix.first + matrix.count - group * this.size),
    ]);
    const total = used.reduce((sum, [from, upto]) => sum + upto - from, 0);
    const label = [
      `${level} ${group}: ${total} of ${this.size} ${this.placement.unit}s`,
      ...names.map((matrix) => matrix.layer),
    ].join(", ");
    const tell = () =>
      clear(
        this.chosen,
        h("strong", {}, `${level} ${group} `),
        names.map((matrix, index) =>
          h(
            "span",
            {},
            h("i", { class: "swatch", style: { background: colour(held[index]) } }),
            `${matrix.layer}: ${matrix.name}, `,
            `${plural(used[index][1] - used[index][0], this.placement.unit)} `,
          ),
        ),
      );
    return h(
      "div",
      {
        class: "tile",
        role: "listitem",
        tabindex: "0",
        "aria-label": label,
        title: label,
        onpointerenter: tell,
        onfocus: tell,
      },
      s(
        "svg",
        { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, "aria-hidden": "true" },
        s("path", { class: "unused", d: squares(0, this.size) }),
        used.map(([from, upto], index) =>
          s("path", { d: squares(from, upto), style: { fill: colour(held[index]) } }),
        ),
      ),
      h(
        "div",
        { class: "tile-name" },
        h("span", {}, `${group}`),
        h("span", { class: "muted" }, names[0].layer),
      ),
    );
  }

  // Units of the innermost group, and these groups, each as square as can be.
  shape() {
    const square = (number) => {
      const columns = Math.ceil(Math.sqrt(number));
      return { count: number, columns, rows: Math.ceil(number / columns) };
    };
    const inside = this.placement.levels.length
      ? this.placement.levels[this.placement.levels.length - 1][1]
      : 1;
    return [square(inside), square(this.size / inside)];
  }

  matrices() {
    const { unit, levels } = this.placement;
    const level = levels[0]?.[0] || unit;
    const tbody = h("tbody", {});
    const card = h(
      "section",
      { class: "card" },
      h("h2", {}, "Matrices"),
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
              ["Layer", "Matrix"].map((name) => h("th", { scope: "col" }, name)),
              [`First ${unit}`, capital(`${unit}s`), capital(`${level}s`)].map((name) =>
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
      this.placement.matrices,
      (matrix, index) => {
        const from = Math.floor(matrix.first / this.size);
        const upto = Math.floor((matrix.first + matrix.count - 1) / this.size);
        return [
          h(
            "tr",
            {},
            h(
              "td",
              { class: "name" },
              h("i", { class: "swatch", style: { background: colour(index) } }),
              breakable(matrix.layer),
            ),
            h("td", { class: "name" }, breakable(matrix.name)),
            h("td", { class: "right" }, count(matrix.first)),
            h("td", { class: "right" }, count(matrix.count)),
            h(
              "td",
              { class: "right" },
              from === upto ? count(from) : `${count(from)} to ${count(upto)}`,
            ),
          ),
        ];
      },
      60,
    );
    return card;
  }
}
