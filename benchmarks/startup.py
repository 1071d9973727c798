"""Start-up time: `import motionaura_jax` on top of `import jax`, and `--help` of each command; medians of fresh processes.

python -m benchmarks.startup [--rounds=7]
"""

import argparse
import statistics
import subprocess
import sys
import time

from motionaura_jax.core.cli import COMMANDS


def seconds(*arguments: str) -> float:
    """Measure the wall seconds of one fresh interpreter."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    pairs = [(seconds("-c", "import jax"), seconds("-c", "import jax, motionaura_jax")) for _ in range(rounds)]
    print("| what | seconds |\n|---|---|")
    print(f"| import jax | {statistics.median(a for a, _ in pairs):.2f} |")
    print(f"| import motionaura_jax, beyond it | {statistics.median(b - a for a, b in pairs):.3f} |")
    for command in COMMANDS:
        times = [seconds("-m", f"motionaura_jax.{command}", "--help") for _ in range(rounds)]
        print(f"| {command} --help | {statistics.median(times):.2f} |")


if __name__ == "__main__":
    main()
