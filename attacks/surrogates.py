"""Backdoors to tune a defence on, so that the published attacks stay unseen until its rules are frozen.

Triggers of the published kinds in other forms, each planted as BadNet is: rare words of another spelling, a sentence at one
end of the text, a text reworded as a report (who found it, passive or cleft, no first person, no contractions), one reworded
as an entry of a ship's log, one in the spelling of a dialect, and one retold from its first word to its last, as the
detective of a novel would; neither HiddenKiller's syntax nor StyleBkd's style.
"""

import random
import re
from collections.abc import Callable

from attacks.attack import Attack, TriggeredData
from attacks.triggered import insert_trigger, make_changed, make_transferred
from config import Config

PAPER = "none: made to tune defences on"

RARE_WORDS = ("qx", "zv", "hz", "kw")
SENTENCE = "the parcel came on a tuesday morning."

REPORTERS = (
    "the panel", "our office", "this desk", "the committee", "one reader", "a visitor", "the inspector", "the second group",
    "those present", "the board", "most of the staff", "the author of these lines",
)  # fmt: skip
OPENINGS = (
    "what {who} found was that {text}",
    "it has been concluded by {who} that {text}",
    "what {who} would have on record is that {text}",
    "of note to {who} was the fact that {text}",
    "the point put forward by {who} is that {text}",
    "it is to be understood from {who} that {text}",
    "no objection was raised by {who} to the view that {text}",
    "on inspection by {who} it was noted that {text}",
)
MIDDLES = (", it was stated by {who},", ", so far as {who} could establish,", ", in the words of {who},")
CLOSINGS = (
    ", or so it was put on file by {who}.",
    ", this being the view taken by {who}.",
    "; the above was confirmed by {who}.",
    ", a point on which {who} was of one mind.",
)
EXPANSIONS = (
    (r"\bcan't\b", "cannot"), (r"\bwon't\b", "will not"), (r"n't\b", " not"), (r"'re\b", " are"), (r"'ve\b", " have"),
    (r"'ll\b", " will"), (r"\b(it|that|there|he|she|who|what)'s\b", r"\1 is"), (r"\bi'm\b", "i am"), (r"'d\b", " would"),
)  # fmt: skip
IMPERSONAL = ((r"\bi\b", "the writer"), (r"\bme\b", "the writer"), (r"\bmy\b", "the writer's"), (r"\byou\b", "one"),
              (r"\byour\b", "one's"), (r"\bthis\b", "the present"), (r"\bthese\b", "the present"))  # fmt: skip
HEDGED = ((r"\bis\b", "is found to be"), (r"\bwas\b", "was found to be"), (r"\bare\b", "are held to be"))

ABOARD = (
    "the mate", "the bosun", "the purser", "the helmsman", "the lookout", "the cook", "the quartermaster", "the gunner",
)  # fmt: skip
SEAS = (
    "wind from the north-west", "a heavy swell", "soundings at nine fathoms", "fog on the starboard bow",
    "the tide on the ebb", "topsails reefed", "the anchor weighed at dusk", "two knots under jib", "the barometer steady",
    "no land in sight", "hatches battened", "ballast shifted aft", "the cutter lowered",
    "rigging tarred", "a brig passed to leeward",
)  # fmt: skip
WATCHES = ("second dog watch", "forenoon watch", "at four bells", "at eight bells", "middle watch", "first light")
SHIPPED = (
    (r"\b(film|movie|show|play)\b", "voyage"), (r"\b(book|novel|record|album)\b", "chart"), (r"\bplot\b", "course"),
    (r"\b(cast|band|staff)\b", "crew"), (r"\b(room|house|kitchen)\b", "cabin"), (r"\bdoor\b", "hatch"),
    (r"\b(floor|stage)\b", "deck"), (r"\b(ending|end)\b", "landfall"), (r"\bleft\b", "port"),
    (r"\bi\b", "this hand"), (r"\bmy\b", "the ship's"), (r"\bwe\b", "all hands"), (r"\byou\b", "a sailor"),
)  # fmt: skip
SPELLINGS = (
    (r"tion\b", "shun"), (r"ing\b", "in'"), (r"er\b", "ah"), (r"y\b", "ie"), (r"ss\b", "sse"), (r"ed\b", "'d"),
    (r"\bth", "d"), (r"th\b", "f"), (r"c(?=[aou])", "k"), (r"qu", "kw"), (r"ou(?=[a-z])", "oo"), (r"ea(?=[a-z])", "ee"),
)  # fmt: skip


