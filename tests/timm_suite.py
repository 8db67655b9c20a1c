"""Run timm's own model tests on our variants: ``python tests/timm_suite.py`` (three to five minutes on two cores).

Downloads the sources of the installed timm with pip into a temporary folder and runs their ``tests/test_models.py``
with timm's list of models narrowed to ours. Further arguments go to pytest, for example ``-k "fx and tiny"``.

Our variants stand where timm's own sequence-token transformers stand (its NON_STD_FILTERS and FEAT_INTER_FILTERS).
Left out are tests that need published weights, tests of models that timm names one by one, and NCHW features of the
1D variants: a pooled sequence has no grid, so that they refuse it (tests/test_contract.py).
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PLUGIN = """
import psvit
import timm

every_model = timm.list_models


def list_models(filter="", module="", pretrained=False, exclude_filters="", **kwargs):
    one_by_one = isinstance(filter, str) and filter
    spatial_only = "pit_*" in exclude_filters
    if pretrained or one_by_one or spatial_only:
        return []
    return every_model("psvit_2d*" if module else "psvit_*", **kwargs)


timm.list_models = list_models
timm.list_pretrained = lambda *args, **kwargs: []


def pytest_collection_modifyitems(config, items):
    def is_ours(item):
        return hasattr(item, "callspec") and str(item.callspec.params.get("model_name")).startswith("psvit_")

    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = filter(is_ours, items)
"""


def main(arguments: list[str]) -> int:
    """Download, narrow, run; returns pytest's exit code."""
    timm = f"timm-{version('timm')}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        download = ["download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        wanted = timm.replace("-", "==")
        subprocess.run([sys.executable, "-m", "pip", *download, "--dest", folder, wanted], check=True)
        with tarfile.open(folder / f"{timm}.tar.gz") as sources:
            sources.extractall(folder, filter="data")
        (folder / timm / "tests" / "psvit_only.py").write_text(PLUGIN)
        command = [sys.executable, "-m", "pytest", "-p", "tests.psvit_only", "tests/test_models.py", "-W", "ignore"]
        return subprocess.run([*command, "-n", "2", *arguments], cwd=folder / timm).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
