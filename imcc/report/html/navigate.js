// Moving about in the graph: pan, zoom, pinch, and the keyboard.

Object.assign(GraphView.prototype, {
  fit() {
    if (!this.whole) return;
    const wide = this.svg.clientWidth;
    const tall = this.svg.clientHeight;
    const k = Math.min(1.15, (wide - 32) / this.whole.w, (tall - 32) / this.whole.h);
    // A long chain stays readable: it starts at its top instead of shrinking to a thread.
    this.view.k = Math.max(k, Math.min(0.9, (wide - 32) / this.whole.w));
    this.view.x = (wide - this.whole.w * this.view.k) / 2;
    this.view.y = this.view.k > k ? 16 : (tall - this.whole.h * this.view.k) / 2;
    this.draw();
  },

  wholeView() {
    this.view.k = Math.min(
      1.15,
      (this.svg.clientWidth - 32) / this.whole.w,
      (this.svg.clientHeight - 32) / this.whole.h,
    );
    this.view.x = (this.svg.clientWidth - this.whole.w * this.view.k) / 2;
    this.view.y = (this.svg.clientHeight - this.whole.h * this.view.k) / 2;
    this.draw();
  },

  zoom(factor, x = this.svg.clientWidth / 2, y = this.svg.clientHeight / 2) {
    const k = Math.min(3, Math.max(0.02, this.view.k * factor));
    this.view.x = x - ((x - this.view.x) * k) / this.view.k;
    this.view.y = y - ((y - this.view.y) * k) / this.view.k;
    this.view.k = k;
    this.later();
  },

  later() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  },

  pointers() {
    const held = new Map();
    let moved = 0;
    this.svg.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const box = this.svg.getBoundingClientRect();
        this.zoom(
          Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)),
          event.clientX - box.left,
          event.clientY - box.top,
        );
      },
      { passive: false },
    );
    this.svg.addEventListener("pointerdown", (event) => {
      if (!held.size) moved = 0;
      held.set(event.pointerId, [event.clientX, event.clientY]);
    });
    this.svg.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY];
      const others = [...held].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      held.set(event.pointerId, now);
      if (others.length) {
        const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
        const box = this.svg.getBoundingClientRect();
        this.zoom(
          far(now, others[0]) / far(before, others[0]),
          (now[0] + others[0][0]) / 2 - box.left,
          (now[1] + others[0][1]) / 2 - box.top,
        );
      }
      moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
      if (moved > 5 && !this.svg.hasPointerCapture(event.pointerId))
        this.svg.setPointerCapture(event.pointerId);
      this.view.x += (now[0] - before[0]) / (others.length + 1);
      this.view.y += (now[1] - before[1]) / (others.length + 1);
      this.later();
    });
    const drop = (event) => held.delete(event.pointerId);
    this.svg.addEventListener("pointerup", drop);
    this.svg.addEventListener("pointercancel", drop);
    // The click that ends a drag selects nothing.
    this.svg.addEventListener(
      "click",
      (event) => {
        if (moved > 5) event.stopPropagation();
      },
      true,
    );
  },

  key(event) {
    const acts = {
      "+": () => this.zoom(1.4),
      "=": () => this.zoom(1.4),
      "-": () => this.zoom(1 / 1.4),
      0: () => this.wholeView(),
      ArrowDown: () => this.step(1, false),
      ArrowUp: () => this.step(-1, false),
      ArrowRight: () => this.step(1, true),
      ArrowLeft: () => this.step(-1, true),
      Enter: () => this.selected?.kind === "scope" && this.toggle(this.selected),
    };
    if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    acts[event.key]();
  },

  // Down and up follow edges of what is drawn; right and left go to the nearest beside.
  step(direction, beside) {
    const closed = this.items.filter((item) => !item.open);
    const here = this.selected && this.places.get(this.selected.id);
    if (!here) {
      const first = [...closed].sort((a, b) => a.y - b.y || a.x - b.x)[0];
      if (first) this.go(first.node);
      return;
    }
    const middle = (item) => [item.x + item.w / 2, item.y + (item.open ? 14 : item.h / 2)];
    const [x, y] = middle(here);
    const score = (item) => {
      const [ox, oy] = middle(item);
      const along = beside ? (ox - x) * direction : (oy - y) * direction;
      const across = beside ? Math.abs(oy - y) : Math.abs(ox - x);
      return along > 1 ? along + 2.5 * across : Infinity;
    };
    const list = this.items.filter((item) => item !== here);
    const best = list.reduce((held, item) => (score(item) < score(held) ? item : held), list[0]);
    if (best && score(best) < Infinity) this.go(best.node);
  },

  go(node) {
    this.choose(node);
    const item = this.places.get(node.id);
    const left = item.x * this.view.k + this.view.x;
    const top = item.y * this.view.k + this.view.y;
    const outside =
      left < 10 ||
      top < 10 ||
      left + item.w * this.view.k > this.svg.clientWidth - 10 ||
      top + Math.min(item.h, 60) * this.view.k > this.svg.clientHeight - 10;
    if (outside) this.centre(node);
  },
});
