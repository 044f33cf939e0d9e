"""The script that writes the conversations the bundled policy learns from."""

from __future__ import annotations
