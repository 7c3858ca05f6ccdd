"""Augmentation of Fashion-MNIST and the embedded digits: classifiers with random changes and samples of a VAE.

python -m benchmarks.quality.augmentations

Trains the VAE of `cvae_digits` on the first 50,000 examples, and runs `python -m gen_jax augment` for perceptrons and
convolutional networks. What has finished in `runs/augmentation` is not run again. The set must be prepared
(`python -m gen_jax data prepare fashion_mnist --manual-dir DIR`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.harness import ROOT, Report, beside
from gen_jax.files import read_json

FOLDER = ROOT / "runs" / "augmentation"
GENERATOR = FOLDER / "cvae"
STUDIES = {  # the options of `augment`
    "mlp": "--networks mlp --labels 100 1000 60000 --seeds 5",
    "mlp_long": "--networks mlp --labels 100 1000 --seeds 5 --epochs 300",
    "cnn": "--networks cnn --labels 100 1000 --seeds 3 --epochs 150",
}
DIGITS = "--data digits --geometric keras --labels 100 1000 --seeds 5"


def run(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, env=beside(), check=True)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = Report("augmentations")
    run(
        "train.py",
        "cvae_digits",
        "--data",
        "fashion_mnist",
        "--steps",
        "2000",
        "--workdir",
        str(GENERATOR),
        "--no-progress",
    )
    common = ["--data", "fashion_mnist", "--geometric", "keras", "--from", str(GENERATOR)]
    for name, options in STUDIES.items():
        out = FOLDER / name
        if not (out / "augmentation.json").is_file():
            run("-m", "gen_jax", "augment", *common, *options.split(), "--out", str(out))
        for arm in read_json(out / "augmentation.json")["arms"]:
            record(report, "Fashion-MNIST", arm)
    if not (FOLDER / "digits" / "augmentation.json").is_file():
        run("-m", "gen_jax", "augment", *DIGITS.split(), "--out", str(FOLDER / "digits"))
    for arm in read_json(FOLDER / "digits" / "augmentation.json")["arms"]:
        record(report, "digits", arm)
    report.finish()


def record(report: Report, data: str, arm: Mapping[str, Any]) -> None:
    """The accuracy of an arm and its gain over no augmentation."""
    what = f"{data}, {arm['network']}, {arm['labels']:,} labels, {arm['steps'][-1]:,} steps: {arm['augmentation']}"
    gain = arm["gain"]
    said = "" if gain is None else f"; gain {gain['value']:+.4f} ± {gain['error']:.4f}, McNemar p {arm['mcnemar']:.2g}"
    report.fact(f"{what} (± {arm['accuracy']['error']:.4f}{said})", arm["accuracy"]["value"], "accuracy")


if __name__ == "__main__":
    main()
