"""The command iounet-tighten for a clone of the repository; see iounet/commands/tighten.py."""

from iounet.commands.tighten import main

if __name__ == "__main__":
    main()
