"""Two seconds of fuzzing of the plan reader in the suite; its own stage runs it for a minute."""

import subprocess
import sys
from pathlib import Path


def test_two_seconds_of_fuzzing_find_nothing():
    script = Path(__file__).with_name("fuzz_plan.py")
    done = subprocess.run(
        [sys.executable, str(script), "--seconds", "2", "--seed", "1", "--engine", "own"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plans" in done.stdout
