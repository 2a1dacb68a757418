"""Exported programs (``.pt2``), read without running anything that the file holds.

``torch.export.load`` unpickles weights, constants and example inputs, evaluates size expressions
as Python, imports types that structures name, looks up ops in all of ``torch``, and writes names
into Python code that it executes. Here the archive is read directly: weights are raw bytes, example
inputs go through torch's reader for plain tensors, and of the graph only what is on a list passes.
Torch then builds the graph from what is left.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.export import ExportedProgram

from imcc.frontend.eager import first_line
from imcc.frontend.places import place_of_trace
from imcc.frontend.rules import all_rules
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticCollector, DiagnosticError, error, nearest

Json: TypeAlias = Any

MAX_ENTRIES = 100_000
MAX_GRAPH_BYTES = 1 << 29
_NAME = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
# Names of parameters; torch writes them between quotes.
_DOTTED = re.compile(r"[^\x00-\x1f\"'\\]*\Z")
_FRAME = re.compile(r'File "[^"\n]+", line \d+, in \w+')
_NAMED = ("parameter_name", "buffer_name", "tensor_constant_name", "user_input_name")
_MODEL = re.compile(r"models/(.+)\.json\Z")
_PAYLOAD = re.compile(r"(?:weight|tensor)_\d+\Z")

_OPERATORS = frozenset(
    {
        *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos"),
        *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"),
    }
)
_SIZES = frozenset({"sym_int", "sym_float", "sym_not", "sym_max", "sym_min", "sym_ite", "sym_sum"})
_CALLS = frozenset(
    {
        *(
            "Symbol",
            "Integer",
            "Rational",
            "Add",
            "Mul",
            "Mod",
            "PythonMod",
            "FloorDiv",
            "CleanDiv",
        ),
        *(
            "CeilDiv",
            "Max",
            "Min",
            "IntTrueDiv",
            "TruncToInt",
            "CeilToInt",
            "FloorToInt",
            "ToFloat",
        ),
        *("Eq", "Ne", "Lt", "Le", "Gt", "Ge"),
    }
)
_GRAD_MODE = "torch.ops.higher_order.wrap_with_set_grad_enabled"


def load_exported(path: Path, name: str | None = None) -> ExportedProgram:
    """Read a ``.pt2`` file; ``name`` chooses among several programs in it.

    Raises EXPORTED for a file that is damaged, of another version, or holds what would have to be
    run or unpickled to be loaded; all of the latter at once.
    """
    archive = _Archive(path)
    name = _chosen(archive, name)
    document = archive.json(f"models/{name}.json")
    _Checked(path).check(document)
    weights = _payloads(archive, name, "weights")
    constants = _payloads(archive, name, "constants")
    try:
        program = _build(document, weights, constants)
    except Exception as wrong:
        cause = wrong.__cause__ or wrong
        raise error(
            codes.EXPORTED,
            f"{path} holds no program that torch {torch.__version__} can build",
            reason=f"{type(cause).__name__}: {first_line(cause)}",
            help="export and save the model again with this version of torch",
        ) from None
    program.example_inputs = _example_inputs(archive, name)
    return program


def call_inputs(
    program: ExportedProgram, given: tuple[tuple[Any, ...], Mapping[str, Any]] | None
) -> tuple[Any, ...] | dict[str, Any]:
    """Arguments and keywords as one call's inputs: by position, or all by name."""
    arguments, keywords = given or ((), {})
    if not keywords:
        return tuple(arguments)
    return {**dict(zip(argument_names(program), arguments, strict=False)), **keywords}


def argument_names(program: ExportedProgram) -> tuple[str, ...]:
    """The parameters of ``forward`` that the program's inputs fill by position."""
    whole = next((item for item in program.module_call_graph if item.fqn == ""), None)
    names = getattr(whole.signature, "forward_arg_names", None) if whole is not None else None
    in_spec = program.call_spec.in_spec
    count = len(in_spec.child(0).children()) if in_spec is not None else 0
    return tuple(names[:count]) if names else ()


