"""What the runs say about the claims of the paper: measures, their errors, and verdicts."""
