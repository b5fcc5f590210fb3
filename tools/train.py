"""The command iounet-train for a clone of the repository; see iounet/commands/train.py."""

from iounet.commands.train import main

if __name__ == "__main__":
    main()