# -- the archive ----------------------------------------------------------------------------------


class _Archive:
    """A zip file whose entries lie below one folder, uncompressed as torch writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "does not exist"
            near = [item.name for item in path.parent.glob("*.pt2")] if path.parent.is_dir() else []
            raise error(
                codes.EXPORTED,
                f"{path} {kind}",
                suggestions=tuple(str(path.parent / item) for item in nearest(path.name, near)),
                help='write it with torch.export.save(program, "model.pt2")',
            )
        try:
            with zipfile.ZipFile(path) as held:
                entries = held.infolist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as wrong:
            raise self.damaged(str(wrong)) from None
        roots = {item.filename.split("/", 1)[0] for item in entries}
        if len(entries) > MAX_ENTRIES or len(roots) != 1:
            raise self.damaged("entries do not lie below one folder, or are too many")
        if any(item.compress_type != zipfile.ZIP_STORED for item in entries):
            raise self.damaged("entries are compressed; torch writes them as they are")
        if len({item.filename for item in entries}) != len(entries):
            raise self.damaged("an entry is there twice")
        self.root = roots.pop()
        self.names = {item.filename.split("/", 1)[-1] for item in entries}
        if "archive_format" not in self.names or self.read("archive_format").strip() != b"pt2":
            old = "serialized_exported_program.json" in {item.filename for item in entries}
            raise self.damaged(
                "it was written by torch 2.7 or older" if old else "it is no archive of that format"
            )
        if self.read("byteorder").strip() != b"little" if "byteorder" in self.names else False:
            raise self.damaged("its numbers are big-endian")

    def damaged(self, reason: str) -> DiagnosticError:
        return error(
            codes.EXPORTED,
            f"{self.path} cannot be read as an exported program",
            reason=reason,
            help='write it with torch.export.save(torch.export.export(model, inputs), "model.pt2")',
        )

    def read(self, name: str) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as held:
                return held.read(f"{self.root}/{name}")
        except KeyError:
            raise self.damaged(f"it lacks {name}") from None
        except (
            OSError,
            EOFError,
            RuntimeError,
            ValueError,
            NotImplementedError,
            zipfile.BadZipFile,
        ) as wrong:
            raise self.damaged(f"{name}: {first_line(wrong)}") from None

    def json(self, name: str) -> Json:
        data = self.read(name)
        if len(data) > MAX_GRAPH_BYTES:
            raise self.damaged(f"{name} has {len(data)} bytes")
        try:
            made = json.loads(data)
        except (ValueError, RecursionError) as wrong:
            raise self.damaged(f"{name}: {first_line(wrong)}") from None
        if not isinstance(made, dict):
            raise self.damaged(f"{name} is no JSON object")
        return made


def _chosen(archive: _Archive, name: str | None) -> str:
    held = sorted(match[1] for item in archive.names if (match := _MODEL.match(item)))
    if not held:
        compiled = any("aotinductor" in item for item in archive.names)
        raise error(
            codes.EXPORTED,
            f"{archive.path} holds no exported program",
            reason="it holds machine code of AOTInductor, which has no graph"
            if compiled
            else "it has no models/*.json",
            help="save the program itself: torch.export.save(program, path)",
        )
    wanted = name or ("model" if "model" in held or len(held) > 1 else held[0])
    if wanted not in held:
        raise error(
            codes.EXPORTED,
            f"{archive.path} holds no program {wanted!r}",
            suggestions=nearest(wanted, held),
            help=f"it holds {', '.join(held)}: write {archive.path}:{held[0]}",
        )
    return wanted


# -- weights --------------------------------------------------------------------------------------


def _payloads(archive: _Archive, model: str, folder: str) -> dict[str, Tensor]:
    """Weights or constants; those that share an entry share their memory."""
    listing = f"data/{folder}/{model}_{folder}_config.json"
    if listing not in archive.names:
        raise archive.damaged(
            f"it keeps its {folder} as a pickle, as older versions of torch did"
            if f"data/{folder}/{model}.pt" in archive.names
            else f"it lacks {listing}"
        )
    config = archive.json(listing).get("config")
    if not isinstance(config, dict):
        raise archive.damaged(f"{listing} has no config")
    pickled = [name for name, item in config.items() if _get(item, "use_pickle") is not False]
    if pickled:
        raise error(
            codes.EXPORTED,
            f"{archive.path} keeps {', '.join(pickled[:4])} as a pickle",
            reason="unpickling runs code that the file chooses; plain tensors need none",
            help="convert tensor subclasses, quantised tensors and custom objects to plain tensors "
            "before torch.export.export",
        )
    storages: dict[tuple[str, torch.dtype], Tensor] = {}
    made: dict[str, Tensor] = {}
    for name, item in config.items():
        try:
            made[name] = _tensor(archive, folder, item, storages)
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as wrong:
            raise archive.damaged(f"the tensor {name}: {first_line(wrong)}") from None
    return made


def _get(item: Json, key: str) -> Json:
    return item.get(key) if isinstance(item, dict) else None


def _tensor(
    archive: _Archive,
    folder: str,
    item: Json,
    storages: dict[tuple[str, torch.dtype], Tensor],
) -> Tensor:
    from torch._export.serde.schema import ScalarType
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    meta, entry = item["tensor_meta"], str(item["path_name"])
    dtype = _SERIALIZE_TO_TORCH_DTYPE[ScalarType(meta["dtype"])]
    sizes = [_whole(size) for size in meta["sizes"]]
    strides = [_whole(size) for size in meta["strides"]]
    offset = _whole(meta["storage_offset"])
    if not _PAYLOAD.match(entry) or len(sizes) != len(strides):
        raise ValueError("its entry or its strides are of another form")
    key = (entry, dtype)
    if key not in storages:
        data = bytearray(archive.read(f"data/{folder}/{entry}"))
        storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    storage = storages[key]
    if math.prod(sizes) and not storage.numel():
        # Saved from a model without its weights.
        return torch.empty_strided(sizes, strides, dtype=dtype, device="meta")
    last = offset + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    if math.prod(sizes) and last >= storage.numel():
        raise ValueError(f"it reaches to element {last} of {storage.numel()}")
    return storage.as_strided(sizes, strides, offset)


def _whole(size: Json) -> int:
    found = size["as_int"]
    if type(found) is not int or not 0 <= found < 2**48:
        raise ValueError(f"{found!r} is no size")
    return found


def _example_inputs(archive: _Archive, name: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    entry = f"data/sample_inputs/{name}.pt"
    data = archive.read(entry) if entry in archive.names else b""
    if not data:
        return None
    try:
        arguments, keywords = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        return tuple(arguments), dict(keywords)
    except Exception:
        # Nothing depends on them that the user could not give in another way.
        return None


# -- the graph ------------------------------------------------------------------------------------


class _Checked:
    """Takes out of a document what is not needed, and refuses what would have to be run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = DiagnosticCollector(limit=1000)
        self.seen: set[str] = set()

    def check(self, document: Json) -> None:
        """Check and change ``document``; raises all faults at once."""
        try:
            self._check(document)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as wrong:
            raise error(
                codes.EXPORTED,
                f"{self.path} cannot be read as an exported program",
                reason=f"its graph is of another form: {type(wrong).__name__} {first_line(wrong)}",
                help="export and save the model again with this version of torch",
            ) from None
        self.found.raise_errors()

    def _check(self, document: Json) -> None:
        document["guards_code"] = []
        held = document["graph_module"]
        held["metadata"], held["treespec_namedtuple_fields"] = {}, {}
        whole = next(item for item in held["module_call_graph"] if item["fqn"] == "")
        signature = whole["signature"]
        signature["inputs"], signature["outputs"] = [], []
        names = signature.get("forward_arg_names")
        for name in names or ():
            self._name(name)
        for key in ("in_spec", "out_spec"):
            protocol, spec = json.loads(signature[key])
            signature[key] = json.dumps([protocol, _plain_structure(spec)])
        held["module_call_graph"] = [whole]
        for name in document["range_constraints"]:
            self._name(name)
        self._visit(held)

    def _visit(self, held: Json) -> None:
        if isinstance(held, list):
            for item in held:
                self._visit(item)
            return
        if not isinstance(held, dict):
            return
        if isinstance(held.get("target"), str) and "inputs" in held:
            self._node(held)
        if "expr_str" in held:
            self._expression(held["expr_str"])
        if "as_operator" in held or "as_custom_obj" in held or held.get("custom_obj_values"):
            self._refuse("an operator or object as a value", ())
        for key in ("name", "as_name"):
            if held.get(key):
                self._name(held[key])
        for key in _NAMED:
            if key in held and not (isinstance(held[key], str) and _DOTTED.match(held[key])):
                self._refuse(f"the name {str(held[key])[:40]!r}", ())
        for key in ("device", "as_device"):
            if isinstance(held.get(key), dict) and "type" in held[key]:
                held[key] = {"type": "cpu", "index": None}
        for item in held.values():
            self._visit(item)

    def _node(self, node: Json) -> None:
        metadata = node.get("metadata") or {}
        trace = "\n".join(_FRAME.findall(str(metadata.get("stack_trace") or "")))
        kept = {"stack_trace": trace} if trace else {}
        stack = _plain_stack(str(metadata.get("nn_module_stack") or ""))
        if stack:
            kept["nn_module_stack"] = stack
        node["metadata"] = kept
        if not _is_known(node["target"]):
            self._refuse(f"the op {node['target']}", place_of_trace(trace))

    def _name(self, name: Json) -> None:
        if not isinstance(name, str) or not _NAME.match(name) or keyword.iskeyword(name):
            self._refuse(f"the name {str(name)[:40]!r}", ())

    def _expression(self, text: Json) -> None:
        if not isinstance(text, str) or len(text) > 10_000 or not _is_size(text):
            self._refuse(f"the size {str(text)[:60]!r}", ())

    def _refuse(self, what: str, place: Any) -> None:
        if what in self.seen:
            return
        self.seen.add(what)
        self.found.add(
            Diagnostic(
                codes.EXPORTED,
                f"{self.path} holds {what}, which is not loaded from a file",
                model=place,
                reason="only ops of torch's own on tensors, and sums and products of sizes, are "
                "read: anything else could run code that the file chooses",
                help="compile the model from Python instead: imcc.compile(model, example_inputs), "
                "or a model file",
            )
        )


