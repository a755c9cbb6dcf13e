"""The real meta wheels of Transformer Engine (a megabyte each, pure Python), read with ``ast``, never imported."""

import ast
import os
import subprocess
import sys
import zipfile

import pytest

VERSIONS = ("2.4.0", "2.9.0", "2.20.2")
FILES = {
    "Linear": "module/linear.py",
    "RMSNorm": "ops/basic/rmsnorm.py",
    "DotProductAttention": "attention/dot_product_attention/dot_product_attention.py",
}


class Wheel:
    """Signatures of one release."""

    def __init__(self, path, version):
        self.version = version
        self.archive = zipfile.ZipFile(path)

    def tree(self, name):
        return ast.parse(self.archive.read(f"transformer_engine/{name}"))

    def has(self, name):
        return f"transformer_engine/{name}" in self.archive.namelist()

    def signature(self, file, dotted):
        """The ``ast.arguments`` of a function or method."""
        body = self.tree(file).body
        for part in dotted.split("."):
            node = next(n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == part)
            body = node.body
        return node.args

    def parameters(self, file, dotted):
        args = self.signature(file, dotted)
        return [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]

    def exports(self):
        nodes = self.tree("pytorch/__init__.py").body
        return {alias.asname or alias.name for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}


@pytest.fixture(scope="session", params=VERSIONS)
def wheel(request, tmp_path_factory):
    """A real wheel: from ``AUTOMODEL_TE_WHEELS``, or downloaded by pip; skips with the reason when it cannot be had."""
    folder = os.environ.get("AUTOMODEL_TE_WHEELS") or str(tmp_path_factory.mktemp("te"))
    name = f"transformer_engine-{request.param}-py3-none-any.whl"
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        done = subprocess.run([*command, f"transformer_engine=={request.param}"], capture_output=True, text=True)
        if done.returncode or not os.path.exists(path):
            pytest.skip(f"the wheel {name} cannot be had: {done.stderr.strip()[-200:]}")
    return Wheel(path, request.param)
