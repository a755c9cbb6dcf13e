"""No gadget passes static validation as a good target: it is refused, or left to the check after import."""

import json
from pathlib import Path

import pytest

from automodel_core.config import Policy
from automodel_core.config.kinds import KINDS
from automodel_core.config.load import config_from_dict
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.target import check_target

TABLE = Path(__file__).parents[3] / "automodel-core" / "tests" / "config" / "gadgets.json"
GADGETS = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}

pytestmark = pytest.mark.skipif(not GADGETS, reason="the table of gadgets lies in the workspace, not in this package")


def verdict(target, kind):
    """What static validation says: ``refused``, ``left open`` or ``accepted``."""
    report = Report(Policy())
    check_target(config_from_dict({"_target_": target}).tree, "optimizer", report, kind=kind)
    missing = [problem for problem in report.problems if "needs '" in problem.message]
    refused = len(report.problems) > len(missing)
    return "refused" if refused else "left open" if report.deferred else "accepted"


@pytest.mark.parametrize("name", GADGETS)
def test_none_is_accepted(name):
    kinds = [KINDS["optimizer"]] if name.startswith("the wrong kind") else [KINDS["optimizer"], KINDS["dataset"], None]
    verdicts = {(target, kind and kind.name): verdict(target, kind) for target in GADGETS[name] for kind in kinds}
    assert [key for key, value in verdicts.items() if value == "accepted"] == []


def test_an_optimizer_is_accepted():
    assert verdict("torch.optim.SGD", KINDS["optimizer"]) == "accepted"
