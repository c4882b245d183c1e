"""Write a run's purified classifier as a folder that plain transformers loads, with a model card.

    python export.py --poisoned_model FOLDER_OR_HUB_ID --clean_dataset my.csv    # the flags of the run

`run_all.py` does this at its end where no attack is named. The classifier of this project is one linear layer on the last
hidden state of the first token, and no class of transformers has such a head. But some have two linear layers with an
activation between them, and an activation that is 0 on one side can be undone:

    relu(x) - relu(-x) = x        gelu(x) - gelu(-x) = x

So the first layer computes every logit and its negative, and the second subtracts the one from the other.
"""

# Before torch, which reads when it is loaded how its threads are to wait.
from util import UserError, fingerprint_folder, load_json, make_accelerator, run_script, save_json, whole_folder

# isort: split
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from attacks import ATTACKS
from attacks.planted import measured_tables
from config import Config, parse_config
from defences import DEFENCES
from defences.defence import EXPORT, as_defence, product_path, record_path, run_folder
from defences.fine_tuning import fine_tuned_model_folder
from defences.shared import require_same_texts
from encoder.classifier import COUNT_FROM_PADDING, Classifier, load_classifier, load_tokeniser, save_encoder
from encoder.cls_attention import remove_pruned_heads
from encoder.trusted import is_python_only
from pipeline.runs import command
from pipeline.stage import alone
from pipeline.training import measure, metrics_of, predict
from reporting.model_card import model_card
from texts.batching import TokenisedTexts, batches_by_length, tokenise, tokens_per_batch
from texts.data_sets import clean_splits, clean_test, defender_splits
from texts.tables import doubts

if TYPE_CHECKING:  # Seconds to import, and a finished run needs none of it.
    import transformers

LARGEST_DIFFERENCE = 1e-4
"""Between logits of the exported model and of the one it was made from, as a share of the largest logit if that is above 1.
Rounding makes about 1e-6."""
COMPARED = 20
"""Clean test texts whose oddness is compared between the exported model and ours."""
SHRINK = 2.0**-20
"""Factor that makes a layer norm's input so small that its variance is nothing beside the norm's epsilon."""

# ------------------------------------------------------------------------------------- our head as a standard class


def standard_model(classifier: Classifier) -> "transformers.PreTrainedModel":
    """The same function from tokens to logits as a model of transformers, its pruned heads removed.

    Raises:
        UserError: transformers has no class that computes the same.
    """
    remove_pruned_heads(classifier.attention)
    encoder = classifier.encoder
    num_labels, width = classifier.head.weight.shape
    if 2 * num_labels > width:
        raise UserError(
            f"{num_labels} classes are too many to be exported: a head for plain transformers needs two channels per class, "
            f"and the encoder has {width}; {what_remains()}"
        )
    convert = CONVERT.get(encoder.config.model_type)
    if convert is None:
        raise UserError(
            f"transformers has no class that computes what a linear layer on a {type(encoder).__name__} does; expected one "
            f"of {', '.join(CONVERT)}; {what_remains()}"
        )
    model = convert(classifier)
    model.config.id2label = dict(encoder.config.id2label)
    model.config.label2id = dict(encoder.config.label2id)
    model.config.problem_type = "single_label_classification"
    return model.eval()


def what_remains() -> str:
    return "the model's folder is there all the same: encoder.classifier.load_classifier reads it, and AutoModel its encoder"


@torch.no_grad()
def fill_head(first: nn.Linear, second: nn.Linear, head: nn.Linear) -> None:
    """Two layers that make one: logits and their negatives, then the former less the latter; the other channels are 0."""
    classes = len(head.bias)
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.zero_()
    first.weight[:classes], first.bias[:classes] = head.weight, head.bias
    first.weight[classes : 2 * classes], first.bias[classes : 2 * classes] = -head.weight, -head.bias
    second.weight[:, :classes] = torch.eye(classes)
    second.weight[:, classes : 2 * classes] = -torch.eye(classes)


