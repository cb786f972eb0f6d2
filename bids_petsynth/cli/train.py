"""``train``: paired T1w and PET of a dataset become a model folder."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bids_petsynth.cli.common import (
    Parser,
    add_language,
    add_real_pet,
    add_running,
    add_selection,
    derivative_folders,
    filters_of,
    find_requested,
    language_from,
    pet_window,
    positive,
    set_up,
    threads_of,
    warn_of_absent_notes,
)
from bids_petsynth.errors import UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from bids_petsynth.bids.pets import Pair
    from bids_petsynth.clinical.language import TextOptions, TextReader
    from bids_petsynth.clinical.records import ClinicalRecord
    from bids_petsynth.models.recipe import PretrainingSpec, Recipe
    from bids_petsynth.training.preparing import Preparation
    from bids_petsynth.training.real import Stored
    from bids_petsynth.types import Case

#: Participants with usable pairs below which nothing is trained; people to train on below which a tracer is left out.
LEAST_PEOPLE, LEAST_OF_TRACER = 4, 2
#: What a training leaves in its folder besides what was prepared for it.
LEFT_BY_TRAINING = (
    "autoencoder",
    "pretraining",
    "tensorboard",
    "best.safetensors",
    "checkpoint.safetensors",
    "regional.safetensors",
    "log.csv",
    "validation.jsonl",
)


def parser() -> argparse.ArgumentParser:
    """Options of the level."""
    out = Parser(
        "train",
        "Trains a model on every pair of T1w and PET of the dataset and writes OUTPUT_DIR/models/NAME, which "
        "`participant --model` uses. Run the same command again to go on after an interruption.",
    )
    add_selection(out)
    what = out.add_argument_group("what is trained")
    what.add_argument(
        "--recipe", metavar="NAME|FILE", help="recipe (default: that of --init-from, without one petsynth)"
    )
    what.add_argument("--name", metavar="NAME", help="name of the model (default: the recipe's)")
    what.add_argument("--tracer", nargs="+", metavar="NAME", help="tracers (default: all that the dataset has)")
    what.add_argument(
        "--time-budget",
        type=positive,
        metavar="MIN",
        help="minutes of training (default: the number of steps of the recipe)",
    )
    what.add_argument(
        "--init-from",
        type=Path,
        metavar="FOLDER",
        help="begin with this model's weights, to adapt it to a site with few scans",
    )
    what.add_argument(
        "--vgg19",
        type=Path,
        metavar="FILE",
        help="weights of VGG19 as safetensors, for recipes that pre-train in the style of its features",
    )
    what.add_argument(
        "--held-out", type=share, default=0.2, metavar="SHARE", help="share of people kept for figures (default: .2)"
    )
    what.add_argument("--licence", default="not stated", metavar="TEXT", help="licence of the data, for the model card")
    add_real_pet(out, "how PET is prepared")
    out.add_argument("--mapping", type=Path, metavar="TSV", help="what the dataset's columns mean (see participant)")
    add_language(out)
    add_running(out)
    return out


def share(text: str) -> float:
    """A share between 0 and 1."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Do it; 0 if a model was written, although scans may have been left out (the table of pairs tells)."""
    threads = threads_of(arguments)
    set_up(threads, arguments.verbose)
    window = pet_window(arguments)
    import torch

    from bids_petsynth.bids.sink import hash_file, hash_settings
    from bids_petsynth.models.conditioning import is_pet
    from bids_petsynth.models.folder import load_model
    from bids_petsynth.models.recipe import load_recipe
    from bids_petsynth.models.synthesizer import choose_device
    from bids_petsynth.training import generator
    from bids_petsynth.training.launch import launch
    from bids_petsynth.training.phases import choose_style
    from bids_petsynth.training.preparing import Preparation
    from bids_petsynth.training.site import SiteGround, describe

    torch.set_num_threads(threads)
    start = arguments.init_from
    begin = load_model(start) if start else None
    recipe = begin.recipe if begin and not arguments.recipe else load_recipe(arguments.recipe or "petsynth")
    name, folder = _place(arguments, recipe)
    working = folder.with_name(f"{name}-training")
    if begin is not None:
        if folder.resolve() == start.resolve():
            raise UsageError(f"The adapted model would replace {start}, which it begins with; give it another --name.")
        generator.check_start(recipe, begin, start)
    bids_dir = arguments.bids_dir.resolve()
    cases, pairs, tracers = _paired(arguments, bids_dir, recipe)
    fabric = launch(choose_device(arguments.device))
    device, first = str(fabric.device), fabric.is_global_zero
    how = Preparation(working, window, arguments.pet_fwhm, device, arguments.random_seed)
    # what cannot be read is told before the scans are prepared, which may take hours
    recipe, words, texts = _reading(arguments, recipe, working, device)
    if begin is not None:
        generator.check_start(recipe, begin, start, texts.encoder.identity if texts else None)
    pretraining = None if begin else recipe.pretraining
    if pretraining is not None:
        choose_style(recipe, arguments.vgg19, "cpu")
    read = _reader(bids_dir, arguments.mapping, words.notes_columns)
    if first:
        warn_of_absent_notes(words, bids_dir, cases)
    pairs, unpaired = _for_pretraining(cases, pairs, pretraining)
    people, rows, heads, references = _prepared(fabric, pairs, unpaired, recipe, read, how, name)
    inside, outside, lone = split_with_tracers(people, arguments.held_out, arguments.random_seed)
    used = sorted({tracer for stored in inside for tracer in stored.scans}, key=tracers.index)
    for tracer in sorted({tracer for tracer, _ in references}.difference(used, lone)):
        lone[tracer] = f"{tracer} is left out, because nobody had it who has a T1w; add a T1w, or scans of it."
    for row in rows:
        if row["status"] == "used" and row["tracer"] in lone:
            row |= {"status": "left out", "reason": lone[row["tracer"]]}
    if first and lone:
        _tell_pairs(how, name, rows)
        say("\n".join(lone.values()))
    # another session of theirs would be pre-trained on
    held = {stored.participant for stored in outside}
    heads = [head for participant, head in heads if participant not in held]
    references = [reference for reference in references if reference[0] in used]
    if begin is None:
        recipe = with_site_sources(recipe, used)
    training = recipe.training.model_copy(update={"seed": arguments.random_seed})
    drawn = [*used, *(other for other in recipe.tracers if not is_pet(other) and has_sources(other, recipe, inside))]
    if first and (idle := [name for name in recipe.tracers if not is_pet(name) and name not in drawn]):
        say(f"{', '.join(idle)}: not trained, because nobody to train on has a scan that the recipe draws it from")
    recipe = recipe.model_copy(update={"name": name, "tracers": tuple(drawn), "training": training})
    about = describe(inside, outside, recipe, arguments.licence, len(heads), len(references))
    ours = [[stored.identity for stored in people] for people in (inside, outside)]
    alone = [path.name for path in (*heads, *(path for _, path in references))]
    content = [recipe.model_dump(mode="json"), ours, alone, begin and begin.fingerprint]
    if recipe.conditioning.text is not None:
        content.append(words.identity)
    if pretraining is not None and pretraining.style == "vgg19":
        content.append(hash_file(arguments.vgg19))
    if first and start_over_if_changed(working, hash_settings(content)):
        say("scans, values, prompts, weights or recipe differ from those of the earlier run: training starts anew")
    if first and words.prompts is not None:
        about += _ask(texts, people, words.prompts, begun=bool(left_by_training(working)))
    fabric.barrier()
    ground = SiteGround(inside, outside, recipe, about, told_command(arguments), heads, references)
    if first:
        say(f"training on {len(inside)} heads with {', '.join(used)}; {len(outside)} held out")
    run = generator.Run(
        working,
        arguments.time_budget,
        device=device,
        start=start,
        vgg19=arguments.vgg19,
        texts=texts,
        report=say,
        fabric=fabric,
        pet_window=window,
        pet_fwhm=arguments.pet_fwhm,
    )
    generator.train(ground, recipe, run)
    if not first:
        return 0
    _put_in_place(working / "model", folder)
    left = sum(row["status"] != "used" for row in rows)
    print(f"Model {folder} written ({len(rows) - left} scans used, {left} left out); read its MODEL_CARD.md.")
    return 0


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


