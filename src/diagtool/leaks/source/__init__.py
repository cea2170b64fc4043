"""Source checks: what the source of the frames says about a finding. Parsed, never imported or run."""
