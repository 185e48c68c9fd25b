"""Metrics, intervals, churn."""
