"""The command iounet-tighten for a checkout; see iounet/commands/tighten.py and --help."""

from iounet.commands.tighten import main

if __name__ == "__main__":
    main()
