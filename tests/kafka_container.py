"""apache/kafka in a container, as a broker for tests: the same interface as `LocalBroker`."""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import struct
import time
import warnings

from docker.errors import DockerException
from docker.models.containers import Container
from testcontainers.core.container import DockerContainer

from stepfold.errors import ConfigError

IMAGE = "apache/kafka:4.1.0"
DATA = "/tmp/kraft-combined-logs"  # inside the container
# The image formats its data at every start, which fails for a container that was killed and is started again.
COMMAND = f"""
[ -f {DATA}/meta.properties ] || exec /etc/kafka/docker/run
exec java -Xmx512m -cp '/opt/kafka/libs/*' kafka.Kafka /opt/kafka/config/server.properties
"""
START_TIMEOUT_S = 90


class KafkaContainer:
    """One broker on a fixed port of loopback, so that it has the same address after it was killed and started again."""

    def __init__(self) -> None:
        self._port = free_port()
        self._container: Container | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        if self._container is None:
            self._container = self._run()
        else:
            self._container.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            self._container.reload()
            if self._container.status == "exited" or time.monotonic() > deadline:
                raise ConfigError(f"{IMAGE} did not start: {self._container.logs(tail=5).decode(errors='replace')}")
            time.sleep(0.1)

    def _run(self) -> Container:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # where no Docker answers its client leaves a socket open
            try:
                container = DockerContainer(IMAGE).with_command(["bash", "-c", COMMAND]).with_bind_ports(self._port, self._port)
                return container.with_envs(**self._settings()).start().get_wrapped_container()
            except DockerException as error:
                problem = f"no container of {IMAGE}: {error}"
            gc.collect()
        raise ConfigError(problem)

    def _answers(self) -> bool:
        """Whether the broker serves: Docker accepts connections before it does."""
        api_versions = struct.pack(">ihhih", 10, 18, 0, 1, -1)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
            connection.sendall(api_versions)
            return len(connection.recv(4)) == 4
        return False

    def stop(self) -> None:
        if self._container is not None:
            self._container.remove(force=True, v=True)
            self._container = None

    def kill(self) -> None:
        if self._container is not None:
            self._container.kill()
            self._container.wait()

    def _settings(self) -> dict[str, str]:
        """Each becomes a line of server.properties; nothing else is in it once there is one."""
        return {
            "KAFKA_NODE_ID": "1",
            "KAFKA_PROCESS_ROLES": "broker,controller",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
            "KAFKA_LISTENERS": f"PLAINTEXT://:{self._port},CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{self._port}",
            "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "4",
            "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
            "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
            "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
            "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
            "KAFKA_BROKER_SESSION_TIMEOUT_MS": "3000",
            "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "500",
            "KAFKA_LOG_DIRS": DATA,
        }


def free_port() -> int:
    """Outside of the range that outgoing connections are given ports from."""
    for port in random.sample(range(15_000, 32_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise ConfigError("no free port on 127.0.0.1")
