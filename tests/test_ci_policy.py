"""The rule that CI skips nothing of what matters, tried on small test files in another pytest."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent

NOT_ALLOWED = {
    "in_the_test": "@pytest.mark.kafka\ndef test_it(): pytest.skip('no broker')",
    "by_a_marker": "@pytest.mark.docker\n@pytest.mark.skipif(True, reason='no broker')\ndef test_it(): ...",
    "in_a_fixture": (
        "@pytest.fixture\ndef broker(): pytest.skip('no broker')\n"
        "@pytest.mark.parametrize('driver', [pytest.param('k', marks=pytest.mark.kafka)])\ndef test_it(driver, broker): ..."
    ),
    "of_a_module": "pytest.skip('no broker', allow_module_level=True)",
}
ALLOWED = "@pytest.mark.kafka\n@pytest.mark.xfail\ndef test_bug(): assert False\n\ndef test_other(): pytest.skip('not here')"


def run(folder: Path, files: dict[str, str], *, ci: str) -> tuple[int, str]:
    for name, code in files.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n\n{code}\n")
    (folder / "pytest.toml").write_text("[pytest]\nmarkers = ['kafka', 'docker']\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "ci_policy", "-p", "no:cacheprovider", "--continue-on-collection-errors"],
        cwd=folder,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout


def test_a_skip_fails_under_ci(tmp_path: Path) -> None:
    status, out = run(tmp_path, NOT_ALLOWED, ci="true")
    assert status == 1
    assert out.count("CI does not allow") == 2 * len(NOT_ALLOWED), "once in full and once in the summary"
    assert out.count("no broker") == 2 * len(NOT_ALLOWED)
    assert " 1 failed, 3 errors in " in out


def test_a_skip_is_a_skip_elsewhere(tmp_path: Path) -> None:
    status, out = run(tmp_path, NOT_ALLOWED, ci="")
    assert status == 0
    assert f" {len(NOT_ALLOWED)} skipped in " in out


def test_other_skips_and_expected_failures_stay_what_they_are_under_ci(tmp_path: Path) -> None:
    status, out = run(tmp_path, {"other": ALLOWED}, ci="true")
    assert status == 0
    assert " 1 skipped, 1 xfailed in " in out
