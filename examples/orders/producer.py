# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# aiokafka ships no types.
"""Another service of the shop. It knows Kafka and one JSON format, and nothing of stepfold.

python producer.py localhost:9092 shop 42 --total-cents 12900
"""

import argparse
import asyncio
import json
from collections.abc import Mapping

from aiokafka import AIOKafkaProducer


async def publish(bootstrap: str, topic: str, request: Mapping[str, object]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(topic, json.dumps(request).encode())
    finally:
        await producer.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask for an order to be processed.")
    parser.add_argument("bootstrap", help="host:port of Kafka")
    parser.add_argument("namespace", help="where the shop's workflows live")
    parser.add_argument("order_id")
    parser.add_argument("--customer", default="ada")
    parser.add_argument("--total-cents", type=int, default=12_900)
    options = parser.parse_args()
    request = {
        "type": "start",
        "workflow": "process-order",
        "run_id": f"order-{options.order_id}",  # published twice, it starts one run
        "data": {
            "order_id": options.order_id,
            "customer": options.customer,
            "items": ["lamp", "book"],
            "total_cents": options.total_cents,
        },
    }
    asyncio.run(publish(options.bootstrap, f"{options.namespace}.inbox", request))
    print(f"asked for order-{options.order_id}")


if __name__ == "__main__":
    main()
