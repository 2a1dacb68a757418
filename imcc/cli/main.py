"""The command ``imcc``.

Exit codes: 0 done; 1 the input is wrong, with diagnostics on stderr; 2 the command line is wrong;
70 an internal error; 130 interrupted. Commands import what they need when they run, so that
``imcc --help`` loads neither torch nor numpy.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imcc._version import __version__
from imcc.cli.streams import drop_stdout, is_full, own_streams
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, error, nearest

if TYPE_CHECKING:
    from imcc.ir.module import Module

EXIT_DIAGNOSTICS, EXIT_USAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 1, 2, 70, 130

# torch's threads spin in barriers when another process has the core; waiting passively is never
# much slower and often many times faster. Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


MAX_TEXT_BYTES = 1 << 30
"""More is no IR text."""


class _ReaderLeftError(Exception):
    """Who read stdout is gone. click would end the process with code 1, as if input were wrong."""


class _Group(click.Group):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            # --help and --version are answered here.
            return super().make_context(*args, **kwargs)
        except BrokenPipeError:
            raise _ReaderLeftError from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            made = super().invoke(ctx)
            # Here and not at exit, where a reader that left could not be met quietly.
            sys.stdout.flush()
        except BrokenPipeError:
            raise _ReaderLeftError from None
        except OSError as wrong:
            if not is_full(wrong):
                raise
            drop_stdout()
            raise error(
                codes.OUTPUT,
                f"cannot write to standard output: {wrong.strerror}",
                help="free some space",
            ) from None
        return made

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if args and self.get_command(ctx, name) is None and not name.startswith("-"):
            close = nearest(name, self.commands)
            hint = f"did you mean {close[0]!r}?" if close else "`imcc --help` lists the commands"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="imcc")
@click.option("--traceback", is_flag=True, help="Show the Python traceback of internal errors.")
def cli(traceback: bool) -> None:
    """Compile PyTorch models to in-memory-computing hardware, and see what comes out.

    Exit codes: 0 done, 1 wrong input, 2 wrong command line, 70 internal error, 130 interrupted.
    """


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(command)


class _FilePath(click.Path):
    """A path that can name a file; what the file system says of it is for the command to see."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not str(value) or "\0" in str(value):
            self.fail(f"{str(value)!r} names no file", param, ctx)
        return super().convert(value, param, ctx)


_PATH = _FilePath(path_type=Path)


