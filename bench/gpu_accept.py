"""The acceptance of a machine with a GPU: four phases of checks, each of at most nine minutes.

    python bench/gpu_accept.py all --out=accept.json        # on the first CUDA device
    python bench/gpu_accept.py correct                      # numbers and behaviour, against the CPU's
    python bench/gpu_accept.py speed                        # against nanoGPT's form and Hugging Face's LLaMA
    python bench/gpu_accept.py fit                          # memory against its estimate, curvature, checkpoints
    python bench/gpu_accept.py science --data_dir=DIR       # a small LLaMA, and the best rule against a swept AdamW
    python bench/gpu_accept.py all --device=cpu --tiny      # a test of this script, in minutes

Every check is a line `name value bound PASS|FAIL`; one that cannot be made here says SKIP and why, and counts neither
way. Needs torch and numpy; transformers where it is a side of a comparison. Data are made here, but for the phase
science: of --data_dir it takes the largest data set, without one the source text of Python's standard library.
Exit status: 1 if a check failed, 2 for a wrong command.
"""

import importlib
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from blockwise import UserError, exit_on_user_error
from configurator import ArgumentParser

PHASES = ("correct", "speed", "fit", "science")


def main(argv):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=(*PHASES, "all"), help="what to check")
    parser.add_argument("--device", default="cuda", help="device: cuda, cuda:1; cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="the small form of every check, whose speeds mean nothing")
    parser.add_argument("--data_dir", type=Path, help="folder of data sets made beforehand, for science")
    parser.add_argument("--out", type=Path, help="JSON file of all checks")
    args = parser.parse_args(argv)
    check_usage(args)

    from accept.report import Report
    from accept.runs import Place, write_data

    machine = machine_of(args.device)
    print("machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    report, seconds = Report(), {}
    with tempfile.TemporaryDirectory(prefix="accept_") as scratch:
        write_data(Path(scratch) / "data")
        for phase in PHASES if args.phase == "all" else [args.phase]:
            place = Place(args.device, args.tiny, args.data_dir, Path(scratch))
            began = time.monotonic()
            report.section(phase, importlib.import_module(f"accept.{phase}").checks, place)
            seconds[phase] = round(time.monotonic() - began, 1)
    took = ", ".join(f"{phase} {value:.0f} s" for phase, value in seconds.items())
    passed, failed, skipped = (report.count(verdict) for verdict in ("PASS", "FAIL", "SKIP"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped; {took}")
    if args.out:
        report.write(args.out, machine, seconds)
    return report.status


def check_usage(args):
    """Raises UserError for a device that is not there, and for what could not be written or read at the end."""
    from blockwise.distributed import find_device

    if find_device(args.device).type != "cuda" and not args.tiny:
        raise UserError(f"device={args.device}: expected a CUDA device, or --tiny as well")
    if args.data_dir and not args.data_dir.is_dir():
        raise UserError(f"data_dir={args.data_dir}: no such folder")
    if args.out and not args.out.absolute().parent.is_dir():
        raise UserError(f"out={args.out}: its folder does not exist")


def machine_of(device):
    """What the numbers are of: device, torch, CUDA and Python."""
    import torch
    from throughput import cpu_name

    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else cpu_name()
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    return {"device": name, **versions, "system": platform.platform()}


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
