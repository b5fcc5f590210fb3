"""The command iounet-refine for a checkout; see iounet/commands/refine.py and --help."""

from iounet.commands.refine import main

if __name__ == "__main__":
    main()
