"""A Kafka producer without stepfold: puts one record into a topic. `stepfold demo --kafka` runs it as a script.

python demo_producer.py HOST:PORT TOPIC TEXT
"""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# aiokafka ships no types.
import asyncio
import sys

from aiokafka import AIOKafkaProducer


async def publish(bootstrap: str, topic: str, text: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        await producer.send_and_wait(topic, text.encode())
    finally:
        await producer.stop()


if __name__ == "__main__":
    asyncio.run(publish(*sys.argv[1:]))
