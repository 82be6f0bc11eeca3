"""Images that models are shown."""

from __future__ import annotations

# A PNG of 28 x 28, which is what the projector of ``tests.model_files`` takes without scaling.
RED_SQUARE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAIAAAD9b0jDAAAAJElEQVR42mM4ISdHdcQwauiooaOGjho6auiooaOGjh"
    "o6MgwFADx0HG40RxQOAAAAAElFTkSuQmCC"
)
