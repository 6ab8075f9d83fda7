"""The command line: ``entropy-theory COMMAND [options]``.

Exit status: 0 when all is well; 1 when a check failed or (with one line) a run broke off or a file could not be
written; 2 (and one line) for a wrong argument or input; 130 and 143 after an interruption or a SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from entropy_theory.errors import InputError, invalid
from entropy_theory.program import DEBUG_OPTION, bounded, check_folder, end_with_parent, parse_options, progress_bar
from entropy_theory.ranks import leave_ranks

if TYPE_CHECKING:
    from rich.console import Console

PROGRAM = "entropy-theory"


@dataclass(frozen=True)
class VerifyConfig:
    """Check the theory: every statement against derivations, high precision, random policies and measured slopes.

    Ends with status 1 if any check fails. Examples:

      entropy-theory verify
      entropy-theory verify --only theorem-3.3 corollary-3.4
      entropy-theory verify --certify --out runs/verify

    Attributes:
        only: Identifiers of the statements to check; default: all of them.
        quick: Small budgets, a few seconds in all.
        thorough: Budgets ten times the default.
        certify: Add the certificates by ball arithmetic (needs the extra certify).
        kernel: Compile the Coq proofs again (needs a checkout, Coq and Coquelicot); default: read their record.
        processes: Processes that share the checks; default: one for each core, at most 8.
        out: Folder for verification.json, verification.html and the page's pictures.
    """

    only: tuple[str, ...] = ()
    quick: bool = False
    thorough: bool = False
    certify: bool = False
    kernel: bool = False
    processes: int | None = None
    out: Path | None = None


def _verify(config: VerifyConfig, console: Console) -> int:
    from entropy_theory.report.tables import verification_table
    from entropy_theory.theory.verification import verify

    if config.quick and config.thorough:
        raise invalid("quick", "at most one of --quick and --thorough", "both")
    budget: Literal["quick", "default", "thorough"]
    budget = "quick" if config.quick else "thorough" if config.thorough else "default"
    with progress_bar(console) as progress:
        report = verify(
            config.only or None,
            budget=budget,
            progress=progress,
            certify=config.certify,
            kernel=config.kernel,
            processes=min(os.cpu_count() or 1, 8) if config.processes is None else config.processes,
        )
    if config.out is not None:
        from entropy_theory.report import figures
        from entropy_theory.report.figures import theory
        from entropy_theory.report.pages.verification import save_verification_page
        from entropy_theory.theory.verification import pictures, rays

        drawn = {
            "one-sided-sign-theorem": (theory.one_sided_sign_theorem, rays.sample_rays()),
            "step-bound": (theory.step_bound, pictures.bounded_rays()),
            "two-valued-directions": (theory.pass_rate_entropy, pictures.pass_rate_curves()),
            "state-shift": (theory.state_shift, pictures.shifted_contexts()),
        }
        report.save(config.out / "verification.json")
        save_verification_page(report.to_dict(), config.out / "verification.html", drawn)
        for draw, data in drawn.values():
            figures.save(draw(data), config.out / f"{draw.__name__}.png")
    console.print(verification_table(report.to_dict()))
    if config.out is not None:
        files = ", ".join(f"{draw.__name__}.png" for draw, _ in drawn.values())
        console.print(f"written: {config.out}/verification.json, verification.html, {files}")
    return 0 if report.passed else 1


@dataclass(frozen=True)
class LensConfig:
    """Ask which control rule would do what to entropy, on a batch of your own and before any training.

    Reads a TokenBatch file (TokenBatch.save; entropy-theory train --save-batches K records them) and predicts for
    each rule the change of entropy of the gradient that it lets through. Examples:

      entropy-theory lens batch.safetensors
      entropy-theory lens batch.safetensors --rules clip-b "clip-b(mu=1)" "clip-v(drop_fraction=0.02)" --out runs/lens

    Attributes:
        batch: The file.
        rules: Rules to compare; default: every rule that the batch has the inputs for.
        step_size: Step of the logits; predictions are proportional to it.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap and of rules that draw.
        influence: Predict with the influence D of each token, too, which the batch must carry (inspect --influence
            --save-batch FILE records it).
        out: Folder for lens.json and lens.png.
    """

    batch: tyro.conf.Positional[Path]
    rules: tuple[str, ...] = ()
    step_size: float = 1.0
    resamples: int = 1000
    seed: int = 0
    influence: bool = False
    out: Path | None = None


def _lens(config: LensConfig, console: Console) -> int:
    from entropy_theory import records
    from entropy_theory.control import TokenBatch, lens
    from entropy_theory.report.tables import fitted, influence_table, lens_table

    batch = TokenBatch.load(config.batch)
    table = lens(
        batch,
        config.rules or None,
        step_size=config.step_size,
        resamples=config.resamples,
        seed=config.seed,
        influence=config.influence,
    ).to_dict()
    if config.out is not None:
        from entropy_theory.report import figures
        from entropy_theory.report.figures.lens import lens_figure

        records.write_json(config.out / "lens.json", table)
        figures.save(lens_figure(table), config.out / "lens.png")
    console.print(fitted(lens_table(table), console.width))
    if config.influence:
        console.print(fitted(influence_table(table), console.width))
    for name, reason in table["skipped"].items():
        console.print(f"left out {name}: {reason}", markup=False, highlight=False)
    if config.out is not None:
        console.print(f"written: {config.out / 'lens.json'}, {config.out / 'lens.png'}")
    return 0


@dataclass(frozen=True)
class LedgerConfig:
    """Ask why the entropy of a training run moved: updates at fixed contexts, or other contexts visited.

    Reads the metrics of a finished or unfinished run of `train --ledger` and draws the account. Examples:

      entropy-theory train --ledger --influence-every 1 --out runs/train
      entropy-theory ledger runs/train

    Attributes:
        run: The folder of the run.
        out: Folder for ledger.json and ledger.png; default: that of the run.
    """

    run: tyro.conf.Positional[Path]
    out: Path | None = None


def _ledger(config: LedgerConfig, console: Console) -> int:
    from entropy_theory import records
    from entropy_theory.influence import run_summary
    from entropy_theory.report import figures
    from entropy_theory.report.figures.ledger import ledger_figure
    from entropy_theory.report.tables import ledger_table

    metrics, out = config.run / "metrics.jsonl", config.out or config.run
    if not metrics.is_file():
        raise invalid("run", "a folder of train --ledger, with metrics.jsonl", config.run)
    summary = run_summary(records.read_lines(metrics))
    records.write_json(out / "ledger.json", summary)
    figures.save(ledger_figure(summary), out / "ledger.png")
    console.print(ledger_table(summary))
    console.print(f"written: {out / 'ledger.json'}, {out / 'ledger.png'}")
    return 0


def _train(config: Any, console: Console) -> int:
    from entropy_theory.training.run import train

    with progress_bar(console) as progress:
        result = train(config, progress)
    leave_ranks()
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process prints for all
        return 0
    final = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in result.get("final", {}).items())
    console.print(f"{config.rule}: {result['steps']} steps in {result['seconds']} s; means of the last steps: {final}")
    console.print(f"written: {config.out}")
    return 0


def _inspect(config: Any, console: Console) -> int:
    from entropy_theory.inspection.inspect import inspect
    from entropy_theory.inspection.page_data import page_data, write_table
    from entropy_theory.report.pages.inspect import save_inspect_page, verdict

    if config.save_batch is not None:
        check_folder(config.save_batch.parent, "save_batch")
    if config.scores is not None:
        check_folder(config.scores, "scores")
    with progress_bar(console) as progress:
        inspection = inspect(config, progress)
    is_page = config.out.suffix == ".html"
    if is_page:
        save_inspect_page(page_data(inspection), config.out)
    else:
        write_table(inspection)
    if config.save_batch is not None:
        inspection.batch.save(config.save_batch)
    for assumption in inspection.assumptions:
        console.print(assumption, markup=False, highlight=False)
    for warning in inspection.warnings:
        console.print(f"careful: {warning}", markup=False, highlight=False)
    if is_page:
        console.print(verdict(inspection.lens), markup=False)
    size, tokens = config.out.stat().st_size / 1e6, inspection.lens["tokens"]
    console.print(
        f"written: {config.out} ({size:.1f} MB), {len(inspection.sequences):,} completions, {tokens:,} tokens"
    )
    if config.save_batch is not None:
        console.print(f"written: {config.save_batch}, for the lens")
    return 0


def _audit(config: Any, console: Console) -> int:
    from entropy_theory import records
    from entropy_theory.audit.run import audit
    from entropy_theory.report import figures, findings
    from entropy_theory.report.figures.audit import audit_figure
    from entropy_theory.report.figures.audit_tokens import audit_tokens_figure
    from entropy_theory.report.tables import audit_means_table, audit_table, audit_tokens_table, fitted

    with progress_bar(console) as progress:
        result = audit(config, progress)
    sentences = [*findings.audit(result), *findings.audit_tokens(result)]
    records.write_json(config.out / "audit.json", {"findings": sentences, **result})
    figures.save(audit_figure(result), config.out / "audit.png")
    figures.save(audit_tokens_figure(result), config.out / "audit_tokens.png")
    for table in (audit_table, audit_tokens_table, audit_means_table):
        console.print(fitted(table(result), console.width))
    for sentence in sentences:
        console.print(f"• {sentence}")
    console.print(f"written: {config.out}/audit.json, audit.png, audit_tokens.png")
    return 0


def _simulate(config: Any, console: Console) -> int:
    from entropy_theory.dynamics import run, torchrun_ranks
    from entropy_theory.report import figures, tables

    with torchrun_ranks() as ranks, progress_bar(console) as progress:
        result = run(config, progress, ranks)
        is_first = ranks.rank == 0  # under torchrun one process prints for all
    if not is_first:
        return 0
    path = config.out / "simulation.png"
    figures.save(figures.simulation(result.steps, result.pairs), path)
    console.print(tables.simulation_table(result.summary))
    console.print(f"figure: {path}; arrays and configuration beside it")
    return 0


def _demo(config: Any, console: Console) -> int:
    from entropy_theory.demo import run_demo

    return run_demo(config, console, progress_bar)


def _llm(config: Any, console: Console) -> int:
    from entropy_theory.llm import run_llm

    return run_llm(config, console, progress_bar)


@dataclass(frozen=True)
class Command:
    """A subcommand: a line of help, where its configuration lives, what runs it, and whether --out is a file."""

    help: str
    config: str
    run: Callable[[Any, Console], int]
    writes_file: bool = False


COMMANDS = {
    "demo": Command(
        "the whole chain in one go, from theorem to language model", "entropy_theory.demo:DemoConfig", _demo
    ),
    "llm": Command("collapse and control in a real pre-trained language model", "entropy_theory.llm:LlmConfig", _llm),
    "verify": Command("check the theory statement by statement", "entropy_theory.cli:VerifyConfig", _verify),
    "simulate toy": Command(
        "GRPO on a bank of softmax policies, predicted beside realised entropy",
        "entropy_theory.dynamics:SimulationConfig",
        _simulate,
    ),
    "simulate vocab": Command(
        "the same at the size of a language model's vocabulary",
        "entropy_theory.dynamics:VocabSimulationConfig",
        _simulate,
    ),
    "lens": Command(
        "which rule would do what to entropy, predicted on a recorded batch", "entropy_theory.cli:LensConfig", _lens
    ),
    "inspect": Command(
        "which tokens of your rollouts move entropy, and what each rule would do to them",
        "entropy_theory.inspection.inspect:InspectConfig",
        _inspect,
        writes_file=True,
    ),
    "train": Command("GRPO with an entropy-control rule", "entropy_theory.training.config:TrainConfig", _train),
    "ledger": Command(
        "why the entropy of a training run moved, part by part", "entropy_theory.cli:LedgerConfig", _ledger
    ),
    "audit": Command(
        "how well the theory predicts what optimizer steps do to your model's entropy",
        "entropy_theory.audit.config:AuditConfig",
        _audit,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: The words after the program's name; default: those of this process.
    """
    return bounded(_dispatch, list(sys.argv[1:] if arguments is None else arguments), PROGRAM)


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from entropy_theory import __version__

        print(__version__)
        return 0
    for word in words:
        if any("\ud800" <= c <= "\udfff" for c in word):  # bytes that are not UTF-8 come as lone surrogates
            raise invalid("arguments", "text in UTF-8", ascii(word))
    name = next((n for n in COMMANDS if words[: n.count(" ") + 1] == n.split()), None)
    if name is None:
        raise InputError(f"no command {words[0]!r}; there are {', '.join(COMMANDS)}")
    end_with_parent()
    config = parse(name, words[name.count(" ") + 1 :])
    if config is None:
        return 0  # --help was asked for and printed
    command = COMMANDS[name]
    if config.out is not None:
        check_folder(config.out.parent if command.writes_file else config.out)
    from rich.console import Console

    return command.run(config, Console(stderr=False))


def parse(name: str, words: Sequence[str]) -> Any:
    """Parse a command's options; None when help was printed. A wrong option is a ValueError of one line.

    Args:
        name: The command, a key of COMMANDS.
        words: Its options.
    """
    module, _, attribute = COMMANDS[name].config.partition(":")
    return parse_options(getattr(import_module(module), attribute), f"{PROGRAM} {name}", words)


def _help() -> str:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [options]\n\n"
        "What does an RL update do to a language model's entropy, and how is collapse prevented?\n\n"
        f"commands:\n{listing}\n\n"
        f"{PROGRAM} COMMAND --help explains a command. {DEBUG_OPTION} shows the traceback of an error."
    )


if __name__ == "__main__":
    sys.exit(main())
