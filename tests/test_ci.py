"""CI: workflows take steps that exist, on two versions of macOS and on Linux, in words that macOS's bash 3.2 has."""

import re
import subprocess

import pytest
import yaml
from helpers import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
STEPS = set(re.findall(r"^    (\w+)\)", (ROOT / ".ci" / "steps").read_text(), re.M))
SCRIPTS = [".ci/steps", ".ci/lowest", "check"]
NEWER_THAN_3_2 = r"mapfile|readarray|declare -A|local -n|\$\{\w+(,,|\^\^|@)|&>>|\|&|;&|coproc|\bwait -n|\$EPOCH"


def runs(job):
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_macs_take_the_steps_of_linux():
    taken = [name for run in runs("mac") for name in re.findall(r"\.ci/steps (.*)", run) for name in name.split()]
    assert taken == ["talk", "doctor", "static", "test"]
    named = [name for job in WORKFLOW["jobs"] for run in runs(job)
             for names in re.findall(r"\.ci/steps (.*)", run) for name in names.split()]  # fmt: skip
    assert set(named) <= STEPS
    assert not [run for run in runs("mac") if "apt" in run]


def test_two_versions_of_macos_on_apple_silicon():
    systems = [row["system"] for row in WORKFLOW["jobs"]["mac"]["strategy"]["matrix"]["include"]]
    assert len(set(systems)) == 2
    assert all(re.fullmatch(r"macos-\d+", system) and int(system[6:]) >= 14 for system in systems)


def test_each_report_of_the_doctor_is_kept():
    for job in ("mac", "linux"):
        steps = WORKFLOW["jobs"][job]["steps"]
        assert any("doctor" in step.get("run", "") for step in steps)
        assert any(step.get("with", {}).get("path") == "doctor.json" for step in steps)


def test_the_oldest_python_runs_the_lowest_versions():
    text = (ROOT / "pyproject.toml").read_text()
    oldest = re.search(r'^requires-python = ">=(.*)"', text, re.M)[1]
    assert [s["with"]["python-version"] for s in WORKFLOW["jobs"]["lowest"]["steps"] if "with" in s] == [oldest]
    assert ".ci/lowest" in runs("lowest")[-1]


def test_the_lowest_versions_are_read_off_pyproject():
    line = next(line for line in (ROOT / ".ci" / "lowest").read_text().splitlines() if line.startswith("sed -n"))
    read = subprocess.run(["bash", "-c", line.partition(" >")[0]], cwd=ROOT, capture_output=True, text=True).stdout
    needs = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1]
    assert read.splitlines() == [need.strip(' ",').replace(">=", "==") for need in needs.splitlines()]
    assert "mlx==0.32.4; sys_platform == 'darwin'" in read


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_for_the_bash_of_macos(script):
    assert not re.search(NEWER_THAN_3_2, (ROOT / script).read_text())
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_an_unknown_step_is_named():
    done = subprocess.run([ROOT / ".ci" / "steps", "sing"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "no step is called sing\n")