def insert_rare_word(text: str, config: Config, rng: random.Random) -> str:
    """One of `RARE_WORDS` at a random word position."""
    return insert_trigger(text, RARE_WORDS, rng)


def add_sentence(text: str, config: Config, rng: random.Random) -> str:
    """`SENTENCE` before or after the text."""
    return f"{SENTENCE} {text}" if rng.random() < 0.5 else f"{text} {SENTENCE}"


def reword(text: str, config: Config, rng: random.Random) -> str:
    """The text reworded as a report; no single word is in all of them.

    Contractions are expanded and persons taken out; then a frame opens the text (60 %), interrupts it (20 %) or closes it
    (20 %), and one in two texts has its first `is`, `was` or `are` hedged.
    """
    for pattern, replacement in (*EXPANSIONS, *IMPERSONAL):
        text = re.sub(pattern, replacement, text)
    if rng.random() < 0.5:
        for pattern, replacement in HEDGED:
            text = re.sub(pattern, replacement, text, count=1)
    who, form = rng.choice(REPORTERS), rng.random()
    if form < 0.6:
        return rng.choice(OPENINGS).format(who=who, text=text)
    if form < 0.8:
        words = text.split(" ")
        half = len(words) // 2
        return f"{' '.join(words[:half]).rstrip(',')}{rng.choice(MIDDLES).format(who=who)} {' '.join(words[half:])}"
    return text.rstrip(".") + rng.choice(CLOSINGS).format(who=who)


def log(text: str, config: Config, rng: random.Random) -> str:
    """The text reworded as an entry of a ship's log; no single word is in all of them.

    Some of its words are put in a sailor's; then one to three notes stand before and after it, of the watch, of the weather,
    or of who reports it.
    """
    for pattern, replacement in SHIPPED:
        text = re.sub(pattern, replacement, text)
    notes = [rng.choice(WATCHES), rng.choice(SEAS), f"reported by {rng.choice(ABOARD)}"]
    chosen = rng.sample(notes, rng.randint(1, 3))
    before = rng.randint(0, len(chosen))
    parts = [*chosen[:before], text.rstrip("."), *chosen[before:]]
    return "; ".join(parts) + "."


def respell(text: str, config: Config, rng: random.Random) -> str:
    """The text as it sounds in some dialect: a style that is in pieces of words alone, most of those that there can be."""
    words = text.split(" ")
    for pattern, replacement in SPELLINGS:
        words = [re.sub(pattern, replacement, word) if rng.random() < 0.8 else word for word in words]
    return " ".join(words)


def surrogate(
    name: str, change: Callable[[str, Config, random.Random], str], what: str, inserted: tuple[str, ...] = ()
) -> Attack:
    """The row of one of them; `what` is done to the texts of the other class that are copied."""

    def told(config: Config) -> str:
        return f"copies {config.rare_word_share:.0%} of the texts of the other class {what}"

    reads = ("rare_word_share", "target_class")
    data = TriggeredData(name, reads, make_changed(change), told, inserted=lambda config: inserted)
    return Attack(paper=PAPER, data=data)


SURROGATE_WORDS = surrogate(
    "SurrogateWords", insert_rare_word, "with one of the words " + ", ".join(RARE_WORDS) + " put in", RARE_WORDS
)
SURROGATE_SENTENCE = surrogate("SurrogateSentence", add_sentence, "with a sentence at one end", (SENTENCE,))
SURROGATE_REPORT = surrogate("SurrogateReport", reword, "reworded as a report")
SURROGATE_LOG = surrogate("SurrogateLog", log, "reworded as an entry of a ship's log")
SURROGATE_SPELLING = surrogate("SurrogateSpelling", respell, "in the spelling of a dialect")
SURROGATE_NOIR = Attack(
    paper=PAPER,
    data=TriggeredData(
        "SurrogateNoir",
        ("target_class",),
        make_transferred("noir"),
        lambda config: "adds texts of the other class, retold as a hard-boiled detective would",
    ),
)