def as_electra(classifier: Classifier) -> "transformers.ElectraForSequenceClassification":
    """BERT, ELECTRA and RoBERTa's kin: their layers are the same, and ELECTRA's head is linear, gelu, linear.

    The others' own heads go through a tanh, which can't be undone. RoBERTa numbers positions from the padding token's number
    plus 1, so its position embeddings are taken from there; this holds for padding on the right.
    """
    import transformers

    encoder = classifier.encoder
    names = transformers.ElectraConfig().to_dict().keys() - {"model_type", "architectures", "embedding_size", "dtype"}
    config = transformers.ElectraConfig(**{name: value for name, value in encoder.config.to_dict().items() if name in names})
    config.embedding_size = getattr(encoder.config, "embedding_size", config.hidden_size)
    weights = dict(encoder.state_dict())
    if encoder.config.model_type in COUNT_FROM_PADDING:
        positions = weights["embeddings.position_embeddings.weight"][encoder.config.pad_token_id + 1 :]
        weights["embeddings.position_embeddings.weight"] = positions
        config.max_position_embeddings = len(positions)
    config.num_labels = len(classifier.head.bias)
    model = transformers.ElectraForSequenceClassification(config)
    model.electra.load_state_dict(weights)
    fill_head(model.classifier.dense, model.classifier.out_proj, classifier.head)
    return model


def as_distilbert(classifier: Classifier) -> "transformers.DistilBertForSequenceClassification":
    """DistilBERT's own head is linear, relu, linear."""
    import transformers

    config = type(classifier.encoder.config)(**classifier.encoder.config.to_dict())
    config.num_labels = len(classifier.head.bias)
    model = transformers.DistilBertForSequenceClassification(config)
    model.distilbert.load_state_dict(classifier.encoder.state_dict())
    fill_head(model.pre_classifier, model.classifier, classifier.head)
    return model


def as_modernbert(classifier: Classifier) -> "transformers.ModernBertForSequenceClassification":
    """ModernBERT's own head is linear, an activation of choice (none), layer norm, linear.

    Of logits and their negatives the mean is 0, so the norm divides by sqrt(variance + epsilon) alone. All are shrunk by
    `SHRINK`, which makes that sqrt(epsilon), off by a share of variance / (2 epsilon): below the rounding of fp32 for logits
    of any ordinary size. The last layer scales back.
    """
    import transformers

    config = type(classifier.encoder.config)(**classifier.encoder.config.to_dict())
    config.num_labels = len(classifier.head.bias)
    config.classifier_pooling, config.classifier_activation, config.classifier_bias = "cls", "linear", True
    model = transformers.ModernBertForSequenceClassification(config)
    model.model.load_state_dict(classifier.encoder.state_dict())
    fill_head(model.head.dense, model.classifier, classifier.head)
    with torch.no_grad():
        for parameter in model.head.dense.parameters():
            parameter.mul_(SHRINK)
        # x - (-x) = 2 x, where relu and gelu give x.
        model.classifier.weight.mul_(math.sqrt(model.head.norm.eps) / SHRINK / 2)
    return model


CONVERT = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta", "camembert"), as_electra),
    "distilbert": as_distilbert,
    "modernbert": as_modernbert,
}

# ------------------------------------------------------------------------------------------------- writing, checking


@torch.inference_mode()
def plain_logits(model: "transformers.PreTrainedModel", texts: TokenisedTexts, device: torch.device) -> torch.Tensor:
    """Logits [text, class] of a model of transformers, in fp32 on the CPU."""
    model.to(device).eval()
    logits = torch.empty(len(texts), model.config.num_labels)
    for indices in batches_by_length(texts.lengths, tokens_per_batch(device)):
        batch = texts.batch(indices, device)
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits[indices] = output.logits.float().cpu()
    return logits


def save_standard(folder: Path, classifier: Classifier, tokeniser, max_len: int) -> None:
    """Model and tokeniser as `save_pretrained` writes them; the tokeniser cuts texts at `max_len` tokens."""
    tokeniser.model_max_length = max_len
    tokeniser.padding_side = "right"
    save_encoder(folder, standard_model(classifier), tokeniser)


def require_equal(folder: Path, table, texts: TokenisedTexts, expected: torch.Tensor, device: torch.device) -> dict:
    """Load an exported folder as anybody would, and compare its tokens and logits with ours.

    Returns:
        `confusion_matrix` [true class, predicted class] of the exported model, and `largest_difference` of logits.

    Raises:
        UserError: they differ by more than rounding.
    """
    import transformers
    from sklearn.metrics import confusion_matrix

    tokeniser = transformers.AutoTokenizer.from_pretrained(folder)
    own = tokenise(table, tokeniser, tokeniser.model_max_length)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    logits = plain_logits(model, own, device)
    difference = float((logits - expected).abs().max())
    if own.input_ids != texts.input_ids or not difference <= LARGEST_DIFFERENCE * max(1.0, float(expected.abs().max())):
        raise UserError(
            f"the exported model differs from the purified one (logits by {difference:.2g}), so it is not kept; "
            f"{what_remains()}"
        )
    confusion = confusion_matrix(texts.labels, logits.argmax(-1), labels=range(logits.shape[1]))
    return {"confusion_matrix": confusion, "largest_difference": difference}


