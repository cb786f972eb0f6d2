"""Options and helpers that the levels share."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bids_petsynth.errors import UsageError
from bids_petsynth.resources import available_cores

if TYPE_CHECKING:
    from bids_petsynth.clinical.language import TextOptions
    from bids_petsynth.types import Case

log = logging.getLogger("bids_petsynth")


class Parser(argparse.ArgumentParser):
    """A parser that never guesses an option from its first letters, so that new options break nobody's script."""

    def __init__(self, level: str, description: str):
        super().__init__(
            prog=f"bids-petsynth BIDS_DIR OUTPUT_DIR {level}",
            usage=f"bids-petsynth BIDS_DIR OUTPUT_DIR {level} [options]",
            description=description,
            allow_abbrev=False,
        )
        self.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="root of the raw BIDS dataset")
        self.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="where results go (made if need be)")
        self.add_argument("level", choices=[level], metavar=level, help=argparse.SUPPRESS)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Which participants and scans."""
    group = parser.add_argument_group("which scans")
    group.add_argument(
        "--participant-label",
        "--participant_label",
        nargs="+",
        metavar="LABEL",
        help="participants to work on, with or without sub- (default: all)",
    )
    group.add_argument(
        "--session-label",
        "--session-id",
        nargs="+",
        metavar="LABEL",
        help="sessions to work on, with or without ses- (default: all)",
    )
    group.add_argument(
        "--bids-filter-file", type=Path, metavar="JSON", help="PyBIDS filters by kind of image ({'t1w': …})"
    )


def add_language(parser: argparse.ArgumentParser) -> None:
    """How a record is put into words, for recipes with a prompt; read them with :func:`language_from`."""
    group = parser.add_argument_group("clinical values in words (recipes with a prompt)")
    group.add_argument(
        "--prompt", choices=("numbers", "template", "llm"), help="how prompts are written (default: the recipe's way)"
    )
    group.add_argument(
        "--notes-column",
        nargs="+",
        default=[],
        metavar="NAME",
        help="columns with free text, put behind the prompt without identifiers (default: none)",
    )
    group.add_argument(
        "--text-encoder",
        metavar="NAME|FOLDER",
        help="minilm, hashed, or a local Hugging Face folder (default: the recipe's)",
    )
    group.add_argument(
        "--llm-endpoint",
        metavar="URL",
        help="OpenAI-compatible endpoint that writes prompts; clinical values are SENT there (default: none)",
    )
    group.add_argument("--llm-model", metavar="NAME", help="name of the language model at the endpoint")
    group.add_argument(
        "--llm-timeout", type=positive, default=60, metavar="SEC", help="seconds for a reply (default: %(default)s)"
    )
    group.add_argument(
        "--text-cache",
        type=Path,
        metavar="DIR",
        help="where replies and vectors of texts are kept (default: nowhere; train: in models/NAME-training)",
    )


def language_from(arguments: argparse.Namespace) -> TextOptions:
    """The options of :func:`add_language`, checked.

    Raises
    ------
    UsageError
        If an endpoint is named without a model or the other way round, or its URL is none.
    """
    from bids_petsynth.clinical.language import TextOptions
    from bids_petsynth.clinical.llm import Endpoint

    url, model = arguments.llm_endpoint, arguments.llm_model
    if (url is None) != (model is None):
        raise UsageError("--llm-endpoint and --llm-model belong together; give both or none.")
    return TextOptions(
        style=arguments.prompt,
        notes_columns=tuple(dict.fromkeys(arguments.notes_column)),
        encoder=arguments.text_encoder,
        endpoint=None if url is None else Endpoint(url, model, float(arguments.llm_timeout)),
        cache=arguments.text_cache,
    )


def warn_of_absent_notes(options: TextOptions, bids_dir: Path, cases: Iterable[Case]) -> None:
    """Warn of columns with notes that no table has for any of the cases: their names may be misspelt."""
    if not options.notes_columns:
        return
    from bids_petsynth.bids.tables import dataset_rows
    from bids_petsynth.clinical.language import absent_columns

    rows = [row for case in cases for row in dataset_rows(bids_dir, case.participant, case.session)[0]]
    if absent := absent_columns(rows, options.notes_columns):
        log.warning(
            "--notes-column %s: no table has this for any of these participants; check the name.", ", ".join(absent)
        )


def add_real_pet(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """How real PET is found and prepared; read the window with :func:`pet_window`."""
    pet = parser.add_argument_group(title)
    pet.add_argument(
        "--pet-window",
        nargs=2,
        type=float,
        metavar=("FROM", "TO"),
        help="minutes after injection that are averaged (default: the tracer's usual ones)",
    )
    pet.add_argument("--pet-fwhm", type=_width, metavar="MM", help="smooth every scan by this (default: not at all)")
    pet.add_argument(
        "--max-gap", type=positive, default=365, metavar="DAYS", help="days between T1w and PET (default: %(default)s)"
    )
    pet.add_argument(
        "-d", "--derivatives", nargs="+", default=[], metavar="NAME=PATH", help="preprocessed PET: petprep=PATH"
    )
    return pet


def pet_window(arguments: argparse.Namespace) -> tuple[float, float] | None:
    """The window of ``--pet-window`` in minutes, None for the tracers' usual ones.

    Raises
    ------
    UsageError
        If it does not go forward from 0 or later.
    """
    if arguments.pet_window and not 0 <= arguments.pet_window[0] < arguments.pet_window[1]:
        raise UsageError("--pet-window takes two times in minutes, the first before the second.")
    return tuple(arguments.pet_window) if arguments.pet_window else None


def add_running(parser: argparse.ArgumentParser) -> None:
    """How it runs."""
    cores = available_cores()
    group = parser.add_argument_group("how it runs")
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    group.add_argument(
        "--nprocs", type=positive, default=cores, metavar="N", help="cores in all (default: all granted, %(default)s)"
    )
    group.add_argument(
        "--omp-nthreads", type=positive, metavar="N", help="threads of one step (default: all of --nprocs, at most 8)"
    )
    group.add_argument(
        "--random-seed", type=_seed, default=0, metavar="N", help="seed of all chance (default: %(default)s)"
    )
    group.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice for debugging")


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _width(text: str) -> float:
    """Millimetres above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of millimetres above 0")
    return number


