"""A page about a run that stands alone: curve, speakers, words and transcripts before and after."""
