"""Compares a live namespace with the plan, for check, plan, show and doctor. Changes nothing."""
