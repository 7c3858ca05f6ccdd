"""The page of studies in a real browser: Debian's Chromium, driven by playwright."""

import asyncio
import shutil
import threading
import time

import numpy as np
import pytest
from studies import free_port, make_study, serving

from gen_jax.applications.study.analysis import analyzed
from gen_jax.applications.study.server import StudyServer, web_server
from gen_jax.applications.study.simulation import SimulatedRater
from gen_jax.applications.study.store import open_study

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `study-test`")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: install Debian's package chromium")
READY = ".choices button:enabled"
OVER = "p:has-text('The practice is over')"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Rater:
    """A rater in a browser context of their own, with what went wrong on the page."""

    def __init__(self, browser, port, **options):
        self.context = browser.new_context(**{"viewport": {"width": 900, "height": 700}, **options})
        self.address, self.wrong, self.elsewhere = f"http://127.0.0.1:{port}/", [], []
        self.context.set_default_timeout(30_000)
        self.page = self.open()

    def open(self):
        page = self.context.new_page()
        page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(self.address) else self.elsewhere.append(r.url))
        page.goto(self.address)
        return page

    def begin(self):
        self.page.get_by_role("button", name="I agree").click()
        self.page.get_by_role("button", name="Begin").click()
        self.page.wait_for_selector(READY)

    def place(self):
        self.page.wait_for_selector(f"{READY}, {OVER}")
        if self.page.query_selector(OVER):
            self.page.keyboard.press("Enter")
        self.page.wait_for_selector(READY)
        return self.page.inner_text(".top span")

    def go_on(self, act):
        """Answers by `act` and waits for the next trial, the feedback or the end."""
        before = self.place()
        act()
        changed = """t => { const now = document.querySelector('.top span');
            return !now || now.innerText !== t || document.querySelector('.feedback'); }"""
        self.page.wait_for_function(changed, arg=before)

    def finish(self, act):
        """Answers everything; returns the number of answers and the code."""
        n = 0
        while True:
            self.page.wait_for_selector(f"{READY}, .feedback, .code, {OVER}")
            if code := self.page.query_selector(".code"):
                return n, code.inner_text()
            if self.page.query_selector(".feedback"):
                assert self.page.is_visible("img") and not self.page.query_selector(READY)
                self.page.keyboard.press("Enter")
                self.page.wait_for_selector(".feedback", state="detached")
                continue
            self.go_on(act)
            n += 1


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "s", trials=4, practice=1, catch=1)


def answers(study):
    store = open_study(study)
    rows = store.answers()
    store.close()
    return rows


def test_a_study_by_keyboard_alone(chromium, study):
    with serving(study) as port:
        rater = Rater(chromium, port)
        for word in ("agree", "Begin"):
            rater.page.wait_for_selector(f"text={word}")
            rater.page.keyboard.press("Enter")
        keys = iter(["1", "2", "ArrowLeft", "ArrowRight", "1", "2"])
        n, code = rater.finish(lambda: rater.page.keyboard.press(next(keys)))
        assert n == 6 and len(code) == 8 and not rater.wrong and not rater.elsewhere
    rows = answers(study)
    assert [row["choice"] for row in rows] == [0, 1, 0, 1, 0, 1]
    assert all(row["rt_ms"] > 0 and row["onset_ms"] > 0 and not row["hidden"] for row in rows)


def test_a_study_by_mouse(chromium, study):
    with serving(study) as port:
        rater = Rater(chromium, port)
        began = time.perf_counter()
        rater.begin()
        assert time.perf_counter() - began < 10
        n, _ = rater.finish(lambda: rater.page.click(f"{READY} >> nth=1"))
        assert n == 6 and not rater.wrong
    assert {row["choice"] for row in answers(study)} == {1}


def test_a_reload_a_closed_tab_and_the_back_button_lose_nothing(chromium, study):
    with serving(study) as port:
        rater = Rater(chromium, port)
        rater.begin()
        rater.go_on(lambda: rater.page.keyboard.press("1"))
        rater.page.keyboard.press("Enter")
        place = rater.place()
        rater.page.reload()
        assert rater.place() == place
        rater.page.goto("about:blank")
        rater.page.go_back()
        assert rater.place() == place
        rater.page.close()
        rater.page = rater.open()
        assert rater.place() == place
        assert rater.finish(lambda: rater.page.keyboard.press("2"))[0] == 5
    assert len(answers(study)) == 6


def test_a_double_click_answers_once(chromium, study):
    with serving(study) as port:
        rater = Rater(chromium, port)
        rater.begin()
        rater.finish(lambda: rater.page.dblclick(f"{READY} >> nth=0"))
    rows = answers(study)
    assert len(rows) == 6 == len({row["trial"] for row in rows})


