"""Tests: log."""