def _place(arguments: argparse.Namespace, recipe: Recipe) -> tuple[str, Path]:
    """The model's name, and its folder where that can be written to."""
    from bids_petsynth.bids.sink import check_writable

    name = arguments.name or recipe.name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UsageError(
            f"--name {name!r} is no folder name of letters, digits, dashes, underscores and, but for the first, dots."
        )
    check_writable(arguments.output_dir)
    return name, arguments.output_dir / "models" / name


def _reading(
    arguments: argparse.Namespace, recipe: Recipe, working: Path, device: str
) -> tuple[Recipe, TextOptions, TextReader | None]:
    """The recipe with the text that was chosen for it, what was chosen, and what reads it (None without text)."""
    from bids_petsynth.clinical.language import TextReader

    words = language_from(arguments)
    if (text := recipe.conditioning.text) is None:
        return recipe, words, None
    if words.cache is None:
        words = replace(words, cache=(working / "texts").resolve())
    # the model is read as it was trained, whatever the recipe said
    conditioning = recipe.conditioning.model_copy(update={"text": words.chosen(text)})
    if conditioning.text.style == "llm":
        words = replace(words, prompts=(working / "prompts").resolve())
    reader = TextReader(text, [variable.name for variable in conditioning.variables], words, device)
    return recipe.model_copy(update={"conditioning": conditioning}), words, reader


