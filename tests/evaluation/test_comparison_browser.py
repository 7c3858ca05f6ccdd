"""The page of a comparison in Debian's Chromium: it fits its window, in the light and in the dark, without scripts."""

import math
import shutil

import numpy as np
import pytest

from gen_jax.evaluation.comparison import Comparison, Row
from gen_jax.evaluation.metric import Estimate
from gen_jax.plots import learning_curves, show

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `study-test`")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: install Debian's package chromium")
QUALITY = ("frechet_distance", "frechet_infinity", "kernel_distance", "inception_score", "precision", "density")


def comparison():
    """Three models with as many columns as images with labels have, one of them over seeds."""
    rows = []
    for i, name in enumerate(("a_flow_with_a_long_name (3 seeds)", "vae_digits", "dcgan_digits")):
        found = {
            f"{metric}@digits_cnn": Estimate(
                12.345 * (1 + i), 0.0123, "", "estimate", 9, "protocol", "sample quality", "lower", True, 3, 0.01
            )
            for metric in QUALITY
        }
        found["log_likelihood_bits_per_dim"] = Estimate(2.0 + i, 0.01, "bits/dim", "exact", 300)
        found["parameters"] = Estimate(1e6, math.nan, "", "exact", 1, group="speed and cost", better="lower")
        images = np.random.default_rng(i).random((64, 8, 8, 1))
        curve = [{"step": s, "train/loss": 1 / s, "validation/loss": 2 / s} for s in range(1, 60)]
        rows.append(
            Row(name, "M", found, {"samples": show({"s": images}), "learning curves": learning_curves(curve, name)})
        )
    return Comparison("digits", "test", rows, "cpu")


@pytest.mark.parametrize("width", [1200, 800])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits(tmp_path, width, scheme):
    comparison().write(tmp_path)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=True
        ).new_page()
        asked = []
        page.on("request", lambda r: asked.append(r.url) if r.url.startswith("http") else None)
        page.goto(f"file://{tmp_path}/compare.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width and not asked
        hidden = page.evaluate("[...document.querySelectorAll('.wide')].map(e => e.scrollWidth - e.clientWidth)")
        assert max(hidden) <= (0 if width == 1200 else 60)
        heads = page.evaluate("[...document.querySelectorAll('th[scope=col]')].map(e => e.textContent)")
        assert "frechet distance" in heads and not any("@" in head for head in heads)
        assert page.inner_text("caption:has-text('digits_cnn')") == "sample quality (encoder digits_cnn)"
        links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
        assert all(page.query_selector(f"[id='{link[1:]}']") for link in links) and len(links) >= 5
        back, text = page.evaluate(
            "(() => { const s = getComputedStyle(document.documentElement), b = getComputedStyle(document.body);"
            " const c = document.createElement('div'); c.style.color = 'Canvas'; document.body.append(c);"
            " return [getComputedStyle(c).color, b.color] })()"
        )
        bright = lambda color: sum(int(part) for part in color[4:-1].split(","))
        assert (bright(back) > bright(text)) == (scheme == "light")
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 300)")
        assert not page.evaluate("document.scripts.length")
        browser.close()
