"""Image translation: what the configs of the family reach on published and embedded data.

python -m benchmarks.quality.translations [--only facades]

The published sets must be prepared (`python -m gen_jax data prepare NAME --manual-dir DIR`).
"""

from __future__ import annotations

from benchmarks.harness import Report
from benchmarks.quality.tasks import Task, Tasks

PAIRED = {
    "ssim_of_copy": ("", ""),
    "ssim_of_mean_image": ("", ""),
    "ssim_of_nearest": ("", ""),
    "psnr_of_mean_image": ("dB", ""),
    "kernel_distance@raw": ("MMD^2", ""),
    "kernel_distance_of_training@raw": ("MMD^2", ""),
    "kernel_distance_of_mean_image@raw": ("MMD^2", ""),
}


def unpaired(side: str, known: bool, **targets: str) -> dict[str, tuple[str, str]]:
    """The metrics of one direction. known: whether true partners are known."""
    names = [f"{name}_distance{of}@raw" for name in ("kernel", "frechet") for of in ("", "_of_copy", "_of_training")]
    names += ["changed"]
    names += ["l1", "l1_of_copy", "ssim", "retrieval", "retrieval_of_copy"] if known else []
    labels = [f"label_consistency{of}" for of in ("", "_of_copy", "_of_real")] + ["adaptation", "adaptation_of_copy"]
    names += [] if known else labels
    units = {"kernel": "MMD^2", "frechet": "features^2", "l1": "of [0, 1]", "changed": "of [0, 1]", "ssim": ""}
    unit = lambda name: units.get(name.split("_")[0], "share")
    return {f"{side}_{name}": (unit(name), targets.get(name, "")) for name in names}


TRANSLATIONS = Tasks(
    "translations",
    {
        "outlines to digits": Task("pix2pix_outlines", {"ssim": ("", ""), "psnr": ("dB", ""), **PAIRED}),
        "outlines to digits with noise": Task(
            "pix2pix_outlines --noise 8 --seeking 1",
            {
                "ssim": ("", ""),
                "psnr": ("dB", ""),
                "diversity": ("of [0, 1]", ""),
                "kernel_distance@raw": ("MMD^2", ""),
            },
        ),
        "facades 64": Task(
            "pix2pix_facades --data facades",
            {
                **{"ssim": ("", ">= 0.222"), "psnr": ("dB", ""), "ssim_of_colors": ("", "")},
                **{name.replace("@raw", "@segmenter"): unit for name, unit in PAIRED.items()},
                "kernel_distance_of_nearest@segmenter": ("MMD^2", ""),
                "kernel_distance_of_colors@segmenter": ("MMD^2", ""),
                **{name: ("share", "") for name in ("iou", "iou_of_real", "pixel_accuracy", "pixel_accuracy_of_real")},
            },
        ),
        "emoji outlines": Task(
            "pix2pix_facades --data emoji_outlines --shrink 1 --enlarged 1 --shifted 4 --l1 1000 --lr 4e-4 "
            "--steps 7000",
            {"ssim": ("", ">= 0.87"), "psnr": ("dB", ">= 20.1"), "psnr_of_copy": ("dB", ""), **PAIRED},
        ),
        "digits and twins": Task("cyclegan_twins", unpaired("a2b", True) | unpaired("b2a", True)),
        "digits to twins": Task("cut_twins", unpaired("a2b", True)),
        "MNIST and USPS": Task(
            "cyclegan_digits --data mnist16?partner=usps --seeds 10",
            unpaired("a2b", False, label_consistency=">= 0.9") | unpaired("b2a", False, label_consistency=">= 0.9"),
        ),
        "emoji, Noto and Twemoji": Task(
            "cyclegan_twins --data emoji?pairing=unpaired --layers 2 --steps 2000",
            unpaired("a2b", True, l1="<= 0.169") | unpaired("b2a", True, l1="<= 0.169"),
        ),
        "emoji, Noto to Twemoji by CUT": Task(
            "cut_twins --data emoji?pairing=unpaired --no-deep --nce 0.5 --layers 2 --steps 2000",
            unpaired("a2b", True),
        ),
    },
)


def main() -> None:
    report = Report("translations")
    TRANSLATIONS.train(report.options.only)
    TRANSLATIONS.keep_earlier(report, TRANSLATIONS.report(report))
    report.finish()


if __name__ == "__main__":
    main()