def _ask(texts: TextReader, people: Sequence[Stored], kept: Path, begun: bool) -> str:
    """Ask a language model for everybody's prompt, before any step; a line for the card if some could not be had.

    What comes of it is kept in ``kept``, so that everybody has the same prompt in all of a training that has ``begun``.

    Raises
    ------
    UsageError
        If none can be had, or the language model was given up.
    """
    if not begun:
        shutil.rmtree(kept, ignore_errors=True)
    prompts = [texts.prompt(stored.record, str(stored.record.get("notes", ""))) for stored in people]
    absent = [prompt for prompt in prompts if prompt.warning]
    if not absent:
        return ""
    missing = f"{len(absent)} of {len(prompts)} prompts could not be had from the language model"
    kinds = sorted({prompt.status for prompt in absent})
    if len(absent) == len(prompts) or "template (given up)" in kinds:
        shutil.rmtree(kept, ignore_errors=True)
        raise UsageError(
            f"{missing}. {absent[0].warning.split(';')[0]}. Mend that and run the same command again, which asks for "
            "those alone; or give --prompt template."
        )
    say(f"{missing}; in their place stays the {', '.join(kinds)}")
    return f"\n- Prompts: {len(absent)} of {len(prompts)} are the template's, as the language model wrote none."


def _for_pretraining(
    cases: Sequence[Case], pairs: Sequence[Pair], pretraining: PretrainingSpec | None
) -> tuple[list[Pair], tuple[Sequence[Case], list[Pair]]]:
    """Pairs to train on; cases and PET of people without a T1w, for the pre-training, if there is one."""
    if pretraining is None or pretraining.style == "none":
        return list(pairs), (cases if pretraining else [], [])
    # without a T1w there is no SUVR, but a scan has a style
    with_t1w = {case.participant for case in cases if case.problem is None}
    no_t1w = [pair for pair in pairs if pair.pet.participant not in with_t1w]
    return [pair for pair in pairs if pair.pet.participant in with_t1w], (cases, no_t1w)


