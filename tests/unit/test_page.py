"""The page of ``imcc view`` as text: whole, deterministic, and deaf to what names say."""

import base64
import dataclasses
import hashlib
import html
import json
import re
import zlib

import pytest
import torch
from torch import nn

import imcc
from imcc.cli.main import main
from imcc.report.page import page, page_body, page_head

HOSTILE = "</script><script>alert(1)</script>{{style}}&<b>\u2028"


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return imcc.compile(model, (torch.rand(1, 6),), calibration=[(torch.rand(8, 6),)], name="mlp")


def part(text, identifier):
    return re.search(rf'<script type="[^"]*" id="{identifier}">(.*?)</script>', text, re.DOTALL)[1]


def test_the_page_holds_what_was_compiled(compiled):
    text = page(compiled)
    assert json.loads(part(text, "head")) == json.loads(json.dumps(page_head(compiled)))
    body = json.loads(zlib.decompress(base64.b64decode(part(text, "body"))))
    assert body == json.loads(json.dumps(page_body(compiled)))
    assert len(body["history"]["stages"]) == len(compiled.records) + 1
    assert {item["name"] for item in body["ops"]["inference"]} == {
        op.results[0].name for op in compiled.module.function().ops if op.results
    }
    first = page_head(compiled)
    assert [item["promise"] for item in first["stages"][1:3]] == [
        "exact",
        first["stages"][2]["promise"],
    ]
    assert (
        sum(layer["energy_pj"] for layer in first["top_layers"]) <= compiled.report()["energy_pj"]
    )


def test_it_is_the_same_each_time(compiled, tmp_path):
    compiled.save(tmp_path / "art")
    assert page(compiled) == page(compiled) == page(imcc.load(tmp_path / "art"))


def test_only_its_own_script_and_style_may_run(compiled):
    text = page(compiled)
    policy = html.unescape(re.search(r'Policy" content="([^"]*)"', text)[1])
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for element in ("script", "style"):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    outside = set(re.findall(r"https?://[^\s\"'<]*", text))
    assert outside == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe)(?![^>]*data:)", text)


def test_names_cannot_leave_their_place(compiled):
    report = compiled.report()
    report["model"]["name"] = HOSTILE
    report["entry_points"]["inference"]["layers"][0]["name"] = HOSTILE
    text = page(dataclasses.replace(compiled, report_data=report))
    assert "alert(1)</script>" not in text
    assert text.count("<script") == page(compiled).count("<script") == 3
    head = json.loads(part(text, "head"))
    assert head["model"]["name"] == HOSTILE
    title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1]
    assert html.unescape(title) == f"{HOSTILE} - imcc"


def test_without_a_history_there_is_the_program_alone(compiled):
    bare = dataclasses.replace(compiled, history=None)
    head, body = page_head(bare), page_body(bare)
    assert not head["recorded"] and len(head["stages"]) == 1
    assert any("xbar.mvm" in line for line in body["history"]["lines"])
    # Files that a loaded program names are not read into the page.
    assert body["history"]["sources"] == {}


def test_a_target_without_hardware_has_a_page():
    made = imcc.compile(nn.ReLU(), (torch.rand(1, 4),), target="reference")
    body = page_body(made)
    assert body["placement"] == {"inference": None} and body["tracks"] == {"inference": []}
    assert "no hardware" in body["ops"]["inference"][0]["unknown"]
    assert page(made).startswith("<!doctype html>")


def test_imcc_view_writes_the_page(compiled, tmp_path, capsys):
    compiled.save(tmp_path / "art")
    assert main(["view", str(tmp_path / "art")]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "art.html" in shown.err
    assert (tmp_path / "art.html").read_text(encoding="utf-8") == page(compiled)
    assert main(["view", str(tmp_path / "art")]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "art"), "-o", str(tmp_path / "new" / "p.html")]) == 0
    assert main(["view", str(tmp_path / "art"), "--force"]) == 0
    assert main(["view", str(tmp_path / "none"), "-o", str(tmp_path / "q.html")]) == 1
    assert not (tmp_path / "q.html").exists()
