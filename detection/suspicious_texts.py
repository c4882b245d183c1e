"""What the fine-tuned and the purified model of a run make of texts that look suspicious.

    python -m detection.suspicious_texts --poisoned_model ENCODER --clean_dataset my.csv --suspicious_texts texts.txt

`run_all.py` does this too where `--suspicious_texts` is given. A prediction that PURE changes may be a backdoor's; it may
also be a text that is hard to tell. One that stays the same proves nothing.

In the file, a text that begins with =, +, -, @ or a tab has an apostrophe in front: people open it in spreadsheets, which
run such texts as formulas.
"""

import textwrap
from pathlib import Path

import pandas as pd
import torch

from attacks import ATTACKS
from config import Config, parse_config
from defences import DEFENCES
from defences.defence import defended_model_folder, run_folder
from defences.fine_tuning import fine_tuned_model_folder
from defences.shared import require_same_texts
from encoder.classifier import load_classifier, load_tokeniser
from pipeline.runs import command
from pipeline.training import predict
from texts.batching import tokenise
from texts.data_sets import defender_splits
from texts.tables import read_texts
from util import UserError, make_accelerator, printable, run_script, write_whole

SHOWN = 10
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def compare_predictions(config: Config) -> pd.DataFrame:
    """Classify the texts with the fine-tuned and the defended model, in fp32; write suspicious_texts.csv.

    Returns:
        A row per text: text; before, after: names of the predicted classes; before_probability, after_probability: theirs;
        changed; oddness, DAN's score by the fine-tuned model, and its threshold, above which a share of `ALLOWED` of
        held-out clean texts are; both are missing where there are too few validation texts.

    Raises:
        UserError: no texts, or the run isn't finished or its texts have changed.
    """
    from detection.dan import states_of
    from detection.detector import Watched
    from detection.oddness import fit_oddness

    if config.suspicious_texts is None:
        raise UserError("no texts are named; give a file with --suspicious_texts")
    texts = read_texts(Path(config.suspicious_texts), config.text_column)
    folders = {"before": fine_tuned_model_folder(config), "after": defended_model_folder(config)}
    for folder in folders.values():
        if not folder.exists():
            raise UserError(f"no model in {folder}; make it with: {command('run_all.py', config)}")
    require_same_texts(config)
    device = make_accelerator(config.device, config.precision).device
    table = pd.DataFrame({"text": texts})
    for name, folder in folders.items():
        classifier = load_classifier(folder).to(device)
        tokenised = tokenise(table.assign(label=0), load_tokeniser(str(folder)), config.max_len)
        probability, predicted = predict(classifier, tokenised, "suspicious texts").softmax(-1).max(-1)
        table[name] = [classifier.encoder.config.id2label[number] for number in predicted.tolist()]
        table[f"{name}_probability"] = torch.round(probability, decimals=4).double().round(decimals=4).tolist()
        if name == "before":
            watched = Watched(classifier, load_tokeniser(str(folder)), config.max_len, config.seed)
            found = fit_oddness(watched, defender_splits(config)[1])
    table["changed"] = table["before"] != table["after"]
    if found:
        table["oddness"], table["threshold"] = found[0].scores(states_of(watched, texts)).round(4), round(found[1], 4)
    safe = table.assign(text=[f"'{text}" if text.startswith(FORMULA) else text for text in texts])
    write_whole(run_folder(config) / "suspicious_texts.csv", lambda temporary: safe.to_csv(temporary, index=False))
    return table


def print_comparison(table: pd.DataFrame, config: Config) -> None:
    """How many predictions changed, and the first of them."""
    changed = table[table["changed"]]
    print(f"  {len(changed)} of {len(table)} predictions changed")
    for row in changed.head(SHOWN).itertuples():
        answers = f"{row.before} {row.before_probability:.2f} -> {row.after} {row.after_probability:.2f}"
        print(f"  {printable(answers)}  {textwrap.shorten(printable(row.text), 70, placeholder=' ...')}")
    if "oddness" in table:
        odd = (table["oddness"] > table["threshold"]).sum()
        print(f"  {odd} of {len(table)} texts are odd to the fine-tuned model (DAN above {table['threshold'].iloc[0]:.2f})")
    else:
        print("  how odd they are isn't told: there are too few validation texts to fit a score to")
    print(f"  all of them: {run_folder(config) / 'suspicious_texts.csv'}")


def main() -> None:
    config = parse_config(__doc__, ATTACKS, DEFENCES)
    print_comparison(compare_predictions(config), config)


if __name__ == "__main__":
    run_script(main)
