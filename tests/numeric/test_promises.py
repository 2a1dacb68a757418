"""Each pass keeps the promise it declares, on the digits network and at several bit widths."""

import pytest
import torch

from imcc.frontend.capture import capture
from imcc.frontend.model_file import load_model_file
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.runtime.promises import measure

DIGITS = "examples/digits_cnn/model.py"
PIPELINE = (
    "canonicalize, fold-batch-norm, dead-code, calibrate-activations{{bits={bits}}}, "
    "quantize-weights{{bits={bits}}}, integer-arithmetic, dead-code"
)


@pytest.fixture(scope="module")
def digits(request):
    file = load_model_file(request.config.rootpath / DIGITS)
    captured = capture(file.module, file.example_inputs)
    calibration = file.calibration_data()
    batches = calibration if isinstance(calibration, list) else [calibration]
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    inputs, _ = file.evaluation_data()
    return captured, batches, (inputs if isinstance(inputs, tuple) else (inputs,))


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_passes_keep_their_promises(digits, bits):
    captured, calibration, inputs = digits
    module, resources = captured.module.clone(), captured.resources.copy()
    context = PassContext(resources=resources, calibration=calibration)

    def outputs():
        with torch.no_grad():
            made = evaluate_function(module.function(), inputs, resources=resources)
        return made.outputs[0]

    before = outputs()
    for item in parse_pipeline(PIPELINE.format(bits=bits)):
        run_pipeline(module, (item,), context)
        after = outputs()
        measured = measure(item.promise(), [before], [after])
        assert measured.holds, f"{item}: {measured}"
        before = after