def _is_known(target: str) -> bool:
    head, _, name = target.rpartition(".")
    if head == "_operator":
        return name in _OPERATORS
    if head == "torch":
        return name in _SIZES
    if head == "math":
        return name in ("ceil", "floor", "trunc")
    if target == _GRAD_MODE:
        return True
    parts = target.split(".")
    if len(parts) != 5 or parts[:3] != ["torch", "ops", "aten"]:
        return False
    if not all(_NAME.match(part) for part in parts[3:]):
        return False
    packet = getattr(torch.ops.aten, parts[3], None)
    op = getattr(packet, parts[4], None)
    if not isinstance(op, torch._ops.OpOverload):
        return False
    # Ops that return nothing, or take texts, read and write files.
    kinds = [str(item.type) for item in op._schema.returns]
    texts = any("str" in str(item.type) for item in op._schema.arguments)
    rule = f"aten.{parts[3]}" if parts[4] == "default" else f"aten.{parts[3]}.{parts[4]}"
    if texts and rule not in all_rules():
        return False
    checks = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size")
    return bool(kinds) or parts[3] in checks


def _is_size(text: str) -> bool:
    """Whether a size expression holds symbols, whole numbers, and functions of them only."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return sum(1 for _ in ast.walk(tree)) < 1000 and _is_size_node(tree.body)


def _is_size_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int)
    if isinstance(node, ast.Name):
        return bool(re.match(r"[su]\d+\Z", node.id))
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, (ast.USub, ast.UAdd)) and _is_size_node(node.operand)
    if isinstance(node, ast.BinOp):
        plain = isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod))
        return plain and _is_size_node(node.left) and _is_size_node(node.right)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    if node.func.id not in _CALLS:
        return False
    if not all(isinstance(item.value, ast.Constant) and item.arg for item in node.keywords):
        return False
    if node.func.id == "Symbol":
        (first,) = node.args if len(node.args) == 1 else (None,)
        return (
            isinstance(first, ast.Constant)
            and isinstance(first.value, str)
            and bool(_NAME.match(first.value))
        )
    return all(_is_size_node(item) for item in node.args)


def _plain_stack(text: str) -> str:
    """``key,path,type;...`` with a type that needs no look-up."""
    made = []
    for item in text.split(";"):
        parts = item.split(",")
        if len(parts) >= 3 and not set("()[]") & set(parts[0] + parts[1]):
            made.append(f"{parts[0]},{parts[1]},torch.nn.Module")
    return ";".join(made)


def _plain_structure(spec: Json) -> Json:
    """A structure of tuples, lists and dicts in place of one whose types would be imported.

    A type with as many names as children, such as a ``transformers`` output, becomes a dict.
    """
    children = [_plain_structure(item) for item in spec["children_spec"]]
    kind, context = spec["type"], spec["context"]
    if kind is None:
        return {"type": None, "context": None, "children_spec": []}
    if kind in ("builtins.tuple", "builtins.list"):
        return {"type": kind, "context": "null", "children_spec": children}
    names = next((item for item in _keys(context) if len(item) == len(children)), None)
    if names is not None:
        return {
            "type": "builtins.dict",
            "context": json.dumps(names),
            "children_spec": children,
        }
    return {"type": "builtins.tuple", "context": "null", "children_spec": children}


def _keys(context: Json) -> Iterator[list[str | int]]:
    """Lists of names in a structure's context, itself first."""
    if isinstance(context, str):
        try:
            context = json.loads(context)
        except (ValueError, RecursionError):
            return
    if isinstance(context, list):
        if all(type(item) in (str, int) for item in context):
            yield context
        else:
            for item in context:
                yield from _keys(item)


