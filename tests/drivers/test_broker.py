"""The local broker: a real process that can be killed, and never outlives whoever started it."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepfold.drivers import broker as broker_module
from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.errors import ConfigError
from stepfold.log import Entry

pytestmark = pytest.mark.kafka


async def append(bootstrap: str, value: bytes) -> list[bytes]:
    """Append one record and return all there are."""
    driver = KafkaDriver(bootstrap, "kept")
    await driver.create_topics(1, 1)
    await driver.open()
    await driver.append(0, [Entry("run", value)])
    found = await driver.find(0, ["run"])
    await driver.close()
    return [record.value for record in found]


async def test_data_outlive_a_kill_and_a_restart(tmp_path: Path) -> None:
    with LocalBroker(tmp_path) as broker:
        address = broker.bootstrap
        assert await append(address, b"1") == [b"1"]
        broker.kill()
        assert broker.pid is None
        broker.start()
        broker.start()
        assert broker.bootstrap == address
        assert await append(address, b"2") == [b"1", b"2"]
        broker.restart()
        assert await append(address, b"3") == [b"1", b"2", b"3"]
    with LocalBroker(tmp_path) as later:
        assert await append(later.bootstrap, b"4") == [b"1", b"2", b"3", b"4"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only an orderly exit takes the broker along")
def test_a_broker_dies_with_whoever_started_it(tmp_path: Path) -> None:
    code = """
import sys, time
from stepfold.drivers import broker as broker_module
from stepfold.drivers.broker import LocalBroker
broker = LocalBroker(sys.argv[1])
broker.start()
print(broker.pid, flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout as output:
        broker = int(output.readline())
    assert is_running(broker)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    while is_running(broker):
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_brokers_do_not_share_their_data(tmp_path: Path) -> None:
    with LocalBroker(tmp_path) as broker:
        with pytest.raises(ConfigError, match="another local Kafka broker runs on"):
            LocalBroker(tmp_path).start()
        assert broker.pid is not None
        assert is_running(broker.pid)


def test_a_broker_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=x\n")
    with pytest.raises(ConfigError, match=r"the local Kafka broker did not start: .*node"):
        LocalBroker(tmp_path).start()


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> object:
        return None if name == "jgo" else object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(ConfigError, match=r"pip install 'stepfold\[broker\]'"):
        LocalBroker().start()


def test_nothing_is_downloaded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalBroker():
        pass  # it has been downloaded now
    monkeypatch.setattr("jgo.build", None)
    said: list[str] = []
    with LocalBroker(say=said.append) as broker:
        assert broker.pid is not None
    assert said == []


def test_java_loads_kafkas_classes_once(tmp_path: Path) -> None:
    runtime = broker_module._runtime(None)._replace(classes=tmp_path / "classes")  # pyright: ignore[reportPrivateUsage] - its own cache
    broken = runtime.run(["kafka.tools.StorageTool", "format"])
    assert broken.returncode != 0
    assert list(tmp_path.iterdir()) == []
    first = runtime.run(["kafka.tools.StorageTool", "random-uuid"])
    made = runtime.classes.stat().st_mtime_ns
    second = runtime.run(["kafka.tools.StorageTool", "random-uuid"])
    assert (first.returncode, second.returncode) == (0, 0)
    assert runtime.classes.stat().st_mtime_ns == made
    assert list(tmp_path.iterdir()) == [runtime.classes]
