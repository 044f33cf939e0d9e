"""Readings: tell what the policy and the heads say of texts that are given."""
