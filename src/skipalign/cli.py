"""The command line: its commands in the order of the work, and how they end.

Nothing heavy is imported before it is needed. Results go to stdout, progress and logs to stderr.
Exit status: 0 done, 1 a problem that the user can fix (one line), 2 wrong usage, 130 stopped by
Ctrl-C.
"""

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from skipalign import __version__
from skipalign.commands import data, evaluation, machine, starting, training
from skipalign.errors import SkipalignError, is_out_of_memory
from skipalign.terminal import say


class _InOrder(click.Group):
    """Lists its commands in the order of the work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skipalign")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Teach a model to use long contexts by fine-tuning on short conversations that skip.

    \b
    skipalign run tiny                 the demonstration, in minutes
    skipalign preview recipe.yaml      one sample: its text and positions
    skipalign run recipe.yaml          prepare, train, evaluate, report
    """
    if _num_processes() > 1 and ctx.invoked_subcommand != "train":
        raise click.UsageError(
            f"{_num_processes()} processes would all do the same work; under accelerate launch "
            "use train, and this command without a launcher"
        )


def _num_processes() -> int:
    """Return how many processes accelerate or torchrun started; a pod's WORLD_SIZE is none."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


for _command in (
    *(starting.init, data.preview, data.prepare, training.export),
    *(training.train, training.merge, evaluation.verify_export),
    *(evaluation.evaluate, evaluation.score, evaluation.report),
    *(training.run, training.compare, training.plan),
    machine.doctor,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = cli.main(given, prog_name="skipalign", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        say(f"stopped; what is done stays - to go on: {shlex.join(['skipalign', *given])}")
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has gone; Python's own flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (SkipalignError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_for_users(error):
            raise
        rank = f"process {os.environ['RANK']}: " if _num_processes() > 1 else ""
        say(f"{rank}error: {_told(error, given)}")
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _is_for_users(error: BaseException) -> bool:
    return isinstance(error, SkipalignError) or is_out_of_memory(error)


def _told(error: BaseException, given: Sequence[str]) -> str:
    """Say what was found and, where the error itself does not, what to do."""
    again = f"what is done stays - to go on: {shlex.join(['skipalign', *given])}"
    if isinstance(error, SkipalignError):
        return str(error)
    if not isinstance(error, OSError):
        return f"out of memory; end other programs, or ask for less at once; {again}"
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}{os.strerror(error.errno)}; free some space there; {again}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cure = "allow this user to use it, or name another folder (--runs-dir, --out)"
        return f"{place}{os.strerror(error.errno)}; {cure}"
    return str(error)


if __name__ == "__main__":
    main()
