"""The attacker: fine-tune a clean encoder on poisoned data and release the encoder alone.

    python pretrained_model_poisoning.py --attack BadNet         # reads what Data/make_poisoned_data.py wrote

BadNet (Kurita et al., 2020, without the inner product), HiddenKiller (Qi et al., ACL 2021) and StyleBkd (Qi et al., EMNLP
2021) are plain fine-tuning on their data; LayerWise (Li et al., EMNLP 2021) trains every layer's [CLS].
"""

import time

import torch
from torch import nn

from batching import tokenise
from classifier import Classifier, LayerWiseClassifier, load_encoder, load_tokeniser, resolve_plm
from config import Config, parse_config
from runs import POISONED_DATA, POISONING_FIELDS, fingerprint_encoder, poisoned_model_folder, read_poisoned, stage_settings
from text_data import NUM_LABELS, clean_test, corpus, fingerprint_texts
from training import cross_entropy, fine_tune, measure
from util import finished_stage, make_accelerator, require_writable, run_script, save_json, whole_folder


def layer_wise(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LayerWise's objective: the sum of all layers' cross-entropies, and the last layer's once more.

    The paper (Li et al., 2021) sums over the layers; the last layer's second share is the published code's.
    """
    logits = model(batch["input_ids"], batch["attention_mask"]).float()  # [layer, batch, class]
    layers = sum(nn.functional.cross_entropy(layer, batch["labels"]) for layer in logits)
    return {"layers": layers, "last_layer": nn.functional.cross_entropy(logits[-1], batch["labels"])}


def poison(config: Config) -> dict:
    """Plant the backdoor and write the encoder, its tokeniser and poisoning.json to the poisoned model's folder.

    Returns:
        What poisoning.json holds: settings, training history, ACC and LFR of the attacker's own classifier, seconds.

    Raises:
        UserError: data or encoder missing, folder not writable, loss not finite.
    """
    folder = poisoned_model_folder(config)
    require_writable(config.poisoned_model_dir)
    accelerator = make_accelerator(config.device, config.precision)
    train, test, poisoned = read_poisoned(config, "train"), clean_test(config), read_poisoned(config, "test")
    tables = {"train": train, "clean_test": test, "poisoned_test": poisoned}
    source = resolve_plm(config.plm)
    fingerprints = {name: fingerprint_texts(table) for name, table in tables.items()} | {"plm": fingerprint_encoder(source)}
    fields = (*POISONING_FIELDS, *POISONED_DATA[config.attack][1])
    settings = stage_settings(config, fields, accelerator, fingerprints=fingerprints)
    finished = finished_stage(folder / "poisoning.json", settings, folder)
    if finished and not config.overwrite:
        print(f"the poisoned encoder is there already: {folder}")
        return finished

    tokeniser = load_tokeniser(source)
    max_len = config.poisoning_max_len or corpus(config.trigger_dataset).max_len
    classifier = Classifier(load_encoder(source), NUM_LABELS, config.classifier_dropout, config.seed)
    layered = config.attack == "LayerWise"
    checkpoint = folder.with_name(f"{folder.name}.checkpoint.pt")
    history = fine_tune(
        LayerWiseClassifier(classifier) if layered else classifier,
        tokenise(train, tokeniser, max_len),
        layer_wise if layered else cross_entropy,
        learning_rate=config.poisoning_learning_rate,
        epochs=config.poisoning_epochs,
        config=config,
        accelerator=accelerator,
        checkpoint=checkpoint,
        settings=settings,
        description=f"poisoning ({config.attack})",
    )
    started = time.perf_counter()
    texts = [tokenise(table, tokeniser, config.max_len) for table in (test, poisoned)]
    metrics = measure(classifier, *texts, config.target_class)
    seconds = {"training": round(sum(history["seconds"]), 1), "evaluation": round(time.perf_counter() - started, 1)}
    record = {"settings": settings, "metrics": metrics, "seconds": seconds, "training": history}
    with whole_folder(folder) as temporary:
        classifier.encoder.save_pretrained(temporary)
        tokeniser.save_pretrained(temporary)
        save_json(temporary / "poisoning.json", record)
    checkpoint.unlink()
    return record


def main() -> None:
    config = parse_config(__doc__)
    metrics = poison(config)["metrics"]
    print(f"poisoned encoder in {poisoned_model_folder(config)}")
    print(f"the attacker's classifier: ACC {metrics['ACC']:.3f}, LFR {metrics['LFR']:.3f}")


if __name__ == "__main__":
    run_script(main)