def test_a_second_tab_is_told_that_the_trial_was_answered(chromium, study):
    with serving(study) as port:
        rater = Rater(chromium, port)
        rater.begin()
        rater.go_on(lambda: rater.page.keyboard.press("1"))
        rater.page.keyboard.press("Enter")
        rater.place()
        first, second = rater.page, rater.open()
        second.wait_for_selector(READY)  # seen before: without the page between practice and the rest
        second.keyboard.press("1")
        second.wait_for_function("() => document.querySelector('.top span').innerText === '2 of 5'")
        first.bring_to_front()
        first.keyboard.press("2")
        first.wait_for_selector("text=This was answered already")
        assert rater.place() == "2 of 5"
    rows = answers(study)
    assert len(rows) == 2 and rows[1]["choice"] == 0


def test_a_server_that_is_gone_for_a_while_gets_the_answer_later(chromium, study):
    port, started = free_port(), []

    def start():
        server = web_server(StudyServer(open_study(study)), "127.0.0.1", port)
        thread = threading.Thread(target=server.run)
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.01)

    def stop():
        started[-1][0].should_exit = True
        started[-1][1].join()

    start()
    rater = Rater(chromium, port)
    rater.begin()
    rater.go_on(lambda: rater.page.keyboard.press("1"))
    rater.page.keyboard.press("Enter")
    rater.place()
    stop()
    rater.page.keyboard.press("2")
    rater.page.wait_for_selector("text=Your answer is not stored yet")
    start()
    rater.page.wait_for_function("() => document.querySelector('.top span').innerText === '2 of 5'")
    rater.context.close()
    stop()
    assert [row["choice"] for row in answers(study)] == [0, 1]


def test_time_counts_from_the_picture_that_can_be_seen(chromium, study, monkeypatch):
    quick = StudyServer._picture

    async def slow(self, request):
        await asyncio.sleep(0.6)
        return await quick(self, request)

    monkeypatch.setattr(StudyServer, "_picture", slow)
    with serving(study) as port:
        rater = Rater(chromium, port)
        rater.page.get_by_role("button", name="I agree").click()
        rater.page.get_by_role("button", name="Begin").click()
        rater.page.wait_for_selector(".choices button:disabled")
        rater.page.keyboard.press("1")  # too early
        rater.page.wait_for_selector(READY)
        assert not answers(study)
        rater.go_on(lambda: rater.page.keyboard.press("1"))
    [row] = answers(study)
    assert 0 < row["rt_ms"] < 600


def test_a_pause_hides_the_picture_and_its_time_does_not_count(chromium, study):
    with serving(study) as port:
        rater = Rater(chromium, port)
        rater.begin()
        rater.page.keyboard.press("p")
        rater.page.wait_for_selector("text=The study is paused")
        assert not rater.page.query_selector("img")
        rater.page.keyboard.press("Enter")
        rater.go_on(lambda: rater.page.keyboard.press("1"))
    assert [row["hidden"] for row in answers(study)] == [1]


def test_exposure_is_limited(chromium, tmp_path):
    with serving(make_study(tmp_path / "s", exposure_ms=150)) as port:
        rater = Rater(chromium, port)
        rater.begin()
        rater.page.wait_for_selector("text=The time to look is over")
        assert not rater.page.is_visible("img")
        rater.go_on(lambda: rater.page.keyboard.press("1"))


@pytest.mark.representatives("pairs")
@pytest.mark.parametrize("kind", ["pairs", "rating", "match"])
def test_a_narrow_screen_shows_everything(chromium, tmp_path, kind):
    with serving(make_study(tmp_path / "s", kind, practice=0)) as port:
        rater = Rater(chromium, port, viewport={"width": 390, "height": 800})
        rater.begin()
        assert rater.page.evaluate("document.documentElement.scrollWidth") <= 390
        for part in rater.page.query_selector_all("img, .choices button"):
            box = part.bounding_box()
            assert 0 <= box["x"] and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 800
            assert min(box["width"], box["height"]) >= 24
        rater.finish(lambda: rater.page.keyboard.press("2"))
        assert not rater.wrong


def test_names_focus_and_contrast(chromium, study):
    with serving(study) as port:
        rater = Rater(chromium, port)
        page = rater.page
        page.wait_for_selector("h1")
        assert page.evaluate("document.activeElement.tagName") == "H1"
        assert page.evaluate("document.documentElement.lang") == "en"
        rater.begin()
        assert page.get_by_role("group", name="Is this real or generated?").count() == 1
        assert page.get_by_role("img", name="Real or generated?").count() == 1
        assert page.get_by_role("progressbar").count() == 1
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "BUTTON"
        for selector in ("button", "p", "h1"):
            for part in page.query_selector_all(selector):
                assert contrast(part.evaluate(COLORS)) >= 4.5


