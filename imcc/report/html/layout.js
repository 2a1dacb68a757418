// A layered drawing of nested graphs: ranks by longest path, fewer crossings by barycentres,
// places by isotonic regression. `layouts()` keeps to itself so that a worker can run its text.

function layouts() {
  const GAP_X = 22;
  const GAP_Y = 38;
  const PAD = 16;
  const HEAD = 30;
  const PORT = 10;

  // Smallest sum of squared distances to the desired places with at least the given distances.
  function spread(desired, weights, distances) {
    const offsets = [0];
    for (let i = 1; i < desired.length; i += 1) offsets.push(offsets[i - 1] + distances[i - 1]);
    const blocks = [];
    for (let i = 0; i < desired.length; i += 1) {
      blocks.push({ sum: (desired[i] - offsets[i]) * weights[i], weight: weights[i], size: 1 });
      while (blocks.length > 1) {
        const last = blocks[blocks.length - 1];
        const before = blocks[blocks.length - 2];
        if (before.sum / before.weight <= last.sum / last.weight) break;
        before.sum += last.sum;
        before.weight += last.weight;
        before.size += last.size;
        blocks.pop();
      }
    }
    const made = [];
    for (const block of blocks) {
      for (let i = 0; i < block.size; i += 1) {
        made.push(block.sum / block.weight + offsets[made.length]);
      }
    }
    return made;
  }

  function ranked(count, edges, pinTop, pinBottom) {
    const into = Array.from({ length: count }, () => []);
    const out = Array.from({ length: count }, () => []);
    for (const edge of edges) {
      into[edge.to].push(edge.from);
      out[edge.from].push(edge.to);
    }
    const rank = new Array(count).fill(0);
    const waiting = into.map((list) => list.length);
    const queue = waiting.flatMap((left, node) => (left ? [] : [node]));
    const order = [];
    while (queue.length) {
      const node = queue.shift();
      order.push(node);
      for (const next of out[node]) {
        rank[next] = Math.max(rank[next], rank[node] + 1);
        waiting[next] -= 1;
        if (!waiting[next]) queue.push(next);
      }
    }
    // What only feeds later ops stands close to them.
    for (const node of order.reverse()) {
      if (out[node].length && !pinTop.has(node) && !into[node].length) {
        rank[node] = Math.min(...out[node].map((next) => rank[next])) - 1;
      }
    }
    let last = Math.max(0, ...rank);
    const held = rank.some((value, node) => value === last && !pinBottom.has(node));
    if (pinBottom.size && held) last += 1;
    for (const node of pinBottom) rank[node] = last;
    return rank;
  }

  function crossings(upper, lower, links, place) {
    const ends = [];
    for (const node of upper) {
      for (const next of links[node]) ends.push([place[node], place[next]]);
    }
    ends.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const tree = new Array(lower.length + 2).fill(0);
    let total = 0;
    ends.forEach(([, to], seen) => {
      let smaller = 0;
      for (let i = to + 1; i > 0; i -= i & -i) smaller += tree[i];
      total += seen - smaller;
      for (let i = to + 1; i < tree.length; i += i & -i) tree[i] += 1;
    });
    return total;
  }

  // nodes: {w, h, top, bottom, ports: {in, out}}; edges: {from, to, fromPort, toPort}, no cycles.
  function place(nodes, edges) {
    const pins = (side) => new Set(nodes.flatMap((node, index) => (node[side] ? [index] : [])));
    const rank = ranked(nodes.length, edges, pins("top"), pins("bottom"));
    const all = nodes.map((node) => ({ w: node.w, h: node.h, weight: 1 }));
    const links = edges.map((edge) => {
      const chain = [edge.from];
      for (let level = rank[edge.from] + 1; level < rank[edge.to]; level += 1) {
        all.push({ w: 2, h: 0, weight: 3 });
        rank.push(level);
        chain.push(all.length - 1);
      }
      chain.push(edge.to);
      return chain;
    });
    const down = all.map(() => []);
    const up = all.map(() => []);
    const shift = new Map();
    links.forEach((chain, index) => {
      for (let i = 1; i < chain.length; i += 1) {
        down[chain[i - 1]].push(chain[i]);
        up[chain[i]].push(chain[i - 1]);
        shift.set(`${chain[i - 1]} ${chain[i]}`, [
          i === 1 ? edges[index].fromPort || 0 : 0,
          i === chain.length - 1 ? edges[index].toPort || 0 : 0,
        ]);
      }
    });
    const ranks = Array.from({ length: Math.max(0, ...rank) + 1 }, () => []);
    // Depth first keeps what hangs together side by side to start with.
    const seen = new Set();
    const visit = (start) => {
      const stack = [start];
      while (stack.length) {
        const node = stack.pop();
        if (seen.has(node)) continue;
        seen.add(node);
        ranks[rank[node]].push(node);
        for (let i = down[node].length - 1; i >= 0; i -= 1) stack.push(down[node][i]);
      }
    };
    all.forEach((node, index) => {
      if (!up[index].length) visit(index);
    });
    all.forEach((node, index) => visit(index));
    const at = new Array(all.length).fill(0);
    const number = () =>
      ranks.forEach((level) =>
        level.forEach((node, i) => {
          at[node] = i;
        }),
      );
    const total = () => {
      let sum = 0;
      for (let i = 1; i < ranks.length; i += 1) {
        sum += crossings(ranks[i - 1], ranks[i], down, at);
      }
      return sum;
    };
    number();
    let best = ranks.map((level) => [...level]);
    let fewest = total();
    for (let sweep = 0; sweep < 8 && fewest > 0; sweep += 1) {
      const side = sweep % 2 ? down : up;
      const levels = sweep % 2 ? [...ranks].reverse() : ranks;
      for (const level of levels) {
        const centre = new Map(
          level.map((node) => {
            const near = side[node];
            return [
              node,
              near.length
                ? near.reduce((sum, other) => sum + at[other], 0) / near.length
                : at[node],
            ];
          }),
        );
        level.sort((a, b) => centre.get(a) - centre.get(b) || at[a] - at[b]);
        level.forEach((node, i) => {
          at[node] = i;
        });
      }
      const now = total();
      if (now < fewest) {
        fewest = now;
        best = ranks.map((level) => [...level]);
      }
    }
    best.forEach((level, i) => {
      ranks[i] = level;
    });
    number();

    const x = new Array(all.length).fill(0);
    const distances = ranks.map((level) =>
      level
        .slice(1)
        .map(
          (node, i) =>
            (all[level[i]].w + all[node].w) / 2 +
            (all[level[i]].w <= 4 || all[node].w <= 4 ? PORT : GAP_X),
        ),
    );
    ranks.forEach((level, i) => {
      const made = spread(
        level.map(() => 0),
        level.map(() => 1),
        distances[i],
      );
      level.forEach((node, j) => {
        x[node] = made[j];
      });
    });
    for (let sweep = 0; sweep < 40; sweep += 1) {
      const goesUp = sweep % 2 === 1;
      const levels = goesUp ? [...ranks.keys()].reverse() : [...ranks.keys()];
      for (const i of levels) {
        const level = ranks[i];
        const desired = [];
        const weights = [];
        for (const node of level) {
          let sum = 0;
          let share = 0;
          // An edge that is the only one at both ends pulls hardest: chains become straight.
          const pull = (from, to, place) => {
            const weight = down[from].length === 1 && up[to].length === 1 ? 6 : 1;
            sum += weight * place;
            share += weight;
          };
          if (!goesUp || sweep > 9) {
            for (const other of up[node]) {
              const [from, to] = shift.get(`${other} ${node}`);
              pull(other, node, x[other] + from - to);
            }
          }
          if (goesUp || sweep > 9) {
            for (const other of down[node]) {
              const [from, to] = shift.get(`${node} ${other}`);
              pull(node, other, x[other] + to - from);
            }
          }
          desired.push(share ? sum / share : x[node]);
          weights.push(all[node].weight * Math.max(0.2, share));
        }
        const made = spread(desired, weights, distances[i]);
        level.forEach((node, j) => {
          x[node] = made[j];
        });
      }
    }
    return { x, rank, ranks, links, all };
  }

  // Many nodes without edges stand in rows, not in one endless line.
  function gridded(nodes, alone, top) {
    const widest = Math.max(...alone.map((index) => nodes[index].w));
    const columns = Math.max(1, Math.round(Math.sqrt(alone.length * 2.2 * (60 / widest)) * 1.6));
    let y = top;
    const made = new Map();
    for (let row = 0; row < alone.length; row += columns) {
      const part = alone.slice(row, row + columns);
      let x = 0;
      for (const index of part) {
        made.set(index, { x: x + nodes[index].w / 2, y });
        x += widest + GAP_X;
      }
      y += Math.max(...part.map((index) => nodes[index].h)) + GAP_X;
    }
    return { made, width: columns * (widest + GAP_X) - GAP_X, bottom: y - GAP_X };
  }

  // scope: {id, children, edges: [{from, to}], inputs, outputs}. Children that hold children are
  // laid out first. Edges end at ids of children or at ports "in:..." and "out:...".
  function layoutScope(scope) {
    for (const child of scope.children) if (child.children) layoutScope(child);
    const ids = new Map();
    const nodes = [];
    const add = (id, node) => {
      ids.set(id, nodes.length);
      nodes.push(node);
    };
    for (const id of scope.inputs) add(id, { w: 4, h: 1, top: true });
    for (const child of scope.children) add(child.id, child);
    for (const id of scope.outputs) add(id, { w: 4, h: 1, bottom: true });
    const port = (id, key) => {
      const child = scope.children[ids.get(id) - scope.inputs.length];
      return child?.portX?.[key] || 0;
    };
    const edges = scope.edges.map((edge) => ({
      from: ids.get(edge.from),
      to: ids.get(edge.to),
      fromPort: port(edge.from, edge.fromPort),
      toPort: port(edge.to, edge.toPort),
    }));
    const touched = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
    const alone = nodes.flatMap((node, i) =>
      touched.has(i) || node.top || node.bottom ? [] : [i],
    );
    const apart = alone.length > 3 ? new Set(alone) : new Set();
    const kept = nodes.flatMap((node, i) => (apart.has(i) ? [] : [i]));
    const inner = new Map(kept.map((index, i) => [index, i]));
    const drawn = place(
      kept.map((index) => nodes[index]),
      edges.map((edge) => ({ ...edge, from: inner.get(edge.from), to: inner.get(edge.to) })),
    );
    const tops = [];
    let y = scope.root ? 0 : HEAD + 8;
    drawn.ranks.forEach((level, i) => {
      tops[i] = y;
      const height = Math.max(0, ...level.map((node) => drawn.all[node].h));
      y += height + (height > 1 ? GAP_Y : 12);
    });
    let left = Infinity;
    let right = -Infinity;
    kept.forEach((index, i) => {
      left = Math.min(left, drawn.x[i] - nodes[index].w / 2);
      right = Math.max(right, drawn.x[i] + nodes[index].w / 2);
    });
    drawn.all.forEach((node, i) => {
      left = Math.min(left, drawn.x[i]);
      right = Math.max(right, drawn.x[i]);
    });
    if (!kept.length) {
      left = 0;
      right = 0;
    }
    // Ports at the end stand on the border: below the last box only a little room is left.
    const ported = scope.outputs.length > 0;
    let bottom = kept.length ? y - (ported ? 32 : GAP_Y) + (scope.root ? 0 : 10) : y;
    const grid = apart.size ? gridded(nodes, alone, kept.length ? y : y) : null;
    if (grid) bottom = grid.bottom;
    const pad = scope.root ? 0 : PAD;
    const width = Math.max(
      right - left,
      grid ? grid.width : 0,
      scope.root ? 0 : scope.minWidth - 2 * pad,
    );
    const offset = pad - left + (width - (right - left)) / 2;
    scope.w = width + 2 * pad;
    scope.h = bottom + (scope.root ? 0 : 6);
    const centre = (index, i) => drawn.x[i] + offset;
    const placeOf = new Map();
    kept.forEach((index, i) => {
      const level = drawn.ranks[drawn.rank[i]];
      const tall = Math.max(...level.map((node) => drawn.all[node].h));
      const node = nodes[index];
      placeOf.set(index, {
        x: centre(index, i),
        y: node.top ? 0 : node.bottom ? scope.h : tops[drawn.rank[i]] + (tall - node.h) / 2,
      });
    });
    if (grid) {
      const start = pad + (width - grid.width) / 2;
      for (const [index, held] of grid.made) placeOf.set(index, { x: held.x + start, y: held.y });
    }
    // Ports that are alone on their side stand in its middle: chains of boxes run straight.
    for (const side of [scope.inputs, scope.outputs]) {
      if (side.length === 1) placeOf.get(ids.get(side[0])).x = scope.w / 2;
    }
    scope.portX = {};
    for (const id of [...scope.inputs, ...scope.outputs]) {
      scope.portX[id] = placeOf.get(ids.get(id)).x - scope.w / 2;
    }
    for (const child of scope.children) {
      const held = placeOf.get(ids.get(child.id));
      child.x = held.x - child.w / 2;
      child.y = held.y;
    }
    scope.routes = scope.edges.map((edge, index) => {
      const chain = drawn.links[index];
      const from = placeOf.get(edges[index].from);
      const to = placeOf.get(edges[index].to);
      const points = [[from.x + edges[index].fromPort, from.y + nodes[edges[index].from].h]];
      // Past taller neighbours an edge runs straight: it turns between the ranks alone.
      const turn = (x, node, end, wanted) => {
        if (!nodes[end].top && !nodes[end].bottom) {
          const level = drawn.ranks[drawn.rank[node]];
          const tall = Math.max(...level.map((other) => drawn.all[other].h));
          const y = tops[drawn.rank[node]] + (wanted ? tall : 0);
          const reached = wanted ? points[0][1] : to.y;
          if (Math.abs(y - reached) > 0.5) points.push([x, y]);
        }
      };
      turn(points[0][0], chain[0], edges[index].from, true);
      for (const node of chain.slice(1, -1)) {
        const level = drawn.rank[node];
        const tall = Math.max(...drawn.ranks[level].map((other) => drawn.all[other].h));
        points.push(
          [drawn.x[node] + offset, tops[level]],
          [drawn.x[node] + offset, tops[level] + tall],
        );
      }
      turn(to.x + edges[index].toPort, chain[chain.length - 1], edges[index].to, false);
      points.push([to.x + edges[index].toPort, to.y]);
      return points;
    });
    return scope;
  }

  return { layoutScope };
}

// Runs a layout in a worker, or after a pause where workers are not to be had.
class LayoutService {
  constructor() {
    this.waiting = new Map();
    this.next = 0;
    try {
      const text =
        `const made = (${layouts.toString()})(); onmessage = (event) => ` +
        "postMessage({ id: event.data.id, scope: made.layoutScope(event.data.scope) });";
      this.url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      this.worker = new Worker(this.url);
      this.worker.onmessage = (event) => this.done(event.data.id, event.data.scope);
      this.worker.onerror = (event) => {
        event.preventDefault();
        this.withdraw();
      };
    } catch {
      this.worker = null;
    }
  }

  run(scope) {
    this.next += 1;
    const id = this.next;
    return new Promise((resolve) => {
      this.waiting.set(id, { resolve, scope });
      if (this.worker) this.worker.postMessage({ id, scope });
      else setTimeout(() => this.done(id, layouts().layoutScope(scope)), 30);
    });
  }

  done(id, scope) {
    this.waiting.get(id)?.resolve(scope);
    this.waiting.delete(id);
  }

  withdraw() {
    this.worker = null;
    for (const [id, { scope }] of this.waiting) {
      setTimeout(() => this.done(id, layouts().layoutScope(scope)), 30);
    }
  }
}
