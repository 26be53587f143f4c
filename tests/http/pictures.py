"""Pictures of the dashboard for README and guides: `.venv/bin/python tests/http/pictures.py` writes docs/pictures/*.png.

It runs the orders example with a worker and a server on a log of its own, and looks at them in Chromium.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from chromium import chromium, listening, watched

from stepfold import Client, WorkflowFailed
from stepfold.cli.target import import_from_here, load

ROOT = Path(__file__).resolve().parent.parent.parent
CUSTOMERS = ("ada", "grace", "katherine", "mallory", "annie")
LARGE = "order-7"
DECLINED = "order-4"
PAGES = {
    "runs": "/",
    "waiting": f"/runs/{LARGE}",
    "run": f"/runs/{DECLINED}",
    "errors": "/errors",
    "dashboard": "/dashboards/shop",
}


async def order(client: Client, number: int) -> None:
    cents = 250_000 if f"order-{number}" == LARGE else 1_900 + number * 700
    data = {
        "order_id": str(number),
        "customer": CUSTOMERS[(number - 1) % len(CUSTOMERS)],
        "items": ["lamp"],
        "total_cents": cents,
    }
    run = await client.start_workflow("process-order", data, run_id=f"order-{number}", by="shop", why="checkout")
    if run.id != LARGE:
        try:
            await run.result()
        except WorkflowFailed as error:
            print(error)


async def main(folder: Path) -> None:
    os.chdir(ROOT / "examples/orders")
    client = load("workflow:client")
    bank: Any = import_from_here("services").bank
    shop: Any = import_from_here("projection").ShopProjection
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        client.log = Client("sqlite:///shop.db").log
        async with client.worker():
            for number in range(1, 13):
                bank.outages = number in (2, 7)
                await order(client, number)
            async with listening(client, projections=[shop()]) as url, chromium() as browser:
                look: dict[str, Any] = {"viewport": {"width": 1200, "height": 760}, "device_scale_factor": 1}
                async with watched(browser, url, **look) as page:
                    for name, path in PAGES.items():
                        await page.goto(path)
                        await page.wait_for_load_state("load")
                        await page.screenshot(path=folder / f"{name}.png")


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main(ROOT / "docs/pictures"))
