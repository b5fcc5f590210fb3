"""Serve a local page on which you draw a loose box on a photo and watch it tighten.

    iounet-demo --weights runs/bccd/model_final.pth photo.jpg more_photos/

Open the printed address in a browser. You can also drop photos on the page. The page loads nothing from the network,
and photos do not leave this machine. Press Ctrl-C to stop the server.
"""

import argparse
import sys

from ..demo import address_of, make_server
from ..errors import UserError
from ..refiner import IoURefiner
from ..refiner.results import find_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by iounet-train")
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="image files or folders to choose from")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 picks a free port (default: 8000)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 or auto: a GPU if available (default: auto)"
    )
    args = parser.parse_intermixed_args()
    try:
        photos = find_images(args.photos) if args.photos else []
        refiner = IoURefiner.from_checkpoint(args.weights, args.device)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    try:
        server = make_server(refiner, photos, args.host, args.port)
    except (OSError, OverflowError) as error:
        sys.exit(f"cannot listen on {args.host}:{args.port} ({error}); choose another --port or --host")
    with server:
        try:
            print(f"open {address_of(server)} in a browser; press Ctrl-C to stop", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
