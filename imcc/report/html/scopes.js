// The ops of a function as a tree of scopes, and the drawing of it for a set of open scopes.

const CROWD = 60;
const GROUP = 25;
const STRUCTURE = new Set(["core.constant", "core.return"]);

// Whether an op is left out of the drawing: constants, and matrices that only name a place.
function isStructure(op) {
  return STRUCTURE.has(op.op);
}

class ScopeTree {
  constructor(func, withConstants) {
    this.func = func;
    this.nodes = new Map();
    this.root = { id: "", kind: "scope", path: "", name: "", children: [], parent: null };
    this.nodes.set("", this.root);
    this.producers = new Map();
    this.byKey = new Map();
    this.scopeNodes = new Map();
    const shown = func.ops.filter((op) =>
      withConstants ? op.op !== "core.return" : !isStructure(op),
    );
    const returned = func.ops.find((op) => op.op === "core.return");
    const leaves = shown.map((op, order) => this.leaf(op, order));
    const used = new Set(
      shown.concat(returned || []).flatMap((op) => op.operands.map((one) => one.value)),
    );
    for (const arg of func.head.args) {
      if (!used.has(arg.name) || (arg.state && !withConstants)) continue;
      this.end(`in ${arg.name}`, "input", `%${arg.name}`, arg.type, -1);
      this.producers.set(arg.name, this.nodes.get(`in ${arg.name}`));
    }
    this.leaves = leaves;
    this.root.children.push(...this.grouped(leaves, 0, this.root));
    if (returned) {
      returned.operands.forEach((one, index) => {
        const source = this.producers.get(one.value);
        if (!source) return;
        const type = source.op?.types[source.op.results.indexOf(one.value)] || source.type || "";
        const made = this.end(`out ${index}`, "output", "result", type, Infinity);
        made.operands = [one.value];
      });
    }
    this.count(this.root);
  }

  leaf(op, order) {
    const node = {
      id: `op ${op.key} ${op.results.length ? "" : order}`.trim(),
      kind: "op",
      op,
      order,
      steps: op.scope ? op.scope.split(".") : [],
      operands: op.operands.map((one) => one.value),
    };
    this.nodes.set(node.id, node);
    this.byKey.set(op.key, node);
    for (const name of op.results) this.producers.set(name, node);
    return node;
  }

  end(id, kind, name, type, order) {
    const node = { id, kind, name, type, order, parent: this.root, operands: [] };
    this.nodes.set(id, node);
    this.root.children.push(node);
    return node;
  }

  // Children of a scope. Ops in a row under one name are a group: since ops stand in an order in
  // which every value is made before it is used, such groups cannot form a cycle.
  grouped(leaves, depth, parent) {
    let groups = [];
    for (const leaf of leaves) {
      const name = leaf.steps[depth];
      const last = groups[groups.length - 1];
      if (name === undefined) groups.push({ leaves: [leaf] });
      else if (last && last.name === name) last.leaves.push(leaf);
      else groups.push({ name, leaves: [leaf] });
    }
    groups = this.merged(groups);
    const times = new Map();
    const children = groups.map((group) => {
      if (group.name === undefined) {
        group.leaves[0].parent = parent;
        return group.leaves[0];
      }
      const again = (times.get(group.name) || 0) + 1;
      times.set(group.name, again);
      const path = parent.path ? `${parent.path}.${group.name}` : group.name;
      return this.scope(parent, path, group.name, again, group.leaves, depth + 1);
    });
    return children.length > CROWD ? this.crowd(children, parent) : children;
  }

  scope(parent, path, name, again, leaves, depth) {
    const node = {
      id: `scope ${parent.id} / ${name} ${again}`,
      kind: "scope",
      path,
      name,
      parent,
      children: [],
      again,
      order: leaves[0].order,
    };
    this.nodes.set(node.id, node);
    if (!this.scopeNodes.has(path)) this.scopeNodes.set(path, node);
    node.children = this.grouped(leaves, depth, node);
    return node;
  }

  // Puts runs of one name together again where nothing between them needs the one and feeds the
  // other.
  merged(groups) {
    if (new Set(groups.map((group) => group.name)).size === groups.length) return groups;
    const home = new Map();
    groups.forEach((group, index) => {
      for (const leaf of group.leaves) for (const name of leaf.op.results) home.set(name, index);
    });
    const needs = groups.map(
      (group, index) =>
        new Set(
          group.leaves
            .flatMap((leaf) => leaf.operands)
            .map((name) => home.get(name))
            .filter((other) => other !== undefined && other !== index),
        ),
    );
    const target = groups.map((group, index) => index);
    const latest = new Map();
    groups.forEach((group, index) => {
      if (group.name === undefined) return;
      const before = latest.get(group.name);
      if (before !== undefined && !this.between(needs, before, index))
        target[index] = target[before];
      latest.set(group.name, index);
    });
    const made = new Map();
    groups.forEach((group, index) => {
      const held = made.get(target[index]);
      if (held) held.leaves.push(...group.leaves);
      else made.set(target[index], { name: group.name, leaves: [...group.leaves] });
    });
    return acyclic(needs, target) ? [...made.values()] : groups;
  }

