"""A program that runs in an arena: a real browser opens a page, again and again, and tells what it shows.

Its argument is JSON: ``url``, ``selector`` of the element whose ``data-state`` is told, ``times``, ``program`` of the
browser, ``stay`` (whether it waits to be killed). It prints a line of JSON for each time the page was loaded.
"""

import json
import sys
import time
from typing import Any


def main() -> None:
    """Do what the argument says."""
    from playwright.sync_api import sync_playwright

    asked: dict[str, Any] = json.loads(sys.argv[1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=asked["program"],
            # Root has no sandbox of Chromium; the page is the service's own.
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        for number in range(asked["times"]):
            answer = page.goto(asked["url"]) if number == 0 else page.reload()
            status = answer.status if answer is not None else 0
            found = page.query_selector(asked["selector"])
            state = found.get_attribute("data-state") if found is not None else None
            print(json.dumps({"status": status, "state": state, "errors": errors}), flush=True)
        while asked["stay"]:
            time.sleep(1)
        browser.close()


if __name__ == "__main__":
    main()
