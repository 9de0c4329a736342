"""Where pools come from: one small file per kind of source, all of them giving `candidate.Candidate` rows."""
