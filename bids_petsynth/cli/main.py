"""``bids-petsynth BIDS OUT LEVEL``: finds the level and hands over to its parser. Imports nothing heavy."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

from bids_petsynth.errors import InputError, PetsynthError, UsageError

#: Level → what it does; each has a module of its name in this room with ``parser()`` and ``run(arguments)``.
LEVELS = {
    "participant": "T1w and clinical values → synthetic PET derivatives of each participant",
    "group": "all participants → evaluation tables, figures and OUTPUT_DIR/group.html",
    "train": "paired T1w and PET → OUTPUT_DIR/models/NAME, for `participant --model`",
    "simulate": "T1w scans → a raw BIDS dataset of the same heads with SIMULATED PET, plasma and clinical values",
}

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def overview() -> argparse.ArgumentParser:
    """The parser that answers ``--help`` and ``--version`` where no level is given."""
    levels = "\n".join(f"  {name:<12} {text}" for name, text in LEVELS.items())
    parser = argparse.ArgumentParser(
        prog="bids-petsynth",
        usage="bids-petsynth BIDS_DIR OUTPUT_DIR LEVEL [options]",
        description="Synthetic brain PET from a T1w MRI and blood biomarkers. Research only; not a medical device.",
        epilog=f"levels:\n{levels}\n\n`bids-petsynth LEVEL --help` tells a level's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 a participant failed, 2 wrong arguments, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--version" in argv:
        from bids_petsynth import __version__

        print(f"bids-petsynth {__version__}")
        return 0
    level = next((word for word in argv[:3] if word in LEVELS), None)
    if level is None:
        parser = overview()
        if not argv or "-h" in argv or "--help" in argv:
            parser.print_help()
            return 0 if argv else EXIT_USAGE
        wrong = f"{argv[2]!r} is none of them" if len(argv) > 2 and not argv[2].startswith("-") else "it is missing"
        print(f"bids-petsynth: name the level ({', '.join(LEVELS)}) as third argument; {wrong}.", file=sys.stderr)
        return EXIT_USAGE
    module = import_module(f"bids_petsynth.cli.{level}")
    try:
        arguments = module.parser().parse_args(argv if len(argv) > 1 and argv[0] != level else [*argv[1:]])
        arguments.command = shlex.join(["bids-petsynth", *argv])
        return module.run(arguments)
    except UsageError as error:
        print(f"bids-petsynth: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (InputError, PetsynthError) as error:
        print(f"bids-petsynth: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("bids-petsynth: interrupted; run the same command again to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
