"""Campaigns: many trials with one question, and what they answer."""

from leakcheck.campaigns.leaks import LeaksOptions, leaks
from leakcheck.campaigns.result import Campaign, Criterion, Finding

__all__ = ["Campaign", "Criterion", "Finding", "LeaksOptions", "leaks"]
