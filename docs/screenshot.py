"""Takes docs/mlflow.png: MLflow's UI on the runs as they are, with the three clicks that compare methods.

    python docs/screenshot.py [--store mlruns] [--network lenet300] [--output docs/mlflow.png]

Needs playwright and a Chromium: the system's, or that of `playwright install chromium`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1440, 900


@contextmanager
def ui(store: Path, patience: float = 120.0) -> Iterator[str]:
    """MLflow's UI on a free port.

    Args:
        store: folder of the database, as `lobs track` writes it.
        patience: seconds to wait for it.

    Yields:
        Its address.

    Raises:
        RuntimeError: it did not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{store.resolve() / 'mlflow.db'}"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
            else:
                yield f"http://127.0.0.1:{port}"
                return
        raise RuntimeError(f"MLflow's UI on {store} did not come up within {patience:g} seconds")
    finally:
        server.terminate()
        server.wait()


def experiment_id(store: Path) -> str:
    """The id of the experiment "paper"."""
    from lobs_paper.tracking.store import DATABASE, EXPERIMENT

    if not (store / DATABASE).exists():
        raise SystemExit(f"{store / DATABASE} does not exist yet: run `lobs track` first")
    from mlflow import MlflowClient

    experiment = MlflowClient(f"sqlite:///{store.resolve() / DATABASE}").get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise SystemExit(f"{store / DATABASE} has no experiment {EXPERIMENT}: run `lobs track` first")
    return experiment.experiment_id


def take(address: str, network: str, output: Path) -> None:
    """Open the experiment's runs, click, and save what is seen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        installed = next(filter(None, map(shutil.which, BROWSERS)), None)  # else playwright's own
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(60_000)
        page.goto(address)  # click 1: the link that `make ui` prints
        link = page.get_by_role("link", name=network, exact=True)
        link.wait_for()
        assistant = page.get_by_label("Close", exact=True)
        if assistant.count():
            assistant.first.click()
        link.locator("xpath=preceding::button[1]").click()  # click 2: the plus sign before the network
        page.get_by_role("link", name=", seed 0").first.wait_for()
        page.locator("input[value=CHART]").locator("xpath=ancestor::label[1]").click()  # click 3: the chart symbol
        page.get_by_text("error_after_pruning_percent", exact=True).first.wait_for()
        page.wait_for_timeout(4000)  # the charts draw themselves
        output.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(output))
        browser.close()


def main() -> None:
    """Parse the arguments and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("mlruns"))
    parser.add_argument("--network", default="lenet300")
    parser.add_argument("--output", type=Path, default=Path("docs/mlflow.png"))
    options = parser.parse_args()
    runs = f"#/experiments/{experiment_id(options.store)}/runs?workflowType=machine_learning"
    with ui(options.store) as address:
        take(f"{address}/{runs}", options.network, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