def _pass_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that watch passes at work, the same for every command that runs some."""
    for option in (
        click.option("--timing-json", type=_PATH, help="Write the tree of times as JSON."),
        click.option("--timing-tree", is_flag=True, help="Print times as a tree, on stderr."),
        click.option("--timing", is_flag=True, help="Print times as a list, on stderr."),
        click.option(
            "--print-after-change", is_flag=True, help="Print the IR after each changing pass."
        ),
        click.option("--dump-passes", type=_PATH, help="Folder for the IR after each change."),
        click.option(
            "--verify-each",
            is_flag=True,
            help="After each pass also check text round trip, uses, journal and hashes.",
        ),
    ):
        command = option(command)
    return command


_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the target."
)


@cli.command("compile")
@click.argument("model", metavar="MODEL.py[:NAME]|MODEL.pt2|NET.nir|FILE.imc")
@click.option("--data", type=_PATH, help="Python file with calibration_data() and so on.")
@click.option("--target", help="A preset or a TOML file  [default: rram].")
@click.option("-o", "--output", type=_PATH, help="Folder or .zip to write.")
@_set_option
@click.option("--passes", help="Pipeline in place of the target's own.")
@click.option("--trials", default=0, show_default=True, type=click.IntRange(0), help="Noisy runs.")
@click.option("--seed", type=int, help="Seed of all random draws  [default: 0].")
@click.option("--sweep/--no-sweep", default=True, show_default=True, help="Vary write noise too.")
@click.option("--calibrate-on-example", is_flag=True, help="Use example inputs for calibration.")
@click.option("--check", is_flag=True, help="Measure what each approximate pass costs in accuracy.")
@click.option("--to", metavar="PHASE", help="Stop after a phase.")
@click.option("--from", "start", metavar="PHASE", help="Resume from a phase in --dump-phases.")
@click.option("--dump-phases", type=_PATH, help="Folder for the program at the end of each phase.")
@click.option("--reproducer", type=_PATH, help="Folder to write for a pass that crashes.")
@_pass_options
@click.option("--force", is_flag=True, help="Replace an existing artifact.")
@_json_option
def compile_command(model: str, **given: Any) -> None:
    """Compile a model file, evaluate it, and report cost and accuracy.

    MODEL.py defines model() or NAME; MODEL.pt2 is a program of torch.export.save and NET.nir a
    spiking network in NIR (NET.nir:dt=1e-3,steps=32 sets the time step), whose data come from
    --data.

    FILE.imc from a folder of --dump-phases goes on from its phase, with the target, seed and
    calibration data of that folder.
    """
    from imcc.cli.compiling import CompileCommand, compile_program

    report, made = compile_program(model, CompileCommand(**given))
    _show_warnings(report)
    _show_report(report, given["as_json"])
    if made is not None:
        click.echo(f"wrote {made}", err=True)


@cli.command("eval")
@click.argument("model", metavar="MODEL.py[:NAME]")
@click.option("--target", default="reference", show_default=True, help="A preset or a TOML file.")
@_set_option
@click.option("--passes", help="Pipeline in place of the target's own.")
@click.option("--perplexity", "text", type=_PATH, help="Text file to score.")
@click.option(
    "--tokenizer",
    type=_PATH,
    help="tokenizer.json, if the model file has no tokenizer().",
)
@click.option(
    "--window", default=512, show_default=True, type=click.IntRange(2), help="Tokens of a window."
)
@click.option("--stride", type=click.IntRange(1), help="Tokens between windows [default: window].")
@click.option("--windows", "limit", type=click.IntRange(1), help="Score only the first windows.")
@click.option(
    "--batch", default=4, show_default=True, type=click.IntRange(1), help="Windows at a time."
)
@click.option("--trials", default=0, show_default=True, type=click.IntRange(0), help="Noisy runs.")
@click.option("--seed", default=0, show_default=True, help="Seed of all random draws.")
@click.option("--calibrate-on-example", is_flag=True, help="Use example inputs for calibration.")
@_json_option
def eval_command(
    model: str,
    target: str,
    overrides: tuple[str, ...],
    passes: str | None,
    text: Path | None,
    tokenizer: Path | None,
    window: int,
    stride: int | None,
    limit: int | None,
    batch: int,
    trials: int,
    seed: int,
    calibrate_on_example: bool,
    as_json: bool,
) -> None:
    """Measure a model in float, compiled without noise, and compiled with noise.

    The number is the model file's metric, or with --perplexity FILE that of a language model.
    """
    from imcc.cli.evaluating import evaluate_model
    from imcc.cli.progress import progress
    from imcc.driver import CompileOptions

    options = CompileOptions(target, overrides, passes, trials, seed, False, calibrate_on_example)
    with progress() as report_progress:
        report = evaluate_model(
            model, options, text, tokenizer, window, stride or window, limit, batch, report_progress
        )
    _show_warnings(report)
    if as_json:
        _print_json(report)
    else:
        from imcc.report.overview import print_accuracy

        print_accuracy(report, sys.stdout)


@cli.command("optimize")
@click.argument("model", metavar="MODEL.py[:NAME]")
@click.option("--target", default="trexsim", show_default=True, help="A preset or a TOML file.")
@_set_option
@click.option("--delay", metavar="TIME", help="Latency of a call to meet, such as 500us.")
@click.option("--counts", metavar="N,N", help="Numbers of reuse encoders, in place of --delay.")
@click.option("--passes", help="Pipeline behind reuse in place of the target's own.")
@click.option(
    "--own-projection/--no-projection",
    default=True,
    show_default=True,
    help="Whether a reuse encoder keeps its output projection.",
)
@click.option(
    "--source",
    type=click.Choice(["previous", "attention"]),
    default="previous",
    show_default=True,
    help="What the second reuse encoder in a row takes.",
)
@click.option(
    "--init",
    type=click.Choice(["identity", "random", "least_squares"]),
    default="least_squares",
    show_default=True,
    help="How new weights start.",
)
@click.option("--rank-steps", type=click.IntRange(0), help="Steps of each short training.")
@click.option("--steps", type=click.IntRange(0), help="Steps of the whole training.")
@click.option("--learning-rate", default=3e-4, show_default=True, type=float)
@click.option(
    "--reads",
    type=click.Choice(["linear", "simulated"]),
    default="linear",
    show_default=True,
    help="Training: without converters and fast, or through the whole simulator.",
)
@click.option(
    "--compare-trained/--no-compare-trained",
    default=True,
    show_default=True,
    help="Train the model without reuse as long, to compare with.",
)
@click.option("--trials", default=10, show_default=True, type=click.IntRange(0), help="Noisy runs.")
@click.option("--seed", default=0, show_default=True, help="Seed of all random draws.")
@click.option("--checkpoints", type=_PATH, help="Folder to resume trainings from.")
@click.option("-o", "--output", type=_PATH, help="Folder or .zip to write.")
@click.option("--force", is_flag=True, help="Replace an existing artifact.")
@_json_option
def optimize_command(model: str, **given: Any) -> None:
    """Let encoders of a transformer reuse attention until a delay is met; train and compile it.

    The cost model says how many encoders must, a short training which, a whole one through the
    noisy simulator recovers accuracy. The artifact holds the trained program in float as well:
    float.imc and float.safetensors.
    """
    from imcc.cli.optimizing import microseconds, optimise_model
    from imcc.driver.optimization import OptimizeOptions

    delay, counts = given["delay"], given["counts"]
    try:
        wanted = tuple(int(item) for item in counts.split(",")) if counts else ()
    except ValueError:
        raise click.UsageError(f"--counts {counts!r}: give numbers such as 2,4,6") from None
    options = OptimizeOptions(
        given["target"],
        microseconds(delay) if delay is not None else None,
        wanted,
        folder=given["checkpoints"],
        **{
            name: given[name]
            for name in (
                "overrides", "passes", "own_projection", "source", "init", "rank_steps", "steps",
                "learning_rate", "reads", "compare_trained", "trials", "seed",
            )
        },
    )  # fmt: skip
    report = optimise_model(model, options, given["output"], given["force"])
    _show_warnings(report)
    if given["as_json"]:
        _print_json(report)
        return
    from imcc.report.optimization import print_optimization

    print_optimization(report, sys.stdout)


@cli.command("train")
@click.argument("model", metavar="MODEL.py[:NAME]")
@click.option("--data", type=_PATH, help="Python file with training_data(), loss() and so on.")
@click.option("--target", default="rram", show_default=True, help="A preset or a TOML file.")
@_set_option
@click.option("--passes", help="Pipeline in place of the target's own.")
@click.option("--steps", default=200, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", default=3e-4, show_default=True, type=float)
@click.option("--weight-decay", default=0.0, show_default=True, type=float)
@click.option("--constant-rate", is_flag=True, help="Keep the rate; else it falls to 0.")
@click.option("--noise/--no-noise", default=True, show_default=True, help="Draw devices and reads.")
@click.option(
    "--reads",
    type=click.Choice(["simulated", "linear"]),
    default="simulated",
    show_default=True,
    help="linear: leave out converters, several times faster.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of all random draws.")
@click.option("--trials", default=0, show_default=True, type=click.IntRange(0), help="Noisy runs.")
@click.option("--checkpoint", type=_PATH, help="Folder to go on from when stopped.")
@click.option("--calibrate-on-example", is_flag=True, help="Use example inputs for calibration.")
@click.option("-o", "--output", type=_PATH, required=True, help=".safetensors file to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@_json_option
def train_command(model: str, output: Path, force: bool, as_json: bool, **given: Any) -> None:
    """Fine-tune a model's weights under the noise of a target.

    The model file offers training_data() and loss(outputs, batch). Weights go to a safetensors file
    under the names of the model's state_dict. With --trials accuracy is measured before and after.
    """
    from imcc.cli.training import show_training, train_model

    report = train_model(model, output, force=force, **given)
    if as_json:
        _print_json(report)
    else:
        show_training(report)
    click.echo(f"wrote {output}", err=True)


@cli.command("run")
@click.argument("artifact", metavar="ARTIFACT|FILE.imc", type=_PATH)
@click.option("--target", help="For an .imc file that stands alone: a preset or a TOML file.")
@click.option("--model", help="Python file with evaluation_data() and metric().")
@click.option("--data", type=_PATH, help=".npz or .safetensors with inputs.")
@click.option("-o", "--output", type=_PATH, help=".npz file for the outputs.")
@click.option("--trials", default=1, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.option("--noise-off", is_flag=True, help="Draw nothing: devices are ideal.")
@click.option("--initial", is_flag=True, help="Run an adapted artifact as it was before.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@_json_option
def run_command(
    artifact: Path,
    target: str | None,
    model: str | None,
    data: Path | None,
    output: Path | None,
    trials: int,
    seed: int,
    noise_off: bool,
    initial: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Run a compiled artifact, or a program of any phase as it stands.

    Gives a metric over trials (--model), or outputs for inputs (--data).
    """
    from imcc.cli.progress import progress
    from imcc.cli.running import run_data, run_metric
    from imcc.driver import load

    if (model is None) == (data is None):
        raise click.UsageError("give either --model MODEL.py or --data FILE")
    if data is not None and output is None:
        raise click.UsageError("--data needs -o FILE.npz for the outputs")
    made = load(artifact, target=target, costs=False, initial=initial)
    with progress() as report_progress:
        if model is not None:
            result = run_metric(made, model, trials, seed, not noise_off, report_progress)
        else:
            result = run_data(
                made,
                Path(str(data)),
                Path(str(output)),
                trials,
                seed,
                not noise_off,
                force,
                report_progress,
            )
    if as_json:
        _print_json(result)
    else:
        for key, value in result.items():
            if key != "per_trial":
                click.echo(f"{key}: {value}")