  between(needs, from, to) {
    const reached = new Set([from]);
    for (let index = from + 1; index <= to; index += 1) {
      const touched = [...needs[index]].some(
        (other) => reached.has(other) && (index < to || other !== from),
      );
      if (touched && index === to) return true;
      if (touched) reached.add(index);
    }
    return false;
  }

  // Many children become folders of neighbours, so that every drawing stays small.
  crowd(children, parent) {
    const size = Math.max(GROUP, Math.ceil(children.length / CROWD));
    const made = [];
    for (let from = 0; from < children.length; from += size) {
      const part = children.slice(from, from + size);
      const label = (node) => node.name || node.op?.key || "";
      const node = {
        id: `group ${parent.id} ${from}`,
        kind: "scope",
        path: parent.path,
        parent,
        again: 1,
        name: `${label(part[0])} … ${label(part[part.length - 1])}`,
        children: part,
        group: true,
        order: part[0].order,
      };
      for (const child of part) child.parent = node;
      this.nodes.set(node.id, node);
      made.push(node);
    }
    return made;
  }

  count(node) {
    node.ops =
      node.kind === "op"
        ? 1
        : (node.children || []).reduce((sum, child) => sum + this.count(child), 0);
    return node.ops;
  }

  // Scopes to open at first: level by level while the drawing stays small.
  opening(limit) {
    const open = new Set([""]);
    let shown = this.root.children.length;
    let level = [this.root];
    while (level.length) {
      const next = level.flatMap((node) => node.children).filter((node) => node.kind === "scope");
      const more = next.reduce((sum, node) => sum + node.children.length - 1, 0);
      if (!next.length || shown + more > limit) break;
      shown += more;
      for (const node of next) open.add(node.id);
      level = next;
    }
    return open;
  }

  scopes() {
    return [...this.nodes.values()].filter((node) => node.kind === "scope" && node !== this.root);
  }

  pathOf(node) {
    const made = [];
    for (let at = node; at; at = at.parent) made.unshift(at);
    return made;
  }

  // From the root to the node that stands for `node` while only `open` scopes are open.
  shown(node, open) {
    const path = this.pathOf(node);
    const closed = path.findIndex((one) => one.kind === "scope" && !open.has(one.id));
    return closed < 0 ? path : path.slice(0, closed + 1);
  }

  // What the layout needs: open scopes with their children, edges and ports.
  drawing(open, size) {
    const made = new Map();
    const build = (node) => {
      const isOpen = node.kind === "scope" && open.has(node.id);
      const box = { id: node.id, ...size(node, isOpen) };
      if (isOpen) {
        box.minWidth = box.w;
        box.root = node === this.root;
        box.children = node.children.map(build);
        Object.assign(box, { edges: [], inputs: [], outputs: [] });
        made.set(node.id, { box, seen: new Set() });
      }
      return box;
    };
    const root = build(this.root);
    const edge = (scope, from, to, fromPort, toPort) => {
      const held = made.get(scope);
      const key = JSON.stringify([from, to, fromPort, toPort]);
      if (held.seen.has(key)) return;
      held.seen.add(key);
      held.box.edges.push({ from, to, fromPort, toPort });
      if (from.startsWith("in:") && !held.box.inputs.includes(from)) held.box.inputs.push(from);
      if (to.startsWith("out:") && !held.box.outputs.includes(to)) held.box.outputs.push(to);
    };
    for (const node of this.nodes.values()) {
      for (const name of node.operands || []) {
        const source = this.producers.get(name);
        if (source) this.connect(this.shown(source, open), this.shown(node, open), open, edge);
      }
    }
    return root;
  }

  connect(from, to, open, edge) {
    const source = from[from.length - 1];
    const sink = to[to.length - 1];
    if (source === sink) return;
    let common = 0;
    while (from[common + 1] && from[common + 1] === to[common + 1]) common += 1;
    if (!from[common + 1] || !to[common + 1]) return;
    const inside = `in:${source.id}`;
    const outside = `out:${source.id}`;
    const port = (node, name) => (node.kind === "scope" && open.has(node.id) ? name : undefined);
    for (let i = from.length - 1; i >= common + 2; i -= 1) {
      edge(from[i - 1].id, from[i].id, outside, port(from[i], outside));
    }
    edge(
      from[common].id,
      from[common + 1].id,
      to[common + 1].id,
      port(from[common + 1], outside),
      port(to[common + 1], inside),
    );
    for (let i = common + 2; i < to.length; i += 1) {
      edge(to[i - 1].id, inside, to[i].id, undefined, port(to[i], inside));
    }
  }
}

function acyclic(needs, target) {
  const into = new Map();
  needs.forEach((others, index) => {
    const own = target[index];
    if (!into.has(own)) into.set(own, new Set());
    for (const other of others) if (target[other] !== own) into.get(own).add(target[other]);
  });
  const done = new Set();
  for (let left = into.size, before = -1; left && left !== before;) {
    before = left;
    for (const [own, others] of into) {
      if (!done.has(own) && [...others].every((other) => done.has(other))) done.add(own);
    }
    left = into.size - done.size;
  }
  return done.size === into.size;
}
