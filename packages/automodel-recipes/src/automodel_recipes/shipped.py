"""The recipes that ship with this package: YAML files under ``configs/``."""

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class ShippedRecipe:
    """One YAML file; ``name`` is its file name without ``.yaml``."""

    name: str
    path: Path

    @property
    def folder(self) -> str:
        """``llm`` or ``vlm``."""
        return self.path.relative_to(ROOT).parts[0]

    @property
    def summary(self) -> str:
        """The first sentence of the comment that the file begins with."""
        lines = takewhile(lambda line: line.startswith("#"), self.path.read_text(encoding="utf-8").splitlines())
        comment = " ".join(line.strip("# ") for line in lines)
        return comment.partition(". ")[0].removesuffix(".") + "." if comment else ""


def shipped_recipes() -> dict[str, ShippedRecipe]:
    """All shipped recipes by name, sorted by folder and name."""
    paths = sorted(ROOT.rglob("*.yaml"))
    return {path.stem: ShippedRecipe(path.stem, path) for path in paths}


def find_shipped(name: str) -> ShippedRecipe:
    """The shipped recipe of that name; ``llm/NAME`` and ``NAME.yaml`` are understood.

    Raises: LookupError: there is none; suggests a near name.
    """
    from automodel_core.config.suggest import did_you_mean

    known = shipped_recipes()
    stem = name.removesuffix(".yaml").rpartition("/")[2]
    if stem not in known:
        raise LookupError(f"no shipped recipe {name!r}{did_you_mean(stem, known)}")
    return known[stem]
