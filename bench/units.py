"""Factors between units of time, under names that say both."""

NS_PER_S = 1e9
NS_PER_MS = 1e6
US_PER_MS = 1e3
