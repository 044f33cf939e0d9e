"""Growth of the time of a token, measured and drawn: python -m benchmarks.growth --device cpu

Writes one JSON document, after every sweep, and a PNG for each. Where matplotlib is missing, draw them
elsewhere from the document: --redraw growth-cuda.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm.auto import tqdm

from benchmarks.common import Document, hardware, parse, write_document
from benchmarks.gpu.machine import missing_gpu
from benchmarks.growth.sweeps import SIZES, SWEEPS, GrowthSizes, Rates, measure_rates

KIND = "trimtab growth"


@dataclass(frozen=True, slots=True)
class GrowthConfig:
    """sizes: of models and sweeps; those of the device where they are not named. sweeps: what is varied.
    out: the document; kernels/results/growth-DEVICE.json where it is not named. plots: where pictures go.
    redraw: measure nothing, draw this document again.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    sizes: Literal["cpu", "cuda", "toy"] | None = None
    sweeps: tuple[Literal["rows", "context", "heads", "vocabulary"], ...] = (
        "rows",
        "context",
        "heads",
        "vocabulary",
    )
    out: Path | None = None
    plots: Path = Path("kernels")
    redraw: Path | None = None


def measure(device: torch.device, sizes: GrowthSizes, names: Sequence[str], path: Path) -> Document:
    rates = measure_rates(device, sizes)
    report = _header(device, sizes, rates)
    num_points = sum(len(SWEEPS[name].places(sizes)) for name in names)
    with tqdm(total=num_points, desc="growth", unit="point") as bar:
        for name in names:
            sweep, points = SWEEPS[name], []
            for point in sweep.run(device, sizes, rates):
                points.append(point.as_dict())
                bar.update()
                bar.set_postfix_str(f"{name} {point.x}")
            report["sweeps"][name] = {"axis": sweep.axis, "fixed": sweep.fixed(sizes), "points": points}
            write_document(path, report)
    return report


def _header(device: torch.device, sizes: GrowthSizes, rates: Rates) -> Document:
    machine = hardware(device)
    threads = f", {machine['threads']} threads" if device.type == "cpu" else ""
    return {
        "kind": KIND,
        "machine": f"{machine['device']}{threads}, torch {machine['torch']}",
        "transformers": machine["transformers"],
        "dtype": str(sizes.dtype).removeprefix("torch."),
        "gb_per_second": float(f"{rates.bytes_per_second / 1e9:.4g}"),
        "gflops": float(f"{rates.flops_per_second / 1e9:.4g}"),
        "sweeps": {},
    }


def draw(report: Document, folder: Path, suffix: str) -> None:
    from benchmarks.growth.plot import plot_sweep  # noqa: PLC0415  a machine that measures may lack it

    for name in report["sweeps"]:
        plot_sweep(report, name, folder / f"growth-{suffix}-{name}.png")


def main() -> None:
    config = parse(GrowthConfig, __doc__)
    if config.redraw is not None:
        report = json.loads(config.redraw.read_text(encoding="utf-8"))
        draw(report, config.plots, config.redraw.stem.removeprefix("growth-"))
        return
    reason = missing_gpu() if config.device == "cuda" else None
    if reason is not None:
        raise SystemExit(f"error: {reason}")
    out = config.out or Path("kernels/results") / f"growth-{config.device}.json"
    report = measure(torch.device(config.device), SIZES[config.sizes or config.device], config.sweeps, out)
    try:
        draw(report, config.plots, config.device)
    except ModuleNotFoundError as error:
        print(f"{error}: draw elsewhere, with --redraw {out.name}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
