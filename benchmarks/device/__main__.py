"""The run: every model bare, then served, then bare again; JSON after each step."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.device.bare import PARTS
from benchmarks.device.models import MODELS, Model
from benchmarks.device.report import write_report
from benchmarks.device.served import MODES, serve

_STARTED = time.perf_counter()


def say(text: str) -> None:
    print(f"[{time.perf_counter() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def measure_bare(
    folder: Path, device: str, parts: Sequence[str], sizes: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Each number as it is found; a process that fails ends the list with what it said."""
    command = [sys.executable, "-m", "benchmarks.device.bare", str(folder), "--device", device]
    command += ["--parts", ",".join(parts), "--sizes", ",".join(map(str, sizes))]
    command += ["--seconds", str(seconds)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if process.wait():
            errors.seek(0)
            yield {"part": "failed", "said": errors.read()[-2000:]}


class Run:
    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.found: dict[str, Any] = {"machine": _machine(), "models": {}}
        self._file = given.out / "device.json"
        if self._file.is_file():  # an earlier part of the same run
            earlier = json.loads(self._file.read_text())
            if earlier["machine"]["device"] == self.found["machine"]["device"]:
                self.found["models"] = earlier["models"]
                self.found["machine"]["command"] = "; ".join(
                    each["machine"]["command"] for each in (earlier, self.found)
                )

    def measure(self, model: Model, work: Path) -> None:
        given, entry = self._given, self._entry(model)
        folder = work / model.name
        if not (folder / "model_index.json").is_file():
            say(f"{model.name}: writing")
            folder = model.write(folder, torch.device(self._device))
        if self._device == "cuda":
            torch.cuda.empty_cache()
        early = [part for part in given.parts if not part.startswith("compiled")]
        if any(part != "again" for part in early):
            self._bare(entry, folder, early, model.sizes)
        for mode in given.modes:
            say(f"{model.name}, {mode}: starting the server")
            try:
                for found in serve(model, folder, work, mode, self._device, given.seconds, say):
                    entry["servers" if "ready_seconds" in found else "served"].append(found)
                    say(json.dumps(found))
                    self.save()
            except Exception as error:  # noqa: BLE001 - the other modes are still to be had
                say(f"{model.name}, {mode}: {error}")
                entry["servers"].append({"mode": mode, "failed": str(error)[-2000:]})
                self.save()
        if "again" in given.parts:
            self._bare(entry, folder, ["channels_last", "graphs"], _best_sizes(entry), "again")
        for part in given.parts:
            if part.startswith("compiled"):
                self._bare(entry, folder, [part], model.sizes)

    def _bare(
        self,
        entry: dict[str, Any],
        folder: Path,
        parts: Sequence[str],
        sizes: Sequence[int],
        where: str = "bare",
    ) -> None:
        parts = [part for part in parts if part != "again"]
        for found in measure_bare(folder, self._device, parts, sizes, self._given.bare_seconds):
            say(json.dumps(found))
            entry[where].append(found)
            self.save()

    def _entry(self, model: Model) -> dict[str, Any]:
        entry: dict[str, Any] = {"title": model.title, "sizes": list(model.sizes)}
        entry |= {"bare": [], "again": [], "servers": [], "served": []}
        return self.found["models"].setdefault(model.name, entry)

    def save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self.found, indent=1))


def _best_sizes(entry: dict[str, Any]) -> list[int]:
    timed = [point for point in entry["bare"] if "seconds" in point]
    best = max(timed, key=lambda point: point["rows"] / point["seconds"])
    return [best["rows"]]


def _machine() -> dict[str, Any]:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.device", *sys.argv[1:]]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device",
        description="Measures networks bare and behind a server on this machine's device. Writes "
        "device.json as it goes, device.md, CSV files and figures at the end.",
    )
    every = (*PARTS, "again")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to")
    add("--models", default="sd15,embedded,convolutions", help=f"of {', '.join(MODELS)}")
    add("--parts", default=",".join(every), help=f"of the bare network: {', '.join(every)}")
    add("--modes", default="eager;graphs", help=f"of the server, by ';': {'; '.join(MODES)}")
    add("--seconds", type=float, default=4.0, help="of a load's window (default: 4)")
    add("--bare-seconds", type=float, default=0.4, help="of a batch size (default: 0.4)")
    add("--work", type=Path, help="folder for networks, kept (default: a temporary one)")
    add("--tiny", action="store_true", help="a tiny network and short windows: does it run at all?")
    add("--report", action="store_true", help="only tables and figures, of device.json in --out")
    given = parser.parse_args()
    given.parts = [part for part in given.parts.split(",") if part]
    given.modes = [mode for mode in given.modes.split(";") if mode]
    names = ["tiny"] if given.tiny else given.models.split(",")
    unknown = [
        name
        for names, known in ((names, MODELS), (given.parts, every), (given.modes, MODES))
        for name in names
        if name not in known
    ]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; see --help")
    if given.tiny:
        given.seconds, given.bare_seconds = 0.5, 0.05
    if not given.report:
        run = Run(given)
        with tempfile.TemporaryDirectory() as temporary:
            work = given.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            try:
                for name in names:
                    run.measure(MODELS[name], work)
            finally:
                run.save()
                for log in work.glob("*.log"):
                    (given.out / log.name).write_text(log.read_text())
    write_report(given.out)
    say(f"wrote {given.out / 'device.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
