"""One file a measure: ask a target several times, and turn the raw answers into a report."""