COLORS = """e => { const found = [getComputedStyle(e).color];
  for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) { found.push(c); break; } }
  return found; }"""


def contrast(colors):
    """The ratio of WCAG 2.2 between two colors "rgb(r, g, b)"."""
    channels = np.array([[float(v) for v in color[color.index("(") + 1 : -1].split(",")[:3]] for color in colors]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.slow
def test_simulated_raters_in_the_browser_are_recovered(chromium, tmp_path):
    """An oracle of known sensitivity answers by the real page; the analysis finds it within its interval."""
    study = make_study(tmp_path / "s", models=1, n=40, trials=40, practice=1, catch=2)
    with serving(study) as port:
        store = open_study(study)
        for number in range(4):
            rater = Rater(chromium, port)
            rater.begin()
            cookie = next(c["value"] for c in rater.context.cookies() if c["name"].startswith("study-"))
            name = store.rater(cookie)
            oracle = SimulatedRater(store.protocol, store.stimuli, (0.0, 1.5), 0.0, np.random.default_rng(number))

            def act(name=name, oracle=oracle, rater=rater):
                rater.page.wait_for_timeout(320)
                rater.page.keyboard.press(str(oracle.choose(store.current(name)) + 1))

            assert rater.finish(act)[0] == 43 and not rater.wrong
            rater.context.close()
    found = analyzed(open_study(study)).intervals["sensitivity d'"]["model0"]
    assert found.low <= 1.5 <= found.high and found.raters == 4


def test_two_raters_at_once_have_orders_of_their_own(chromium, study):
    with serving(study) as port:
        one, other = Rater(chromium, port), Rater(chromium, port)
        one.begin(), other.begin()
        for _ in range(2):
            one.go_on(lambda: one.page.keyboard.press("1"))
            one.page.keyboard.press("Enter")
        assert other.place() == "Practice: 1 of 1"
        other.finish(lambda: other.page.keyboard.press("2"))
        one.finish(lambda: one.page.keyboard.press("1"))
    by_rater = {}
    for row in answers(study):
        by_rater.setdefault(row["rater"], []).append((row["choice"], row["stimuli"]))
    choices = sorted(({choice for choice, _ in rows} for rows in by_rater.values()), key=min)
    assert choices == [{0}, {1}]


def test_an_invitation_says_who_the_rater_is(chromium, study):
    """In a browser that another rater has used, on two devices, and opened again."""
    store = open_study(study)
    links = [f"#invitation={token}" for _, token in store.invite(2)]
    names = [name for (name,) in store.connection.execute("SELECT rater FROM invitation ORDER BY rowid")]
    store.close()
    with serving(study, open=False) as port:
        rater = Rater(chromium, port)
        for link in links:
            rater.page.goto("about:blank")
            rater.page.goto(rater.address + link)
            rater.begin()
            rater.go_on(lambda: rater.page.keyboard.press("1"))
        other = Rater(chromium, port)
        other.page.goto("about:blank")
        other.page.goto(rater.address + links[1])
        assert other.place() == "1 of 5"  # had agreed before
        rater.page.reload()
        assert rater.place() == "1 of 5"
    assert {row["rater"] for row in answers(study)} == set(names)


def test_another_person_can_take_part_at_the_same_browser(chromium, study):
    with serving(study) as port:
        rater = Rater(chromium, port)
        for _ in range(2):
            rater.begin()
            rater.finish(lambda: rater.page.keyboard.press("1"))
            rater.page.get_by_role("button", name="Another person").click()
    assert len({row["rater"] for row in answers(study)}) == 2


def test_a_second_look_does_not_count(chromium, tmp_path):
    study = make_study(tmp_path / "s", practice=0, exposure_ms=2000)
    with serving(study) as port:
        rater = Rater(chromium, port)
        rater.begin()
        rater.page.wait_for_selector("img:visible")
        rater.page.reload()
        rater.page.wait_for_selector("text=The time to look is over")
        assert not rater.page.is_visible("img")
        rater.go_on(lambda: rater.page.keyboard.press("1"))
        rater.go_on(lambda: rater.page.keyboard.press("1"))
    assert [row["hidden"] for row in answers(study)] == [1, 0]


def test_large_pictures_keep_their_shape(chromium, tmp_path):
    study = make_study(tmp_path / "s", "pairs", shape=(300, 400, 3))
    with serving(study) as port:
        for width in (900, 390):
            rater = Rater(chromium, port, viewport={"width": width, "height": 800})
            rater.begin()
            for image in rater.page.query_selector_all("img"):
                box = image.bounding_box()
                assert abs(box["width"] / box["height"] - 4 / 3) < 0.03 and box["width"] <= 258
