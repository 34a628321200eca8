"""Prefect's page, used as a person uses it: a run of the pipeline, what it shows, and a promotion that somebody accepts.

PROSEMILL_PICTURES=docs/pictures pytest tests/end_to_end/test_page.py    # takes the documentation's pictures
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import psutil
import pytest
import requests
from selenium.webdriver.common.by import By

from tests.browser import Browser, needs_browser, running_browser
from tests.conftest import environment
from tests.end_to_end.house import House, make_house_clone, running_house, told
from tests.waiting import LIMIT, until

STEPS = dict.fromkeys(("download", "tokenize", "group", "train", "evaluate"), "Unchanged") | dict.fromkeys(
    ("register", "gate"), "Completed"
)
"""What comes of each step of a run in the finished workspace."""
COMMENT = "It writes what looks like Python."
SHOWN = {
    "stages": ("download", "tokenize", "group", "train", "evaluate", "unchanged"),
    "metrics": ("bits per byte", "word perplexity", "trained"),
    "gate": ("Version 1 passes the gate", "bits per byte", "passed"),
    "train-progress": ("train: 20/20 steps", "Progress: 100%"),
}
"""Artifacts, and words that the pages of the newest of them show."""

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this module."""
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def house(browser: Browser, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house whose page the browser is logged in to. It is ended by SIGTERM, while the page is still open."""
    folder = tmp_path_factory.mktemp("page")
    with running_house(make_house_clone(folder, finished), folder / "up.log", end=signal.SIGTERM) as house:
        browser.open(house.prefect)
        browser.find("//input[@placeholder='admin:pass']").send_keys(house.auth)
        browser.click("//button[@type='submit']")
        browser.shows("Dashboard")
        with environment(house.mlflow_environment):
            yield house


@pytest.fixture(scope="module")
def first(house: House) -> str:
    """The address of the run that made the workspace, each of whose stages ran."""
    return f"{house.prefect}/v2/runs/flow-run/{house.api().flow_runs()[-1]['id']}"


@pytest.fixture(scope="module")
def run(browser: Browser, house: House) -> str:
    """The address of another run, started in the page, whose steps the page has shown as they end."""
    browser.open(f"{house.prefect}/v2/deployments")
    browser.click("//a[.='small']")
    browser.click("//button[normalize-space()='Run']")
    browser.click("//*[@role='menuitem'][.='Quick run']")
    browser.click("//a[.='View run']")
    browser.click("//button[@role='tab'][.='Task Runs']")
    run = browser.driver.current_url.partition("?")[0]
    for step, state in STEPS.items():
        browser.until(lambda step=step, state=state: is_in_state(browser, step, state), f"{step}, {state}")  # type: ignore[misc]
    browser.find("//*[@data-slot='badge'][.='Completed']")
    return run


@pytest.fixture(scope="module")
def promoted(browser: Browser, house: House, run: str) -> None:
    """Version 1, whose promotion somebody has accepted in the page, with a comment."""
    browser.open(f"{house.prefect}/v2/runs")
    browser.click("//a[.='version 1']")
    browser.find("//*[@data-slot='badge'][.='Paused']")
    browser.click("//button[.='Open menu']")
    browser.click("//*[@role='menuitem'][.='Resume']")
    browser.shows("Gate, against its base model", "at most", "passed", "silence refuses")

    comment = browser.find("//*[@role='dialog']//textarea")
    comment.send_keys(COMMENT)
    browser.click("//*[@role='dialog']//button[@role='switch']")
    browser.find("//*[@role='dialog']//button[@role='switch'][@aria-checked='true']")
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", comment)
    browser.picture("promotion")

    browser.click("//*[@role='dialog']//button[.='Resume']")
    browser.find("//*[@data-slot='badge'][.='Promoted']")
    browser.open("about:blank")  # a page that moves is drawn by the processors, which the service needs


def num_starts(house: House) -> int:
    """How often the service of version 1 was said to be there."""
    return house.log.read_text().count(f"Service  {house.service}  (version 1)")


def is_in_state(browser: Browser, step: str, wanted: str) -> bool:
    """Whether the run's page shows a step in a state; it fails at once if the run has."""
    card = "//*[@data-slot='card']"
    for state in ("Failed", "Crashed", "Cancelled"):
        assert not browser.driver.find_elements(By.XPATH, f"//*[@data-slot='badge'][.='{state}']"), f"{state}: {browser.driver.current_url}"
    return bool(browser.driver.find_elements(By.XPATH, f"{card}[.//*[@data-slot='badge'][.='{wanted}']][.//a[.='{step}']]"))


def open_artifact(browser: Browser, run: str, key: str) -> None:
    """Go from a run's page to one of its artifacts, by clicks."""
    browser.open(f"{run}?tab=Artifacts")
    browser.click_link(f"/artifacts/key/{key}")
    browser.click_link("/artifacts/artifact/")
    browser.shows(key, "Created")


def test_a_run_is_named_after_its_experiment_and_commit_and_shows_its_steps(browser: Browser, house: House, first: str) -> None:
    commit = house.clone.run("git", "rev-parse", "--short=7", "HEAD").strip()
    browser.open(first)
    browser.click("//button[@role='tab'][.='Task Runs']")
    browser.shows(f"tiny on python-300 @ {commit}", f"{len(STEPS)} Task runs", *STEPS)
    browser.picture("pipeline")


def test_a_run_says_what_came_of_it(browser: Browser, run: str) -> None:
    browser.open(run)
    browser.click("//button[@role='tab'][.='Details']")
    browser.shows("version 1 is registered and passes the gate; its promotion is asked for")


@pytest.mark.parametrize("key", SHOWN)
def test_an_artifact_opens(browser: Browser, first: str, run: str, key: str) -> None:
    open_artifact(browser, first if key == "train-progress" else run, key)
    browser.shows(*SHOWN[key])


def test_the_report_shows_its_pictures(browser: Browser, first: str, run: str) -> None:
    browser.open(f"{first}?tab=Artifacts")
    browser.shows(*SHOWN, "report")
    open_artifact(browser, run, "report")
    browser.shows("Evaluation", "bits per byte", "Protocol")

    def widths() -> list[int]:
        return [int(str(image.get_property("naturalWidth"))) for image in browser.driver.find_elements(By.XPATH, "//img[@alt]")]

    browser.until(lambda: len(found := widths()) == 3 and all(found), "every picture")
    browser.picture("report")


def test_the_links_lead_to_the_run_and_the_version_in_mlflow(browser: Browser, house: House, run: str) -> None:
    client = mlflow.MlflowClient(house.mlflow)
    run_id = client.get_model_version("prosemill", "1").run_id
    assert run_id is not None
    name = client.get_run(run_id).info.run_name
    browser.open(house.mlflow.replace("://", f"://{house.auth}@"))  # as if somebody had answered the browser's question
    for key, words in (("mlflow-run", (name, "Metrics")), ("registered-version", ("prosemill", "Version 1", "Source Run", name))):
        open_artifact(browser, run, key)
        link = browser.find(f"//a[starts-with(@href, '{house.mlflow}/')]").get_attribute("href")
        browser.open(str(link))
        browser.shows(*map(str, words))


@pytest.mark.usefixtures("promoted")
def test_a_person_accepts_a_promotion_and_says_why(house: House) -> None:
    champion = mlflow.MlflowClient(house.mlflow).get_model_version_by_alias("prosemill", "champion")
    assert str(champion.version) == "1"
    assert json.loads(champion.tags["prosemill.decision"]) == {"accept": True, "comment": COMMENT}


@pytest.mark.usefixtures("promoted")
def test_the_new_champion_is_served(house: House) -> None:
    until(lambda: num_starts(house), "the champion is served")
    assert all(address in house.log.read_text() for address in (house.prefect, f"{house.prefect}/api", house.mlflow, house.service))
    answer = requests.post(f"{house.service}/generate", json={"prompt": "import ", "max_new_tokens": 8}, timeout=LIMIT)
    assert answer.json()["model_version"] == 1


@pytest.mark.usefixtures("promoted")
def test_a_service_that_ends_is_started_again(house: House) -> None:
    until(lambda: num_starts(house), "the champion is served")
    num_before = num_starts(house)
    commands = told(house.processes(), psutil.Process.cmdline)
    for service in [process for process, command in commands.items() if command[1:4] == ["-m", "bentoml", "serve"]]:
        service.kill()
    until(lambda: num_starts(house) == num_before + 1, "the champion is served again")
    assert "the service has ended: see the end of .prosemill/logs/service.log" in house.log.read_text()
    assert requests.get(f"{house.service}/readyz", timeout=LIMIT).ok


@pytest.mark.xfail(strict=True, reason="Prefect's page asks Amplitude at every start; analytics_enabled keeps only its events back")
def test_the_pages_ask_nobody_outside(browser: Browser, house: House, run: str) -> None:
    assert browser.hosts() <= {urlsplit(address).netloc for address in (house.prefect, house.mlflow)}


@pytest.mark.usefixtures("promoted")
def test_a_champion_that_is_taken_away_is_served_no_more(house: House) -> None:
    until(lambda: num_starts(house), "the champion is served")
    mlflow.MlflowClient(house.mlflow).delete_registered_model_alias("prosemill", "champion")
    until(lambda: "Service  ended, there is no champion any more" in house.log.read_text(), "the service ends")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{house.service}/livez", timeout=LIMIT)
