"""The how-to pages for extending imcc: their code blocks are the plugin's files, and they run.

``pytest tests/plugin --update-golden`` writes the plugin's files into the pages.
"""

import numpy as np
import pytest

from tests.plugin.fresh import BLOCK, MODEL, PACKAGE, blocks, call, commands, page, register

# What a newcomer writes, counted in files without pyproject.toml and tests; and the lines added to
# pyproject.toml besides the heads of tables.
PAGES = {
    "add-an-op": (["dialect.py", "semantics.py"], ["crossbar_rules.py", "layers.py"], 3),
    "add-a-pass": (["clip_activations.py", "clip-activations.imc"], [], 1),
    "add-a-noise-model": (["noise.py"], [], 1),
    "add-a-target": (["fine_adc.toml"], [], 1),
    "add-a-backend": (None, [], 1),
}
SAID = {
    "add-an-op": ["magnitudes up to this become 0", "write"],
    "add-a-pass": ["largest value that is kept", "{minimum = 0.0, maximum = 4.0"],
    "add-a-noise-model": ["sigma_log = 0.1"],
    "add-a-target": ["[crossbar] rram with 64 rows and 9-bit", "rows = 64"],
    "add-a-backend": ["count = 64", "on lanes64 (target", "64 lanes"],
}


@pytest.mark.parametrize("name", PAGES)
def test_blocks_are_the_files_of_the_plugin(name, request):
    if request.config.getoption("--update-golden"):
        text = page(name).read_text()

        def fill(found):
            file = PACKAGE / found[1]
            content = found[3] if found[1] == "pyproject.toml" or not file.exists() else None
            content = file.read_text() if content is None else content
            return f"`{found[1]}`:\n\n```{found[2]}\n{content}```"

        page(name).write_text(BLOCK.sub(fill, text))
    project = (PACKAGE / "pyproject.toml").read_text()
    for path, content in blocks(name):
        if path == "pyproject.toml":
            assert content in project
        elif path != "model.py":
            assert content == (PACKAGE / path).read_text(), f"{path}: run with --update-golden"


@pytest.mark.parametrize("name", PAGES)
def test_page_alone_makes_a_package_that_works(name, tmp_path):
    needed, optional, lines = PAGES[name]
    project = '[project]\nname = "imcc-example"\nversion = "1.0"\n'
    (tmp_path / "model.py").write_text(MODEL)
    np.savez(tmp_path / "inputs.npz", x=np.ones((4, 8), np.float32))
    written = []
    for path, content in blocks(name):
        if path == "pyproject.toml":
            project += content
            lines -= sum(" = " in line for line in content.splitlines())
            continue
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        written.append(file)
    (tmp_path / "pyproject.toml").write_text(project)
    for folder in tmp_path.glob("imcc_example/**/"):
        (folder / "__init__.py").touch()
    register(tmp_path)
    said = ""
    for code, out, err in call(tmp_path, commands(name), tmp_path):
        assert code == 0, err
        said += out
    for words in SAID[name]:
        assert words in said
    counted = [file.name for file in written if file.parent.name != "tests"]
    counted = [item for item in counted if item not in (*optional, "model.py")]
    if needed is None:
        backend = [file for file in written if file.parent.name != "tests"]
        assert all("nearmem" in file.parts for file in backend), "a backend is one folder"
    else:
        assert counted == needed
    assert lines == 0
