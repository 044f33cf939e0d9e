"""Grammar: writes the conversations that the toy policy learns from."""

from __future__ import annotations
