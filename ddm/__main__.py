"""`python -m ddm COMMAND`; after installation also `ddm COMMAND`."""

import importlib
import sys

from ddm import __version__, cli
from ddm.commands import settings
from ddm.errors import nearest

# command -> module in ddm/commands, settings, description. The module is imported after the flags are parsed.
COMMANDS = {
    "condense": ("condense", settings.DDMSettings, "condense a data set under the complete objective"),
    "coreset": ("coreset", settings.CoresetRunSettings, "select real images: the baselines"),
    "continual": ("continual", settings.ContinualSettings, "class-incremental learning from a condensed memory"),
    "evaluate": ("evaluate", settings.EvaluateSettings, "evaluate saved sets on any networks"),
    "export": ("export", settings.ExportSettings, "convert a set to pictures, arrays, safetensors, ..."),
    "score": ("score", settings.ScoreSettings, "compute the DD-Ranking scores of a set"),
    "report": ("report", settings.ReportSettings, "write one HTML page about runs"),
    "collect": ("collect_results", settings.CollectSettings, "write one table of many runs"),
    "prepare": ("prepare_data", settings.PrepareSettings, "convert a data set into a store"),
}


def main(argv: list[str] | None = None) -> None:
    """Run a command; exit with status 2 for an unknown one."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help"):
        print(f"{__doc__}\n")
        for name, (_, _, text) in COMMANDS.items():
            print(f"  {name:<10} {text}")
        print("\n`ddm COMMAND --help` explains a command's flags; `ddm --version` prints the version.")
        return
    if command == "--version":
        print(f"ddm {__version__}")
        return
    if command not in COMMANDS:
        print(f"error: unknown command {command!r}: {nearest(command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module, cls, _ = COMMANDS[command]
    cli.main(cls, lambda parsed: importlib.import_module(f"ddm.commands.{module}").run(parsed), rest, f"ddm {command}")


if __name__ == "__main__":
    main()
