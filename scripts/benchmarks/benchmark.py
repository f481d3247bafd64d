"""The base of all benchmarks. It imports little: candidates import it, and their memory is measured."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from .measuring import describe_machine


if TYPE_CHECKING:
    import argparse


class Benchmark:
    """A command of scripts/benchmark.py.

    Attributes:
        help: one line for `--help`.
        packages: the packages whose versions are recorded.
        sizes: the choices of `--size`; none: there is no such option.
        needs: the options without which it cannot run.
    """

    help: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    sizes: ClassVar[Iterable[str]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add the options of this benchmark alone."""
        if self.sizes:
            parser.add_argument(
                "--size", choices=self.sizes, default="124M", help="model, with drawn weights (default: 124M)"
            )

    def run(self, arguments: "argparse.Namespace") -> Iterable[dict[str, Any]]:
        """Run all candidates in turn.

        Yields:
            Each report, ready for JSON, as soon as it is complete.

        Raises:
            ValueError: a candidate fails or does other work, or an option is wrong.
        """
        raise NotImplementedError

    def describe_machine(self, arguments: "argparse.Namespace") -> dict[str, Any]:
        """Return the entry `machine` of a report, to be taken before the run."""
        return describe_machine(self.packages, arguments.threads)
