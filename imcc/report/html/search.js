// Finding ops and scopes of the graph by name.

Object.assign(GraphView.prototype, {
  find() {
    const wanted = this.search.value.trim().toLowerCase();
    const found = [];
    if (wanted) {
      for (const node of this.tree.nodes.values()) {
        const text =
          node.kind === "op"
            ? `${node.op.key} ${node.op.op} ${node.op.scope}`
            : `${node.name} ${node.path || ""}`;
        const at = node === this.tree.root ? -1 : text.toLowerCase().indexOf(wanted);
        if (at >= 0) found.push([at + (node.kind === "scope" ? 0 : 0.5), node]);
      }
      found.sort((a, b) => a[0] - b[0] || a[1].order - b[1].order);
    }
    const shown = found.slice(0, 12);
    clear(
      this.results,
      shown.map(([, node], index) =>
        h(
          "li",
          {
            role: "option",
            id: `found-${index}`,
            "aria-selected": String(index === 0),
            onmousedown: (event) => {
              event.preventDefault();
              this.take(node);
            },
          },
          h(
            "code",
            {},
            node.kind === "op" ? `${node.op.key} ${node.op.op}` : node.path || node.name,
          ),
          h("span", { class: "small muted" }, ` ${node.kind === "op" ? node.op.scope : node.kind}`),
        ),
      ),
      found.length > shown.length
        ? h("li", { class: "muted small" }, `${count(found.length - shown.length)} more`)
        : null,
      wanted && !found.length ? h("li", { class: "muted small" }, "Nothing found.") : null,
    );
    this.results.hidden = !wanted;
    this.search.setAttribute("aria-expanded", String(Boolean(wanted)));
    this.found = shown.map(([, node]) => node);
    this.pick = 0;
  },

  searchKey(event) {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move && this.found?.length) {
      event.preventDefault();
      this.pick = (this.pick + move + this.found.length) % this.found.length;
      [...this.results.children].forEach((item, index) =>
        item.setAttribute("aria-selected", String(index === this.pick)),
      );
      this.search.setAttribute("aria-activedescendant", `found-${this.pick}`);
    } else if (event.key === "Enter" && this.found?.length) this.take(this.found[this.pick]);
    else if (event.key === "Escape") {
      this.results.hidden = true;
      this.search.setAttribute("aria-expanded", "false");
    }
  },

  take(node) {
    this.results.hidden = true;
    this.search.setAttribute("aria-expanded", "false");
    this.reveal(node);
  },
});
