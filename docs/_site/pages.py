"""The pages that are written from the code: each wheel, its API, every command, every configuration section."""

from pathlib import Path

from api_pages import api_page
from command_pages import command_page
from config_pages import config_page
from links import COPIES, rewrite

from automodel_recipes.schema import RECIPES

WHEELS = ("core", "parallel", "kernels", "data", "ckpt", "recipes")


def write_pages(folder: Path) -> None:
    """Write every generated page; a page whose text has not changed keeps its time stamp, so Sphinx skips it."""
    for name in WHEELS:
        write(folder / f"api/{name}.md", api_page(f"automodel_{name}"))
    for recipe in RECIPES:
        write(folder / f"config/{recipe}.md", config_page(recipe))
    write(folder / "commands.md", command_page())
    for source, copy in COPIES.items():
        if source.is_file():
            write(copy, rewrite(source.read_text(encoding="utf-8"), here=source.parent, target=copy.parent))


def write(page: Path, text: str) -> None:
    """Write one page where it differs from what is there."""
    page.parent.mkdir(parents=True, exist_ok=True)
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
