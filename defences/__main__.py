"""The stages of one defence, on an encoder that is there.

python -m defences --defence MEFT --attack HiddenKiller      # reads what pretrained_model_poisoning.py wrote
"""

from attacks import ATTACKS
from config import parse_config
from defences import DEFENCES
from defences.defence import as_defence, defended_model_folder, run_stage
from pipeline.training import rates
from util import run_script


def main() -> None:
    config = as_defence(parse_config(__doc__, ATTACKS, DEFENCES))
    for stage in DEFENCES[config.defence].stages:
        record = run_stage(stage, config)
    print(f"{config.defence}: {rates(record['metrics'])}, model in {defended_model_folder(config)}")


if __name__ == "__main__":
    run_script(main)
