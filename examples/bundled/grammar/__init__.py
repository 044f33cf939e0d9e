"""Grammar: writes the conversations that the bundled policy learns from."""

from __future__ import annotations
