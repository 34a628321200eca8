"""A headless Chromium, used as a person uses one. It reaches this machine alone.

with running_browser() as browser:
    browser.open("http://127.0.0.1:3000/ui")
    browser.click("//button[.='Generate']")

PROSEMILL_PICTURES=docs/pictures has tests take the documentation's pictures.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.waiting import LIMIT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
PICTURES = os.environ.get("PROSEMILL_PICTURES")
PICTURE_SIZE = {"width": 1400, "height": 1000, "deviceScaleFactor": 1, "mobile": False}

NOT_YET = (NoSuchElementException, StaleElementReferenceException, ElementClickInterceptedException, ElementNotInteractableException)
"""What a step may end with while the page draws itself anew."""

T = TypeVar("T")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None, reason="no browser: install chromium and chromedriver (Debian: chromium, chromium-driver)"
)


class Browser:
    """A browser of which every step waits until the page is as far."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._asked: set[str] = set()

    def open(self, address: str) -> None:
        """Go to an address."""
        self.driver.get(address)
        self.hosts()  # or what the browser has noted down grows without end

    def find(self, xpath: str, patience: float = LIMIT) -> WebElement:
        """The first element of this kind, as soon as there is one."""
        return self.until(lambda: self.driver.find_element(By.XPATH, xpath), xpath, patience)

    def click(self, xpath: str) -> None:
        """Click on an element as soon as it takes clicks."""

        def try_to() -> bool:
            self.driver.find_element(By.XPATH, xpath).click()
            return True

        self.until(try_to, xpath)

    def click_link(self, part: str) -> None:
        """Click on the first link to an address with this part."""
        self.click(f"//a[contains(@href, '{part}')]")

    def shows(self, *words: str) -> None:
        """Wait until the page shows all of these."""
        self.until(lambda: all(word in self.driver.find_element(By.TAG_NAME, "body").text for word in words), f"{words}")

    def until(self, step: Callable[[], T], what: str, patience: float = LIMIT) -> T:
        """Wait until a step gives something."""
        found: T = WebDriverWait(self.driver, patience, ignored_exceptions=NOT_YET).until(lambda _: step(), f"{what} is not there")
        return found

    def picture(self, name: str) -> None:
        """Take a picture for the documentation, if it is wanted, as soon as nothing moves any more."""
        if PICTURES is None:
            return
        seen = [b""]

        def is_still() -> bool:
            seen.append(self.driver.get_screenshot_as_png())
            return seen[-1] == seen[-2]

        self.until(is_still, f"a still picture {name}")
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        (Path(PICTURES) / f"{name}.png").write_bytes(seen[-1])

    def hosts(self) -> set[str]:
        """Hosts that its pages have asked for anything so far."""
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                address = urlsplit(message["params"]["request"]["url"])
                self._asked |= {address.netloc} if address.scheme in ("http", "https") else set()
        return self._asked


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser, until the block ends."""
    options = ChromeOptions()
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    options.add_argument("--headless=new")
    options.add_argument("--disable-dev-shm-usage")  # in a container it is too small
    if PICTURES is None:
        # Prefect's page draws its graph sixty times a second, which takes half a processor where there is no GPU.
        options.add_argument("--disable-3d-apis")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(CHROMEDRIVER))
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PICTURE_SIZE)
        yield Browser(driver)
    finally:
        driver.quit()
