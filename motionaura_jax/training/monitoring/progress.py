"""Progress of a run for people: a bar with loss, speed, remaining time and memory, or plain lines in a log file."""

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from motionaura_jax.parallel import distributed


class TrainingProgress:
    """Progress bar on a terminal, one line per log step elsewhere; on stderr, from the first process only."""

    def __init__(self, total: int, start: int):
        self._console = Console(stderr=True, quiet=not distributed.is_primary())
        self._total, self._step, self._clock, self._rate = total, start, time.perf_counter(), 0.0
        columns = ("[bold]{task.description}", "{task.fields[loss]}", "{task.fields[speed]}", "{task.fields[memory]}")
        self._bar = Progress(
            TextColumn(columns[0]),
            BarColumn(),
            MofNCompleteColumn(),
            *(TextColumn(column) for column in columns[1:]),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=self._console.quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total, completed=start, loss="", speed="compiling", memory="")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def pause(self, step: int) -> None:
        """Restart the stopwatch at `step`, so that compiling, saving and evaluating stay out of the speed."""
        self._step, self._clock = step, time.perf_counter()

    def report(self, step: int, metrics: Mapping[str, float], clips_per_step: float) -> dict[str, float]:
        """Show a log step; return the measured speed and memory for the metric writer."""
        now = time.perf_counter()
        # Logs come a step late: if the stopwatch was restarted after this step, nothing was timed; repeat the last speed.
        if step > self._step:
            self._rate = (step - self._step) / max(now - self._clock, 1e-9)
            self._step, self._clock = step, now
        rate = self._rate
        speed = {"steps_per_second": rate, "clips_per_second": rate * clips_per_step, "memory_gb": memory_gb()}
        texts = {
            "loss": f"loss {metrics['loss']:.4f}",
            "speed": f"{rate:.2f} steps/s {rate * clips_per_step:.1f} clips/s",
            "memory": f"{speed['memory_gb']:.1f} GB",
        }
        self._bar.update(self._task, completed=step, loss=texts["loss"], speed=texts["speed"], memory=texts["memory"])
        if not self._console.is_terminal:
            remaining = time.strftime("%H:%M:%S", time.gmtime((self._total - step) / rate)) if rate else "--:--:--"
            self.note(f"step {step}/{self._total}  " + "  ".join(texts.values()) + f"  ETA {remaining}")
        return speed

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def memory_gb() -> float:
    """Return peak memory in GB: of the fullest device if the backend reports it, else of this process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if any(peaks):
        return max(peaks) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
