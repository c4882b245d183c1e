"""Look at one text at a time, in a browser: what a run's models make of it, how odd it is to detectors, where [CLS] looks.

    python demo.py                                             # the run that run_all.py made with the same flags
    python demo.py --preset sst2 --attack HiddenKiller --detectors DAN STRIP
    pip install gradio                                         # once: it is optional

The page is for this machine alone unless --host says otherwise; no link is shared, and nothing is sent anywhere. What it
shows is of the run's own triggers: no answer here says that an encoder is clean.
"""

import importlib.util
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attacks import ATTACKS
from config import Config, check_ranges, parse, plain_config, preset_config
from defences import DEFENCES
from util import UserError, first_line, run_script

if TYPE_CHECKING:
    import gradio

    from detection.one_text import Examiner

HINT = "A text, one sentence or more"


@dataclass(frozen=True)
class Demo(Config):
    """Which run, as for run_all.py, and how it is shown."""

    detectors: tuple[str, ...] = ("DAN", "BadActs", "STRIP")
    """Detectors, of DAN, BadActs, STRIP, RAP, that say how odd a text is to the fine-tuned and to the defended model."""
    allowed: float = 0.05
    """Share of clean texts that may be called odd, 0 to 1."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine's."""
    port: int = 7860
    """Port to listen at."""


def build(examiner: "Examiner") -> "gradio.Blocks":
    """The page."""
    import gradio
    import pandas as pd

    from detection.one_text import put_in
    from reporting.run_figures import attention_figure

    def look(text: str) -> tuple:
        text = text.strip()
        if not text:
            return None, None, None
        told = [  # In few letters: a phone is narrow.
            (
                f"{row.detector}, {row.model}",
                f"{row.score:.2g} > {row.threshold:.2g}: odd" if row.odd else f"{row.score:.2g} ≤ {row.threshold:.2g}",
            )
            for row in examiner.scores(text).itertuples()
        ]
        scores = pd.DataFrame(told, columns=["detector, model", "score"])
        return examiner.answers(text), scores, attention_figure(*examiner.attention(text))

    config = examiner.config
    known = config.attack in ATTACKS
    with gradio.Blocks(title="One text", analytics_enabled=False) as page:
        what = f"{config.attack} was planted" if known else "no attack is known"
        gradio.Markdown(
            f"# One text\nPreset {config.preset}, seed {config.seed}: {what}; the defence is {config.defence}. The released "
            "encoder has no head of its own: here it has one that was fitted on its [CLS] states."
        )
        text = gradio.Textbox(label="Text", placeholder=HINT, lines=3, elem_id="text")
        with gradio.Row():
            button = gradio.Button("Look at it", variant="primary")
            inserts = [(trigger, gradio.Button(f"Insert “{trigger}”")) for trigger in examiner.triggers()]
            turn = gradio.State(0)
            clean = gradio.Button("A clean test text")
            triggered = gradio.Button("A triggered test text") if known else None
        answers = gradio.Dataframe(label="Predictions", interactive=False, elem_id="answers")
        scores = gradio.Dataframe(label="Detectors: odd above the threshold", interactive=False, elem_id="scores")
        gradio.Markdown("[CLS] attention by layer, mean over heads")
        attention = gradio.Plot(show_label=False, elem_id="attention")
        shown = [answers, scores, attention]
        button.click(look, text, shown, api_name=False)
        text.submit(look, text, shown, api_name=False)
        for trigger, insert in inserts:
            changed = insert.click(lambda given, trigger=trigger: put_in(given, trigger), text, text, api_name=False)
            changed.then(look, text, shown, api_name=False)
        for choice, pick in ((clean, examiner.clean_text), (triggered, examiner.triggered_text)):
            if choice:
                picked = choice.click(lambda at, pick=pick: (pick(at), at + 1), turn, [text, turn], api_name=False)
                picked.then(look, text, shown, api_name=False)
    return page


def require_address(host: str, port: int) -> None:
    """Raise a UserError, before models are loaded, if nothing can listen there."""
    try:
        if port == 0:
            raise ValueError("0 is no port of a page")
        socket.create_server((host, port)).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"nothing can listen at {host}, port {port} ({first_line(error)}); give another --port, 1 to 65535, that nobody "
            "uses, or an address of this machine as --host"
        ) from None


def main() -> None:
    demo = parse(Demo, lambda preset: Demo(**vars(preset_config(preset))), __doc__, ATTACKS, DEFENCES, None)
    check_ranges(demo)
    require_address(demo.host, demo.port)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio, which isn't installed; install it with: pip install gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from detection.one_text import examine

    page = build(examine(plain_config(demo), demo.detectors, demo.allowed))
    page.launch(server_name=demo.host, server_port=demo.port, share=False, show_error=True, footer_links=[])


if __name__ == "__main__":
    run_script(main)