@cli.command("adapt")
@click.argument("artifact", type=_PATH)
@click.option(
    "--data", required=True, type=_PATH, help=".py with adaptation_data(), .npz or .safetensors."
)
@click.option(
    "--evaluation", type=_PATH, help="Held-out data to report on  [default: the file of --data]."
)
@click.option("--batch", default=1, show_default=True, help="Samples of an update.")
@click.option("--samples", type=click.IntRange(1), help="Stop after so many samples.")
@click.option("--passes", default=1, show_default=True, help="Times that the data are used.")
@click.option("--shuffled", is_flag=True, help="In random order, by the seed.")
@click.option("--every", default=32, show_default=True, help="Samples between stored states.")
@click.option("--window", default=32, show_default=True, help="Samples of running means.")
@click.option("--stop-accuracy", type=float, help="Stop at this running accuracy.")
@click.option("--patience", type=click.IntRange(1), help="Samples without a lower running loss.")
@click.option(
    "--divergence", default=2.0, show_default=True, help="Running loss that ends the run, relative."
)
@click.option("--worn", default=0.0, show_default=True, help="Share of cells that may wear out.")
@click.option("--seed", type=int, help="Seed of the device  [default: the artifact's].")
@click.option("--trial", default=0, show_default=True, help="Number of the device.")
@click.option("--noise-off", is_flag=True, help="Adapt an ideal device.")
@click.option(
    "--start",
    type=click.Choice(("initial", "adapted")),
    help="Of an adapted artifact: begin again, or learn on.",
)
@click.option("--plot", type=_PATH, help="SVG file for accuracy over samples.")
@click.option("--force", is_flag=True, help="Replace an existing plot.")
@_json_option
def adapt_command(artifact: Path, **given: Any) -> None:
    """Let an artifact learn from labelled samples, and keep what it learned in the artifact.

    The artifact was compiled with the pass insert-feedback, which chose layers, rule and learning
    rate. Its initial state stays; `imcc run` uses the adapted one. Interrupted, the same command
    goes on.
    """
    from imcc.cli.adapting import AdaptCommand, adapt_artifact

    adapt_artifact(artifact, AdaptCommand(**given))