def _prepared(
    fabric: Fabric,
    pairs: Sequence[Pair],
    unpaired: tuple[Sequence[Case], Sequence[Pair]],
    recipe: Recipe,
    read: Callable[[Case], ClinicalRecord],
    how: Preparation,
    name: str,
) -> tuple[list[Stored], list[dict[str, object]], list[tuple[str, Path]], list[tuple[str, Path]]]:
    """What ``prepare_together`` returns, if those are enough people; the table of pairs is written.

    Raises
    ------
    UsageError
        If fewer than :data:`LEAST_PEOPLE` can be trained on. Where that is known beforehand, no scan is prepared.
    """
    from bids_petsynth.training.preparing import prepare_together

    fitting = [pair for pair in pairs if pair.case is not None and pair.pet.problem is None]
    count = len({pair.pet.participant for pair in fitting})
    enough = count >= LEAST_PEOPLE
    if not enough:  # the others only get their reasons
        pairs, unpaired = [pair for pair in (*pairs, *unpaired[1]) if pair not in fitting], ([], [])
    people, rows, heads, references = prepare_together(fabric, pairs, unpaired, recipe, read, how, say)
    if fabric.is_global_zero:
        _tell_pairs(how, name, rows)
    if enough:
        count = len({stored.participant for stored in people})
    if count < LEAST_PEOPLE:
        reasons = f"; {how.work / 'pairs.tsv'} tells why scans were left out" if rows else ""
        raise UsageError(
            f"Only {count} participants have a T1w with a usable PET scan, and at least {LEAST_PEOPLE} are needed"
            f"{reasons}."
        )
    return people, rows, heads, references


def _tell_pairs(how: Preparation, name: str, rows: Sequence[dict[str, object]]) -> None:
    """The table of pairs, and the page that shows them."""
    from bids_petsynth.bids.sink import tsv_text, write_bytes
    from bids_petsynth.reports.training import pairs_page

    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_bytes(how.work / "pairs.tsv", tsv_text(rows, columns).encode())
    write_bytes(how.work / "pairs.html", pairs_page(name, rows).encode())


def told_command(arguments: argparse.Namespace) -> str:
    """The command as the card tells it: what decides how the model turns out, no path and nobody's label."""
    words = ["bids-petsynth", "BIDS_DIR", "OUTPUT_DIR", "train"]
    for option in ("recipe", "init_from", "tracer", "time_budget", "held_out", "pet_window", "pet_fwhm", "max_gap"):
        value = getattr(arguments, option)
        if value is not None:
            several = value if isinstance(value, list) else [value]
            words += [f"--{option.replace('_', '-')}", *(Path(str(one)).name for one in several)]
    return shlex.join(words)


def with_site_sources(recipe: Recipe, tracers: Sequence[str]) -> Recipe:
    """The recipe with the site's tracers as its sources, if PET is among them: all of those and no others."""
    from bids_petsynth.models.conditioning import is_pet

    spec = recipe.conditioning
    if not any(map(is_pet, spec.sources)):
        return recipe
    there = (name for name in spec.sources if not is_pet(name) or name in tracers)
    sources = tuple(dict.fromkeys((*there, *tracers)))
    return recipe.model_copy(update={"conditioning": spec.model_copy(update={"sources": sources})})


def has_sources(target: str, recipe: Recipe, people: Sequence[Stored]) -> bool:
    """Whether one of the people has something that the target is drawn from."""
    spec = recipe.conditioning
    others = set(spec.sources) - {target}
    return bool(spec.images) or any(others & {"T1w", *stored.scans, *stored.others} for stored in people)


def _paired(arguments: argparse.Namespace, bids_dir: Path, recipe: Recipe) -> tuple[list[Case], list[Pair], list[str]]:
    """The requested T1w, with the recipe's other modalities; each PET with its T1w; the tracers to train on."""
    from bids_petsynth.bids.others import find_others
    from bids_petsynth.bids.pets import find_pets, pair, with_others
    from bids_petsynth.pet.tracers import canonical

    cases = find_requested(arguments, bids_dir, {})
    chosen = arguments.participant_label, arguments.session_label, filters_of(arguments)
    cases = with_others(cases, find_others(bids_dir, recipe.conditioning.sources, *chosen), arguments.max_gap)
    pets = find_pets(bids_dir, *chosen, derivative_folders(arguments.derivatives), canonical)
    tracers = _tracers(arguments.tracer, [pet.tracer for pet in pets])
    return cases, pair(cases, [pet for pet in pets if pet.tracer in tracers], arguments.max_gap), tracers


