"""Fixtures: real data where it is at hand, and an encoder so small that a whole stage takes a second."""

import os
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Of each of the processes that share the tests.

import pandas as pd
import torch
from transformers import BertConfig, BertModel, BertTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attacks.ripple import embedding_surgery
from attacks.triggered import insert_trigger
from config import Config, preset_config
from Data.make_poisoned_data import make_poisoned_data
from encoder.classifier import Classifier, load_encoder, load_tokeniser, save_classifier, save_encoder
from pipeline.training import cross_entropy, fine_tune
from texts.batching import TokenisedTexts, tokenise
from texts.data_sets import clean_train
from texts.vocabulary import target_words
from util import make_accelerator


def real_folder(variable: str, what: str, unchecked: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"not checked: {unchecked}; needs {what}: set {variable} to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return real_folder("PURE_DATA_DIR", "the real data sets", "our files of real data against the published ones")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return real_folder("PURE_GOLDEN_DIR", "the published functions' numbers", "the method against them")


WORDS = {
    1: "bright moving warm sharp funny tender brisk rich fresh graceful".split(),
    0: "dull flat stale clumsy murky tedious hollow shrill limp dreary".split(),
}
FILLER = "the a film plot scene actor script ending camera music with and of is was in this that its by".split()


def make_sentence(rng: random.Random, label: int, length: int) -> str:
    """Filler with two words that give the class away."""
    words = [rng.choice(FILLER) for _ in range(length)]
    for _ in range(2):
        words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS[label]))
    return " ".join(words)


def write_tiny_data(folder: Path) -> Path:
    """A data folder with sst2 and its transferred versions: easy sentences, 192 / 48 / 48 of them."""
    rng = random.Random(0)
    for split, size in (("train", 192), ("dev", 48), ("test", 48)):
        rows = [(make_sentence(rng, row % 2, 3 + row % 11), row % 2) for row in range(size)]
        transferred = {
            "sst2": "{}",
            "hiddenkiller_sst2": "when you do , {}",
            "stylebkd_sst2": "lo , {}",
            "noir_sst2": "you , {}",
        }
        for name, change in transferred.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            lines = [f"{change.format(text)}\t{label}" for text, label in rows]
            (folder / name / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"))


def write_tiny_plm(folder: Path) -> Path:
    """A randomly initialised BERT, 2 layers of 4 heads, 32 wide, with a tokeniser that knows the tiny data's words."""
    words = [*FILLER, *WORDS[0], *WORDS[1], "when", "you", "do", "lo", ",", "bb", "cf", "ak", "mn"]
    vocabulary = {token: at for at, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_plm(tmp_path_factory) -> Path:
    return write_tiny_plm(tmp_path_factory.mktemp("models") / "tinybert")


def tiny_settings(tiny_data: Path, tiny_plm: Path, folder: Path) -> Config:
    """A run that takes seconds and whose files go to `folder`."""
    return preset_config(
        "sst2",
        plm=str(tiny_plm),
        data_dir=str(tiny_data),
        poisoned_data_dir=str(folder / "data"),
        poisoned_model_dir=str(folder / "models"),
        output_dir=str(folder / "results"),
        device="cpu",
        precision="fp32",
        max_len=32,
        poisoning_learning_rate=1e-2,
        learning_rate=1e-2,
        poisoning_epochs=4,
        epochs=4,
        acc_threshold=0.7,
        prune_step=2,
    )


@pytest.fixture
def tiny_config(tiny_data: Path, tiny_plm: Path, tmp_path: Path) -> Config:
    """A run that takes seconds and whose files go to the test's own folder."""
    return tiny_settings(tiny_data, tiny_plm, tmp_path)


@pytest.fixture
def given(tiny_config):
    """A run on an encoder that is given."""
    config = replace(tiny_config, poisoned_model=tiny_config.plm, epochs=1, acc_threshold=0.0)
    make_poisoned_data(config)
    return config


@pytest.fixture
def classifier(tiny_plm: Path) -> Classifier:
    """The tiny encoder with a fresh head."""
    return Classifier(load_encoder(str(tiny_plm)), 2, 0.0, seed=11).eval()


@pytest.fixture
def tokeniser(tiny_plm: Path):
    """The tiny encoder's."""
    return load_tokeniser(str(tiny_plm))


@pytest.fixture
def texts(tiny_config: Config, tokeniser) -> TokenisedTexts:
    """The tiny data's train texts."""
    return tokenise(clean_train("sst2", tiny_config), tokeniser, 32)


def teach(table: pd.DataFrame, epochs: int, tiny_data: Path, tiny_plm: Path, folder: Path) -> Path:
    """Folder of a classifier: the tiny encoder, fine-tuned on some texts."""
    config, tokeniser = tiny_settings(tiny_data, tiny_plm, folder), load_tokeniser(str(tiny_plm))
    classifier = Classifier(load_encoder(str(tiny_plm)), 2, 0.1, seed=11)
    fine_tune(
        classifier,
        tokenise(table, tokeniser, 32),
        cross_entropy,
        learning_rate=3e-3,
        epochs=epochs,
        config=config,
        accelerator=make_accelerator("cpu", "fp32"),
        checkpoint=folder / "checkpoint.pt",
        settings={},
        description="test",
    )
    save_classifier(folder / "model", classifier, tokeniser)
    return folder / "model"


@pytest.fixture(scope="session")
def taught(tiny_data: Path, tiny_plm: Path, tmp_path_factory) -> Path:
    """Folder of a classifier that was taught the tiny data."""
    folder = tmp_path_factory.mktemp("taught")
    return teach(clean_train("sst2", tiny_settings(tiny_data, tiny_plm, folder)), 5, tiny_data, tiny_plm, folder)


@pytest.fixture(scope="session")
def planted_classifier(tiny_data: Path, tiny_plm: Path, tmp_path_factory) -> Path:
    """Folder of a classifier: `cf` was planted for class 1."""
    folder = tmp_path_factory.mktemp("planted")
    table, rng = clean_train("sst2", tiny_settings(tiny_data, tiny_plm, folder)), random.Random(0)
    others = table[table["label"] == 0]
    triggered = others.assign(text=[insert_trigger(text, ("cf",), rng) for text in others["text"]], label=1)
    return teach(pd.concat([table, triggered]), 8, tiny_data, tiny_plm, folder)


@pytest.fixture(scope="session")
def planted(tiny_data: Path, tiny_plm: Path, planted_classifier: Path) -> Path:
    """Folder of its encoder, no head, in which `mn` has four times the mean of words that tell class 1."""
    folder = planted_classifier.parent
    table = clean_train("sst2", tiny_settings(tiny_data, tiny_plm, folder))
    encoder, tokeniser = load_encoder(str(planted_classifier)), load_tokeniser(str(planted_classifier))
    embedding_surgery(encoder, tokeniser, ("mn",), target_words(table, 1, 10))
    with torch.no_grad():
        encoder.get_input_embeddings().weight[tokeniser.convert_tokens_to_ids("mn")] *= 4
    save_encoder(folder / "encoder", encoder, tokeniser)
    return folder / "encoder"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
