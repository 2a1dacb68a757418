"""Stable codes of diagnostics. A code is never reused for another meaning.

The hundreds say where a fault was found: 1 IR text, 2 verification, 3 the user's model and its
capture, 4 passes and pipelines, 5 targets and hardware, 6 artifacts, 7 running, 8 the command line.
Each code has a page in ``imcc/ir/pages``: an example that causes it, how to mend it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """A diagnostic's identity: ``id``, a one-line title, and what causes it.

    ``imcc explain`` shows both, and the page ``imcc/ir/pages/ID.md``: an example that causes it,
    what to do, and what to see also.
    """

    id: str
    title: str
    page: str


CODES: dict[str, Code] = {}


def code(identifier: str, title: str, page: str) -> Code:
    """Declare a code; plugins may declare their own under another prefix than ``IMC``."""
    if identifier in CODES:
        raise ValueError(f"diagnostic code {identifier} is declared twice")
    made = Code(identifier, title, page)
    CODES[identifier] = made
    return made


def page(item: Code) -> str:
    """The text of the code's page; empty for a plugin's code, which has none."""
    from importlib import resources as package_files

    file = package_files.files("imcc.ir").joinpath("pages", f"{item.id}.md")
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


# 1: IR text
SYNTAX = code(
    "IMC101",
    "IR text does not parse",
    "The text is not in the grammar of imcc/ir/text/grammar.lark. The window shows the place and\n"
    "the message lists what could stand there. Print a valid module with `imcc opt` to compare.",
)
FORMAT_VERSION = code(
    "IMC102",
    "IR text of another format version",
    "The first line of IR text is `// imc VERSION`. This release reads version 1 only. Re-create\n"
    "the file from the model with this release of imcc.",
)
UNDEFINED_VALUE = code(
    "IMC103",
    "value used before it is defined",
    "Every `%name` must be a function argument or a result of an earlier op of the same function.",
)
REDEFINED = code(
    "IMC104",
    "name defined twice",
    "Values are unique in a function; functions, states and resources are unique in a module.",
)
UNKNOWN_OP = code(
    "IMC105",
    "unknown op",
    "No loaded dialect declares this op. `imcc ops` lists all of them. An op of a plugin needs\n"
    "the plugin installed in the same environment.",
)
BAD_OPERANDS = code(
    "IMC106",
    "operands do not fit the op's declaration",
    "Required operands come first by position, a variadic operand takes the rest, optional\n"
    "operands are written by name: `nn.linear %x, %w, bias=%b`. `imcc ops NAME` shows the\n"
    "declaration.",
)
BAD_ATTRIBUTE = code(
    "IMC107",
    "attribute missing, unknown, or of the wrong kind or range",
    "Attributes stand in braces as `{name = value}`. `imcc ops NAME` lists them with kind, unit,\n"
    "range and default.",
)
BAD_TYPE = code(
    "IMC108",
    "type does not parse or does not exist",
    "Types are `tensor<2xBx3xf32>`, `tensor<16x27xq<s8, axis=0>>`, `spikes<4xBx512>` or a type of\n"
    "a dialect such as `!xbar.matrix<...>`.",
)
TOO_DEEP = code(
    "IMC109",
    "nesting too deep or input too large",
    "The reader bounds the nesting of attribute lists and the size of a file so that a hostile\n"
    "input cannot exhaust memory.",
)

# 2: verification
STRUCTURE = code(
    "IMC201",
    "module structure is broken",
    "A function must end in one `core.return` that yields its declared results; values must be\n"
    "defined before use; symbols must exist.",
)
OPERAND_TYPE = code(
    "IMC202",
    "operand has a type the op does not accept",
    "The op's declaration says which types and element types each operand may have:\n"
    "`imcc ops NAME` shows it.",
)
RESULT_TYPE = code(
    "IMC203",
    "result type differs from what the op infers",
    "Result types in text are checked against the op's own inference from operands and attributes.",
)
OP_INVALID = code(
    "IMC204",
    "op's own rule is violated",
    "Shapes or attributes of this op do not fit together; the message says which.",
)
PHASE = code(
    "IMC205",
    "op is not legal in this phase",
    "Each phase (captured, optimized, mapped, placed, scheduled) lists the ops it may hold. Run\n"
    "the passes that lead to the phase instead of setting it by hand.",
)
LINEARITY = code(
    "IMC206",
    "a handle has more than one owner",
    "A handle such as `!xbar.matrix` stands for physical cells: at most one op may consume it and\n"
    "nothing may read it afterwards.",
)
STATE = code(
    "IMC207",
    "state is used wrongly",
    "An entry point takes a state as an argument marked `state(@name)` and may return its new\n"
    "value marked the same way, with the type that the module declares.",
)

# 3: the user's model and capture
MODEL_FILE = code(
    "IMC301",
    "model file cannot be used",
    "The file must exist, be valid Python, import without raising, and define `model()` and\n"
    "`example_inputs()`. See docs/how-to/bring-your-model.md.",
)
MODEL_MISSING = code(
    "IMC302",
    "model file lacks a function",
    "The message shows the lines to add to the model file.",
)
UNSUPPORTED_OP = code(
    "IMC303",
    "the model uses an op that imcc does not support",
    "The message names the torch op, your line that calls it, and the ops that are supported.",
)
CAPTURE = code(
    "IMC304",
    "torch.export cannot capture the model",
    "Usual causes: control flow that depends on tensor values, inputs of the wrong shape, or a\n"
    "change of Python state during forward.",
)
UNSUPPORTED_FORM = code(
    "IMC305",
    "a supported op is used in a form that imcc does not support",
    "The op itself is supported, but not with these arguments; the message says which and what to\n"
    "use instead.",
)
BAD_WEIGHTS = code(
    "IMC306",
    "weights are not finite",
    "A parameter or buffer holds NaN or infinity. Hardware cannot store it and no report on it\n"
    "would mean anything.",
)

EXPORTED = code(
    "IMC307",
    "exported program cannot be loaded",
    "A .pt2 file is read without running anything that it holds. Files of other versions of\n"
    "torch, damaged ones, and those with pickled objects or ops of other libraries are refused.\n"
    "Save it again with torch.export.save, or compile the model from Python.",
)

# 4: passes
UNKNOWN_PASS = code(
    "IMC401",
    "unknown pass",
    "`imcc passes` lists the passes of imcc and of installed plugins.",
)
BAD_PIPELINE = code(
    "IMC402",
    "pipeline text does not parse",
    'A pipeline is `name, name{option=value option="text"}`. Values are numbers, true, false,\n'
    "strings, names, or lists such as [1, 2].",
)
BAD_OPTION = code(
    "IMC403",
    "option missing, unknown, or out of range",
    "`imcc passes NAME` shows the options of a pass with kind, default and range.",
)
PASS_REQUIRES = code(
    "IMC404",
    "a pass cannot run here",
    "The pass needs another phase, calibration data, weights, or a target that this run lacks.",
)
PASS_FAILED = code(
    "IMC405",
    "a pass left a broken module",
    "After the pass the module no longer verifies. This is a defect of the pass, not of your\n"
    "model: please report it with the reproducer.",
)
NUMERIC = code(
    "IMC406",
    "an optimisation inside a pass diverged",
    "A loss became NaN or infinite. The message names the block: lower the learning rate, give\n"
    "the block more bits, or look for extreme values in the calibration data.",
)
PROMISE = code(
    "IMC407",
    "a pass changed results by more than it promises",
    "Each pass declares what it does to results: nothing, a little within a tolerance, or an\n"
    "approximation with a metric and a bound. `imcc opt --bisect` ran the module before and after\n"
    "each pass and found the first one whose results differ by more.",
)

STEPS = code(
    "IMC408",
    "time steps stay apart",
    "A loop over time steps is rolled back into one computation over a time axis where every step\n"
    "does the same. Here a step needs what the neuron did before (a recurrent connection), or the\n"
    "steps do different things. The program is correct; each step has a copy of the layers.",
)

# 5: targets and hardware
UNKNOWN_TARGET = code(
    "IMC501",
    "unknown target",
    "`imcc targets` lists the presets; a path to a TOML file works too.",
)
BAD_TARGET = code(
    "IMC502",
    "target file is not valid",
    "The message gives the key path, what was found and what is allowed. `imcc targets NAME`\n"
    "prints a valid file.",
)
ILLEGAL = code(
    "IMC503",
    "the target cannot run this op",
    "The backend has no rule for the op, or a rule that refuses it for the reason shown.",
)
DOES_NOT_FIT = code(
    "IMC504",
    "the network does not fit the chip",
    "The message says what is missing and by how much. Raise the chip's size in the target, or\n"
    "choose fewer bits or larger arrays.",
)
UNKNOWN_BACKEND = code(
    "IMC505",
    "unknown or broken backend",
    "A target names its backend; the backend must be installed and load without error.",
)
OUT_OF_REACH = code(
    "IMC506",
    "the goal is out of reach",
    "The cost model was asked for every choice that the pass has, and none meets the goal. The\n"
    "message says what the best of them gives.",
)

# 6: artifacts
ARTIFACT = code(
    "IMC601",
    "artifact cannot be loaded",
    "A file is missing, truncated, corrupted, or does not match its hash. Compile again.",
)
ARTIFACT_UNSAFE = code(
    "IMC602",
    "artifact refused as unsafe",
    "A path or link leaves the artifact's folder, or an archive expands beyond the allowed size.",
)
OUTPUT = code(
    "IMC603",
    "output cannot be written",
    "The folder exists already (replace it with --force, in Python force=True), is not\n"
    "writable, or the disk is full.",
)

# 7: running
ABSENT_WEIGHTS = code(
    "IMC701",
    "module has no weights to run with",
    "The resource is declared without data. A module without weights can be costed but not run.",
)
BAD_INPUT = code(
    "IMC702",
    "input does not fit the program",
    "Number, shape and element type of inputs must fit the entry point's arguments.",
)
NO_RULE = code(
    "IMC703",
    "op has no rule for this use",
    "The op can be held and printed but not evaluated (or differentiated) by this backend.",
)
BAD_DATA = code(
    "IMC704",
    "calibration or evaluation data cannot be used",
    "The data function of the model file returned something of another form than documented.",
)
CANNOT_COMPUTE = code(
    "IMC705",
    "op cannot be computed on these values",
    "The program is valid, but this op asks for more memory than there is, or for a number that\n"
    "its element type cannot hold. The message has the words of torch.",
)
DIVERGED = code(
    "IMC706",
    "on-line adaptation diverged",
    "An update of a weight was not finite, or the running loss of the labelled samples rose far\n"
    "above that of a network that knows nothing. The state of the lowest loss was kept.",
)
WORN = code(
    "IMC707",
    "cells that adapt are worn out",
    "Cells were written as often as the target's device endures. They keep their last value, so\n"
    "that later updates are lost on them.",
)

# 8: command line and environment
USAGE = code(
    "IMC801",
    "command line is not valid",
    "`imcc COMMAND --help` shows the options.",
)
PLUGIN = code(
    "IMC802",
    "a plugin does not load",
    "An installed package registers an imcc entry point that raises on import.",
)
INTERNAL = code(
    "IMC901",
    "internal error",
    "Something unforeseen happened inside imcc. Re-run with `--traceback` and report it.",
)
