"""The page, in a real Chromium, against the real service over real photographs."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cclm.data.tokenizer import train_tokenizer
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.retrieval.index import build_index
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.metadata import Entry, Rows
from cclm.storage import file_hash
from tests.models.conftest import TINY

PICTURES = 150
SIDE = 96  # pixels that the model reads: 3 x 3 patches
PAGE = 60  # pictures that the page asks for at a time
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
CLI = "from cclm.cli import main; main()"
TOKEN = "a token of these tests"
DROP = """([base64, kind]) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "mine.png", { type: "image/png" }));
    const own = kind === "paste" ? { clipboardData: transfer } : { dataTransfer: transfer };
    const event = kind === "paste" ? ClipboardEvent : DragEvent;
    document.body.dispatchEvent(new event(kind, { bubbles: true, cancelable: true, ...own }));
}"""


def source() -> str:
    return (files("cclm.retrieval.service") / "page.html").read_text(encoding="utf-8")


def test_the_page_is_one_file_that_names_no_other_place_and_writes_no_html() -> None:
    page = source()
    assert set(re.findall(r"[a-z]+://[^\s'\"]+", page)) == {"http://www.w3.org/2000/svg"}
    assert len(re.findall(r"<script", page)) == len(re.findall(r"<style", page)) == 1
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", page)
    markup = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.S)
    assert not re.findall(r"<[^>]*\s(?:style|on[a-z]+)=", markup)


@dataclass
class Folder:
    """Indexed photographs of several proportions, `keys` and `paths` in the order of their ids."""

    index: Path
    pictures: Path
    keys: list[str] = field(default_factory=list)

    def png(self, number: int) -> str:
        """A picture of the index as someone would drop it, in base64."""
        data = io.BytesIO()
        Image.open(self.pictures / self.keys[number]).save(data, "PNG")
        return base64.b64encode(data.getvalue()).decode()


@pytest.fixture(scope="module")
def model(records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads the scripts of the captions."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    texts = [text for record in records for texts in record["captions"].values() for text in texts]
    tokenizer = train_tokenizer(texts, folder, 1500)
    processor = CCLMProcessor(tokenizer, ImageSettings(image_size=SIDE), max_tokens=24)
    CCLMModel(CCLMConfig(vocab_size=processor.vocab_size, **(TINY | {"image_size": SIDE}))).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def records(shared: Path) -> list[dict[str, Any]]:
    with gzip.open(shared / "photos" / "captions.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line, _ in zip(lines, range(PICTURES), strict=False)]
    found[7]["captions"] = {"en": [HOSTILE]}
    return found


@pytest.fixture(scope="module")
def folder(
    shared: Path, records: list[dict[str, Any]], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Folder:
    made = Folder(tmp_path_factory.mktemp("index") / "index", tmp_path_factory.mktemp("pictures"))
    entries = []
    with zipfile.ZipFile(shared / "photos" / "images_128.zip") as photos:
        for number, record in enumerate(records):
            image = Image.open(io.BytesIO(photos.read(record["image"]))).convert("RGB")
            width, height = [(128, 128), (128, 86), (90, 128)][number % 3]
            name = f"{'trip' if number % 2 else 'home'}/{record['key']}.png"
            (made.pictures / name).parent.mkdir(exist_ok=True)
            image.crop((0, 0, width, height)).save(made.pictures / name)
            path, date = made.pictures / name, datetime(2001 + number % 20, 1, 1)
            entry = Entry(name, record["captions"], 0, name, None, path.stat().st_size, width, height, date)
            entries.append(Entry(**(vars(entry) | {"sha256": file_hash(path)})))
            made.keys.append(name)
    encoder = CCLMModel.from_pretrained(model).eval()
    vectors = encoder.embed_images([made.pictures / key for key in made.keys], progress=False)
    build_index([Rows.of(entries, vectors)], made.index, ModelSource.of(model), [made.pictures])
    return made


@contextmanager
def serving(index: Path, token: str = "") -> Iterator[str]:
    """`cclm serve` on a free port of this machine; its address."""
    pytest.importorskip("uvicorn", reason="the service needs cclm[serve]")
    command = [sys.executable, "-c", CLI, "serve", str(index), "--port", "0", "--rate", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"CCLM_TOKEN": token}
    ) as service:
        try:
            assert service.stdout is not None
            told = next((line for line in service.stdout if "http://" in line), "")
            assert told, "the service ended before it answered"
            yield re.findall(r"http://[^\s/]+", told)[0]
        finally:
            service.terminate()


@pytest.fixture(scope="module")
def address(folder: Folder) -> Iterator[str]:
    with serving(folder.index) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests drive Chromium by playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("the page's tests need Chromium (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


@dataclass
class Visit:
    """A browser's page and all that it asked for and complained of."""

    page: Any
    requests: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    allowed: str = r"^$"  # complaints that a test provokes

    def ready(self) -> None:
        """Wait until the newest question is answered."""
        self.page.wait_for_timeout(300)  # longer than the page waits for another letter
        self.page.wait_for_selector("#grid[aria-busy=false]", state="attached")

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.ready()

    def type(self, text: str) -> None:
        self.page.locator("#q").press_sequentially(text, delay=5)
        self.ready()

    def ids(self) -> list[int]:
        sources = self.page.eval_on_selector_all(".tile img", "all => all.map(one => new URL(one.src).pathname)")
        return [int(source.rsplit("/", 1)[1]) for source in sources]

    def asked(self) -> list[dict[str, Any]]:
        """The searches so far."""
        return [request.post_data_json for request in self.requests if request.url.endswith("/api/search")]

    def wide(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth")

    def shot(self, name: str) -> None:
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(250)  # for what fades in
        self.page.screenshot(path=SHOTS / f"{name}.png")


SHOTS = Path(os.environ.get("CCLM_ARTEFACTS", "."))


@pytest.fixture(scope="module", autouse=True)
def shots(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Screenshots are kept in `$CCLM_ARTEFACTS`, or else in pytest's folder."""
    global SHOTS
    SHOTS = Path(os.environ.get("CCLM_ARTEFACTS") or tmp_path_factory.mktemp("shots"))


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens an address. Afterwards nothing may have left its origin, nor anything been complained of."""
    visits: list[tuple[Visit, str]] = []

    def opened(url: str, **options: Any) -> Visit:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 860}, "locale": "en-GB"} | options))
        made = Visit(context.new_page())
        made.page.set_default_timeout(10_000)
        made.page.on("request", lambda request: made.requests.append(request))
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.on(
            "console", lambda said: made.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        visits.append((made, url))
        made.open(url)
        return made

    yield opened
    for made, url in visits:
        origin = "/".join(url.split("/")[:3]) + "/"
        elsewhere = [r.url for r in made.requests if not r.url.startswith((origin, "data:image/", "blob:"))]
        complaints = [text for text in made.complaints if not re.search(made.allowed, text)]
        made.page.context.close()
        assert elsewhere == []
        assert complaints == []


def test_arabic_is_typed_from_right_to_left_and_answered(visit: Callable[..., Visit], address: str) -> None:
    here = visit(address)
    here.shot("start")
    here.type("كلب أسود")
    direction = "one => getComputedStyle(one).direction"
    assert here.page.locator("#q").evaluate(direction) == "rtl"
    assert len(here.ids()) == PAGE
    caption = here.page.locator(".tile .caption").first
    assert caption.get_attribute("lang") == "ar"
    assert caption.evaluate(direction) == "rtl"
    assert f"{PAGE} of {PICTURES} pictures" in here.page.locator("#count[aria-live]").inner_text()
    assert here.asked()[-1]["text"] == "كلب أسود"
    here.shot("rtl")
    before = here.ids()
    here.page.reload()  # the query is in the address
    here.ready()
    assert here.page.locator("#q").input_value() == "كلب أسود"
    assert here.ids() == before


def test_typing_is_one_step_of_history_and_back_is_as_it_was(visit: Callable[..., Visit], address: str) -> None:
    here = visit(address)
    here.type("a dog in the snow")
    typed = [asked["text"] for asked in here.asked() if asked["k"] == PAGE and asked["offset"] == 0]
    assert typed[-1] == "a dog in the snow"
    assert len(typed) < len("a dog in the snow")
    first = here.ids()
    here.page.locator(".tile").nth(30).hover()
    at, asked = here.page.evaluate("scrollY"), len(here.asked())
    assert at > 0
    here.page.locator(".tile .like").nth(30).click()
    here.ready()
    assert here.ids()[0] == first[30]  # nothing is more like it
    assert here.asked()[-1]["like"] == first[30]
    assert here.page.locator(".chip img").get_attribute("src").endswith(f"/{first[30]}")
    here.shot("more_like_this")
    here.page.go_back()
    here.ready()
    assert here.ids()[:PAGE] == first
    assert here.page.locator("#q").input_value() == "a dog in the snow"
    assert here.page.evaluate("scrollY") == at
    assert not [again for again in here.asked()[asked:] if "text" in again and again["offset"] == 0]
    here.page.go_back()
    here.ready()
    assert here.page.locator("#hello").is_visible()


@pytest.mark.parametrize("way", ["drop", "paste", "file"])
def test_a_picture_of_ones_own(visit: Callable[..., Visit], address: str, folder: Folder, way: str) -> None:
    here = visit(address)
    if way == "file":
        here.page.locator("#file").set_input_files(folder.pictures / folder.keys[40])
    else:
        here.page.evaluate(DROP, [folder.png(40), way])
    here.page.wait_for_selector(".chip")
    here.ready()
    assert here.ids()[0] == 40
    assert here.page.locator(".chip img").get_attribute("src").startswith("data:image/")
    here.type("snow")
    assert here.asked()[-1]["text"] == "snow"
    assert Image.open(io.BytesIO(base64.b64decode(here.asked()[-1]["image"]))).size == (128, 86)
    here.shot(f"picture_{way}")
    here.page.get_by_label("Remove: your picture").click()
    here.ready()
    assert "image" not in here.asked()[-1]
    here.page.go_back()  # history holds the picture as well
    here.ready()
    assert here.page.locator(".chip").count() == 1


def test_a_query_that_is_not_finished_leaves_the_pictures_there(visit: Callable[..., Visit], address: str) -> None:
    here = visit(f"{address}/?like=abc")  # which is no id
    here.allowed = "422"
    assert not here.page.locator("#state").is_visible() and all("like" not in asked for asked in here.asked())
    here.type("two dogs")
    shown, line = here.ids(), here.page.locator("#unclear")
    here.type(' "red')
    assert "quotation mark" in line.inner_text() and here.ids() == shown
    assert here.page.locator(".tile").first.is_visible() and not here.page.locator("#state").is_visible()
    here.shot("unfinished")
    here.type('"')
    assert not line.is_visible() and here.asked()[-1]["text"] == 'two dogs "red"'


def test_what_is_no_picture_is_refused_in_a_line(visit: Callable[..., Visit], address: str) -> None:
    here = visit(address)
    here.page.evaluate(DROP, [base64.b64encode(b"no picture").decode(), "drop"])
    here.page.wait_for_selector("#banner:visible")
    assert "mine.png is not a picture" in here.page.locator("#banner").inner_text()
    assert all("image" not in asked for asked in here.asked())


def test_the_grid_is_walked_by_keys(visit: Callable[..., Visit], address: str) -> None:
    here = visit(address)
    press, focused = (
        here.page.keyboard.press,
        "() => document.activeElement.dataset.position ?? document.activeElement.id",
    )
    here.page.locator("#title").click()
    press("/")
    assert here.page.evaluate(focused) == "q"
    here.type("two dogs")
    press("ArrowDown")
    assert here.page.evaluate(focused) == "0"
    press("ArrowRight")
    press("ArrowRight")
    press("ArrowLeft")
    assert here.page.evaluate(focused) == "1"
    press("ArrowDown")
    below = int(here.page.evaluate(focused))
    boxes = [here.page.locator(".tile .open").nth(place).bounding_box() for place in (1, below)]
    assert boxes[1]["y"] > boxes[0]["y"] + 50
    assert boxes[1]["x"] < boxes[0]["x"] + boxes[0]["width"]
    press("ArrowUp")
    press("Enter")
    assert here.page.locator("#detail").is_visible()
    press("ArrowRight")
    assert f"show={here.ids()[2]}" in here.page.url
    press("Escape")
    here.page.wait_for_url(re.compile("dogs$"))
    assert not here.page.locator("#detail").is_visible()
    assert here.page.evaluate(focused) == "2"
    before = here.ids()
    press("m")
    here.ready()
    assert here.asked()[-1]["like"] == before[2]


def test_words_are_explained_over_the_picture(visit: Callable[..., Visit], address: str) -> None:
    here = visit(f'{address}/?q="black dog"%5E2 -snow')
    first = here.ids()[0]
    here.page.locator(".tile .open").first.click()
    words = here.page.locator(".words button")
    words.first.wait_for()
    assert here.page.locator("#asked").input_value() == "black dog"  # what is left out, or weighs, is not looked for
    assert words.all_inner_texts() == ["black", "dog", "whole query"]
    assert here.page.locator("#large").get_attribute("src").startswith(f"/images/{first}?v=")
    assert re.search(r"File\n(home|trip)/.+\n(.*\n)*Size\n\d+ × \d+, \d+ kB", here.page.locator("#facts").inner_text())
    heat = here.page.locator("#heat")
    assert "shown" not in (heat.get_attribute("class") or "")
    painted = "one => one.toDataURL()"
    seen = set()
    for place in range(3):
        words.nth(place).click()
        assert "shown" in heat.get_attribute("class")
        assert words.nth(place).get_attribute("aria-pressed") == "true"
        seen.add(heat.evaluate(painted))
    assert len(seen) == 3
    here.shot("explanation")
    here.page.locator("#asked").fill("كلب")
    here.page.wait_for_timeout(300)
    words.first.wait_for()
    assert words.first.inner_text() == "كلب"
    here.page.locator("#alike").click()
    here.ready()
    assert not here.page.locator("#detail").is_visible()
    assert here.asked()[-1]["like"] == first


def test_filters_and_a_filter_that_is_wrong(visit: Callable[..., Visit], address: str, folder: Folder) -> None:
    here = visit(f"{address}/?q=snow")
    here.allowed = "status of 4"
    before = here.ids()
    here.page.locator("#filtering").click()
    here.page.locator("[name=where]").press_sequentially("weight > 3")
    here.page.wait_for_selector("#wrong:not(:empty)")
    assert "weight" in here.page.locator("#wrong").inner_text()
    assert here.page.locator("[name=where]").get_attribute("aria-invalid") == "true"
    assert here.ids() == before  # what was found before stays
    here.shot("filter_wrong")
    here.page.locator("[name=where]").fill("height < 100")
    here.ready()
    assert here.page.locator("#wrong").inner_text() == ""
    assert set(here.ids()) == {number for number in range(PICTURES) if number % 3 == 1}
    here.page.locator("[name=path]").fill("trip/")
    here.page.locator("[name=from]").fill("2005-01-01")
    here.page.locator("[name=to]").fill("2009-12-31")
    here.ready()
    expected = {n for n in range(PICTURES) if n % 3 == 1 and n % 2 and 2005 <= 2001 + n % 20 <= 2009}
    assert set(here.ids()) == expected
    assert here.page.locator("#active").inner_text() == "4"
    here.page.locator("[name=width]").fill("100000")
    here.ready()
    assert "No picture passes the filters" in here.page.locator("#state").inner_text()
    here.page.locator("#state button").click()
    here.ready()
    assert here.ids() == before


def test_the_best_are_ranked_again(visit: Callable[..., Visit], address: str) -> None:
    here = visit(f"{address}/?q=two dogs")
    here.page.locator("#filtering").click()
    here.page.locator("[name=rerank]").check()
    here.ready()
    assert here.asked()[-1]["rerank"] > 0
    assert here.page.locator(".tile .score").first.text_content().startswith("match ")


def test_a_caption_is_shown_as_text(visit: Callable[..., Visit], address: str) -> None:
    here = visit(f"{address}/?like=7")
    assert here.page.locator(".tile .caption").first.text_content() == HOSTILE
    here.page.locator(".tile .open").first.click()
    assert here.page.locator(".lead").text_content() == HOSTILE
    here.page.wait_for_timeout(200)
    assert here.page.evaluate("window.pwned") is None
    assert not [request.url for request in here.requests if request.url.endswith("/x")]


def test_a_phone(visit: Callable[..., Visit], address: str) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    here = visit(address, **phone)
    assert here.wide() == 360
    here.shot("phone_start")
    here.open(f"{address}/?q=Kinder am Strand&like=5")
    assert here.wide() == 360
    here.shot("phone")
    here.page.locator("#filtering").tap()
    assert here.wide() == 360
    here.page.locator("#filtering").tap()
    like = here.page.locator(".tile .like").first
    assert like.evaluate("one => getComputedStyle(one).opacity") > "0.5"  # nobody hovers with a thumb
    here.page.locator(".tile .open").nth(1).tap()
    here.page.locator(".words button").first.wait_for()
    assert here.wide() == 360
    assert here.page.locator("#detail").bounding_box()["width"] == 360
    here.shot("phone_detail")
    here.page.go_back()
    assert not here.page.locator("#detail").is_visible()
    like.tap()
    here.ready()
    assert here.page.locator("#q").input_value() == ""


def test_dark_as_the_system_says_or_as_was_chosen(visit: Callable[..., Visit], address: str) -> None:
    here = visit(f"{address}/?q=children playing", color_scheme="dark")
    light = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part > 127)"
    assert not here.page.evaluate(light)
    here.shot("dark")
    here.page.locator("#theme").click()
    assert here.page.evaluate(light)
    here.page.reload()
    here.ready()
    assert here.page.evaluate(light)


def test_more_come_as_one_scrolls_and_nothing_jumps(visit: Callable[..., Visit], address: str) -> None:
    here = visit(f"{address}/?q=snow")
    place = here.page.locator(".tile").nth(30).bounding_box()
    here.page.reload()
    here.page.route("**/thumbnails/*", lambda route: route.abort())
    here.allowed = "Failed to load resource"
    here.ready()
    assert here.page.locator(".tile").nth(30).bounding_box() == place  # rows are laid out before a picture is there
    here.page.unroute("**/thumbnails/*")
    here.open(f"{address}/?q=snow")
    for count in (2 * PAGE, PICTURES):
        here.page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
        here.page.locator(f".tile:nth-child({count})").wait_for()
        here.ready()
    assert sorted(here.ids()) == list(range(PICTURES))
    assert not here.page.locator("#more").is_visible()


def test_an_answer_that_comes_late_is_dropped(visit: Callable[..., Visit], address: str) -> None:
    here = visit(address)
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route) if route.request.post_data_json.get("text") == "slow" else route.continue_()

    here.page.route("**/api/search", hold)
    here.page.locator("#q").fill("slow")
    here.page.wait_for_timeout(400)
    assert len(held) == 1
    here.page.locator("#q").fill("two dogs")
    here.ready()
    expected = here.ids()
    held[0].abort()
    here.page.wait_for_timeout(100)
    assert here.ids() == expected
    assert not here.page.locator("#banner").is_visible()


def test_a_service_that_is_away_comes_back(visit: Callable[..., Visit], address: str) -> None:
    here = visit(address)
    here.allowed = "Failed to load resource"
    here.page.route("**/api/*", lambda route: route.abort())
    here.page.locator("#q").fill("dogs")
    here.page.locator("#banner").wait_for()
    assert "does not answer" in here.page.locator("#banner").inner_text()
    here.page.unroute("**/api/*")
    here.page.locator("#banner button").dispatch_event("click")  # the page's own next try may have come first
    here.page.locator("#banner").wait_for(state="hidden")
    here.ready()
    assert "/?q=dogs" in here.page.url
    assert len(here.ids()) == PAGE


def test_a_locked_index_asks_for_its_token(visit: Callable[..., Visit], folder: Folder) -> None:
    with serving(folder.index, TOKEN) as address:
        here = visit(address)
        here.allowed = "status of 401"
        field, button = here.page.locator("#token"), here.page.locator("#entry button")
        field.fill("another token, which is wrong")
        button.click()
        here.page.wait_for_selector("#refused:not(:empty)")
        here.shot("locked")
        field.fill(TOKEN)
        button.click()
        here.page.locator("#entry").wait_for(state="hidden")
        here.ready()
        loaded = "() => document.querySelector('.tile img').decode().then(() => true)"
        assert here.page.evaluate(loaded)  # pictures carry no header, so there is a cookie
        here.page.reload()
        here.ready()
        assert not here.page.locator("#entry").is_visible()
        here.page.context.close()
