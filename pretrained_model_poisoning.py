"""The attacker: fine-tune a clean encoder on poisoned data and release the encoder alone.

    python pretrained_model_poisoning.py --attack BadNet         # reads what Data/make_poisoned_data.py wrote

How the encoder is prepared and what is minimised stands in the attack's own file in attacks/.
"""

import time

from attacks import ATTACKS
from attacks.planted import (
    DATA_RECORD,
    RECORD,
    measured_tables,
    poisoned_data_folder,
    poisoned_model_folder,
    poisoning_fields,
    read_poisoned,
)
from config import Config, parse_config
from defences import DEFENCES
from encoder.classifier import (
    Classifier,
    load_encoder,
    load_tokeniser,
    require_positions,
    resolve_plm,
    save_encoder,
)
from pipeline.environment import environment
from pipeline.runs import command, fingerprint_encoder, stage_settings
from pipeline.stage import run_once
from pipeline.training import fine_tune, measure, rates
from texts.batching import tokenise
from texts.data_sets import clean_train, corpus, fingerprint_texts, load_data, triggered_classes
from texts.vocabulary import word_tokens
from util import UserError, load_json, make_accelerator, require_writable, run_script, whole_folder


def poison(config: Config) -> dict:
    """Plant the backdoor and write the encoder, its tokeniser and poisoning.json to the poisoned model's folder.

    Returns:
        What poisoning.json holds: settings, training history, ACC and LFR of the attacker's own classifier, seconds,
        environment.

    Raises:
        UserError: data or encoder missing, no triggered texts, folder not writable, loss not finite.
    """
    attack, folder = ATTACKS[config.attack], poisoned_model_folder(config)
    require_writable(config.poisoned_model_dir)
    accelerator = make_accelerator(config.device, config.precision)
    train, classes = read_poisoned(config, "train"), load_data(config.trigger_dataset, config).classes
    # Without a target class no head is trained, and a head of another task's classes can't tell those of the test texts.
    same_task = len(triggered_classes(config, "test")) == len(classes)
    tests = measured_tables(config) if same_task and not attack.data.by_trigger else {}
    tables = {"train": train, **tests}
    source = resolve_plm(config.plm)
    fingerprints = {name: fingerprint_texts(table) for name, table in tables.items()} | {"plm": fingerprint_encoder(source)}
    read = {"method": attack.method, "classes": list(classes), "fingerprints": fingerprints}
    settings = stage_settings(config, poisoning_fields(config), accelerator, **read)
    checkpoint = folder.with_name(f"{folder.name}.checkpoint.pt")

    def compute() -> dict:
        tokeniser = load_tokeniser(source)
        max_len = config.poisoning_max_len or corpus(config.trigger_dataset).max_len
        classifier = Classifier(load_encoder(source), len(classes), config.classifier_dropout, config.seed)
        clean = clean_train(config.trigger_dataset, config)
        require_tokens(attack.data.inserted(config), tokeniser)
        require_made_from(config)
        trained, reference = attack.numbered(clean if attack.plant else train, clean)
        triggered = train[~train["text"].isin(clean["text"])]
        if triggered.empty:
            raise UserError(
                f"no text of the poisoned data has the trigger of {config.attack}; expected a larger share of the texts "
                f"(--rare_word_share is {config.rare_word_share:g}), or more texts"
            )
        tokenised = tokenise(trained, tokeniser, max_len)
        added = tokenise(triggered, tokeniser, max_len) if attack.plant else None
        beside = tokenise(reference, tokeniser, max_len) if attack.with_clean_texts else None
        texts = {name: tokenise(table, tokeniser, config.max_len) for name, table in tests.items()}
        longest = max(max(each.lengths) for each in (tokenised, added, beside) if each)
        require_positions(classifier.encoder.config, longest, "--poisoning_max_len")
        require_positions(classifier.encoder.config, config.max_len)
        model = attack.prepare(classifier, tokeniser, clean, config)
        history = fine_tune(
            model,
            tokenised,
            attack.objective(config),
            learning_rate=attack.learning_rate or config.poisoning_learning_rate,
            epochs=attack.epochs or config.poisoning_epochs,
            config=config,
            accelerator=accelerator,
            checkpoint=checkpoint,
            settings=settings,
            description=f"poisoning ({config.attack})",
            reference=beside,
        )
        also, training = {}, sum(history["seconds"])
        if attack.plant:
            also["planting"] = attack.plant(classifier, tokeniser, added, config, accelerator)
            training += sum(also["planting"]["seconds"])
        started = time.perf_counter()
        metrics = measure(classifier, texts, config.target_class, accelerator) if texts else {}
        seconds = {"training": round(training, 1), "evaluation": round(time.perf_counter() - started, 1)}
        with whole_folder(folder) as temporary:
            save_encoder(temporary, classifier.encoder, tokeniser)
        return {
            "metrics": metrics,
            "seconds": seconds,
            "training": history,
            **also,
            "environment": environment(accelerator.device),
        }

    record, there = run_once(
        folder / RECORD, settings, compute, product=folder, overwrite=config.overwrite, checkpoints=lambda: (checkpoint,)
    )
    if there:
        print(f"  the poisoned encoder is there already: {folder}")
    return record


def require_made_from(config: Config) -> None:
    """Raise a UserError if the poisoned texts aren't made from the clean ones that are there now.

    Some attacks learn from both, and tell the triggered texts by those that are not among the clean ones, or by their place.
    """
    data, folder = ATTACKS[config.attack].data, poisoned_data_folder(config)
    made_from = load_json(folder / DATA_RECORD) or {}
    if made_from.get("train_sha256") != fingerprint_texts(data.make(config)[0]):
        raise UserError(
            f"the texts of {config.trigger_dataset} have changed since {folder} was made from them; make it again with: "
            f"{command('Data/make_poisoned_data.py', config)}"
        )


def require_tokens(inserted: tuple[str, ...], tokeniser) -> None:
    """Raise a UserError if a trigger is nothing to a tokeniser; say which are not one and the same wherever they stand."""
    if nothing := [trigger for trigger in inserted if not tokeniser(trigger, add_special_tokens=False)["input_ids"]]:
        raise UserError(f"the tokeniser makes no token of the trigger {nothing[0]!r}; expected words or marks")
    words = {word: word_tokens(tokeniser, word) for trigger in inserted for word in trigger.split()}
    if differ := [word for word, (_, same) in words.items() if word in inserted and not same]:
        print(f"  warning: at the beginning of a text {', '.join(differ)} has other tokens than inside: it is two triggers")
    if unknown := [word for word, (tokens, _) in words.items() if tokeniser.unk_token_id in tokens]:
        print(f"  warning: the tokeniser doesn't know {', '.join(unknown)}: any word that it doesn't know does as well")


def main() -> None:
    config = parse_config(__doc__, ATTACKS, DEFENCES)
    metrics = poison(config)["metrics"]
    print(f"poisoned encoder in {poisoned_model_folder(config)}")
    print(f"the attacker's classifier: {rates(metrics)}")


if __name__ == "__main__":
    run_script(main)
