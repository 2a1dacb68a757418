"""``imcc eval``: one number in float, compiled, and compiled under noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imcc.driver import CompileOptions, compile_file
from imcc.driver.test_set import TestSet, TextTestSet, read_tokenizer, tokenize
from imcc.frontend.model_file import load_model_file
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.passes.infrastructure import Progress

KEYS = ("imcc_version", "model", "targets", "seed", "pipeline", "passes", "accuracy", "warnings")


def evaluate_model(
    model: str,
    options: CompileOptions,
    text: Path | None,
    tokenizer: Path | None,
    window: int,
    stride: int,
    limit: int | None,
    batch: int,
    progress: Progress,
) -> dict[str, Any]:
    """The part of a report that says what was measured, and on what program."""
    held = load_model_file(model)
    test_set: TestSet | None = None
    if text is not None:
        try:
            content = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as wrong:
            raise error(codes.BAD_DATA, f"{text} cannot be read: {wrong}") from None
        encode = (
            read_tokenizer(tokenizer)
            if tokenizer is not None
            else held.require("tokenizer", "perplexity")()
        )
        test_set = TextTestSet(tokenize(content, encode), window, stride, limit, batch)
    else:
        held.require("evaluation_data", "evaluation")
        held.require("metric", "evaluation")
    report = compile_file(held, options, progress, test_set=test_set).report()
    return {key: report[key] for key in KEYS}
