"""Draw boxes before and after refinement."""

from .changes import BoxChange, changes_sheet, draw_box_change, most_changed
from .drawing import contact_sheet
from .refinement import draw_refinement
from .tightening import animation, before_and_after, save_animation

__all__ = [
    "BoxChange",
    "animation",
    "before_and_after",
    "changes_sheet",
    "contact_sheet",
    "draw_box_change",
    "draw_refinement",
    "most_changed",
    "save_animation",
]
