"""A network of 2,000 ops, compiled without a model file: 120 residual blocks in ten stages."""

import torch

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver import CompiledModel
from imcc.driver.signature import Signature
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text import parse_module
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.runtime.history import HistoryRecorder

STAGES, BLOCKS, WIDTH = 10, 12, 8
PIPELINE = (
    "calibrate-activations, quantize-weights, integer-arithmetic, dead-code, map-crossbars, "
    "place, schedule"
)


def deep_text():
    """The captured program: blocks of two linear layers around a ReLU, and a shortcut."""
    kind = f"tensor<Bx{WIDTH}xf32>"
    weight = f"tensor<{WIDTH}x{WIDTH}xf32>"
    resources, ops, last = [], [], "x"
    for stage in range(STAGES):
        for block in range(BLOCKS):
            name = f"stages.{stage}.blocks.{block}"
            before = last
            for part in ("up", "act", "down"):
                at = f'scope = "{name}.{part}"'
                made = f"{name}.{part}"
                if part == "act":
                    ops.append(f'%{made} = nn.relu %{last} {{{at}}} : {kind} loc("deep.py":9)')
                else:
                    resources.append(f"resource @{made}.weight : {weight}")
                    ops.append(
                        f"%{made}.w = core.constant {{value = @{made}.weight, {at}}} : {weight}"
                    )
                    ops.append(
                        f'%{made} = nn.linear %{last}, %{made}.w {{{at}}} : {kind} loc("deep.py":8)'
                    )
                last = made
            ops.append(f'%{name}.sum = core.add %{before}, %{last} {{scope = "{name}"}} : {kind}')
            last = f"{name}.sum"
    body = "\n".join(ops)
    return (
        '// imc 1\nmodule @deep phase("captured") {\n' + "\n".join(resources) + "\n"
        f"func @inference(%x: {kind}) -> {kind} {{\n{body}\ncore.return %{last}\n}}\n}}\n"
    )


def deep():
    """The compiled network, with its history and report."""
    generator = torch.Generator().manual_seed(0)
    module = parse_module(deep_text())
    weights = {
        name: torch.randn(WIDTH, WIDTH, generator=generator) / 4 for name in module.resources
    }
    store = ResourceStore(weights)
    target = find_target("rram")
    backend = find_backend(target.backend)
    module.function().target = target.name
    recorder = HistoryRecorder(module)
    records = run_pipeline(
        module,
        parse_pipeline(PIPELINE),
        PassContext(
            resources=store,
            target=target,
            backend=backend,
            calibration=[(torch.rand(2, WIDTH, generator=generator),)],
            legality=backend.legal,
        ),
        instruments=(recorder,),
    )
    points = {name: backend.cost(module, name, target).to_json() for name in module.functions}
    main = points["inference"]
    report = {
        "schema_version": 1,
        "imcc_version": "0",
        "model": {"name": "deep", "file": None},
        "targets": [{"name": "rram", "backend": "crossbar", "sha256": target.sha256}],
        "seed": 0,
        "phase": module.phase,
        "pipeline": PIPELINE,
        "passes": [],
        "entry_points": points,
        "accuracy": None,
        "warnings": [],
        "signature": None,
        **{key: main[key] for key in ("energy_pj", "latency_ns", "area_um2", "resources")},
    }
    return CompiledModel(
        module,
        store,
        target,
        Signature.from_json(None, module),
        report,
        tuple(records),
        history=recorder.history(),
    )