def _seed(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if not 0 <= number < 2**31 - 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2147483646")
    return number


def threads_of(arguments: argparse.Namespace) -> int:
    """Threads of one step.

    Raises
    ------
    UsageError
        If a step would take more threads than there are cores in all.
    """
    threads = arguments.omp_nthreads or min(8, arguments.nprocs)
    if threads > arguments.nprocs:
        raise UsageError(
            f"--omp-nthreads {threads} is more than --nprocs {arguments.nprocs}; lower the one or raise the other."
        )
    granted = available_cores()
    # with a plugin, steps may run on other machines
    if arguments.nprocs > granted and getattr(arguments, "use_plugin", None) is None:
        log.warning("--nprocs %d is more than the %d cores granted here: it will be slower.", arguments.nprocs, granted)
    return threads


def set_up(threads: int, verbose: int) -> None:
    """Fix the threads of the libraries before they are imported, and start the log."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    # neither Nipype nor TemplateFlow may look for updates
    os.environ.setdefault("NO_ET", "1")
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "0")
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("bids_petsynth").setLevel(level)


def filters_of(arguments: argparse.Namespace) -> dict | None:
    """Content of ``--bids-filter-file``, None without one."""
    from bids_petsynth.bids.index import read_filter_file

    return read_filter_file(arguments.bids_filter_file) if arguments.bids_filter_file else None


def find_requested(arguments: argparse.Namespace, bids_dir: Path, derivatives: Mapping[str, Path]) -> list:
    """The cases that the selection options ask for."""
    from bids_petsynth.bids.index import find_cases

    return find_cases(
        bids_dir,
        participants=arguments.participant_label,
        sessions=arguments.session_label,
        filters=filters_of(arguments),
        derivatives=derivatives,
    )


def derivative_folders(pairs: list[str]) -> dict[str, Path]:
    """``NAME=PATH`` words as a mapping.

    Raises
    ------
    UsageError
        If a word has another form or a name is given twice.
    """
    found: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path or not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise UsageError(
                f"--derivatives takes NAME=PATH (such as fmriprep=/data/derivatives/fmriprep), not {pair!r}."
            )
        if name in found:
            raise UsageError(f"--derivatives names {name} twice; give each dataset its own name.")
        found[name] = Path(path)
    return found
