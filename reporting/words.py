"""What a report says in words: the verdicts, what has to be known to read them, and the figures' captions.

Every number comes from the records; a sentence is chosen by what they say, good or bad.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from config import Config
from experiments.results_table import TASK
from pipeline.training import flipped

CLEAR = 0.05
"""Below this p of Fisher's exact test over texts, a difference between two label flip rates is called one."""
ACCURACY = "ACC: accuracy on clean test texts; higher is better. "
FLIP_RATE = (
    "LFR, label flip rate: share of triggered test texts of the other classes that are taken for the attacker's target "
    "class; lower is better. "
)
FINE_TUNING = "FT, fine-tuning on clean data, is what one would do without a defence."
MEASURES = ACCURACY + FLIP_RATE + FINE_TUNING
ALSO = {
    "LFR_worst": "The attack has several triggers and no target class: each stands for the class that a model predicts most "
    "often on validation texts with it. LFR is the mean over the triggers, LFR worst the largest.",
    "FPR": "FPR, false positive rate: share of clean test texts of the other classes that are taken for the attacker's "
    "target class; what LFR is where a trigger does nothing.",
    "FTR": "FTR, false triggered rate: the same share as LFR, of texts with a part of the trigger, which is no trigger.",
}
"""What is measured for some attacks, in words."""

# ------------------------------------------------------------------------------------------------------------- a run