def _put_in_place(made: Path, folder: Path) -> None:
    """Copy a finished model to where it is looked for, in place of an earlier one."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(made, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def split_with_tracers(
    people: Sequence[Stored], held_out: float, seed: int
) -> tuple[list[Stored], list[Stored], dict[str, str]]:
    """People to train on, people held out, and a sentence for every tracer that too few of the first were scanned with.

    Scans of those tracers are taken away from everyone, and the rest are split again.

    Raises
    ------
    UsageError
        If too few people are left to train on.
    """
    from bids_petsynth.training.real import split_people

    lone: dict[str, str] = {}
    while True:
        everyone = {stored.participant for stored in people}
        inside, outside = split_people(people, held_out, seed) if len(everyone) > 1 else ([], [])
        count = {tracer: set() for stored in people for tracer in stored.scans}
        for stored in inside:
            for tracer in stored.scans:
                count[tracer].add(stored.participant)
        training = {stored.participant for stored in inside}
        if lone and not people:
            raise UsageError(" ".join(lone.values()))
        if len(training) < LEAST_OF_TRACER:
            without = f" without {', '.join(lone)}" if lone else ""
            raise UsageError(
                f"--held-out {held_out:g} keeps {len(everyone - training)} of {len(everyone)} participants{without} "
                f"out of training and leaves {len(training)}, of at least {LEAST_OF_TRACER} that are needed; lower it, "
                "or give the dataset more scans."
            )
        few = {tracer: len(who) for tracer, who in count.items() if len(who) < LEAST_OF_TRACER}
        if not few:
            return inside, outside, lone
        for tracer, n in few.items():
            lone[tracer] = (
                f"{tracer} is left out, because {n or 'none'} of the people to train on had it and at least "
                f"{LEAST_OF_TRACER} are needed to learn how people differ; lower --held-out, or add scans of it."
            )
        kept = [replace(stored, scans={t: v for t, v in stored.scans.items() if t not in few}) for stored in people]
        people = [stored for stored in kept if stored.scans]


def left_by_training(working: Path) -> list[Path]:
    """Files and folders of :data:`LEFT_BY_TRAINING` that are there."""
    return [working / part for part in LEFT_BY_TRAINING if (working / part).exists()]


def start_over_if_changed(working: Path, key: str) -> bool:
    """Remove an earlier run's checkpoints if it was another training; whether there were any."""
    note = working / "run.txt"
    if note.is_file() and note.read_text() == key:
        return False
    there = left_by_training(working)
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    working.mkdir(parents=True, exist_ok=True)
    note.write_text(key)
    return bool(there)


def _tracers(asked: list[str] | None, there: list[str]) -> list[str]:
    """Tracers to train on, in a fixed order.

    Raises
    ------
    UsageError
        If one that is asked for is not in the dataset, or none is left.
    """
    from bids_petsynth.pet.tracers import tracer, tracers

    found = [spec.name for spec in tracers() if spec.name in there]
    if not asked:
        if not found:
            raise UsageError("The dataset has no PET with a tracer that is known; check TracerName in its sidecars.")
        return found
    wanted = [tracer(name).name for name in asked]
    if absent := [name for name in wanted if name not in there]:
        have = ", ".join(sorted(set(there))) or "none at all"
        raise UsageError(f"The dataset has no PET of {', '.join(absent)}; it has {have}.")
    return list(dict.fromkeys(wanted))


def _reader(bids_dir: Path, mapping: Path | None, notes_columns: Collection[str]):
    """Case → clinical record, as ``participant`` reads it."""
    from bids_petsynth.bids.tables import dataset_rows
    from bids_petsynth.clinical.language import read_notes
    from bids_petsynth.clinical.mapping import read_mapping
    from bids_petsynth.clinical.records import read_record
    from bids_petsynth.clinical.text import columns_of_kind

    columns = read_mapping(mapping) if mapping else None

    def read(case):
        rows, _ = dataset_rows(bids_dir, case.participant, case.session)
        record = read_record(rows, columns, scan_date=case.t1w_date, session=case.session)
        notes = read_notes(rows, case.participant, case.session, notes_columns, columns)
        sites = (row.columns[name] for row in rows for name in columns_of_kind(row.columns, "site"))
        return replace(record, notes=notes, site=next((site for site in sites if site not in ("", "n/a")), ""))

    return read
