"""`python -m ddm COMMAND`, and `ddm COMMAND` once installed."""

import importlib
import sys

from ddm import __version__, cli
from ddm.commands import settings
from ddm.errors import nearest

# command -> its module in ddm/commands, its settings, what it does. The module is imported after the flags are parsed.
COMMANDS = {
    "condense": ("condense", settings.DDMSettings, "condense a data set under the complete objective"),
    "coreset": ("coreset", settings.CoresetRunSettings, "choose real images instead: the baselines"),
    "continual": ("continual", settings.ContinualSettings, "class-incremental learning from a condensed memory"),
    "evaluate": ("evaluate", settings.EvaluateSettings, "score saved sets on any networks"),
    "export": ("export", settings.ExportSettings, "convert a set to pictures, arrays, safetensors, ..."),
    "score": ("score", settings.ScoreSettings, "score a set as DD-Ranking does"),
    "report": ("report", settings.ReportSettings, "one HTML page about runs"),
    "collect": ("collect_results", settings.CollectSettings, "one table of many runs"),
    "prepare": ("prepare_data", settings.PrepareSettings, "bring a data set into a store"),
}


def main(argv: list[str] | None = None) -> None:
    """Dispatch to a command; exits with status 2 for an unknown one."""
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
    cli.main(cls, lambda own: importlib.import_module(f"ddm.commands.{module}").run(own), rest, f"ddm {command}")


if __name__ == "__main__":
    main()
