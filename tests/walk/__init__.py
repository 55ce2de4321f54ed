"""Tests: walk."""