def _build(
    document: Json, weights: dict[str, Tensor], constants: dict[str, Tensor]
) -> ExportedProgram:
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _bytes_to_dataclass

    made: Any = _bytes_to_dataclass(schema.ExportedProgram, json.dumps(document).encode())
    state = {
        name: torch.nn.Parameter(tensor, requires_grad=False)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }
    return ExportedProgramDeserializer().deserialize(made, state, constants, None)


# -- grad modes -----------------------------------------------------------------------------------


def inline_grad_modes(program: ExportedProgram) -> None:
    """Put the bodies of ``torch.no_grad()`` blocks in their place: nothing is trained here."""
    module = program.graph_module
    changed = False
    for node in list(module.graph.nodes):
        if node.op != "call_function" or str(node.target) != "wrap_with_set_grad_enabled":
            continue
        holder = node.args[1]
        body = getattr(module, str(holder.target))
        values = dict(
            zip(
                (item for item in body.graph.nodes if item.op == "placeholder"),
                node.args[2:],
                strict=True,
            )
        )
        with module.graph.inserting_before(node):
            made = module.graph.graph_copy(body.graph, values)
        results = made if isinstance(made, (tuple, list)) else (made,)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        if not holder.users:
            module.graph.erase_node(holder)
        changed = True
    if changed:
        module.graph.lint()
        module.recompile()