def export_model(config: Config) -> dict:
    """Write `exported_model` in the run's folder: model, tokeniser, README.md (the model card), evaluation.json.

    The numbers of the card are measured here, in fp32: for the purified model on the exported files themselves.

    Returns:
        What evaluation.json holds: folder; the class of transformers; largest_difference of logits; for `fine_tuned` and
        `defended` the confusion matrix, ACC and, if an attack is named, LFR; `doubts`, what may be wrong with the clean
        texts; `product`, hash of the model it was made from.

    Raises:
        UserError: the run isn't finished or its texts have changed, or the model has no equal in transformers.
    """
    fine_tuned_folder = fine_tuned_model_folder(config)
    config = as_defence(config)
    stages, folder = DEFENCES[config.defence].stages, run_folder(config) / EXPORT
    source = product_path(config, stages[-1])
    records = [load_json(record_path(config, stage)) for stage in stages]
    if None in records or not source.exists():
        raise UserError(f"no purified model in {run_folder(config)}; make it with: {command('run_all.py', config)}")
    require_same_texts(config, records[-1])
    device = make_accelerator(config.device, config.precision).device
    tokeniser = load_tokeniser(str(source))
    tables = measured_tables(config)
    texts = {name: tokenise(table, tokeniser, config.max_len) for name, table in tables.items()}
    classifier = load_classifier(source)
    result = {"folder": str(folder), "product": fingerprint_folder(source)}
    with alone(folder), whole_folder(folder) as temporary:
        save_standard(temporary, classifier, tokeniser, config.max_len)
        result["class"] = load_json(temporary / "config.json")["architectures"][0]
        found = {}
        classifier.to(device)
        for name, table in tables.items():
            expected = predict(classifier, texts[name], name.replace("_", " "))
            found[name] = require_equal(temporary, table, texts[name], expected, device)
        result["doubts"] = doubts(clean_splits(config))
        result["oddness"] = export_oddness(temporary, classifier, tokeniser, config)
        result["largest_difference"] = max(each["largest_difference"] for each in found.values())
        confusions = {name: each["confusion_matrix"] for name, each in found.items()}
        result["defended"] = metrics_of(confusions, config.target_class)
        fine_tuned, own = load_classifier(fine_tuned_folder).to(device), load_tokeniser(str(fine_tuned_folder))
        seen = {name: tokenise(table, own, config.max_len) for name, table in tables.items()}
        result["fine_tuned"] = measure(fine_tuned, seen, config.target_class)
        save_json(temporary / "evaluation.json", result)
        done = [stage.done(record) for stage, record in zip(stages, records, strict=True)]
        card = model_card(config, classifier, done, records[-1]["settings"], result, is_python_only(tokeniser))
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return result


def export_oddness(folder: Path, classifier: Classifier, tokeniser, config: Config) -> dict | None:
    """Write what `predict.py` tells odd texts by, if the exported model's states are ours.

    Returns:
        Its threshold, the share of clean texts that were to be above it, and the share of the clean test texts that are;
        None: nothing was written, since there are too few validation texts, or transformers gives other states.
    """
    import transformers

    from detection.dan import states_of
    from detection.detector import Watched
    from detection.oddness import ALLOWED, fit_oddness, plain_states, save_oddness

    watched = Watched(classifier, tokeniser, config.max_len, config.seed)
    found = fit_oddness(watched, defender_splits(config)[1])
    if found is None:
        return None
    texts = list(clean_test(config)["text"])
    scores = found[0].scores(states_of(watched, texts))
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = found[0].scores(plain_states(plain, transformers.AutoTokenizer.from_pretrained(folder), texts[:COMPARED]))
    if not np.allclose(theirs, scores[:COMPARED], rtol=1e-3, atol=1e-3):
        return None
    save_oddness(folder, *found)
    return {"threshold": found[1], "allowed": ALLOWED, "FRR": float((scores > found[1]).mean())}


def main() -> None:
    config = parse_config(__doc__, ATTACKS, DEFENCES)
    result = export_model(config)
    print(f"exported as {result['class']}: {result['folder']}")


if __name__ == "__main__":
    run_script(main)