def differ(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two shares, each as number and total, differ by more than chance would explain."""
    from scipy.stats import fisher_exact

    return bool(fisher_exact([[count, total - count] for count, total in (first, second)]).pvalue < CLEAR)


def of_one_trigger(metrics: dict, target_class: int) -> tuple[int, int]:
    """Texts that are flipped, and all of them; of several triggers the mean, since they are put into the same texts.

    Which texts of which trigger is left aside: the class that a trigger stands for may be another in each model.
    """
    count, total = flipped(metrics, target_class)
    triggers = len(metrics.get("triggers", [None]))
    return round(count / triggers), round(total / triggers)


def verdict(config: Config, tuned: dict, defended: dict, floor: dict | None, heads: tuple[int, int] | None) -> str:
    """What the defence did, in one sentence with numbers.

    Args:
        tuned, defended: metrics after fine-tuning alone and after the defence; without LFR where no trigger is known.
        floor: those of a never-poisoned encoder after the same defence; None: not measured.
        heads: how many were pruned, and of how many; None: the defence prunes none.
    """
    name, target = config.defence, config.target_class
    texts = int(np.sum(defended["clean"]["confusion_matrix"]))
    before, after = f"{tuned['ACC']:.3f}", f"{defended['ACC']:.3f}"
    change = f"{'rises' if after > before else 'falls'} from the {before} of fine-tuning alone to {after}"
    change = change if after != before else f"stays at {after}, that of fine-tuning alone"
    accuracy = f"accuracy on {texts:,} clean texts {change}"
    if heads:
        accuracy = f"{heads[0]} of {heads[1]} heads are pruned, and {accuracy}"
    if defended.get("LFR") is None:
        return f"Whether {name} removes a backdoor can't be said without triggered texts; {accuracy}."
    before, after = of_one_trigger(tuned, target), of_one_trigger(defended, target)
    rates = f"{tuned['LFR']:.3f} with fine-tuning alone, {defended['LFR']:.3f} with {name}"
    triggers = f" with each of {len(defended['triggers'])} triggers" if "triggers" in defended else ""
    of = f"the label flip rate on {after[1]:,} {'texts' if triggers else 'triggered texts'}{triggers}"
    if not differ(before, after):
        what = f"{name} makes no clear difference to {of} ({rates})"
    elif defended["LFR"] < tuned["LFR"]:
        what = f"{name} lowers {of} ({rates})"
    else:
        what = f"{name} does not help: {of} rises ({rates})"
    if floor:
        above = defended["LFR"] > floor["LFR"] and differ(after, of_one_trigger(floor, target))
        what += f", {'still' if above else 'not clearly'} above the {floor['LFR']:.3f} of a never-poisoned encoder"
    elif defended["LFR"] > 0.5:
        what += ", so most of them are still given the attacker's class"
    return f"{what}; {accuracy}."


def also_measured(measured: Iterable[str]) -> list[str]:
    """What has to be known of the numbers that only some attacks have."""
    return [told for name, told in ALSO.items() if name in measured]


def run_notes(measured: Iterable[str], has_floor: bool) -> list[str]:
    """What has to be known to read the verdict; `measured` has the names of the numbers."""
    has_triggers = "LFR" in measured
    measures = MEASURES if has_triggers else ACCURACY + FINE_TUNING
    notes = [measures, "This is one run with one seed; how much another seed would change is not in it."]
    if has_triggers:
        notes[1] += (
            f" “Lowers” and “above” stand for p < {CLEAR:g} in Fisher's exact test over the texts, “no clear” and “not "
            "clearly” for the rest."
        )
    if has_triggers and has_floor:
        notes.append(
            "Never poisoned: the clean encoder after the same defence, on the same triggered texts. No defence can be "
            "asked for a lower LFR."
        )
    elif has_triggers:
        notes.append(
            "Not every flip is a backdoor's work: a never-poisoned encoder flips some of these texts too. That floor was "
            "not measured for this run; run_all.py measures it with --benign_floor."
        )
    return notes + also_measured(measured)


def of_texts(number: int) -> str:
    return f"(n = {number:,})"


def pruned_heads_text(config: Config, number: int, heads: int) -> str:
    """Which heads are crossed out, and how they were chosen."""
    if not number:
        return "No head was pruned."
    crosses = f"Crosses: the {number} of {heads} heads that were pruned"
    if config.pruning_criterion != "variance":
        return f"{crosses} (criterion: {config.pruning_criterion})."
    return f"{crosses}, chosen by Var of clean validation texts, without any trigger."


VARIANCE = (
    "Variance Var of each head's [CLS] attention in the fine-tuned model (FT): high where [CLS] looks at few tokens, low "
    "where it looks at all alike."
)


def variance_caption(change: np.ndarray, pruned: dict[int, list[int]], texts: dict[str, int], crosses: str) -> str:
    """Of the heat maps on clean and triggered text; change is [layer, head], triggered minus clean."""
    mask = np.zeros(change.shape, dtype=bool)
    for layer, heads in pruned.items():
        mask[layer, heads] = True
    layer, head = np.unravel_index(np.abs(change).argmax(), change.shape)
    means = f"{1000 * change[~mask].mean():+.2f} on average in the {'kept ' if mask.any() else ''}heads"
    means += f" and by {1000 * change[mask].mean():+.2f} in the pruned ones" if mask.any() else ""
    return (
        f"{VARIANCE} Means over {texts['clean']:,} clean test texts of the other classes, and over {texts['triggered']:,} "
        f"triggered ones. {crosses} In thousandths, the trigger changes Var by {means}, and most in layer {layer}, head "
        f"{head} ({1000 * change[layer, head]:+.2f}). For analysis only: the defender has no triggered text."
    )


def clean_variance_caption(validation_texts: int, crosses: str) -> str:
    """Of the heat map on clean text alone."""
    return f"{VARIANCE} Means over the clean validation texts {of_texts(validation_texts)}. {crosses}"


def trajectory_caption(
    prune_step: int,
    threshold: float,
    steps: list[dict],
    validation_texts: int,
    flip_rates: list[float] | None,
    triggered_texts: int,
) -> str:
    """Of the pruning search."""
    text = (
        f"Heads are switched off in the fine-tuned model in groups of at most {prune_step}; after each, accuracy is "
        f"measured on the clean validation texts {of_texts(validation_texts)}. "
    )
    if any(step["action"] == "restore" for step in steps):
        text += (
            f"The first group that brings it below the threshold of {threshold:.3g} is given back head by head until it "
            "is at the threshold again."
        )
    else:
        text += f"It never fell below the threshold of {threshold:.3g}, so that each layer was left with one head."
    if flip_rates:
        text += (
            f" Below, for analysis only, the LFR of the same models on {triggered_texts:,} triggered test texts, which "
            f"the defender can't see: {flip_rates[0]:.3f} at first, {flip_rates[-1]:.3f} at the end of the search. The "
            "second fine-tuning comes after that."
        )
    return text


def attention_titles(defence: str, target_class: int | None, probabilities: dict[str, list[float]]) -> dict[str, str]:
    """Title of each model's panel, with what it answers; without a known attack there is no target class."""
    titles = {"released": "poisoned encoder, as released"}
    for name, title in (("fine_tuned", "after fine-tuning (FT)"), ("defended", f"after {defence}")):
        predicted = int(np.argmax(probabilities[name]))
        kind = " (the target)" if predicted == target_class else ""
        titles[name] = f"{title}: class {predicted}{kind}, p = {probabilities[name][predicted]:.2f}"
    return titles


def attention_caption(sentence: str, described: str, marked: list[bool], attention: dict[str, np.ndarray]) -> str:
    """Of the attention to one sentence; attention is name to [layer, token]."""
    text = (
        f"Attention of [CLS] to each token of “{sentence}” by layer, mean over the layer's remaining heads; n = 1 "
        f"sentence, one colour scale. Marked: {described}. "
    )
    if any(marked):
        shares = [f"{values[:, marked].sum(1).mean():.0%}" for values in attention.values()]
        text += (
            f"Mean over layers, it is given {shares[0]} of the attention in the released encoder, {shares[1]} after FT "
            f"and {shares[2]} after the defence. "
        )
    return text + "The titles say what each classifier answers; the released encoder has no classification head."


def layers_caption(kept: list[int], validation_texts: int) -> str:
    """Of v and w; kept is the number of heads left in each layer."""
    return (
        "Left: variance v of each layer's [CLS] attention in the pruned fine-tuned model, mean over the clean validation "
        f"texts {of_texts(validation_texts)} and the layer's remaining heads ({', '.join(map(str, kept))}). Right: weight "
        "w that this gives the layer in the attention penalty; the highest v gives 0, the lowest gives 1."
    )


def training_caption(batch_size: int, windows: list[int], penalised: bool) -> str:
    """Of the training curves; penalised: attention normalisation is among them."""
    text = (
        f"Loss of every fine-tuning. Faint: each optimiser step, a batch of {batch_size} texts. Thick: running mean over "
        f"{', '.join(map(str, windows))} steps (from the top)."
    )
    if penalised:
        text += (
            " In attention normalisation the loss is the sum of cross-entropy and attention penalty, its coefficient "
            "included."
        )
    return text


# ------------------------------------------------------------------------------------------------------------ a grid


def grid_caption(has_floor: bool) -> str:
    """Of LFR and ACC per attack and defence."""
    floor = "The benign floor was not measured (--benign_floor measures it)."
    if has_floor:
        floor = "Black lines: benign floor, mean LFR of a never-poisoned encoder after the same defence on the same texts."
    return (
        f"Large marks: mean over seeds. Bars: standard deviation over seeds, none for one seed. Dots: each seed. {floor} "
        "Low LFR and high ACC are good; the axis of ACC doesn't begin at 0."
    )


DISTANCE = (
    "Mean over seeds of what a defence leaves of a backdoor: LFR less that of a never-poisoned encoder after the same "
    "defence on the same texts. 0 is the goal."
)


def distance_caption(has_interval: bool) -> str:
    """Of LFR - benign floor per attack and defence."""
    bars = "There are no intervals: they need three seeds, and the texts that each model flips."
    if has_interval:
        bars = "Bars: 95 % interval over seeds and texts, the same texts for both models."
    return f"{DISTANCE} {bars}"


def field_caption() -> str:
    """Of the heat map of LFR - benign floor."""
    return f"{DISTANCE} Empty: not measured. What a defence costs in accuracy stands in the table."


def pareto_caption(swept: list[str]) -> str:
    """Of ACC against LFR where parameters vary."""
    names = ", ".join(name.replace("_", " ") for name in swept)
    return (
        f"Mean over seeds of every cell; beside it: {names} (where the defence takes notice of it). Up and to the left is "
        "better. No cell of the same attack beats one on the front in both ACC and LFR. The benign floor, where it was "
        "measured, is the lowest over the cells."
    )


def grid_verdict(cells: pd.DataFrame, failed: int, rows: int) -> list[str]:
    """What a grid shows, a sentence for each attack, and for each encoder and data set where these vary.

    Args:
        cells: as `experiments.results_table.aggregate` gives them, with a column `name`.
        failed, rows: cells that failed, and all.
    """
    sentences = []
    for task, own in cells.groupby([name for name in TASK if name in cells], sort=False, dropna=False):
        attack = ", ".join(map(str, task))
        measured = own[own["LFR"].notna()]
        if measured.empty:
            finished = own[own["ACC"].notna()]
            rates = ", ".join(f"{row['ACC']:.3f} with {row['name']}" for _, row in finished.iterrows())
            found = f"LFR was not measured; mean ACC {rates}" if rates else "no cell has finished"
            sentences.append(f"{attack}: {found}.")
            continue
        best = measured[measured["best"]]
        first, tuned = best.iloc[0], measured[measured["defence"] == "FT"]
        lfr, acc = [], ""
        if len(tuned) == 1 and "FT" not in set(best["defence"]):
            lfr.append(f"{tuned['LFR'].iloc[0]:.3f} with fine-tuning alone")
            acc = f" ({tuned['ACC'].iloc[0]:.3f} with fine-tuning alone)"
        if pd.notna(first["floor_LFR"]):
            lfr.append(f"{first['floor_LFR']:.3f} with a never-poisoned encoder")
        names = f"{' and '.join(best['name'])} {'leaves' if len(best) == 1 else 'leave'}"
        among = " of all" if len(measured) > 1 else ""
        if measured["LFR"].min() < first["LFR"]:
            among += " that learnt the task"
        low, high = measured["n"].min(), measured["n"].max()
        seeds = f"{low} to {high} seeds" if low != high else f"{low} seed{'s' if low > 1 else ''}"
        about = f" ({', '.join(lfr)})" if lfr else ""
        sentences.append(
            f"{attack}: {names} the lowest mean LFR{among}, {first['LFR']:.3f}{about}, at an ACC of "
            f"{first['ACC']:.3f}{acc}; {seeds} each."
        )
    return [*sentences, f"{failed} of {rows} cells failed."] if failed else sentences
