"""The command iounet-train for a checkout; see iounet/commands/train.py and --help."""

from iounet.commands.train import main

if __name__ == "__main__":
    main()
