"""The command iounet-refine for a clone of the repository; see iounet/commands/refine.py."""

from iounet.commands.refine import main

if __name__ == "__main__":
    main()
