"""The command `plinius`, and `python -m plinius`."""

import signal


def run() -> None:
    """Run the command line.

    Until a command runs, Ctrl-C ends the process at once: an interrupt in the middle of an import
    would show a traceback. (`Refusals` then lets commands catch it.)
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from plinius.cli.main import main

    main()


if __name__ == "__main__":
    run()
