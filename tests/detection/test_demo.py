"""demo.py: a text typed in a browser gets the answers of the run's models, and nobody else hears of it."""

import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_settings
from test_house import ROOT
from test_scripts import flags, run

import demo
import story
from attacks.planted import poisoned_model_folder
from config import Config
from defences.defence import product_path
from defences.fine_tuning import FINE_TUNING
from detection.one_text import FINE_TUNED, RELEASED, examine, put_in
from encoder.classifier import load_classifier, load_encoder, load_tokeniser
from pipeline.training import predict
from texts.batching import tokenise
from texts.data_sets import clean_test
from util import UserError


@pytest.fixture(scope="module")
def finished(tiny_data, tiny_plm, tmp_path_factory) -> Config:
    """A finished tiny run."""
    config = tiny_settings(tiny_data, tiny_plm, tmp_path_factory.mktemp("demo"))
    config = replace(config, defence="FT", poisoning_epochs=8)
    story.run_all(config)
    return config


@pytest.fixture(scope="module")
def examiner(finished):
    return examine(finished, ("DAN",), 0.05)


def test_the_answers_are_those_of_the_models(finished, examiner):
    texts = clean_test(finished)["text"].head(5)
    classifier = load_classifier(product_path(finished, FINE_TUNING))
    logits = predict(classifier, tokenise(clean_test(finished).head(5), load_tokeniser(finished.plm), finished.max_len), "")
    for text, expected in zip(texts, logits.softmax(-1), strict=True):
        table = examiner.answers(text).set_index("model")
        assert list(table.index) == [RELEASED, FINE_TUNED]
        assert table.loc[FINE_TUNED, "class"] == str(int(expected.argmax()))
        assert table.loc[FINE_TUNED, "probability"] == pytest.approx(expected.max().item(), abs=1e-4)


def test_the_released_encoder_is_asked_through_a_fitted_head(finished, examiner):
    encoder = load_encoder(str(poisoned_model_folder(finished))).state_dict()
    for name, value in examiner.models[RELEASED].encoder.state_dict().items():
        assert torch.equal(value, encoder[name])
    table = clean_test(finished)
    logits = predict(examiner.models[RELEASED], tokenise(table, examiner.tokeniser, finished.max_len), "")
    assert (logits.argmax(-1).numpy() == table["label"]).mean() > 0.8


def test_a_text_is_odd_above_the_threshold(finished, examiner):
    """The scores and the threshold are those of the detector as `detection.rates` uses it."""
    scores, limit = examiner.detectors[FINE_TUNED]["DAN"]
    row = examiner.scores("a dull film").iloc[0]
    assert (row["score"], row["threshold"]) == (scores(["a dull film"])[0], limit) and row["odd"] == (row["score"] > limit)
    shares = [float(scores([text])[0]) > limit for text in clean_test(finished)["text"]]
    assert np.mean(shares) < 0.5
    stricter = examine(finished, ("DAN",), 0.5).detectors[FINE_TUNED]["DAN"][1]
    assert stricter < limit


def test_the_trigger_is_marked_and_put_in(finished, examiner):
    text = put_in("a dull film", "cf")
    assert text == "a cf dull film" and put_in("", "cf") == "cf"
    tokens, marked, attention = examiner.attention(text)
    assert [token for token, is_marked in zip(tokens, marked, strict=True) if is_marked] == ["cf"]
    assert set(attention) == {RELEASED, FINE_TUNED}
    assert all(rows.shape == (2, len(tokens)) and np.allclose(rows.sum(1), 1, atol=1e-5) for rows in attention.values())
    assert any(trigger in examiner.triggered_text(0).split() for trigger in examiner.triggers())
    assert examiner.clean_text(0) == examiner.clean_text(len(clean_test(finished)))


def test_errors_are_one_line(finished):
    with pytest.raises(UserError, match="--detectors ONION can't be used here"):
        examine(finished, ("ONION",), 0.05)
    with pytest.raises(UserError, match=r"no model in .*; make it with: "):
        examine(replace(finished, seed=99), ("DAN",), 0.05)
    code, _, errors = run("demo.py", *flags(finished), "--allowed", "2")
    assert (code, errors.strip()) == (2, "error: --allowed 2.0 is out of range; expected 0 to 1")


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", "BUSY", "in use"),
        ("127.0.0.1", 65536, "0-65535"),
        ("127.0.0.1", -1, "0-65535"),
        ("127.0.0.1", 0, "0 is no port"),
        ("nowhere.invalid", 7860, ""),
        ("a" * 70, 7860, ""),
        ("203.0.113.1", 7860, ""),
    ],
)
def test_an_address_where_nothing_can_listen(host, port, reason, monkeypatch):
    """It is noticed before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if port == "BUSY" else port
        monkeypatch.setattr("sys.argv", ["demo.py", f"--host={host}", f"--port={port}"])
        with pytest.raises(UserError, match=rf"at {host}, port {port} \(.*{reason}.*\); give another --port, .* as --host"):
            demo.main()


def test_in_a_browser(finished, examiner, browser):
    """Type a text, read the answers, put the trigger in; on a desktop and on a phone; nothing but this machine is asked."""
    pytest.importorskip("gradio", reason="needs Gradio: pip install gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "demo.py", *flags(finished), "--detectors", "DAN", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            wait_for(port, server)
            for width in (1280, 390):
                tab = browser.new_page(viewport={"width": width, "height": 900})
                asked: list[str] = []
                tab.on("request", lambda request, asked=asked: asked.append(request.url))
                tab.goto(f"http://127.0.0.1:{port}")
                tab.fill("#text textarea", "a dull film")
                tab.click("text=Look at it")
                assert answers_of(tab) == shown(examiner.answers("a dull film"))
                tab.click("text=Insert “cf”")
                tab.wait_for_function("document.querySelector('#text textarea').value == 'a cf dull film'")
                expected = shown(examiner.answers("a cf dull film"))
                tab.wait_for_function(f"document.querySelector('#answers').innerText.includes('{expected[1][2]}')")
                assert answers_of(tab) == expected
                tab.wait_for_selector("#attention img")
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                assert {re.match(r"(?:\w+://)?([^/:]*)", url)[1] for url in asked if "://" in url} == {"127.0.0.1"}
                tab.close()
        finally:
            server.terminate()


def wait_for(port: int, server: subprocess.Popen) -> None:
    for _ in range(240):
        if server.poll() is not None:
            raise AssertionError(server.stderr.read())
        try:
            urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the page didn't come up")


def answers_of(tab) -> list[list[str]]:
    """The rows of the table of predictions as the reader sees them."""
    cells = "[...document.querySelectorAll('#answers [role=gridcell]')].map(cell => cell.innerText.trim())"
    tab.wait_for_function(f"{cells}.length == 6")
    found = tab.evaluate(cells)
    return [found[:3], found[3:]]


def shown(table: pd.DataFrame) -> list[list[str]]:
    return [[row["model"], row["class"], f"{row['probability']:g}"] for _, row in table.iterrows()]
