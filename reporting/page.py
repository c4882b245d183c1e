"""The page that a report is: figures on disk and in the text, and one HTML file from the template."""

import base64
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from reporting.figures import save_figures
from util import write_whole

Figures = dict[str, tuple[Figure, str, str]]
"""Name to figure, title, caption."""


def keep_figures(folder: Path, figures: Figures) -> list[dict]:
    """Write the figures' files; what is returned is how the page holds them."""
    save_figures(folder, {name: figure for name, (figure, _, _) in figures.items()})
    return [
        {
            "name": name,
            "title": title,
            "caption": caption,
            "alt": f"{title}: see the caption",
            "png": base64.b64encode((folder / f"{name}.png").read_bytes()).decode(),
            "inches": figure.get_figwidth(),
            "wide": figure.get_figwidth() > 4,  # Inches; on a phone these scroll, the others fit.
        }
        for name, (figure, title, caption) in figures.items()
    ]


def write_page(path: Path, content: dict) -> Path:
    """Fill the template; one file, whole or not at all."""
    loader = jinja2.FileSystemLoader(Path(__file__).resolve().parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = environment.get_template("page_template.html").render(content)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