@cli.command("report")
@click.argument("artifact", metavar="ARTIFACT|FILE.imc", type=_PATH)
@click.option(
    "--by",
    type=click.Choice(["layer", "component", "tile", "pass", "op"]),
    help="One table of all layers, components, tiles, passes or ops.",
)
@click.option("--why", metavar="NAME.energy_pj", help="Follow a number down to its sources.")
@click.option("--entry", default="inference", show_default=True, help="Entry point for --by.")
@click.option("--trace", type=_PATH, help="Write the schedule as a Perfetto trace.")
@click.option("--force", is_flag=True, help="Replace an existing trace file.")
@_json_option
def report_command(
    artifact: Path,
    by: str | None,
    why: str | None,
    entry: str,
    trace: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show the report of a compiled artifact, or of an .imc file with the passes it still lacks.

    --why takes a layer, a scope, a component, or nothing for the total, and a quantity:
    stem.3.energy_pj, block.latency_ns, adc.area_um2, energy_pj, @deploy.latency_ns.
    """
    from imcc.cli.view import report

    report(artifact, by, why, entry, trace, force, as_json)


@cli.command("compare")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@_json_option
def compare_command(first: Path, second: Path, as_json: bool) -> None:
    """Show two compiled artifacts side by side: totals, accuracy, layers.

    Ratios are second over first. Compile one model for two targets, or before and after a change.
    """
    from imcc.cli.view import compare

    compare(first, second, as_json)


@cli.command("view")
@click.argument("artifact", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="HTML file to write.  [ARTIFACT.html]")
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def view_command(artifact: Path, output: Path | None, show: bool, force: bool) -> None:
    """Show what the compiler did: passes, graph, cost, tiles, schedule, as one HTML file.

    The file loads nothing from the network and can be sent to others as it is.
    """
    from imcc.cli.view import view

    view(artifact, output, show, force)


@cli.command("opt")
@click.argument("file", metavar="FILE")
@click.option("--passes", help="Pipeline to run, e.g. 'canonicalize, dead-code'.")
@click.option("--to", metavar="PHASE", help="Run the target's passes up to the end of a phase.")
@click.option("--weights", type=_PATH, help="safetensors with the resources.")
@click.option("--target", help="Target for passes that need one.")
@_set_option
@click.option("--calibration", type=_PATH, help=".npz or .safetensors with calibration inputs.")
@click.option("--seed", default=0, show_default=True, help="Seed of what passes draw.")
@click.option("--bisect", type=_PATH, help="Inputs (.npz): find the pass that broke its promise.")
@click.option("--reproducer", type=_PATH, help="Folder to write for a pass that fails.")
@_pass_options
@click.option(
    "--emit",
    type=click.Choice(("imc", "mlir")),
    default="imc",
    show_default=True,
    help="Text form of the result: imcc's own, or MLIR's generic form.",
)
@_json_option
def opt_command(file: str, **given: Any) -> None:
    """Read IR (a FILE, an artifact, or - for stdin), verify it, run passes, print it.

    With --bisect nothing is printed but one line for each pass: what it promises about results and
    what was measured.
    """
    from imcc.cli.opt import OptOptions, optimise

    optimise(_read_module(file), file, OptOptions(**given))


@cli.command("passes")
@click.argument("name", required=False)
@_json_option
def passes_command(name: str | None, as_json: bool) -> None:
    """List passes, or show one with its options."""
    from imcc.cli.listing import show_pass, show_passes

    _emit(show_pass(name) if name else show_passes(), as_json)


@cli.command("ops")
@click.argument("name", required=False)
@_json_option
def ops_command(name: str | None, as_json: bool) -> None:
    """List ops, or show the declaration of one."""
    from imcc.cli.listing import show_op, show_ops

    _emit(show_op(name) if name else show_ops(), as_json)


@cli.command("targets")
@click.argument("name", required=False)
@_set_option
@_json_option
def targets_command(name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """List targets, or print one as TOML with all defaults filled in."""
    from imcc.cli.listing import show_target, show_targets

    _emit(show_target(name, overrides) if name else show_targets(), as_json)


@cli.command("explain")
@click.argument("code", required=False)
@_json_option
def explain_command(code: str | None, as_json: bool) -> None:
    """Explain a diagnostic code, or list them all."""
    from imcc.cli.listing import show_code, show_codes

    _emit(show_code(code) if code else show_codes(), as_json)


@cli.command("doctor")
@_json_option
def doctor_command(as_json: bool) -> int:
    """Show versions, extras, plugins, threads and tools; exit 1 if something is broken."""
    from imcc.cli.doctor import examine

    found = examine()
    _emit((found.render(), found.to_json()), as_json)
    return EXIT_DIAGNOSTICS if found.problems else 0


def _read_module(file: str) -> Module:
    """The module of an IR file, of standard input, or of an artifact; not verified."""
    if Path(file).is_dir() or Path(file).suffix == ".zip":
        from imcc.driver import load

        return load(file).module
    from imcc.ir.text import parse_module

    return parse_module(*_read_text(file))


def _read_text(file: str) -> tuple[str, str]:
    name = "<stdin>" if file == "-" else file
    try:
        if file == "-":
            text = sys.stdin.read(MAX_TEXT_BYTES + 1)
        else:
            with open(file, encoding="utf-8") as held:
                text = held.read(MAX_TEXT_BYTES + 1)
        if len(text) > MAX_TEXT_BYTES:
            raise error(codes.TOO_DEEP, f"{name} is larger than {MAX_TEXT_BYTES} bytes")
        return text, name
    except UnicodeDecodeError:
        raise error(
            codes.SYNTAX,
            f"{name} is not UTF-8 text",
            help="give a text file such as program.imc of an artifact",
        ) from None
    except (OSError, ValueError) as wrong:
        if not isinstance(wrong, OSError):
            raise error(codes.USAGE, f"cannot read {file!r}: {wrong}") from None
        raise error(codes.USAGE, f"cannot read {file}: {wrong.strerror or wrong}") from None


def _emit(made: tuple[str, Any], as_json: bool) -> None:
    text, data = made
    if as_json:
        _print_json(data)
    else:
        click.echo(text.rstrip("\n"))


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2))


def _show_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    from imcc.report.overview import print_report

    print_report(report, sys.stdout)


def _show_warnings(report: dict[str, Any]) -> None:
    for item in report["warnings"]:
        click.echo(f"{item['severity']}[{item['code']}]: {item['message']}", err=True)
        for place in item["model"]:
            click.echo(f"  in the model: {place}", err=True)
        for key in ("reason", "help"):
            if item[key]:
                click.echo(f"  {key}: {item[key]}", err=True)


def _nearest_choices(wrong: click.UsageError) -> tuple[str, ...]:
    """The choices of an option nearest to the word that is none of them."""
    kind = wrong.param.type if isinstance(wrong, click.BadParameter) and wrong.param else None
    if not isinstance(kind, click.Choice):
        return ()
    given = wrong.message.partition("' is not one of")[0].removeprefix("'")
    return nearest(given, map(str, kind.choices))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if argv is None:
        with own_streams():
            return main(sys.argv[1:])
    arguments = list(argv)
    show_traceback = "--traceback" in arguments
    try:
        made = cli.main(arguments, prog_name="imcc", standalone_mode=False)
        return made if isinstance(made, int) else 0
    except DiagnosticError as failed:
        for item in failed.diagnostics:
            click.echo(item.render(), err=True)
        for note in getattr(failed, "__notes__", ()):
            click.echo(f"note: {note}", err=True)
        return EXIT_DIAGNOSTICS
    except click.exceptions.NoArgsIsHelpError as wrong:
        click.echo(wrong.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as wrong:
        path = wrong.ctx.command_path if wrong.ctx is not None else "imcc"
        shown = Diagnostic(
            codes.USAGE,
            wrong.format_message(),
            suggestions=_nearest_choices(wrong),
            help=f"`{path} --help` shows the usage",
        )
        click.echo(shown.render(), err=True)
        return EXIT_USAGE
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except _ReaderLeftError:
        drop_stdout()
        return 0
    except OSError as wrong:
        # A name that is too long, a folder that may not be looked into: no defect of imcc.
        if wrong.filename is None:
            return _internal(wrong, show_traceback)
        shown = Diagnostic(
            codes.USAGE,
            f"cannot use {wrong.filename}: {wrong.strerror}",
            help="give another path, or make this one accessible",
        )
        click.echo(shown.render(), err=True)
        return EXIT_DIAGNOSTICS
    except Exception as unforeseen:
        return _internal(unforeseen, show_traceback)


def _internal(unforeseen: Exception, show_traceback: bool) -> int:
    """Say what went wrong inside imcc; returns the exit code."""
    if show_traceback:
        raise unforeseen
    shown = Diagnostic(
        codes.INTERNAL,
        f"{type(unforeseen).__name__}: {unforeseen}",
        help="\n".join(
            [
                "run again as `imcc --traceback ...` and report what it prints",
                *getattr(unforeseen, "__notes__", ()),
            ]
        ),
    )
    click.echo(shown.render(), err=True)
    return EXIT_INTERNAL
