"""The measured numbers of README.md, guides and pages about the method; see figures_of_results.py."""

FIGURES: dict = {
    "README.md": [],
    "docs/guides/tighten.md": [],
    "docs/guides/deploy.md": [],
    "docs/guides/coco.md": [],
    "docs/guides/refine.md": [],
    "docs/method/energy.md": [],
    "prroi_pool/README.md": [],
}
ALLOWED: dict = {}
